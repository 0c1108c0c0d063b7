//! What clients would refuse, and files that others can read or replace, are warned of by `ringlock check` and at the start, with
//! what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::*;

fn mistake(name: &str) -> String {
    format!("certificate = \"PKI/mistakes/{name}.pem\"\nkey = \"PKI/mistakes/{name}.key\"")
}

const SITE_OF_PKI: &str = "certificate = \"PKI/server/p256.pem\"\nkey = \"PKI/server/p256.key\"";

#[track_caller]
fn warned(ran: &Ran, parts: &[&str]) {
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let told = ran
        .stderr
        .lines()
        .any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(told, "no line with {parts:?}: {ran:?}");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn certificates_in_order_are_not_warned_of() {
    let pki = Pki::new();
    for kind in ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"] {
        let ran = pki.check(&format!(
            "certificate = \"PKI/server/{kind}.pem\"\nkey = \"PKI/server/{kind}.key\""
        ));
        assert!(ran.stdout.contains("no errors, no warnings"), "{kind}: {ran:?}");
    }
}

#[test]
fn each_mistake_of_a_certificate_is_a_warning() {
    let pki = Pki::new();
    for (name, parts) in [
        (
            "wrong-order",
            [
                "CN=Ringlock test root, then CN=Ringlock test intermediate, then CN=p256.example",
                "the leaf first",
            ],
        ),
        ("with-stranger", ["not sent: CN=sha1.example", "remove them"]),
        (
            "leaf-only",
            [
                "has the leaf only, and not its issuer CN=Ringlock test intermediate",
                "http://ca.example/intermediate.der",
            ],
        ),
        ("expired", ["has expired 3 days ago", "renew it"]),
        (
            "not-yet-valid",
            ["is not valid yet, for another 1 day", "check the clock"],
        ),
        (
            "no-san",
            [
                "no DNS name (subjectAltName) and only the common name \"no-san.example\"",
                "names that clients use",
            ],
        ),
        ("client-usage", ["is not for servers, but for clientAuth", "serverAuth"]),
        ("ca-as-leaf", ["is of a CA", "for this server"]),
        ("sha1", ["can be forged (ecdsa-with-SHA1)", "SHA-256"]),
    ] {
        let ran = pki.check(&mistake(name));
        warned(&ran, &["identity \"site\": certificate: ", parts[0], parts[1]]);
        assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:?}");
    }
    let full = pki.file("mistakes/fullchain.pem");
    std::fs::copy(pki.file("server/p256.pem"), &full).unwrap();
    warned(
        &pki.check(&mistake("leaf-only")),
        &["has the leaf only", &format!("use {}", full.display())],
    );
}

#[test]
fn a_key_that_is_too_short_is_refused() {
    let ran = Pki::new().check(&mistake("rsa1024"));
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("RSA of 2,048 to 8,192 bits"), "{ran:?}");
}

#[test]
fn the_same_name_twice_is_a_warning_unless_the_kinds_of_keys_differ() {
    let pki = Pki::new();
    let check = |second: &str| {
        let mut served = vec![pki.served("site", SITE_OF_PKI)];
        let identity = format!("[[identity]]\nname = \"second\"\n{second}\n");
        served[0].toml = served[0].toml.replace("[\"site\"]", "[\"site\", \"second\"]")
            + &identity.replace("PKI", pki.file("").to_str().unwrap().trim_end_matches('/'));
        pki.check_all(&served)
    };
    let ran = check("certificate = \"PKI/formats/combined.pem\"");
    let parts = [
        "listener \"site\": identities",
        "\"second\" has the name p256.example",
        "identity \"site\", which comes first",
    ];
    warned(&ran, &parts);
    let ran = check("certificate = \"PKI/server/rsa2048.pem\"\nkey = \"PKI/server/rsa2048.key\"");
    assert!(
        ran.stdout.contains("no errors, no warnings"),
        "both have the name localhost: {ran:?}"
    );
}

#[test]
fn a_route_for_a_name_that_no_identity_has_is_a_warning() {
    let pki = Pki::new();
    let check = |sni: &str| {
        let mut served = vec![pki.served("site", SITE_OF_PKI)];
        let route = format!("routes = [{{ sni = \"{sni}\", upstream = \"other\" }}]\n[[identity]]");
        served[0].toml = served[0].toml.replace("[[identity]]", &route)
            + "[[upstream]]\nname = \"other\"\nservers = [\"127.0.0.1:10\"]\n";
        pki.check_all(&served)
    };
    warned(
        &check("api.example"),
        &[
            "listener \"site\": routes",
            "no identity of the listener has the name api.example",
            "add an identity",
        ],
    );
    for covered in ["p256.example", "*.example"] {
        let ran = check(covered);
        assert!(ran.stdout.contains("no errors, no warnings"), "{covered}: {ran:?}");
    }
}

#[test]
fn files_that_others_can_read_or_replace_are_warnings() {
    let pki = Pki::new();
    let (key, folder) = (pki.file("server/p256.key"), pki.file("server"));
    set_mode(&key, 0o640);
    let ran = pki.check(SITE_OF_PKI);
    assert!(
        ran.stdout.contains("no errors, no warnings"),
        "a group is no others: {ran:?}"
    );
    set_mode(&key, 0o644);
    let chmod = format!("chmod o= {}", key.display());
    warned(
        &pki.check(SITE_OF_PKI),
        &["identity \"site\": key: others than owner and group can read", &chmod],
    );
    set_mode(&key, 0o600);
    set_mode(&folder, 0o777);
    let chmod = format!("chmod o-w {}", folder.display());
    warned(&pki.check(SITE_OF_PKI), &["can put another file in the place", &chmod]);
}

#[test]
fn a_key_that_the_user_of_the_gateway_may_not_read_is_a_warning() {
    let pki = Pki::new();
    assert!(rustix::process::geteuid().is_root(), "only root becomes another user");
    let mut served = vec![pki.served("site", SITE_OF_PKI)];
    served[0].toml.insert_str(0, "[global]\nuser = \"nobody\"\n");
    let key = pki.file("server/p256.key").display().to_string();
    warned(
        &pki.check_all(&served),
        &["user \"nobody\" may not read", &key, "a reload will fail", "chgrp"],
    );
}
