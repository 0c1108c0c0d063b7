//! Revocation lists, the length of chains, and the names of clients: who is refused, and what the client and the log are told.

use std::time::SystemTime;

use crate::support::*;
use rcgen::{
    CertificateParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DistinguishedName, DnType,
    KeyUsagePurpose, SanType,
};
use rustix::process::Signal;
use rustls::AlertDescription as Alert;
use rustls_pki_types::CertificateDer;

both_drivers!(
    what_is_revoked_is_refused,
    without_a_list_in_force_nobody_gets_in,
    the_newest_list_of_a_ca_counts,
    the_path_that_was_verified_counts,
    one_of_the_names_has_to_be_allowed,
    a_reload_revokes,
    other_peoples_clients_are_told,
);

fn what_is_revoked_is_refused(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let root = &files.root;
    let below = root.below("below", KeyKind::P384);
    let deeper = below.below("deeper", KeyKind::Ecdsa);
    let gone = root.below("gone", KeyKind::Ecdsa);
    let (good, bad) = (root.client(), root.client());
    let (good_below, bad_below) = (below.client(), below.client());
    let everything_pem = [
        root.list(&[&bad.chain[0], gone.der()]),
        below.list(&[&bad_below.chain[0]]),
        gone.list(&[]),
        deeper.list(&[]),
    ]
    .map(|list| pem_of_list(&list))
    .concat();
    let gateway = files.with_lists(io, &origin, &[everything_pem.into()]);
    for shown in [&good, &good_below, &deeper.client()] {
        let_in(&gateway, shown);
    }
    refused(&gateway, &bad, Alert::CertificateRevoked, "revoked (serial ");
    refused(&gateway, &bad_below, Alert::CertificateRevoked, "revoked (serial ");
    let of_gone = gone.client();
    refused(
        &gateway,
        &of_gone,
        Alert::CertificateRevoked,
        "below a CA that is revoked (serial ",
    );
    // Each list is verified once: what follows costs a client's two signatures, and the intermediate's.
    let operations = || gateway.metrics().sum("ringlock_crypto_operations_total", &[]);
    let before = operations();
    let client = Client::new(&gateway).shows(&good_below).tls12();
    try_exchange(&client).unwrap();
    gateway.wait_until_quiet();
    assert!(operations() - before <= 4.0, "{}", operations() - before);
    // Who does not hold the key is not told more than who does.
    let stolen = good.clone().signing_as(&bad);
    refused(&gateway, &stolen, Alert::DecryptError, "with a signature that is wrong");
    let strangers = Authority::root("others").client();
    refused(&gateway, &strangers, Alert::UnknownCA, "of an unknown issuer");
}

fn without_a_list_in_force_nobody_gets_in(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let root = &files.root;
    let below = root.below("below", KeyKind::Ecdsa);
    let shown = below.client();
    let now = SystemTime::now();

    // One of DER, one of PEM.
    let both = [root.list(&[]), pem_of_list(&below.list(&[])).into()];
    let_in(&files.with_lists(io, &origin, &both), &shown);

    let of_root = files.with_lists(io, &origin, &[root.list(&[])]);
    let_in(&of_root, &root.client());
    let unknown = "whose revocation is unknown: crl has no list of \"CN=below\"";
    refused(&of_root, &shown, Alert::UnknownCA, unknown);

    let of_below = files.with_lists(io, &origin, &[below.list(&[])]);
    let unknown = "whose revocation is unknown: crl has no list of \"CN=clients\"";
    refused(&of_below, &shown, Alert::UnknownCA, unknown);

    let old = below.list_with(&[], |list| {
        list.this_update = (now - 9 * DAY).into();
        list.next_update = (now - 2 * DAY).into();
    });
    let gateway = files.with_lists(io, &origin, &[root.list(&[]), old]);
    let expired = "whose CA's revocation list (or that of one of its chain) has expired 2 d ago";
    refused(&gateway, &shown, Alert::UnknownCA, expired);
    let_in(&gateway, &root.client());

    // Of a CA with the same name.
    let namesake = Authority::root("clients").list(&[]);
    let gateway = files.with_lists(io, &origin, &[namesake, below.list(&[])]);
    let unsigned = "whose CA has not signed the revocation list with its name";
    refused(&gateway, &shown, Alert::UnknownCA, unsigned);

    let no_signer = root.below_with("no signer", KeyKind::Ecdsa, |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    let gateway = files.with_lists(io, &origin, &[root.list(&[]), no_signer.list(&[])]);
    refused(
        &gateway,
        &no_signer.client(),
        Alert::UnknownCA,
        "whose CA signs its revocation lists and must not",
    );

    let point = |scope| CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint {
            uris: vec!["http://crl.example/clients".into()],
        },
        scope,
    };
    let with_scope = |scope| root.list_with(&[], |list| list.issuing_distribution_point = Some(point(scope)));
    let gateway = files.with_lists(io, &origin, &[with_scope(Some(CrlScope::CaCertsOnly)), below.list(&[])]);
    let_in(&gateway, &shown);
    let nothing = "whose revocation is unknown: no list in crl is about it";
    refused(&gateway, &root.client(), Alert::UnknownCA, nothing);
}

