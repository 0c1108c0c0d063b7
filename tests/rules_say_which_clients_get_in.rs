//! What `allow` and `deny` say of organizations, keys, issuers and serial numbers, and what may be chosen about revocation lists.

use std::fmt::Write;
use std::time::SystemTime;

use crate::support::*;
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::AlertDescription as Alert;
use rustls_pki_types::CertificateDer;

both_drivers!(
    organizations_keys_and_issuers_are_allowed,
    who_is_denied_stays_out,
    a_serial_number_is_denied_for_one_issuer,
    a_reload_denies_and_ends_sessions,
    only_the_leaf_is_looked_up_where_that_is_enough,
    an_expired_list_may_still_count,
);

fn serial_text(certificate: &CertificateDer<'_>) -> String {
    serial(certificate).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02X}").unwrap();
        text
    })
}

/// By the commands that the manual has.
fn pin(certificate: &CertificateDer<'_>) -> String {
    let command =
        "openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64";
    let digest = run("sh", &["-c", command], pem_of(certificate).as_bytes()).ok().stdout;
    format!("spki:sha256/{}", digest.trim())
}

fn organizations_keys_and_issuers_are_allowed(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let below = files.root.below_with("below", KeyKind::Ecdsa, |params| {
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Müller, Söhne");
    });
    let of = |kind: DnType, name: &str| {
        files
            .root
            .client_with(KeyKind::Ecdsa, |params: &mut CertificateParams| {
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, "a client");
                params.distinguished_name.push(kind, name);
            })
    };
    let (pinned, of_below, nobody) = (files.root.client(), below.client(), files.root.client());
    let issuer = run(
        "openssl",
        &["x509", "-noout", "-issuer", "-nameopt", "rfc2253"],
        pem_of(&of_below.chain[0]).as_bytes(),
    );
    let issuer = issuer.ok().stdout;
    let issuer = issuer.trim_end().strip_prefix("issuer=").unwrap();
    let allow = [
        "o:Example Corp",
        "ou:Payments",
        &pin(&pinned.chain[0]),
        &format!("issuer:{issuer}"),
    ];
    let gateway = files.setup(io, &origin, &format!("allow = {allow:?}")).start();
    for shown in [
        of(DnType::OrganizationName, "Example Corp"),
        of(DnType::OrganizationalUnitName, "Payments"),
        pinned.clone(),
        of_below,
    ] {
        let_in(&gateway, &shown);
    }
    for (shown, words) in [
        (
            of(DnType::OrganizationName, "Example Corp 2"),
            r#"not on the allow-list: CN "a client", O "Example Corp 2", spki ""#,
        ),
        (
            of(DnType::OrganizationalUnitName, "Example Corp"),
            r#"not on the allow-list: CN "a client", OU "Example Corp", spki ""#,
        ),
        (nobody, r#"not on the allow-list: CN "a client", spki ""#),
    ] {
        refused(&gateway, &shown, Alert::AccessDenied, words);
    }
    // The certificate is known to all; the key is not.
    let stolen = pinned.signing_as(&files.root.client());
    refused(&gateway, &stolen, Alert::DecryptError, "with a signature that is wrong");
}

