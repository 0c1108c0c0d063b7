//! Handshakes that wait for answers: in any order, some to their end, some dropped, some panicking, none in the way of another; and
//! their stacks are large enough.

use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use ringlock::buffers::{Outbox, SendPool};
use ringlock::crypto::{CryptoOp, CryptoResult, inline, suspend};
use ringlock::limits::SUSPENDED_STACK_BYTES;
use ringlock::snapshot::Snapshot;
use ringlock::tls::handshake::Connection;
use ringlock::tls::{Outboxes, Step, Tls};
use ringlock_hsm::custody::Custody;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, SupportedProtocolVersion};

/// A gateway's configuration, and whom its clients trust.
struct Site {
    snapshot: Snapshot,
    certificate: CertificateDer<'static>,
}

impl Site {
    /// With this key, and `tls` in its `[listener.tls]`.
    fn new(key: &KeyPair, tls: &str) -> Site {
        let certificate = rcgen::CertificateParams::new(vec!["site.example".to_owned()]).unwrap();
        let certificate = certificate.self_signed(key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("site.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("site.key"), key.serialize_pem()).unwrap();
        let text = format!(
            "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
             [listener.tls]\n{tls}\n\
             [[identity]]\nname = \"site\"\ncertificate = \"site.pem\"\nkey = \"site.key\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:2\"]\n"
        );
        let (config, _) = ringlock::config::parse(&text, &folder.path().join("ringlock.toml")).unwrap();
        Site {
            snapshot: Snapshot::load(config, 1, None, &mut Custody::without_signers()).unwrap(),
            certificate: certificate.der().clone(),
        }
    }

    fn p256() -> Site {
        Site::new(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), "")
    }

    fn client(&self, version: &'static SupportedProtocolVersion, groups: &[NamedGroup]) -> ClientConnection {
        let mut provider = aws_lc_rs::default_provider();
        let known = aws_lc_rs::ALL_KX_GROUPS;
        let find = |name: &NamedGroup| known.iter().copied().find(|group| group.name() == *name).unwrap();
        provider.kx_groups = groups.iter().map(find).collect();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        ClientConnection::new(Arc::new(config), ServerName::try_from("site.example").unwrap()).unwrap()
    }
}

/// Both ends of a connection.
struct Pair {
    client: ClientConnection,
    server: Connection,
    /// From the client, not used up yet.
    received: Vec<u8>,
    sealed: Outbox,
    plain: Outbox,
    pool: SendPool,
}

/// Where the server stands.
enum Stage {
    Waits(CryptoOp),
    Established,
    Failed,
}

impl Pair {
    fn new(site: &Site, version: &'static SupportedProtocolVersion, groups: &[NamedGroup]) -> Pair {
        Pair {
            client: site.client(version, groups),
            server: Connection::accept(&site.snapshot.listeners[0].policy),
            received: Vec::new(),
            sealed: Outbox::default(),
            plain: Outbox::default(),
            pool: SendPool::default(),
        }
    }

