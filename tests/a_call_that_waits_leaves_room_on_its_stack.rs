//! How much of its stack a call of rustls uses that can be left in the middle, with everything that a handshake may ask for.

use std::sync::Arc;

use crate::support::*;
use ::aws_lc_rs::signature::{KeyPair, ML_DSA_44_SIGNING, ML_DSA_87_SIGNING, PqdsaKeyPair};
use ringlock::buffers::{Outbox, SendPool};
use ringlock::crypto::suspend::Progress;
use ringlock::crypto::{CryptoOp, inline, suspend, verifier};
use ringlock::limits::SUSPENDED_STACK_BYTES;
use ringlock::snapshot::Snapshot;
use ringlock::tls::handshake::Connection;
use ringlock::tls::{Outboxes, Step, Tls};
use ringlock_hsm::custody::Custody;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tempfile::TempDir;

/// A quarter stays free: frames differ between compilers and processors.
const USED_MAX: usize = SUSPENDED_STACK_BYTES / 4 * 3;

const CONFIG: &str = r#"
    [[listener]]
    name = "edge"
    address = "127.0.0.1:8443"
    identities = ["site"]
    upstream = "app"

    [listener.client_auth]
    mode = "optional"
    ca = "clients.pem"
    crl = ["clients.crl"]
    allow = ["cn:a client", "issuer:CN=nobody", "spki:sha256/yCa1Au8hCVkFSpGJBGIPOjNMWNKl8rQI2sXxdmYuUaA="]
    deny = ["serial:01@CN=nobody", "o:Nobody"]

    [[identity]]
    name = "site"
    certificate = "site.pem"
    key = "site.key"

    [[upstream]]
    name = "app"
    servers = ["127.0.0.1:8080"]
"#;

/// How often a handshake has asked, by what.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    exchanges: usize,
    signatures: usize,
    verifications: usize,
}

/// A handshake in memory, of which every question is answered outside of the call; what the client has received when it is over.
fn handshake(snapshot: &Snapshot, mut client: ClientConnection) -> (Asked, Result<(), rustls::Error>) {
    let mut asked = Asked::default();
    let mut pool = SendPool::default();
    let (mut plain, mut sealed) = (Outbox::default(), Outbox::default());
    let mut server = Connection::accept(&snapshot.listeners[0].policy);
    let mut over = false;
    while !over || client.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut at = 0;
        loop {
            let mut outboxes = Outboxes {
                plain: &mut plain,
                sealed: &mut sealed,
                pool: &mut pool,
            };
            let (used, step) = server.handshake(&mut flight[at..], &mut outboxes);
            at += used;
            match step {
                Step::Crypto(op) => {
                    match op {
                        CryptoOp::KeyExchange { .. } => asked.exchanges += 1,
                        CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } => asked.signatures += 1,
                        CryptoOp::Verify(_) => asked.verifications += 1,
                    }
                    server.crypto_done(inline::run(&op));
                }
                Step::NeedsInput => break,
                Step::Established | Step::Failed(_) => {
                    over = true;
                    break;
                }
            }
        }
        while let Some(buffer) = sealed.take() {
            let mut bytes = buffer.pending();
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                if let Err(error) = client.process_new_packets() {
                    return (asked, Err(error));
                }
            }
            let length = buffer.len();
            sealed.returned(buffer, length, &mut pool);
        }
    }
    (asked, Ok(()))
}

struct Case {
    name: &'static str,
    key: KeyKind,
    version: &'static SupportedProtocolVersion,
    groups: Vec<NamedGroup>,
    shown: Option<Shown>,
    accepted: bool,
    asked: Asked,
}

