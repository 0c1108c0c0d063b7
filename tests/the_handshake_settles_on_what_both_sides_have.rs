//! Versions, suites, groups and application protocols: what is chosen, and what is refused with which alert.

use crate::support::*;
use rustls::{AlertDescription, CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};

both_drivers!(
    each_of_the_nine_suites_works,
    our_fastest_suite_wins_unless_the_client_puts_chacha20_first,
    a_list_of_suites_is_the_operators_order,
    each_of_the_four_groups_works,
    a_client_without_a_usable_share_is_asked_for_another,
    no_shared_group_or_suite_is_refused,
    the_application_protocol_is_chosen_by_our_order,
    no_shared_application_protocol_is_refused,
    versions_outside_the_limits_are_refused,
    a_client_of_tls_1_0_or_1_1_is_refused_with_its_version,
);

const AES_128: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;
const AES_256: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
const CHACHA: CipherSuite = CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;

#[track_caller]
fn exchange(connection: &mut Connection) {
    connection.send(b"x");
    assert_eq!(connection.receive(1), b"x");
}

fn each_of_the_nine_suites_works(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .identity("rsa", &[SITE], KeyKind::Rsa)
        .start();
    let tls13 = [
        (AES_128, "TLS_AES_128_GCM_SHA256"),
        (AES_256, "TLS_AES_256_GCM_SHA384"),
        (CHACHA, "TLS_CHACHA20_POLY1305_SHA256"),
    ];
    use CipherSuite as S;
    let tls12 = [
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let tls12 = tls12.map(|suite| (suite, format!("{suite:?}")));
    for (suite, name) in tls13
        .map(|(suite, name)| (suite, name.to_owned()))
        .into_iter()
        .chain(tls12)
    {
        let client = Client::new(&gateway).suites(&[suite]);
        let is_tls13 = [AES_128, AES_256, CHACHA].contains(&suite);
        let client = if is_tls13 { client.tls13() } else { client.tls12() };
        let mut connection = client.connect();
        exchange(&mut connection);
        assert_eq!(connection.negotiated().1, suite);
        let version = if is_tls13 { "1.3" } else { "1.2" };
        let labels = [("suite", name.as_str()), ("version", version), ("resumption", "full")];
        assert_eq!(gateway.metrics().count("ringlock_handshakes_total", &labels), 1);
    }
}

/// What this processor has, from the kernel.
fn processor_has(flag: &str) -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = text
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

fn our_fastest_suite_wins_unless_the_client_puts_chacha20_first(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("cipher_suites = \"auto\"")
        .start();
    let fastest = match (processor_has("aes"), processor_has("sha_ni") || processor_has("sha2")) {
        (true, _) => AES_128,
        (false, _) => CHACHA,
    };
    let offer = |suites: &[CipherSuite]| Client::new(&gateway).suites(suites).tls13().connect().negotiated().1;
    assert_eq!(offer(&[AES_256, AES_128, CHACHA]), fastest);
    assert_eq!(offer(&[AES_256, CHACHA, AES_128]), fastest);
    assert_eq!(offer(&[CHACHA, AES_256, AES_128]), CHACHA);
    // Tastes differ in TLS 1.2 as well.
    use CipherSuite as S;
    let [aes_128, aes_256, chacha] = [
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let fastest = if fastest == AES_128 { aes_128 } else { chacha };
    let offer = |suites: &[CipherSuite]| Client::new(&gateway).suites(suites).tls12().connect().negotiated().1;
    assert_eq!(offer(&[aes_256, aes_128, chacha]), fastest);
    assert_eq!(offer(&[chacha, aes_256, aes_128]), chacha);
}

fn a_list_of_suites_is_the_operators_order(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("cipher_suites = [\"TLS_AES_256_GCM_SHA384\", \"TLS_AES_128_GCM_SHA256\"]\nmin_version = \"1.3\"")
        .start();
    let client = Client::new(&gateway).tls13();
    let offer = |suites: &[CipherSuite]| client.clone().suites(suites).connect().negotiated().1;
    assert_eq!(offer(&[AES_128, AES_256]), AES_256);
    assert_eq!(offer(&[CHACHA, AES_128]), AES_128);
    let refused = client.clone().suites(&[CHACHA]).refused_with();
    assert_eq!(refused, AlertDescription::HandshakeFailure);
    gateway.wait_for_cause("no shared cipher suite");
}

fn each_of_the_four_groups_works(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for (group, name) in [
        (NamedGroup::X25519, "X25519"),
        (NamedGroup::secp256r1, "secp256r1"),
        (NamedGroup::secp384r1, "secp384r1"),
        (NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
    ] {
        let client = Client::new(&gateway).groups(&[group]);
        let mut clients = vec![(client.clone().tls13(), "1.3")];
        if group != NamedGroup::X25519MLKEM768 {
            clients.push((client.tls12(), "1.2"));
        }
        for (client, version) in clients {
            let mut connection = client.connect();
            exchange(&mut connection);
            assert_eq!(connection.negotiated().2, group);
            let labels = [("group", name), ("version", version)];
            assert_eq!(gateway.metrics().count("ringlock_handshakes_total", &labels), 1);
        }
    }
}

fn a_client_without_a_usable_share_is_asked_for_another(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("groups = [\"secp384r1\", \"secp256r1\"]")
        .start();
    for (offered, chosen) in [
        (&[NamedGroup::X25519, NamedGroup::secp384r1][..], NamedGroup::secp384r1),
        (
            &[NamedGroup::X25519MLKEM768, NamedGroup::secp256r1],
            NamedGroup::secp256r1,
        ),
    ] {
        let mut connection = Client::new(&gateway).tls13().groups(offered).connect();
        exchange(&mut connection);
        assert_eq!(connection.negotiated().2, chosen);
        assert_eq!(
            connection.tls.handshake_kind(),
            Some(HandshakeKind::FullWithHelloRetryRequest)
        );
    }
    // And OpenSSL, which sends a share for its first group only.
    let arguments = s_client_arguments(&gateway, &["-groups", "X25519:P-384", "-msg"]);
    let ran = run("openssl", &arguments, b"").ok();
    assert_eq!(ran.text().matches("ClientHello").count(), 2, "{ran:#?}");
}

fn no_shared_group_or_suite_is_refused(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("groups = [\"secp384r1\"]")
        .start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let refused = client
            .groups(&[NamedGroup::X25519, NamedGroup::secp256r1])
            .refused_with();
        assert_eq!(refused, AlertDescription::HandshakeFailure);
    }
    gateway.wait_for_cause("no shared group");
    // CBC suites only: openssl offers what we lack.
    let arguments = s_client_arguments(&gateway, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"]);
    let ran = run("openssl", &arguments, b"");
    assert!(!ran.status.success(), "{ran:#?}");
    ran.says("handshake failure");
    gateway.wait_for_cause("no shared cipher suite");
    let metrics = gateway.wait_until_quiet();
    let failures = |cause| metrics.count("ringlock_handshake_failures_total", &[("cause", cause)]);
    assert_eq!((failures("no_shared_group"), failures("no_shared_suite")), (2, 1));
}

fn the_application_protocol_is_chosen_by_our_order(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("alpn = [\"h2\", \"http/1.1\"]")
        .start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        for (offered, chosen) in [
            (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
            (&["spdy/3", "http/1.1"], Some(b"http/1.1")),
            // A client without ALPN is served.
            (&[], None),
        ] {
            let mut connection = client.clone().alpn(offered).connect();
            exchange(&mut connection);
            assert_eq!(connection.tls.alpn_protocol(), chosen, "{offered:?}");
        }
    }
    gateway.wait_for_line("the ALPN", |line| {
        line["message"] == "connection" && line["alpn"] == "h2"
    });
}

fn no_shared_application_protocol_is_refused(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls("alpn = [\"h2\"]").start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let refused = client.alpn(&["http/1.1"]).refused_with();
        assert_eq!(refused, AlertDescription::NoApplicationProtocol);
    }
    gateway.wait_for_cause("no shared application protocol (ALPN)");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.count("ringlock_handshake_failures_total", &[("cause", "no_shared_alpn")]),
        2
    );
}

fn versions_outside_the_limits_are_refused(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls("min_version = \"1.3\"").start();
    assert_eq!(Client::new(&gateway).connect().negotiated().0, ProtocolVersion::TLSv1_3);
    assert_eq!(
        Client::new(&gateway).tls12().refused_with(),
        AlertDescription::ProtocolVersion
    );
    gateway.wait_for_cause("client offers at most TLS 1.2");
    drop(gateway);

    let gateway = Setup::new(io, &[origin.address()]).tls("max_version = \"1.2\"").start();
    assert_eq!(Client::new(&gateway).connect().negotiated().0, ProtocolVersion::TLSv1_2);
    assert_eq!(
        Client::new(&gateway).tls13().refused_with(),
        AlertDescription::ProtocolVersion
    );
    gateway.wait_for_cause("client offers only TLS 1.3");
}

fn a_client_of_tls_1_0_or_1_1_is_refused_with_its_version(io: Io) {
    use std::io::Write;
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for (version, cause) in [
        (0x0300, "client offers only SSL 3.0"),
        (0x0301, "client offers only TLS 1.0"),
        (0x0302, "client offers at most TLS 1.1"),
    ] {
        let mut client = gateway.connect_tcp();
        client.write_all(&Hello::new(version).record()).unwrap();
        assert_eq!(read_alert(&mut client), Alert::Fatal(AlertDescription::ProtocolVersion));
        drop(client);
        gateway.wait_for_cause(cause);
    }
    // The same hand with TLS 1.2 is accepted, so the version it was.
    let mut client = gateway.connect_tcp();
    client.write_all(&Hello::new(0x0303).record()).unwrap();
    assert_eq!(read_first_byte(&mut client), 22, "a ServerHello");
    let metrics = gateway.metrics();
    assert_eq!(
        metrics.count("ringlock_handshake_failures_total", &[("cause", "version_too_old")]),
        3
    );
}

fn read_first_byte(stream: &mut std::net::TcpStream) -> u8 {
    use std::io::Read;
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}
