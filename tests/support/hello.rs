//! TLS bytes made by hand, for what no library would send, and plain answers read.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use rustls::AlertDescription;

/// Type of alert records.
const ALERT: u8 = 21;
/// Type of handshake records.
pub(crate) const HANDSHAKE: u8 = 22;

/// A ClientHello. [`Hello::new`] is one that OpenSSL would have sent years ago; change what a test is about.
pub(crate) struct Hello {
    /// `legacy_version`
    pub(crate) version: u16,
    /// Cipher suites.
    pub(crate) suites: Vec<u16>,
    /// Type and body of each extension.
    pub(crate) extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    /// Suites of TLS 1.2 and before, groups and signature schemes; no `supported_versions`.
    pub(crate) fn new(version: u16) -> Hello {
        Hello {
            version,
            suites: vec![0xc02b, 0xc02f, 0xc009, 0xc013, 0x002f],
            extensions: vec![
                // supported_groups: x25519, secp256r1
                (10, vec![0, 4, 0, 29, 0, 23]),
                // ec_point_formats: uncompressed
                (11, vec![1, 0]),
                // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256, rsa_pkcs1_sha256
                (13, vec![0, 6, 4, 3, 8, 4, 4, 1]),
            ],
        }
    }

    /// With one more extension.
    pub(crate) fn extension(mut self, kind: u16, body: Vec<u8>) -> Hello {
        self.extensions.push((kind, body));
        self
    }

    /// The handshake message.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.push(0);
        let suites: Vec<u8> = self.suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
        push_u16(&mut body, suites.len());
        body.extend(suites);
        body.extend([1, 0]);
        let mut extensions = Vec::new();
        for (kind, content) in &self.extensions {
            extensions.extend(kind.to_be_bytes());
            push_u16(&mut extensions, content.len());
            extensions.extend(content);
        }
        push_u16(&mut body, extensions.len());
        body.extend(extensions);
        let mut message = vec![1, 0];
        push_u16(&mut message, body.len());
        message.extend(body);
        message
    }

    /// The message in one record.
    pub(crate) fn record(&self) -> Vec<u8> {
        record(HANDSHAKE, &self.message())
    }
}

/// A plain record with the version that first records have.
pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 1];
    push_u16(&mut bytes, payload.len());
    bytes.extend(payload);
    bytes
}

fn push_u16(to: &mut Vec<u8>, length: usize) {
    to.extend(u16::try_from(length).expect("it fits its length field").to_be_bytes());
}

/// How the gateway answered somebody who is not (yet) encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alert {
    /// With this fatal alert and the end of the stream.
    Fatal(AlertDescription),
    /// With nothing but the end of the stream.
    Nothing,
    /// With nothing but a RST.
    Reset,
    /// With bytes that are no alert.
    Other(u8),
}

/// Reads to the end of the stream: the answer should be an alert or nothing. A RST after the alert is the end as well.
#[track_caller]
pub(crate) fn read_alert(stream: &mut TcpStream) -> Alert {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let reset = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break false,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
            Err(error) => panic!("no end of the stream: {error}; so far {answer:?}"),
        }
    };
    match answer.as_slice() {
        [] if reset => Alert::Reset,
        [] => Alert::Nothing,
        [ALERT, 3, _, 0, 2, 2, description] => Alert::Fatal(AlertDescription::from(*description)),
        [kind, ..] => Alert::Other(*kind),
    }
}
