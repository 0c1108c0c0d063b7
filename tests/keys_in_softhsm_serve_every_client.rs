//! Keys of every kind in SoftHSM: every client gets through, by every signature scheme that such a key has.

use crate::support::multibuffer;

use crate::support::*;

both_drivers!(
    openssl_is_served_by_every_scheme,
    curl_gets_pages,
    python_gets_through,
    rustls_gets_through,
    a_client_that_can_verify_none_of_a_keys_schemes_is_refused,
);

/// Kinds with the names of their identities.
const KINDS: [(KeyKind, &str); 5] = [
    (KeyKind::Ecdsa, "p256.example"),
    (KeyKind::P384, "p384.example"),
    (KeyKind::Ed25519, "ed25519.example"),
    (KeyKind::Rsa, "rsa2048.example"),
    (KeyKind::Rsa3072, "rsa3072.example"),
];

/// Schemes in openssl's words, and the digest and the type that it tells of them.
type Scheme = (&'static str, Option<&'static str>, &'static str);

const PSS: [Scheme; 3] = [
    ("rsa_pss_rsae_sha256", Some("SHA256"), "RSA-PSS"),
    ("rsa_pss_rsae_sha384", Some("SHA384"), "RSA-PSS"),
    ("rsa_pss_rsae_sha512", Some("SHA512"), "RSA-PSS"),
];
const PKCS1: [Scheme; 3] = [
    ("rsa_pkcs1_sha256", Some("SHA256"), "RSA"),
    ("rsa_pkcs1_sha384", Some("SHA384"), "RSA"),
    ("rsa_pkcs1_sha512", Some("SHA512"), "RSA"),
];

fn schemes(kind: KeyKind, version: &str) -> Vec<Scheme> {
    match kind {
        KeyKind::Ecdsa => vec![("ecdsa_secp256r1_sha256", Some("SHA256"), "ECDSA")],
        KeyKind::P384 => vec![("ecdsa_secp384r1_sha384", Some("SHA384"), "ECDSA")],
        KeyKind::Ed25519 => vec![("ed25519", None, "ed25519")],
        KeyKind::Rsa | KeyKind::Rsa3072 | KeyKind::Rsa4096 => match version {
            "-tls1_2" => [PSS, PKCS1].concat(),
            _ => PSS.to_vec(),
        },
    }
}

/// Runs `clients` against a gateway without and one with the batch's library, and checks that every handshake had its signature from
/// the token. `clients` tells how many there were.
fn served(io: Io, origin: &Origin, clients: impl Fn(&Gateway) -> u64) {
    let hsm = SoftHsm::new("edge");
    let engines = ["off".to_owned()]
        .into_iter()
        .chain(multibuffer::library().map(|path| path.display().to_string()));
    for engine in engines {
        let setup = Setup::new(io, &[origin.address()])
            .no_identities()
            .workers(2)
            .token(&hsm, "sessions = 4")
            .more(&format!("[crypto]\nmultibuffer = {engine:?}"));
        // Each gateway has a CA of its own, and keys with names of their own.
        let number = if engine == "off" { "first" } else { "second" };
        let setup = KINDS.into_iter().fold(setup, |setup, (kind, name)| {
            setup.token_identity(&hsm, &format!("{number}-{name}"), &[name], kind)
        });
        let gateway = setup.start();
        let handshakes = clients(&gateway);
        let metrics = gateway.wait_until_quiet();
        let of = |name, labels: &[(&str, &str)]| metrics.count(name, labels);
        let signed = of(
            "ringlock_key_requests_total",
            &[("group", "edge"), ("result", "signed")],
        );
        assert_eq!(signed, handshakes, "{}", metrics.text());
        assert_eq!(of("ringlock_key_requests_total", &[]), handshakes, "{}", metrics.text());
        assert_eq!(of("ringlock_key_wrong_signatures_total", &[]), 0);
        assert_eq!(of("ringlock_key_signing_seconds_count", &[]), handshakes);
    }
}

fn openssl_is_served_by_every_scheme(io: Io) {
    served(io, &Origin::echo(), |gateway| {
        let mut handshakes = 0;
        for (kind, name) in KINDS {
            for version in ["-tls1_3", "-tls1_2"] {
                for (scheme, digest, kind) in schemes(kind, version) {
                    let strict = ["-verify_return_error", "-verify_hostname", name, "-servername", name];
                    let flags = [&strict[..], &[version, "-sigalgs", scheme]].concat();
                    let mut client = Program::start("openssl", &s_client_arguments(gateway, &flags));
                    client.send(b"there and back\n");
                    client.wait_for("there and back");
                    let said = client.finish().ok().says("Verify return code: 0 (ok)").text();
                    let kind = format!("Peer signature type: {kind}\n");
                    // Versions of openssl differ in how they write Ed25519.
                    let has = said.to_lowercase().contains(&kind.to_lowercase());
                    assert!(has, "{version} {scheme}: no {kind:?} in {said}");
                    if let Some(digest) = digest {
                        let digest = format!("Peer signing digest: {digest}\n");
                        assert!(said.contains(&digest), "{version} {scheme}: no {digest:?} in {said}");
                    }
                    handshakes += 1;
                }
            }
        }
        handshakes
    });
}

fn curl_gets_pages(io: Io) {
    served(io, &Origin::http("a page of the origin"), |gateway| {
        let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
        for (_, name) in KINDS {
            for versions in [["--tlsv1.3", "--tls-max", "1.3"], ["--tlsv1.2", "--tls-max", "1.2"]] {
                let (resolve, url) = (format!("{name}:{port}:{ip}"), format!("https://{name}:{port}/"));
                let fixed = ["--silent", "--show-error", "--fail", "--cacert", ca.to_str().unwrap()];
                let target = ["--resolve", &resolve, &url];
                let got = run("curl", &[&fixed[..], &versions, &target].concat(), b"").ok();
                assert_eq!(got.stdout, "a page of the origin");
            }
        }
        2 * KINDS.len() as u64
    });
}

/// Ten threads for each name and version, at the same time.
const PYTHON: &str = r#"
import socket, ssl, sys, threading
ip, port, ca, *names = sys.argv[1:]
failures = []
def client(name, version):
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = context.maximum_version = version
        plain = socket.create_connection((ip, int(port)), timeout=30)
        with context.wrap_socket(plain, server_hostname=name) as tls:
            tls.sendall(b"there and back")
            got = b""
            while len(got) < 14:
                got += tls.recv(14) or sys.exit("the stream ended early")
            assert got == b"there and back"
            tls.unwrap()
    except BaseException as error:
        failures.append(f"{name}: {error!r}")
versions = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
threads = [threading.Thread(target=client, args=(name, version)) for name in names for version in versions * 10]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit("\n".join(failures)) if failures else print(len(threads))
"#;

fn python_gets_through(io: Io) {
    served(io, &Origin::echo(), |gateway| {
        let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
        let ca = gateway.ca.file();
        let fixed = [&ip, &port, ca.to_str().unwrap()];
        let names = KINDS.map(|(_, name)| name);
        let said = python(PYTHON, &[&fixed[..], &names].concat());
        said.trim().parse().unwrap()
    });
}

fn rustls_gets_through(io: Io) {
    served(io, &Origin::echo(), |gateway| {
        for (_, name) in KINDS {
            let client = Client::new(gateway).name(name);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for client in [client.clone().tls12(), client.clone().tls13()] {
                            try_exchange(&client).unwrap_or_else(|error| panic!("{name}: {error}\n{}", gateway.log()));
                        }
                    });
                }
            });
        }
        2 * 8 * KINDS.len() as u64
    });
}

/// The token is not even asked.
fn a_client_that_can_verify_none_of_a_keys_schemes_is_refused(io: Io) {
    served(io, &Origin::echo(), |gateway| {
        for (name, schemes) in [
            ("p256.example", "ecdsa_secp384r1_sha384"),
            ("p384.example", "ecdsa_secp256r1_sha256"),
            ("ed25519.example", "rsa_pss_rsae_sha256"),
        ] {
            let flags = ["-tls1_3", "-sigalgs", schemes, "-servername", name];
            // Another identity of the listener would do, but has not this name.
            let ran = run("openssl", &s_client_arguments(gateway, &flags), b"");
            let refused = !ran.status.success() && ran.text().contains("handshake failure");
            assert!(refused, "{name} {schemes}: {ran:#?}");
        }
        0
    });
}
