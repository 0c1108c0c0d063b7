//! `certificates = "dir/"`: every pair in a folder is an identity.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::*;

both_drivers!(
    every_pair_is_served_by_its_name,
    keys_of_a_folder_may_be_behind_the_signer,
    a_reload_takes_what_has_come_and_leaves_what_has_gone,
    what_changes_in_it_is_noticed_and_one_broken_pair_holds_up_no_other,
);

/// One listener with all of the folder.
fn gateway(io: Io, origin: &Origin, pki: &Pki, lines: &str) -> (Gateway, Served) {
    let served = pki.served("all", &format!("certificates = \"PKI/folder\"\n{lines}"));
    let gateway = Setup::new(io, &[origin.address()]).more(&served.toml).start();
    (gateway, served)
}

#[track_caller]
fn serves(pki: &Pki, served: &Served, name: &str) {
    let ran = pki.openssl(served.address, name);
    assert!(ran.text().contains("Verify return code: 0 (ok)"), "{name}: {ran:?}");
}

fn every_pair_is_served_by_its_name(io: Io) {
    let (origin, pki) = (Origin::echo(), Pki::new());
    let (gateway, served) = gateway(io, &origin, &pki, "");
    for name in ["p256.example", "rsa2048.example", "p384.example"] {
        serves(&pki, &served, name);
    }
    let metrics = gateway.metrics();
    for identity in ["all/certbot.example", "all/haproxy.pem", "all/nginx.crt"] {
        let name = "ringlock_certificate_not_after_seconds";
        assert!(metrics.has(name, &[("identity", identity)]), "{}", metrics.text());
    }
    // The first by name is the default.
    let ran = pki.openssl(served.address, "unknown.example");
    assert!(ran.text().contains("CN = p384.example"), "{ran:?}");
}

fn keys_of_a_folder_may_be_behind_the_signer(io: Io) {
    let (origin, pki) = (Origin::echo(), Pki::new());
    std::fs::remove_file(pki.file("folder/haproxy.pem")).unwrap();
    let (gateway, served) = gateway(io, &origin, &pki, "key_isolation = \"process\"");
    for name in ["rsa2048.example", "p384.example"] {
        serves(&pki, &served, name);
    }
    let labels = [("group", "files"), ("result", "signed")];
    assert_eq!(gateway.metrics().count("ringlock_key_requests_total", &labels), 2);
}

fn a_reload_takes_what_has_come_and_leaves_what_has_gone(io: Io) {
    let (origin, pki) = (Origin::echo(), Pki::new());
    let (gateway, served) = gateway(io, &origin, &pki, "");
    std::fs::remove_file(pki.file("folder/haproxy.pem")).unwrap();
    for extension in ["pem", "key"] {
        let from = pki.file(&format!("server/ed25519.{extension}"));
        std::fs::copy(from, pki.file(&format!("folder/new.{extension}"))).unwrap();
    }
    reload(&gateway);
    eventually("the new pair", || {
        let ran = pki.openssl(served.address, "ed25519.example");
        ran.text().contains("Verify return code: 0 (ok)").then_some(())
    });
    let gone = pki.openssl(served.address, "p256.example");
    assert!(gone.text().contains("CN = p384.example"), "the default: {gone:?}");
}

/// In the folder itself and in a folder of it, as certbot has them.
fn what_changes_in_it_is_noticed_and_one_broken_pair_holds_up_no_other(io: Io) {
    let (origin, pki) = (Origin::echo(), Pki::new());
    let served = pki.served("all", "certificates = \"PKI/folder\"");
    let setup = Setup::new(io, &[origin.address()]).global("watch_files = true");
    let gateway = setup.more(&served.toml).start();
    let put = |from: &str, to: &str| std::fs::copy(pki.file(from), pki.file(to)).unwrap();
    let served_as = |name: &str| {
        eventually(name, || {
            let ran = pki.openssl(served.address, name);
            ran.text().contains("Verify return code: 0 (ok)").then_some(())
        });
    };
    std::fs::write(pki.file("folder/haproxy.pem"), "broken").unwrap();
    for extension in ["pem", "key"] {
        put(
            &format!("server/ed25519.{extension}"),
            &format!("folder/new.{extension}"),
        );
    }
    served_as("ed25519.example");
    put("server/rsa3072.pem", "folder/certbot.example/fullchain.pem");
    put("server/rsa3072.key", "folder/certbot.example/privkey.pem");
    served_as("rsa3072.example");
    let failed = [("result", "failed"), ("trigger", "file")];
    wait_for_metric(&gateway, "ringlock_configuration_reloads_total", &failed, 1.0);
    serves(&pki, &served, "p256.example");
    put("formats/combined.pem", "folder/haproxy.pem");
    wait_for_metric(&gateway, "ringlock_configuration_last_reload_successful", &[], 1.0);
    serves(&pki, &served, "p256.example");
}

#[test]
fn a_broken_pair_is_refused_with_its_file_and_the_others_are_not() {
    let pki = Pki::new();
    std::fs::copy(pki.file("server/p384.key"), pki.file("folder/nginx.key")).unwrap();
    std::fs::copy(pki.file("server/p256.pem"), pki.file("folder/lonely.pem")).unwrap();
    let ran = pki.check("certificates = \"PKI/folder\"");
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let place = "identity \"site\": certificates: found ";
    let [lonely, nginx] = lines[..] else { panic!("{ran:?}") };
    assert!(
        lonely.contains(place) && lonely.contains("a certificate without its key"),
        "{lonely}"
    );
    assert!(lonely.contains("folder/lonely.pem"), "{lonely}");
    assert!(nginx.contains(place) && nginx.contains("does not belong"), "{nginx}");
    assert!(nginx.contains("folder/nginx.key"), "{nginx}");
}

#[test]
fn the_same_reason_is_told_some_times_and_then_counted() {
    let pki = Pki::new();
    std::fs::remove_dir_all(pki.file("folder")).unwrap();
    std::fs::create_dir(pki.file("folder")).unwrap();
    for number in 10..35 {
        for extension in ["pem", "key"] {
            let from = pki.file(&format!("mistakes/expired.{extension}"));
            std::fs::copy(from, pki.file(&format!("folder/{number}.{extension}"))).unwrap();
        }
    }
    let ran = pki.check("certificates = \"PKI/folder\"");
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let count = |text: &str| ran.stderr.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("has expired 3 days ago"), 10, "{ran:?}");
    assert_eq!(count("15 more certificates in"), 1, "{ran:?}");
    assert_eq!(count("which comes first"), 10, "{ran:?}");
    assert_eq!(count("14 more identities have a name of another"), 1, "{ran:?}");
}

#[test]
fn a_folder_that_is_none_or_empty_is_refused() {
    let pki = Pki::new();
    std::fs::create_dir(pki.file("empty")).unwrap();
    for (folder, found) in [
        ("empty", "found no certificate with its key in"),
        ("missing", "found no readable folder (No such file"),
        ("passphrase", "found no readable folder (Not a directory"),
    ] {
        let ran = pki.check(&format!("certificates = \"PKI/{folder}\""));
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(ran.stderr.contains(found), "{folder}: {ran:?}");
        assert!(ran.stderr.contains("docs/certificates.md"), "{ran:?}");
    }
}

#[test]
fn a_folder_that_others_can_write_into_is_a_warning() {
    let pki = Pki::new();
    let folder = pki.file("folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o757)).unwrap();
    let ran = pki.check("certificates = \"PKI/folder\"");
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(
        ran.stderr.contains("can put another file in the place of this one"),
        "{ran:?}"
    );
}
