//! TLS sessions: what the gateway counted of them, and those that OpenSSL has saved, read and changed.

use std::net::TcpStream;
use std::path::Path;

use super::{Gateway, Metrics, Program, SITE, eventually, free_address, run};

/// Waits until all connections have ended, and checks how many handshakes were full and how many resumed a session of this
/// kind: `ticket` or `session`. None may have declined anything.
#[track_caller]
pub(crate) fn assert_resumptions(gateway: &Gateway, kind: &str, full: u64, resumed: u64) -> Metrics {
    let metrics = assert_handshakes(gateway, full, resumed);
    assert_eq!(
        metrics.count("ringlock_sessions_accepted_total", &[("kind", kind)]),
        resumed
    );
    let declined = metrics.sum("ringlock_sessions_declined_total", &[]);
    assert_eq!(declined, 0.0, "{}", metrics.text());
    metrics
}

/// Waits until all connections have ended, and checks how many handshakes were full, how many resumed a session, and that none failed.
#[track_caller]
pub(crate) fn assert_handshakes(gateway: &Gateway, full: u64, resumed: u64) -> Metrics {
    let metrics = gateway.wait_until_quiet();
    let count = |how| metrics.sum("ringlock_handshakes_total", &[("resumption", how)]) as u64;
    assert_eq!((count("full"), count("resumed")), (full, resumed), "full and resumed");
    let accepted = metrics.sum("ringlock_sessions_accepted_total", &[]) as u64;
    assert_eq!(accepted, resumed, "sessions accepted and handshakes resumed");
    assert_eq!(metrics.sum("ringlock_handshake_failures_total", &[]), 0.0);
    metrics
}

/// How many sessions of this kind were declined for this cause.
#[track_caller]
pub(crate) fn declined(metrics: &Metrics, kind: &str, cause: &str) -> u64 {
    metrics.count("ringlock_sessions_declined_total", &[("kind", kind), ("cause", cause)])
}

/// A session as `openssl s_client -sess_out` saves it: a sequence in DER.
#[derive(Clone, Debug)]
pub(crate) struct SavedSession {
    /// Tag and content of each element.
    elements: Vec<(u8, Vec<u8>)>,
}

/// Tags of what tests change, each explicit around the value.
const TICKET: u8 = 0xa0 | 10;
const MAX_EARLY_DATA: u8 = 0xa0 | 15;
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;

impl SavedSession {
    /// Reads a file of OpenSSL's.
    #[track_caller]
    pub(crate) fn read(file: &Path) -> SavedSession {
        let der = file.with_extension("der");
        convert(file, "PEM", &der, "DER");
        let bytes = std::fs::read(der).unwrap();
        let (tag, content, rest) = element(&bytes);
        assert!(
            tag == SEQUENCE && rest.is_empty(),
            "a session is a sequence: {bytes:02x?}"
        );
        let mut elements = Vec::new();
        let mut left = content;
        while !left.is_empty() {
            let (tag, content, rest) = element(left);
            elements.push((tag, content.to_owned()));
            left = rest;
        }
        SavedSession { elements }
    }

    /// One that OpenSSL's server has given, with these flags and the certificate of the gateway's identity `site`.
    #[track_caller]
    pub(crate) fn of_openssl(gateway: &Gateway, version: &str, flags: &[&str]) -> SavedSession {
        let address = free_address().to_string();
        let [certificate, key] = ["site.pem", "site.key"].map(|file| gateway.folder().join(file).display().to_string());
        let served = ["-quiet", "-cert", &certificate, "-key", &key, version];
        let _server = Program::start(
            "openssl",
            &[&["s_server", "-accept", &address], &served[..], flags].concat(),
        );
        eventually("openssl to listen", || TcpStream::connect(&address).ok());
        let file = gateway.folder().join("of_openssl.pem");
        let saved = ["-sess_out", file.to_str().unwrap()];
        let target = ["s_client", "-connect", &address, "-servername", SITE, version];
        let client = Program::start("openssl", &[&target[..], &saved].concat());
        eventually("a ticket", || {
            std::fs::metadata(&file).ok().filter(|found| found.len() > 0)
        });
        client.finish();
        SavedSession::read(&file)
    }

    /// Writes it to a file for `-sess_in`.
    #[track_caller]
    pub(crate) fn write(&self, file: &Path) {
        let content: Vec<u8> = self
            .elements
            .iter()
            .flat_map(|(tag, content)| encoded(*tag, content))
            .collect();
        let der = file.with_extension("der");
        std::fs::write(&der, encoded(SEQUENCE, &content)).unwrap();
        convert(&der, "DER", file, "PEM");
    }

    /// Its ticket.
    #[track_caller]
    pub(crate) fn ticket(&self) -> Vec<u8> {
        let (_, content) = self
            .elements
            .iter()
            .find(|(tag, _)| *tag == TICKET)
            .expect("the session has a ticket");
        let (tag, ticket, _) = element(content);
        assert_eq!(tag, OCTET_STRING);
        ticket.to_owned()
    }

    /// The same with another ticket.
    pub(crate) fn with_ticket(&self, ticket: &[u8]) -> SavedSession {
        self.with(TICKET, encoded(OCTET_STRING, ticket))
    }

    /// The same, with a server that would take so much early data, in the client's belief.
    pub(crate) fn with_early_data(&self, bytes: u32) -> SavedSession {
        // A zero in front: an integer is signed.
        let number = [&[0][..], &bytes.to_be_bytes()].concat();
        let first = number.windows(2).take_while(|two| two[0] == 0 && two[1] < 0x80).count();
        self.with(MAX_EARLY_DATA, encoded(INTEGER, &number[first..]))
    }

    /// Its secret: in TLS 1.3 the pre-shared key.
    #[track_caller]
    pub(crate) fn secret(&self) -> Vec<u8> {
        // Behind two version numbers, the suite and the session id.
        let (tag, secret) = &self.elements[4];
        assert_eq!(*tag, OCTET_STRING);
        secret.clone()
    }

    fn with(&self, tag: u8, content: Vec<u8>) -> SavedSession {
        let mut elements = self.elements.clone();
        elements.retain(|(other, _)| *other != tag);
        // Optional elements come in the order of their tags.
        let position = elements.partition_point(|(other, _)| *other < tag);
        elements.insert(position, (tag, content));
        SavedSession { elements }
    }
}

#[track_caller]
fn convert(from: &Path, from_form: &str, to: &Path, to_form: &str) {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let arguments = [
        "sess_id", "-in", from, "-inform", from_form, "-out", to, "-outform", to_form,
    ];
    run("openssl", &arguments, b"").ok();
}

/// Tag and content of the first element, and what follows it.
#[track_caller]
fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (tag, first, rest) = match der {
        [tag, first, rest @ ..] => (*tag, *first, rest),
        _ => panic!("no element: {der:02x?}"),
    };
    let bytes = if first < 0x80 { 0 } else { usize::from(first & 0x7f) };
    let (length, rest) = rest.split_at(bytes);
    let length = match bytes {
        0 => usize::from(first),
        _ => length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)),
    };
    let (content, rest) = rest.split_at(length);
    (tag, content, rest)
}

fn encoded(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("what tests make is shorter");
    let mut der = vec![tag];
    match length {
        0..0x80 => der.push(length.to_be_bytes()[1]),
        0x80.. => {
            der.push(0x82);
            der.extend(length.to_be_bytes());
        }
    }
    der.extend(content);
    der
}