    /// Carries bytes to and fro until the server waits, or the handshake is over.
    fn run(&mut self) -> Stage {
        for _ in 0..16 {
            while self.client.wants_write() {
                self.client.write_tls(&mut self.received).unwrap();
            }
            let mut outboxes = Outboxes {
                plain: &mut self.plain,
                sealed: &mut self.sealed,
                pool: &mut self.pool,
            };
            let (used, step) = self.server.handshake(&mut self.received, &mut outboxes);
            self.received.drain(..used);
            let mut answer = Vec::new();
            while let Some(buffer) = self.sealed.take() {
                answer.extend_from_slice(buffer.pending());
                let sent = buffer.len();
                self.sealed.returned(buffer, sent, &mut self.pool);
            }
            let mut answer = &answer[..];
            while !answer.is_empty() {
                self.client.read_tls(&mut answer).unwrap();
                self.client.process_new_packets().unwrap();
            }
            match step {
                Step::NeedsInput => {}
                Step::Crypto(op) => return Stage::Waits(op),
                Step::Established => {
                    assert!(!self.client.is_handshaking());
                    return Stage::Established;
                }
                Step::Failed(_) => return Stage::Failed,
            }
        }
        panic!("the handshake does not end");
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// What becomes of a handshake that waits for its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Finishes,
    /// As when the client hangs up, or the timeout or the drain comes.
    IsDropped,
    /// An answer that no engine gives makes the call panic.
    Panics,
    /// The key could not be used.
    IsRefused,
}

fn fates() -> impl Strategy<Value = Vec<(Fate, usize)>> {
    let fate = prop_oneof![
        3 => Just(Fate::Finishes),
        1 => Just(Fate::IsDropped),
        1 => Just(Fate::Panics),
        1 => Just(Fate::IsRefused),
    ];
    prop::collection::vec((fate, any::<usize>()), 64)
}

fn is_signature(op: &CryptoOp) -> bool {
    matches!(op, CryptoOp::Sign { .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Sixty-four at once, answered in an order that is drawn.
    #[test]
    fn each_comes_to_its_own_end(fates in fates()) {
        let site = Site::p256();
        suspend::allow(true);
        let mut waiting: Vec<_> = fates
            .iter()
            .enumerate()
            .map(|(number, fate)| {
                let mut pair = Pair::new(&site, VERSIONS[number % 2], &[NamedGroup::X25519]);
                let Stage::Waits(op) = pair.run() else { panic!("it waits") };
                (pair, op, *fate)
            })
            .collect();
        while !waiting.is_empty() {
            let at = waiting[0].2.1 % waiting.len();
            let (mut pair, op, (fate, turn)) = waiting.swap_remove(at);
            let answer = match fate {
                _ if !is_signature(&op) => inline::run(&op),
                Fate::Finishes => inline::run(&op),
                Fate::IsDropped => continue,
                Fate::Panics => CryptoResult::KeyExchange(Err(rustls::Error::General("not what was asked for".into()))),
                Fate::IsRefused => CryptoResult::Signature(Err(rustls::Error::General("no such key".into()))),
            };
            pair.server.crypto_done(answer);
            match pair.run() {
                Stage::Waits(op) => waiting.push((pair, op, (fate, turn / 7))),
                Stage::Established => prop_assert_eq!(fate, Fate::Finishes),
                Stage::Failed => prop_assert!(fate == Fate::Panics || fate == Fate::IsRefused, "{fate:?}"),
            }
        }
        prop_assert_eq!(suspend::waiting(), 0);
    }
}

#[test]
fn a_server_that_waits_takes_no_answer_for_another_question() {
    let site = Site::p256();
    suspend::allow(true);
    let mut pair = Pair::new(&site, VERSIONS[0], &[NamedGroup::X25519]);
    let Stage::Waits(exchange) = pair.run() else {
        panic!("it waits")
    };
    pair.server.crypto_done(inline::run(&exchange));
    let Stage::Waits(signature) = pair.run() else {
        panic!("it waits")
    };
    assert!(is_signature(&signature));
    // More bytes, and calls without an answer, change nothing.
    assert!(pair.received.is_empty() || suspend::waiting() == 1);
    pair.server.crypto_done(inline::run(&signature));
    assert!(matches!(pair.run(), Stage::Established));
    // Late answers find nobody.
    pair.server.crypto_done(inline::run(&signature));
    assert_eq!(suspend::waiting(), 0);
}

/// A quarter of the stack stays unused, whatever is computed on it: signatures that wait, and key exchanges, which are computed there
/// after a HelloRetryRequest.
#[test]
fn every_handshake_fits_its_stack() {
    suspend::allow(true);
    let keys = [
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096).unwrap(),
    ];
    let groups = [NamedGroup::X25519MLKEM768, NamedGroup::secp256r1, NamedGroup::secp384r1];
    for (key, group) in keys.iter().flat_map(|key| groups.map(|group| (key, group))) {
        let site = Site::new(key, &format!("min_version = \"1.3\"\ngroups = [\"{group:?}\"]"));
        let mut pair = Pair::new(&site, VERSIONS[0], &[NamedGroup::X25519, group]);
        let mut signatures = 0;
        while let Stage::Waits(op) = pair.run() {
            assert!(is_signature(&op), "rustls asks for another group first");
            signatures += 1;
            pair.server.crypto_done(inline::run(&op));
        }
        assert_eq!(signatures, 1);
        assert!(!pair.client.is_handshaking());
        let used = suspend::stack_high_water();
        eprintln!("{:?}, {group:?}: {used} bytes so far", key.algorithm());
        assert!(used > 1000, "{used}: nothing ran on a stack");
        assert!(used < SUSPENDED_STACK_BYTES * 3 / 4, "{used}");
    }
}
