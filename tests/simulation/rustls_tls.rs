//! Real TLS: rustls as the client, the gateway's own adapter at the other end.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::{Read, Write};
use std::sync::Arc;

use ringlock::crypto::multibuffer::{P256, Signature};
use ringlock::net::sim::random::Random;
use ringlock::tls::handshake::Connection;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::client::{ClientTls, Heard, Hello};
use super::plan::SITE;

/// See the module.
pub(crate) struct RustlsClient {
    rustls: ClientConnection,
    established: bool,
    closed: bool,
    failed: bool,
}

impl RustlsClient {
    fn flush(&mut self, out: &mut VecDeque<u8>) {
        while self.rustls.wants_write() {
            self.rustls.write_tls(out).expect("a queue takes everything");
        }
    }
}

/// Verifies as rustls does, and knows every nonce that it has seen.
#[derive(Debug)]
struct Witness(Arc<WebPkiServerVerifier>);

thread_local! {
    static NONCES: RefCell<HashSet<[u8; 32]>> = RefCell::default();
}

fn remember(signed: &DigitallySignedStruct) {
    if signed.scheme == SignatureScheme::ECDSA_NISTP256_SHA256 {
        let signature = Signature::<P256>::from_der(signed.signature()).expect("it is in DER");
        let is_new = NONCES.with_borrow_mut(|seen| seen.insert(signature.r));
        assert!(is_new, "two signatures have one nonce");
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        remember(signed);
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        remember(signed);
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ClientTls for RustlsClient {
    type Server = Connection;

    fn new(random: &mut Random, hello: Hello, out: &mut VecDeque<u8>) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in &SITE.certificates {
            roots.add(certificate.clone()).expect("the simulation is set up");
        }
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = match hello {
            Hello::Good => vec![aws_lc_rs::kx_group::X25519],
            // The configuration has X25519 alone.
            Hello::Refused | Hello::BadShare => vec![aws_lc_rs::kx_group::SECP256R1],
        };
        let versions: &[_] = if random.chance(300) {
            &[&rustls::version::TLS12]
        } else {
            &[&rustls::version::TLS13]
        };
        let provider = Arc::new(provider);
        let believes = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("the simulation is set up")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Witness(believes.build().expect("the simulation is set up"))))
            .with_no_client_auth();
        let name = ServerName::try_from("site.example").expect("the simulation is set up");
        let mut client = RustlsClient {
            rustls: ClientConnection::new(Arc::new(config), name).expect("the simulation is set up"),
            established: false,
            closed: false,
            failed: false,
        };
        client.flush(out);
        client
    }

    fn receive(&mut self, mut bytes: &[u8], out: &mut VecDeque<u8>) -> Vec<Heard> {
        let mut heard = Vec::new();
        while !bytes.is_empty() && !self.failed {
            self.rustls.read_tls(&mut bytes).expect("the bytes are at hand");
            let state = match self.rustls.process_new_packets() {
                Ok(state) => state,
                Err(rustls::Error::AlertReceived(_)) => {
                    self.failed = true;
                    heard.push(Heard::Alert);
                    break;
                }
                Err(error) => panic!("the gateway's records are not acceptable: {error}"),
            };
            if !self.established && !self.rustls.is_handshaking() {
                self.established = true;
                heard.push(Heard::Established);
            }
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.rustls
                .reader()
                .read_exact(&mut plain)
                .expect("the simulation is set up");
            if !plain.is_empty() {
                heard.push(Heard::Data(plain));
            }
            if state.peer_has_closed() && !self.closed {
                self.closed = true;
                heard.push(Heard::CloseNotify);
            }
        }
        self.flush(out);
        heard
    }

    fn send(&mut self, plain: &[u8], out: &mut VecDeque<u8>) {
        for chunk in plain.chunks(16 * 1024) {
            self.rustls.writer().write_all(chunk).expect("the simulation is set up");
            self.flush(out);
        }
    }

    fn close_notify(&mut self, out: &mut VecDeque<u8>) {
        self.rustls.send_close_notify();
        self.flush(out);
    }

    fn key_update(&mut self, out: &mut VecDeque<u8>) {
        // TLS 1.2 has none.
        let _ = self.rustls.refresh_traffic_keys();
        self.flush(out);
    }
}