fn who_is_denied_stays_out(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let root = &files.root;
    let named = |name: &str| {
        root.client_with(KeyKind::Ecdsa, |params: &mut CertificateParams| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let [by_serial, by_key] = [(); 2].map(|()| root.below("below", KeyKind::Ecdsa));
    let fine = root.below("below", KeyKind::Ecdsa);
    let (serial_denied, key_denied, name_denied) = (root.client(), root.client(), named("batch-7"));
    let of = |shown: &Shown| format!("serial:{}", serial_text(&shown.chain[0]));
    let (leaf_serial, ca_serial) = (of(&serial_denied), format!("serial:{}", serial_text(by_serial.der())));
    let (leaf_key, ca_key) = (pin(&key_denied.chain[0]), pin(by_key.der()));
    let deny = [&leaf_serial, &leaf_key, "cn:batch-7", &ca_serial, &ca_key];
    // Whoever is allowed and denied is denied.
    let keys = format!("allow = [\"cn:a client\", \"cn:batch-7\"], deny = {deny:?}");
    let gateway = files.setup(io, &origin, &keys).start();
    let_in(&gateway, &root.client());
    let_in(&gateway, &fine.client());
    let denied = |rule: &str| format!("denied: \"{rule}\" (deny)");
    let below = |rule: &str| format!("below a CA that is denied: \"{rule}\" (deny)");
    for (shown, words) in [
        (serial_denied, denied(&leaf_serial.to_lowercase())),
        (key_denied, denied(&leaf_key)),
        (name_denied, denied("cn:batch-7")),
        (by_serial.client(), below(&ca_serial.to_lowercase())),
        (by_key.client(), below(&ca_key)),
    ] {
        refused(&gateway, &shown, Alert::AccessDenied, &words);
    }
    let metrics = gateway.metrics();
    let refused = |reason| metrics.count("ringlock_client_certificates_refused_total", &[("reason", reason)]);
    assert_eq!((refused("denied"), refused("not_allowed")), (10, 0));
}

fn a_serial_number_is_denied_for_one_issuer(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let [one, other] = ["one", "other"].map(|name| files.root.below(name, KeyKind::Ecdsa));
    let numbered = |ca: &Authority| {
        ca.client_with(KeyKind::Ecdsa, |params| {
            params.serial_number = Some(vec![0x8a, 0x1b].into())
        })
    };
    let deny = "deny = [\"serial:8a:1b@CN=one\"]";
    let gateway = files.setup(io, &origin, deny).start();
    refused(
        &gateway,
        &numbered(&one),
        Alert::AccessDenied,
        "denied: \"serial:8a1b@CN=one\"",
    );
    let_in(&gateway, &numbered(&other));
    let_in(&gateway, &one.client());
}

/// For the minute before the list comes.
fn a_reload_denies_and_ends_sessions(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let (one, other) = (files.root.client(), files.root.client());
    let gateway = files.setup(io, &origin, "deny = []").start();
    let client = |shown: &Shown, wallet: &Wallet, version: &str| {
        let client = Client::new(&gateway).shows(shown).wallet(wallet);
        match version {
            "1.2" => client.tls12(),
            _ => client.tls13(),
        }
    };
    let mut wallets = Vec::new();
    for version in ["1.2", "1.3"] {
        for shown in [&one, &other] {
            let wallet = Wallet::new(&gateway.ca);
            assert_eq!(client(shown, &wallet, version).visit(), Visit::Full);
            assert_eq!(client(shown, &wallet, version).visit(), Visit::Resumed);
            wallets.push((version, shown, wallet));
        }
    }
    let serial = serial_text(&one.chain[0]);
    gateway.edit_config("deny = []", &format!("deny = [\"serial:{serial}\"]"));
    reload(&gateway);
    eventually("the new rules", || {
        try_exchange(&Client::new(&gateway).shows(&one)).err()
    });
    for (version, shown, wallet) in &wallets {
        let is_denied = serial_text(&shown.chain[0]) == serial;
        let expected = if is_denied {
            Visit::Refused(Alert::AccessDenied)
        } else {
            Visit::Full
        };
        assert_eq!(client(shown, wallet, version).visit(), expected, "{version}");
    }
    let metrics = gateway.wait_until_quiet();
    // Those that are let in after it are counted.
    assert_eq!(
        metrics.count("ringlock_sessions_declined_total", &[("cause", "crl")]),
        2
    );
    refused(&gateway, &one, Alert::AccessDenied, "denied: \"serial:");
    let_in(&gateway, &other);
}

fn only_the_leaf_is_looked_up_where_that_is_enough(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let [below, gone] = ["below", "gone"].map(|name| files.root.below(name, KeyKind::Ecdsa));
    let revoked = below.client();
    // None of the root, which would say that "gone" is revoked, and none has to be there.
    let lists = [below.list(&[&revoked.chain[0]]), gone.list(&[])];
    let keys = format!("{}, crl_check = \"leaf\"", files.lists(&lists));
    let gateway = files.setup(io, &origin, &keys).start();
    let_in(&gateway, &below.client());
    refused(&gateway, &revoked, Alert::CertificateRevoked, "revoked (serial ");
    let unknown = "whose revocation is unknown: crl has no list of \"CN=clients\"";
    refused(&gateway, &files.root.client(), Alert::UnknownCA, unknown);

    let lists = [files.root.list(&[gone.der()]), below.list(&[]), gone.list(&[])];
    for (check, is_let_in) in [("leaf", true), ("chain", false)] {
        let keys = format!("{}, crl_check = \"{check}\"", files.lists(&lists));
        let gateway = files.setup(io, &origin, &keys).start();
        if is_let_in {
            let_in(&gateway, &gone.client());
        } else {
            let words = "below a CA that is revoked (serial ";
            refused(&gateway, &gone.client(), Alert::CertificateRevoked, words);
        }
    }
}

fn an_expired_list_may_still_count(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let revoked = files.root.client();
    let now = SystemTime::now();
    let old = files.root.list_with(&[&revoked.chain[0]], |list| {
        list.this_update = (now - 9 * DAY).into();
        list.next_update = (now - 2 * DAY).into();
    });
    let lists = files.lists(&[old]);
    for policy in ["accept", "refuse"] {
        let gateway = files
            .setup(io, &origin, &format!("{lists}, crl_expired = \"{policy}\""))
            .start();
        let warning = gateway.wait_for_line("a warning", |line| line["level"] == "WARN");
        let warning = warning.to_string();
        assert!(warning.contains("that has expired"), "{warning}");
        if policy == "accept" {
            assert!(warning.contains("it counts all the same"), "{warning}");
            let_in(&gateway, &files.root.client());
            refused(&gateway, &revoked, Alert::CertificateRevoked, "revoked (serial ");
            // Sessions do not end with a list that has ended before.
            let wallet = Wallet::new(&gateway.ca);
            let client = Client::new(&gateway).shows(&files.root.client()).wallet(&wallet);
            assert_eq!(client.visit(), Visit::Full);
            assert_eq!(client.visit(), Visit::Resumed);
        } else {
            let expired = "whose CA's revocation list (or that of one of its chain) has expired 2 d ago";
            refused(&gateway, &files.root.client(), Alert::UnknownCA, expired);
        }
        let metrics = gateway.metrics();
        let of = |name: &str| metrics.sum(name, &[("listener", "edge"), ("issuer", "CN=clients")]);
        let validity = of("ringlock_crl_next_update_seconds") - of("ringlock_crl_this_update_seconds");
        assert!((validity - (7 * DAY).as_secs_f64()).abs() <= 1.0, "{validity}");
    }
}
