//! A signer with a real module, whose token goes away and comes back.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[allow(dead_code, reason = "every test uses a part of it")]
#[path = "support/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "every test uses a part of it")]
#[path = "support/scripted.rs"]
mod scripted;
#[allow(dead_code, reason = "every test uses a part of it")]
#[path = "support/softhsm.rs"]
mod softhsm;

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use gateway::{Gateway, PATIENCE};
use ringlock_hsm::protocol::{Breaker, Refusal};
use ringlock_hsm::remote::Isolation;
use scripted::place;
use softhsm::with_softhsm;

#[test]
fn softhsm() {
    with_softhsm("softhsm", |softhsm| {
        let pair = rcgen::KeyPair::generate().unwrap();
        let make = || {
            softhsm.make("edge");
            softhsm.import("edge", &pair.serialize_pem(), "site", "01");
        };
        make();
        let mut gateway = Gateway::start(softhsm.load(), Isolation::Process);
        let mut settings = softhsm.settings("edge");
        settings.sessions = 4;
        gateway.token(1, settings);
        let key = gateway.key(1, 1, place("site")).unwrap();
        assert_eq!(key.public, rcgen::PublicKeyData::subject_public_key_info(&pair));
        gateway.serving(1, 4);
        let mut workers: Vec<_> = (0..4).map(|_| gateway.channel()).collect();
        let public = rcgen::PublicKeyData::der_bytes(&pair);
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public);
        // All sessions at the same time.
        for id in 0..50u64 {
            for worker in &mut workers {
                worker.ask(id, 1, PATIENCE, &id.to_le_bytes());
            }
        }
        for worker in &mut workers {
            for _ in 0..50 {
                let (id, signature) = worker.answer().unwrap();
                public.verify(&id.to_le_bytes(), &signature.unwrap()).unwrap();
            }
        }

        softhsm.remove("edge");
        let worker = &mut workers[0];
        let refusal = loop {
            if let Err(refusal) = worker.sign(1, 1, b"away") {
                break refusal;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_ne!(refusal, Refusal::Unknown);
        gateway.status(1, |status| status.breaker == Breaker::Open && status.trouble.is_some());
        make();
        worker.sign_until_it_works(1, b"back");
        let status = gateway.serving(1, 4);
        assert!(status.recoveries > 0 && status.trouble.is_none(), "{status:?}");
        let signature = worker.sign(1, 1, b"back").unwrap();
        public.verify(b"back", &signature).unwrap();
        gateway.end().unwrap();
    });
}
