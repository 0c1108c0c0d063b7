//! Attacks on a connection behind its handshake: rustls does that, and then hands out the keys.

use std::fmt::{self, Formatter};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use rustls::crypto::hash::HashAlgorithm;
use rustls::{ClientConfig, ClientConnection, ExtractedSecrets, KeyLog, SupportedCipherSuite};
use rustls_pki_types::ServerName;
use zeroize::Zeroizing;

use super::hello::outgoing;
use super::protection::{Form, Protection, TrafficSecret, verify_data};
use super::records::{ALERT, CHANGE_CIPHER_SPEC, HANDSHAKE, HEADER, Records};
use super::script::{Next, Script, alert_name};
use crate::error::PerfError;

/// What is done again and again over an established connection.
pub(super) trait Repeated {
    /// Which way of the mode this is.
    fn variant(&self) -> &'static str;

    /// As [`Script::ready`].
    fn ready(&mut self, keys: &mut Keys, out: &mut Vec<u8>) -> Next;

    /// A record has come, with this type and payload.
    fn received(&mut self, record: (u8, &[u8]), keys: &mut Keys, out: &mut Vec<u8>) -> Next;

    /// How often it was done.
    fn messages(&self) -> u64;
}

/// The keys of an established connection.
pub(super) struct Keys {
    /// From the server.
    pub(super) incoming: Protection,
    /// To the server.
    pub(super) outgoing: Protection,
    /// What the keys follow from.
    pub(super) origin: Origin,
}

/// What keys follow from, and what else needs it.
pub(super) enum Origin {
    /// TLS 1.2: the client's verify_data.
    Tls12(Vec<u8>),
    /// TLS 1.3: both traffic secrets.
    Tls13 {
        /// Of what the server sends.
        server: TrafficSecret,
        /// Of what the client sends.
        client: TrafficSecret,
    },
}

/// One connection.
pub(super) struct EstablishedScript<R> {
    phase: Phase,
    records: Records,
    alert: Option<String>,
    repeated: R,
}

enum Phase {
    Handshaking(Box<Handshaking>),
    Established(Box<Keys>),
    /// The handshake has failed, or the server has sent what cannot be opened: its end is waited for.
    Over,
}

impl<R: Repeated> EstablishedScript<R> {
    /// Begins a handshake; then does what is `repeated`.
    pub(super) fn new(config: &ClientConfig, name: &ServerName<'static>, repeated: R) -> Result<Self, PerfError> {
        Ok(Self {
            phase: Phase::Handshaking(Box::new(Handshaking::new(config, name)?)),
            records: Records::default(),
            alert: None,
            repeated,
        })
    }

    fn record(&mut self, record: &[u8], out: &mut Vec<u8>) -> Next {
        match &mut self.phase {
            Phase::Over => Next::Wait,
            Phase::Handshaking(handshaking) => match handshaking.record(record, out) {
                Ok(true) => match std::mem::replace(&mut self.phase, Phase::Over) {
                    Phase::Handshaking(handshaking) => self.establish(*handshaking, out),
                    Phase::Established(_) | Phase::Over => Next::Wait,
                },
                Ok(false) => Next::Wait,
                Err(rustls::Error::AlertReceived(alert)) => {
                    self.alert = Some(alert_name(u8::from(alert)));
                    self.phase = Phase::Over;
                    Next::Wait
                }
                Err(_) => Next::Done("handshake_failed"),
            },
            Phase::Established(keys) => {
                let Some((kind, payload)) = keys.incoming.open(record) else {
                    return Next::Done("unreadable");
                };
                if let (ALERT, [_, description]) = (kind, payload.as_slice()) {
                    self.alert = Some(alert_name(*description));
                }
                self.repeated.received((kind, &payload), keys, out)
            }
        }
    }

    fn establish(&mut self, handshaking: Handshaking, out: &mut Vec<u8>) -> Next {
        let Some(mut keys) = handshaking.keys() else {
            return Next::Done("handshake_failed");
        };
        // What is left of the handshake is in front.
        let next = self.repeated.ready(&mut keys, out);
        self.phase = Phase::Established(Box::new(keys));
        next
    }
}