fn the_newest_list_of_a_ca_counts(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let root = &files.root;
    let (now, revoked) = (SystemTime::now(), root.client());
    let new = root.list_with(&[&revoked.chain[0]], |list| list.this_update = now.into());
    let old = root.list_with(&[], |list| list.this_update = (now - DAY).into());
    for lists in [[old.clone(), new.clone()], [new, old]] {
        let gateway = files.with_lists(io, &origin, &lists);
        let_in(&gateway, &root.client());
        refused(&gateway, &revoked, Alert::CertificateRevoked, "revoked (serial ");
    }
}

fn the_path_that_was_verified_counts(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let root = &files.root;
    let one = root.below("one", KeyKind::Ecdsa);
    let two = one.below("two", KeyKind::Ecdsa);
    let clients = [
        root.client(),
        one.client(),
        two.client(),
        two.below("three", KeyKind::Ecdsa).client(),
    ];
    for max in 0..=2 {
        let gateway = files.setup(io, &origin, &format!("verify_depth = {max}")).start();
        for (depth, shown) in clients.iter().enumerate() {
            if depth <= max {
                let_in(&gateway, shown);
            } else {
                let words = format!("with too many CAs between it and one in ca: depth {depth} > {max} (verify_depth)");
                refused(&gateway, shown, Alert::UnknownCA, &words);
            }
        }
        // What is sent besides does not count.
        let others = [one.der(), two.der(), root.der()].map(CertificateDer::clone);
        let more = clients[0]
            .clone()
            .with_chain([clients[0].chain.clone(), others.into()].concat());
        let_in(&gateway, &more);
        // Nor does what is missing.
        let cut = clients[2].clone().with_chain(clients[2].chain[..1].to_vec());
        refused(&gateway, &cut, Alert::UnknownCA, "of an unknown issuer");
    }
    // An intermediate that is trusted by itself ends the path.
    files.write("ca.pem", [root.pem(), two.pem()].concat());
    let gateway = files.setup(io, &origin, "verify_depth = 0").start();
    let_in(&gateway, &clients[2]);
    refused(
        &gateway,
        &clients[1],
        Alert::UnknownCA,
        "with too many CAs between it and one in ca: depth 1 > 0",
    );
}

fn one_of_the_names_has_to_be_allowed(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let named = |common_name: &str, names: Vec<SanType>| {
        files
            .root
            .client_with(KeyKind::Ecdsa, |params: &mut CertificateParams| {
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, common_name);
                params.subject_alt_names = names;
            })
    };
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let email = |name: &str| SanType::Rfc822Name(name.try_into().unwrap());
    let allow = r#"allow = ["spiffe://example.org/ns/prod/*", "uri:https://example.org/a", "dns:*.clients.example.com",
        "email:ops@example.com", "cn:batch-7"]"#;
    let gateway = files.setup(io, &origin, &allow.replace('\n', " ")).start();
    for shown in [
        named("x", vec![uri("spiffe://example.org/ns/prod/sa/web")]),
        named("x", vec![uri("https://example.org/a")]),
        named("x", vec![dns("b.example"), dns("A.clients.EXAMPLE.com")]),
        named("x", vec![email("ops@example.com")]),
        named("batch-7", vec![dns("b.example")]),
    ] {
        let_in(&gateway, &shown);
    }
    for (shown, words) in [
        (named("batch-9", vec![]), r#"not on the allow-list: CN "batch-9""#),
        (
            named(
                "x",
                vec![
                    uri("spiffe://example.org/ns/production/a"),
                    uri("https://example.org/a/b"),
                ],
            ),
            r#"not on the allow-list: CN "x", URI "spiffe://example.org/ns/production/a", URI "https://example.org/a/b""#,
        ),
        (
            named(
                "a.clients.example.com",
                vec![dns("a.b.clients.example.com"), email("batch-7@example.com")],
            ),
            r#"not on the allow-list: CN "a.clients.example.com", DNS "a.b.clients.example.com", email "batch-7@example.com""#,
        ),
        (
            named("batch-7\0.example", vec![dns("a.clients.example.com\0.evil")]),
            r#"not on the allow-list: CN "batch-7\0.example", DNS "a.clients.example.com\0.evil""#,
        ),
    ] {
        refused(&gateway, &shown, Alert::AccessDenied, words);
    }
    // A name is worth what its CA is worth.
    let strangers = Authority::root("others").client_with(KeyKind::Ecdsa, |params| {
        params.distinguished_name.push(DnType::CommonName, "batch-7");
    });
    refused(&gateway, &strangers, Alert::UnknownCA, "of an unknown issuer");
    let line = gateway.log();
    assert!(!line.contains('\0'), "{line:?}");
}

