//! Which identity a client sees: by SNI, and by what it can verify.

use crate::support::*;
use rustls::{AlertDescription, CipherSuite};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

both_drivers!(
    an_exact_name_a_wildcard_and_the_default_are_found,
    a_listener_with_strict_sni_refuses_unknown_and_missing_names,
    openssl_gets_the_certificate_that_its_signature_algorithms_ask_for,
    the_suites_of_tls_1_2_choose_between_ecdsa_and_rsa,
);

const ECDSA: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
const RSA: CipherSuite = CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;

#[track_caller]
fn assert_shown(gateway: &Gateway, connection: &Connection, identity: &str) {
    let file = gateway.folder().join(format!("{identity}.pem"));
    let wanted = CertificateDer::from_pem_file(file).unwrap();
    assert!(
        connection.certificate() == &*wanted,
        "not the certificate of {identity}"
    );
}

fn an_exact_name_a_wildcard_and_the_default_are_found(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .identity("wild", &["*.example.com"], KeyKind::Ecdsa)
        .identity("api", &["api.example.com"], KeyKind::Ecdsa)
        .start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        for (name, identity) in [
            (SITE, "site"),
            ("api.example.com", "api"),
            ("www.example.com", "wild"),
            ("WWW.Example.COM", "wild"),
        ] {
            assert_shown(&gateway, &client.clone().name(name).connect(), identity);
        }
        assert_shown(&gateway, &client.clone().no_name().connect(), "site");
        // A wildcard is one label: the default identity answers, and does not fit the name.
        for unknown in ["a.b.example.com", "example.com", "other.example"] {
            let error = client
                .clone()
                .name(unknown)
                .try_connect()
                .err()
                .expect("the name does not fit");
            assert!(
                error.to_string().contains("certificate not valid for name"),
                "{unknown}: {error}"
            );
        }
    }
}

fn a_listener_with_strict_sni_refuses_unknown_and_missing_names(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("strict_sni = true")
        .start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        client.connect().finish();
        let unknown = client.clone().name("other.example");
        assert_eq!(unknown.refused_with(), AlertDescription::UnrecognisedName);
        assert_eq!(client.no_name().refused_with(), AlertDescription::UnrecognisedName);
    }
    gateway.wait_for_cause("no identity has the name the client asked for (strict_sni)");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.count("ringlock_handshake_failures_total", &[("cause", "unknown_name")]),
        4
    );
}

fn with_both_keys(io: Io, origin: &Origin) -> Gateway {
    Setup::new(io, &[origin.address()])
        .identity("site-rsa", &[SITE], KeyKind::Rsa)
        .start()
}

fn openssl_gets_the_certificate_that_its_signature_algorithms_ask_for(io: Io) {
    let origin = Origin::echo();
    let gateway = with_both_keys(io, &origin);
    let ecdsa = ["Peer signature type: ECDSA", "Server public key is 256 bit"];
    let rsa = ["Peer signature type: RSA-PSS", "Server public key is 2048 bit"];
    let old_rsa = ["Peer signature type: RSA\n", "Server public key is 2048 bit"];
    for (flags, expected) in [
        (["-tls1_3", "-sigalgs", "ECDSA+SHA256"], ecdsa),
        (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], rsa),
        // Both would do: the identity that is configured first.
        (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"], ecdsa),
        (["-tls1_2", "-sigalgs", "ECDSA+SHA256"], ecdsa),
        (["-tls1_2", "-sigalgs", "RSA-PSS+SHA256"], rsa),
        (["-tls1_2", "-sigalgs", "RSA+SHA256"], old_rsa),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], ecdsa),
        (["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"], rsa),
    ] {
        // Unknown names get the default identity, for which the same holds.
        for name in [SITE, "other.example"] {
            // The last name counts.
            let arguments = s_client_arguments(&gateway, &[&flags[..], &["-servername", name]].concat());
            let ran = run("openssl", &arguments, b"").ok();
            for text in expected {
                assert!(ran.text().contains(text), "{flags:?} {name}: no {text:?} in {ran:#?}");
            }
        }
    }
    let nothing = ["-tls1_3", "-sigalgs", "ed25519"];
    let ran = run("openssl", &s_client_arguments(&gateway, &nothing), b"");
    assert!(!ran.status.success(), "{ran:#?}");
    ran.says("handshake failure");
    gateway.wait_for_cause("no certificate fits the client's signature schemes");
    gateway.wait_until_quiet();
}

fn the_suites_of_tls_1_2_choose_between_ecdsa_and_rsa(io: Io) {
    let origin = Origin::echo();
    let gateway = with_both_keys(io, &origin);
    let client = Client::new(&gateway).tls12();
    assert_shown(&gateway, &client.clone().suites(&[ECDSA]).connect(), "site");
    assert_shown(&gateway, &client.clone().suites(&[RSA]).connect(), "site-rsa");
}