impl<R: Repeated> Script for EstablishedScript<R> {
    fn variant(&self) -> &'static str {
        self.repeated.variant()
    }

    fn ready(&mut self, out: &mut Vec<u8>) -> Next {
        match &mut self.phase {
            Phase::Handshaking(handshaking) => handshaking.flight(out),
            Phase::Established(keys) => self.repeated.ready(keys, out),
            Phase::Over => Next::Wait,
        }
    }

    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
        self.records.push(bytes);
        while let Some(record) = self.records.next() {
            match self.record(&record, out) {
                end @ (Next::Done(_) | Next::Reset) => return end,
                Next::Send | Next::SendThenPause | Next::Wait => {}
            }
        }
        Next::Wait
    }

    fn alert(&self) -> Option<String> {
        self.alert.clone()
    }

    fn messages(&self) -> u64 {
        self.repeated.messages()
    }
}

/// rustls at work.
struct Handshaking {
    tls: ClientConnection,
    secrets: Arc<Captured>,
    /// The handshake messages up to the client's Finished, in TLS 1.2.
    transcript: Vec<u8>,
    /// True exactly when the transcript is whole: the client's change_cipher_spec is out.
    sealed: bool,
}

impl Handshaking {
    fn new(config: &ClientConfig, name: &ServerName<'static>) -> Result<Self, PerfError> {
        let secrets = Arc::new(Captured::default());
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        config.key_log = secrets.clone();
        Ok(Self {
            tls: ClientConnection::new(Arc::new(config), name.clone())?,
            secrets,
            transcript: Vec::new(),
            sealed: false,
        })
    }

    /// What is to be sent.
    fn flight(&mut self, out: &mut Vec<u8>) -> Next {
        let bytes = outgoing(&mut self.tls);
        if bytes.is_empty() {
            return Next::Wait;
        }
        let mut records = Records::default();
        records.push(&bytes);
        while let Some(record) = records.next() {
            self.sealed |= record[0] == CHANGE_CIPHER_SPEC;
            self.note(&record);
        }
        out.extend(bytes);
        Next::Send
    }

    /// True when the handshake is complete.
    fn record(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<bool, rustls::Error> {
        self.note(record);
        let mut left = record;
        while !left.is_empty() {
            let read = self.tls.read_tls(&mut left);
            read.map_err(|error| rustls::Error::General(error.to_string()))?;
            let processed = self.tls.process_new_packets();
            self.flight(out);
            processed?;
        }
        Ok(!self.tls.is_handshaking())
    }

    fn note(&mut self, record: &[u8]) {
        if record[0] == HANDSHAKE && !self.sealed {
            self.transcript.extend_from_slice(&record[HEADER..]);
        }
    }

    fn keys(self) -> Option<Keys> {
        let Handshaking {
            tls,
            secrets,
            transcript,
            ..
        } = self;
        let suite = tls.negotiated_cipher_suite()?;
        let ExtractedSecrets { tx, rx } = tls.dangerous_extract_secrets().ok()?;
        let (form, origin) = match suite {
            SupportedCipherSuite::Tls12(suite) => {
                let sha384 = suite.common.hash_provider.algorithm() == HashAlgorithm::SHA384;
                let algorithm = if sha384 { hmac::HMAC_SHA384 } else { hmac::HMAC_SHA256 };
                let master = secrets.labelled("CLIENT_RANDOM")?;
                (Form::Tls12, Origin::Tls12(verify_data(algorithm, &master, &transcript)))
            }
            SupportedCipherSuite::Tls13(_) => {
                let secret = |label, keys| TrafficSecret::new(&secrets.labelled(label)?, keys);
                let origin = Origin::Tls13 {
                    server: secret("SERVER_TRAFFIC_SECRET_0", &rx.1)?,
                    client: secret("CLIENT_TRAFFIC_SECRET_0", &tx.1)?,
                };
                (Form::Tls13, origin)
            }
        };
        Some(Keys {
            incoming: Protection::new(form, &rx)?,
            outgoing: Protection::new(form, &tx)?,
            origin,
        })
    }
}

/// The secrets of one connection, by the labels of key logs. They are written nowhere.
#[derive(Default)]
struct Captured(Mutex<Vec<(String, Zeroizing<Vec<u8>>)>>);

impl Captured {
    fn labelled(&self, label: &str) -> Option<Zeroizing<Vec<u8>>> {
        let captured = self.0.lock().expect("nothing panics while it is locked");
        let found = captured.iter().find(|(of, _)| of == label)?;
        Some(found.1.clone())
    }
}

impl KeyLog for Captured {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut captured = self.0.lock().expect("nothing panics while it is locked");
        captured.push((label.to_owned(), Zeroizing::new(secret.to_vec())));
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured").finish_non_exhaustive()
    }
}