#[test]
fn every_kind_of_handshake_leaves_room() {
    let folder = TempDir::new().unwrap();
    let ca = Ca::new(folder.path());
    let root = Authority::root("clients");
    std::fs::write(folder.path().join("clients.pem"), root.pem()).unwrap();
    let below = root.below("below", KeyKind::Ecdsa);
    let asked = |exchanges, signatures, verifications| Asked {
        exchanges,
        signatures,
        verifications,
    };
    let mlkem = vec![NamedGroup::X25519MLKEM768];
    let x25519 = vec![NamedGroup::X25519];
    // Of the first the client sends a share, and the server does not know it.
    let retried = vec![NamedGroup::MLKEM1024, NamedGroup::X25519MLKEM768];
    let mut deep = root.below("one", KeyKind::P384);
    // webpki goes no deeper.
    let mut lists = vec![root.list(&[]), below.list(&[]), deep.list(&[])];
    for name in ["two", "three", "four", "five", "six"] {
        deep = deep.below(name, KeyKind::P384);
        lists.push(deep.list(&[]));
    }
    let lists: String = lists.iter().map(|list| pem_of_list(list)).collect();
    std::fs::write(folder.path().join("clients.crl"), lists).unwrap();
    let case = |name, key, version, groups: &Vec<NamedGroup>, shown: Option<Shown>, asked| Case {
        name,
        key,
        version,
        groups: groups.clone(),
        shown,
        accepted: true,
        asked,
    };
    let p256 = KeyKind::Ecdsa;
    // Verified are the certificates, a revocation list for each of them, and what the client has signed.
    let cases = [
        case("no certificate", p256, &TLS13, &x25519, None, asked(1, 1, 0)),
        case("TLS 1.2", p256, &TLS12, &x25519, None, asked(0, 1, 0)),
        case("ML-KEM", p256, &TLS13, &mlkem, None, asked(1, 1, 0)),
        case(
            "ML-KEM after a HelloRetryRequest",
            p256,
            &TLS13,
            &retried,
            None,
            asked(0, 1, 0),
        ),
        case("RSA-4096", KeyKind::Rsa4096, &TLS13, &mlkem, None, asked(1, 1, 0)),
        case(
            "one certificate",
            p256,
            &TLS13,
            &x25519,
            Some(root.client()),
            asked(1, 1, 3),
        ),
        case(
            "an intermediate",
            p256,
            &TLS13,
            &x25519,
            Some(below.client()),
            asked(1, 1, 5),
        ),
        case(
            "the same in TLS 1.2",
            p256,
            &TLS12,
            &x25519,
            Some(below.client()),
            asked(0, 1, 5),
        ),
        case(
            "six intermediates of P-384",
            p256,
            &TLS13,
            &mlkem,
            Some(deep.client_with(KeyKind::P384, |_| {})),
            asked(1, 1, 15),
        ),
        case(
            "RSA-4096 below P-256",
            p256,
            &TLS13,
            &mlkem,
            Some(below.client_with(KeyKind::Rsa4096, |_| {})),
            asked(1, 1, 5),
        ),
        Case {
            accepted: false,
            ..case(
                "signed by another",
                p256,
                &TLS13,
                &mlkem,
                Some(below.client().signing_as(&root.client())),
                asked(1, 1, 5),
            )
        },
        Case {
            accepted: false,
            ..case(
                "unknown",
                p256,
                &TLS13,
                &mlkem,
                Some(Authority::root("others").client()),
                asked(1, 1, 0),
            )
        },
    ];
    for Case {
        name,
        key,
        version,
        groups,
        shown,
        accepted,
        asked,
    } in cases
    {
        ca.issue("site", &[SITE], key);
        let (config, _) = ringlock::config::parse(CONFIG, &folder.path().join("ringlock.toml")).unwrap();
        let snapshot = Snapshot::load(config, 1, None, &mut Custody::without_signers()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = groups
            .iter()
            .map(|name| {
                *aws_lc_rs::ALL_KX_GROUPS
                    .iter()
                    .find(|group| group.name() == *name)
                    .unwrap()
            })
            .collect();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some(shown) => builder.with_client_cert_resolver(shown.resolver()),
            None => builder.with_no_client_auth(),
        };
        let client = ClientConnection::new(Arc::new(config), ServerName::try_from(SITE).unwrap()).unwrap();
        // Each thread has stacks of its own, and gives them back.
        let used = std::thread::spawn(move || {
            suspend::allow(true);
            let (counted, result) = handshake(&snapshot, client);
            assert_eq!(result.is_ok(), accepted, "{name}: {result:?}");
            assert_eq!(counted, asked, "{name}");
            suspend::stack_high_water()
        });
        let used = used.join().unwrap();
        assert!(used > 1000, "{used}: nothing ran on a stack");
        println!("{name}: {} KiB of {}", used / 1024, SUSPENDED_STACK_BYTES / 1024);
        assert!(used <= USED_MAX, "{name}: {used} bytes");
    }
}

/// The largest signatures that clients may send are not verified on the stack where they are asked for.
#[test]
fn what_is_large_is_asked_for() {
    for (signing, scheme) in [
        (&ML_DSA_44_SIGNING, SignatureScheme::ML_DSA_44),
        (&ML_DSA_87_SIGNING, SignatureScheme::ML_DSA_87),
    ] {
        let pair = PqdsaKeyPair::generate(signing).unwrap();
        let mut signature = vec![0; signing.signature_len()];
        pair.sign(b"message", &mut signature).unwrap();
        let key = pair.public_key().as_ref().to_vec();
        let mapping = verifier::algorithms().mapping;
        let (_, algorithms) = mapping.iter().find(|(known, _)| *known == scheme).unwrap();
        let algorithm = algorithms[0];
        let used = std::thread::spawn(move || {
            let call = move || algorithm.verify_signature(&key, b"message", &signature).is_ok();
            let Progress::Waits(call, op) = suspend::run(call) else {
                panic!("it asks")
            };
            assert!(matches!(call.resume(inline::run(&op)), Progress::Done(true)));
            suspend::stack_high_water()
        });
        let used = used.join().unwrap();
        assert!(used > 1000, "{used}: nothing ran on a stack");
        println!("{scheme:?}: {} KiB of {}", used / 1024, SUSPENDED_STACK_BYTES / 1024);
        assert!(used <= USED_MAX / 4, "{scheme:?}: {used} bytes");
    }
}