fn reload(gateway: &Gateway, result: &str) {
    let name = "ringlock_configuration_reloads_total";
    let before = gateway.metrics().sum(name, &[("result", result)]);
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, name, &[("result", result)], before + 1.0);
}

fn a_reload_revokes(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let (one, other) = (files.root.client(), files.root.client());
    files.write("clients.crl", files.root.list(&[]));
    let keys = format!("crl = [{:?}]", files.path("clients.crl"));
    let gateway = files.setup(io, &origin, &keys).start();
    let_in(&gateway, &one);

    // What is no list leaves the old one in force.
    let whole = files.root.list(&[&one.chain[0]]);
    files.write("clients.crl", &whole[..whole.len() - 1]);
    reload(&gateway, "failed");
    let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
    let why = line["why"].as_str().unwrap();
    for part in [
        "client_auth.crl[0]: found revocation list 1, which cannot be read (",
        "clients.crl",
    ] {
        assert!(why.contains(part), "{part:?} in {why:?}");
    }
    let_in(&gateway, &one);

    let mut open = Client::new(&gateway).shows(&one).connect();
    files.write("clients.crl", &whole);
    reload(&gateway, "succeeded");
    eventually("the new list", || {
        try_exchange(&Client::new(&gateway).shows(&one)).err()
    });
    // Who is in stays in.
    open.send(b"open before");
    assert_eq!(open.receive(11), b"open before");
    assert!(open.finish().is_empty());
    refused(&gateway, &one, Alert::CertificateRevoked, "revoked (serial ");
    let_in(&gateway, &other);
}

/// openssl and curl say why, and nothing of what they send reaches a server.
fn other_peoples_clients_are_told(io: Io) {
    let origin = Origin::http("a page of the origin");
    let files = ClientFiles::new();
    let below = files.root.below("below", KeyKind::Ecdsa);
    let named = |name: &str| {
        below.client_with(KeyKind::Ecdsa, |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let revoked = named("batch-7");
    files.write("root.crl", files.root.list(&[]));
    files.write("below.crl", pem_of_list(&below.list(&[&revoked.chain[0]])));
    let lists = format!("crl = [{:?}, {:?}]", files.path("root.crl"), files.path("below.crl"));
    let keys = format!("{lists}, verify_depth = 1, allow = [\"cn:batch-7\"]");
    let gateway = files.setup(io, &origin, &keys).start();
    let (address, ca) = (gateway.address.to_string(), gateway.ca.file());
    let (ca, resolve) = (
        ca.to_str().unwrap(),
        format!("{SITE}:{}:{}", gateway.address.port(), gateway.address.ip()),
    );
    let url = format!("https://{SITE}:{}/", gateway.address.port());
    let deep = below.below("deeper", KeyKind::Ecdsa).client();
    for (shown, alert) in [
        (named("batch-7"), None),
        (revoked, Some("certificate revoked")),
        (named("batch-8"), Some("access denied")),
        (deep, Some("unknown ca")),
    ] {
        let (chain, key) = shown.write(files.folder(), "client");
        let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
        for version in ["-tls1_2", "-tls1_3"] {
            let own = ["-cert", chain, "-cert_chain", chain, "-key", key, version];
            let arguments = ["s_client", "-connect", &address, "-servername", SITE, "-CAfile", ca];
            let mut client = Program::start("openssl", &[&arguments[..], &own].concat());
            match alert {
                None => {
                    client.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n").as_bytes());
                    client.wait_for("a page of the origin");
                    client.finish().ok();
                }
                Some(alert) => client.wait_for(&format!("alert {alert}")),
            }
        }
        let own = [
            "--cert",
            chain,
            "--key",
            key,
            "--resolve",
            &resolve,
            "--cacert",
            ca,
            &url,
        ];
        let ran = run("curl", &[&["--silent", "--show-error"][..], &own].concat(), b"");
        match alert {
            None => assert_eq!(ran.ok().stdout, "a page of the origin"),
            Some(alert) => assert!(!ran.status.success() && ran.text().contains(alert), "{ran:?}"),
        }
    }
    assert_eq!(origin.accepted(), 3);
    gateway.wait_until_quiet();
}
