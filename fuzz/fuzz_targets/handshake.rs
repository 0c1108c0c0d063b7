//! Any bytes as the client's side of a handshake, in pieces, whether the server waits for answers or not: no panic, nothing used that
//! was not given, and an end. The first byte says how long the pieces are and whether answers are waited for.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ringlock::buffers::{Outbox, SendPool};
use ringlock::crypto::{CryptoResult, inline, suspend};
use ringlock::tls::handshake::Connection;
use ringlock::tls::policy::Policy;
use ringlock::tls::{Outboxes, Step, Tls};

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is room");
    let key = rcgen::KeyPair::generate().expect("a key pair");
    let params = rcgen::CertificateParams::new(vec!["site.example".to_owned()]).expect("a legal name");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(folder.path().join("site.pem"), certificate.pem()).expect("there is room");
    std::fs::write(folder.path().join("site.key"), key.serialize_pem()).expect("there is room");
    let text = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\nidentities = [\"site\"]\nupstream = \"app\"\n\
                [[identity]]\nname = \"site\"\ncertificate = \"site.pem\"\nkey = \"site.key\"\n\
                [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:2\"]\n";
    let (config, _) = ringlock::config::parse(text, &folder.path().join("ringlock.toml")).expect("it is legal");
    let snapshot =
        ringlock::snapshot::Snapshot::load(config, 1, None, &mut ringlock_hsm::custody::Custody::without_signers())
            .expect("it can be loaded");
    Arc::clone(&snapshot.listeners[0].policy)
});

fuzz_target!(|input: &[u8]| {
    let Some((&how, bytes)) = input.split_first() else {
        return;
    };
    suspend::allow(how & 1 == 1);
    let piece = 1 + usize::from(how >> 1) * 16;
    let mut connection = Connection::accept(&POLICY);
    let (mut plain, mut sealed, mut pool) = (Outbox::default(), Outbox::default(), SendPool::default());
    let mut received = Vec::new();
    'connection: for piece in bytes.chunks(piece) {
        received.extend_from_slice(piece);
        loop {
            let mut outboxes = Outboxes {
                plain: &mut plain,
                sealed: &mut sealed,
                pool: &mut pool,
            };
            let given = received.len();
            let (used, step) = connection.handshake(&mut received, &mut outboxes);
            assert!(used <= given);
            received.drain(..used);
            match step {
                Step::NeedsInput => break,
                // Now and then nobody is there any more.
                Step::Crypto(_) if how == 0xff => connection.crypto_done(CryptoResult::Abandoned),
                Step::Crypto(op) => connection.crypto_done(inline::run(&op)),
                Step::Established | Step::Failed(_) => break 'connection,
            }
        }
    }
    drop(connection);
    assert_eq!(suspend::waiting(), 0);
    while let Some(buffer) = sealed.take() {
        let sent = buffer.len();
        sealed.returned(buffer, sent, &mut pool);
    }
});
