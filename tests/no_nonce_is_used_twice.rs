//! Two signatures with one nonce give the key away, and the nonce shows in `r`. No `r` comes twice: not from one process, not from
//! what was made ahead, not over a reload or a restart.

use crate::support::multibuffer;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::support::*;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::KeyPair;
use ringlock::crypto::batch::Engine;
use ringlock::crypto::key::Key;
use ringlock::crypto::multibuffer::{Multibuffer, P256, Signature};
use ringlock::crypto::pool::{self, Ahead};
use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// A million signatures from set-ups, over threads as they have a pool each, with pools that run empty, are filled, and get too old.
#[test]
fn a_million_signatures_have_a_million_nonces() {
    const THREADS: usize = 4;
    const SIGNATURES: usize = 250_000;
    let Some(path) = multibuffer::library() else { return };
    let library = Multibuffer::load(Some(&path)).unwrap();
    let engine = Arc::new(Engine::with_library(library).making_ahead(Ahead::ALL));
    let pair = KeyPair::generate().unwrap();
    let key = Key::from_pem(pair.serialize_pem().as_bytes()).unwrap();
    let seen = Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let start = Instant::now();
                let metrics = Arc::default();
                pool::open(&engine, &metrics, start).unwrap();
                let mut numbers = Vec::with_capacity(SIGNATURES);
                for number in 0..SIGNATURES {
                    if number % 1000 < 100 {
                        pool::refill();
                    }
                    if number % 10_000 == 0 {
                        pool::expire(start + ringlock::limits::MADE_AHEAD_AGE_MAX * (number as u32 / 10_000));
                    }
                    let der = pool::sign(&key, SignatureScheme::ECDSA_NISTP256_SHA256, b"the same").unwrap();
                    if number % 1000 == 0 {
                        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key_raw())
                            .verify(b"the same", &der)
                            .unwrap();
                    }
                    numbers.push(Signature::<P256>::from_der(&der).unwrap().r);
                }
                assert!(metrics.made_ahead_used.value() > 0 && metrics.made_ahead_missing.value() > 0);
                assert!(metrics.made_ahead_expired.value() > 0);
                seen.lock().unwrap().extend(numbers);
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap().len(), THREADS * SIGNATURES);
}

/// Believes everything and remembers the signature.
#[derive(Debug, Default)]
struct Witness(Mutex<Vec<u8>>);

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        *self.0.lock().unwrap() = signed.signature().to_vec();
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls12_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

fn nonce_of_a_handshake(gateway: &Gateway) -> io::Result<[u8; 32]> {
    let witness = Arc::new(Witness::default());
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as _)
        .with_no_client_auth();
    let name = ServerName::try_from(SITE).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tcp = gateway.connect_tcp();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    tls.send_close_notify();
    tls.complete_io(&mut tcp)?;
    let signature = witness.0.lock().unwrap();
    Ok(Signature::<P256>::from_der(&signature).unwrap().r)
}

#[test]
fn no_reload_and_no_restart_brings_a_nonce_back() {
    let Some(path) = multibuffer::library() else { return };
    let origin = Origin::echo();
    let mut seen = HashSet::new();
    for io in [Io::Uring, Io::Epoll] {
        let gateway = Setup::new(io, &[origin.address()])
            .workers(2)
            .more(&format!("[crypto]\nmultibuffer = {path:?}\nmade_ahead = \"on\""))
            .start();
        for round in 0..4 {
            for _ in 0..50 {
                let nonce = nonce_of_a_handshake(&gateway).unwrap();
                assert!(seen.insert(nonce), "twice");
            }
            gateway.signal(Signal::HUP);
            let epoch = (round + 2).to_string();
            eventually("the reload", || {
                let metrics = gateway.metrics();
                (metrics.count("ringlock_configuration_epoch", &[]).to_string() == epoch).then_some(())
            });
        }
        let used = |outcome| {
            gateway
                .metrics()
                .count("ringlock_crypto_made_ahead_total", &[("outcome", outcome)])
        };
        assert!(used("used") > 0, "{}", gateway.metrics().text());
    }
    assert_eq!(seen.len(), 400);
}
