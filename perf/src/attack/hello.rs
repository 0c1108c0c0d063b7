//! ClientHellos: what rustls sends, and what no library would.

use std::io;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

use super::records::{HANDSHAKE, HEADER, record};
use crate::error::PerfError;
use crate::tls::{name, trust_everything};

/// Version in the headers of first records.
const FIRST_RECORD: [u8; 2] = [3, 1];

/// What many records make together: what fits an extension, and far more than any client sends.
const HUGE: usize = 60 * 1024;

/// The longest message that a handshake header can announce.
const MESSAGE_MAX: usize = (1 << 24) - 1;

/// The longest payload of a record.
const PAYLOAD_MAX: usize = 1 << 14;

/// Type of the padding extension (RFC 7685).
const PADDING: u16 = 21;

/// A configuration that believes every server and resumes nothing. AES only: all of its records can be sealed here.
pub(super) fn config(versions: &[&'static SupportedProtocolVersion]) -> Result<ClientConfig, PerfError> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| name(&suite.suite()).contains("AES"));
    let verifier = trust_everything(&provider);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions)?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What rustls sends first: a ClientHello in one record.
pub(super) fn client_hello(config: ClientConfig, name: &ServerName<'static>) -> Result<Vec<u8>, PerfError> {
    let mut connection = ClientConnection::new(Arc::new(config), name.clone())?;
    Ok(outgoing(&mut connection))
}

/// What a connection has to send.
pub(super) fn outgoing(connection: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        let written: io::Result<usize> = connection.write_tls(&mut bytes);
        written.expect("a Vec takes everything");
    }
    bytes
}

/// The hello of this variant of `huge-hello`, from a usual one in one record.
pub(super) fn huge(variant: &str, usual: &[u8]) -> Vec<u8> {
    let message = &usual[HEADER..];
    match variant {
        "many-records" => in_records(&padded(message, HUGE), 512),
        "one-byte-records" => in_records(message, 1),
        "absurd-message" => {
            // ClientHello, and the length that its three bytes can say.
            let mut endless = vec![1, 0xff, 0xff, 0xff];
            endless.resize(4 + MESSAGE_MAX, 0);
            in_records(&endless, PAYLOAD_MAX)
        }
        "absurd-record" => {
            let mut bytes = vec![HANDSHAKE, 3, 1, 0xff, 0xff];
            bytes.extend(message);
            bytes.resize(HEADER + usize::from(u16::MAX), 0);
            bytes
        }
        "absurd-vector" => {
            let mut wrong = message.to_vec();
            // The length of the session id stands behind type, length, version and random.
            wrong[4 + 2 + 32] = 0xff;
            record(HANDSHAKE, FIRST_RECORD, &wrong)
        }
        other => unreachable!("{other} is not among the mode's variants"),
    }
}

/// A ClientHello with a padding extension in front of the others, so that it has `length` bytes.
fn padded(message: &[u8], length: usize) -> Vec<u8> {
    let extensions = extensions_at(message);
    let padding = length - message.len() - 4;
    let mut body = message[4..extensions].to_vec();
    let block = message.len() - extensions - 2 + 4 + padding;
    push_u16(&mut body, block);
    body.extend(PADDING.to_be_bytes());
    push_u16(&mut body, padding);
    body.resize(body.len() + padding, 0);
    body.extend(&message[extensions + 2..]);
    handshake(1, &body)
}

/// Where the length of the extensions stands.
fn extensions_at(message: &[u8]) -> usize {
    let session_id = 4 + 2 + 32;
    let suites = session_id + 1 + usize::from(message[session_id]);
    let compression = suites + 2 + usize::from(u16::from_be_bytes([message[suites], message[suites + 1]]));
    compression + 1 + usize::from(message[compression])
}

fn in_records(message: &[u8], payload: usize) -> Vec<u8> {
    let records = message.chunks(payload);
    records
        .flat_map(|piece| record(HANDSHAKE, FIRST_RECORD, piece))
        .collect()
}

/// The ClientHello of a renegotiation (RFC 5746 section 3.5) in TLS 1.2, as a message without its record.
pub(super) fn renegotiating(name: &ServerName<'_>, verify_data: &[u8]) -> Vec<u8> {
    // ECDHE with ECDSA and RSA, both AES-GCM; without the SCSV of a first handshake.
    let suites = [0xc02b_u16, 0xc02f, 0xc02c, 0xc030];
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, content: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        push_u16(&mut extensions, content.len());
        extensions.extend_from_slice(content);
    };
    if let ServerName::DnsName(name) = name {
        let name = name.as_ref().as_bytes();
        let mut list = Vec::new();
        push_u16(&mut list, name.len() + 3);
        list.push(0);
        push_u16(&mut list, name.len());
        list.extend_from_slice(name);
        extension(0, &list);
    }
    // supported_groups: x25519, secp256r1; ec_point_formats: uncompressed
    extension(10, &[0, 4, 0, 29, 0, 23]);
    extension(11, &[1, 0]);
    // signature_algorithms: ecdsa_secp256r1_sha256, ecdsa_secp384r1_sha384, rsa_pss_rsae_sha256, rsa_pkcs1_sha256
    extension(13, &[0, 8, 4, 3, 5, 3, 8, 4, 4, 1]);
    // extended_master_secret, which the first handshake had as well
    extension(23, &[]);
    let mut info = vec![u8::try_from(verify_data.len()).expect("verify_data has 12 bytes")];
    info.extend_from_slice(verify_data);
    extension(0xff01, &info);

    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    push_u16(&mut body, suites.len() * 2);
    body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
    body.extend([1, 0]);
    push_u16(&mut body, extensions.len());
    body.extend(extensions);
    handshake(1, &body)
}

/// A handshake message.
fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a hello is shorter than 2^24 bytes");
    let [_, a, b, c] = length.to_be_bytes();
    let mut message = vec![kind, a, b, c];
    message.extend_from_slice(body);
    message
}

fn push_u16(to: &mut Vec<u8>, length: usize) {
    to.extend(u16::try_from(length).expect("it fits its length field").to_be_bytes());
}

#[cfg(test)]
mod tests {
    use rustls::server::Acceptor;
    use rustls::version::{TLS12, TLS13};

    use super::*;

    fn usual() -> Vec<u8> {
        client_hello(config(&[&TLS12, &TLS13]).unwrap(), &"site.example".try_into().unwrap()).unwrap()
    }

    /// What rustls' server makes of it: the name in it, once it is whole.
    fn understood(bytes: &[u8]) -> Result<Option<String>, rustls::Error> {
        let mut acceptor = Acceptor::default();
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if acceptor.read_tls(&mut bytes).is_err() {
                break;
            }
            if let Some(accepted) = acceptor.accept().map_err(|(error, _)| error)? {
                return Ok(accepted.client_hello().server_name().map(str::to_owned));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_hello_in_many_records_is_a_right_one() {
        for variant in ["many-records", "one-byte-records"] {
            let hello = huge(variant, &usual());
            assert_eq!(
                understood(&hello).unwrap().as_deref(),
                Some("site.example"),
                "{variant}"
            );
        }
        assert!(huge("many-records", &usual()).len() > HUGE);
    }

    #[test]
    fn absurd_lengths_are_wrong_or_never_end() {
        assert!(huge("absurd-message", &usual()).len() > MESSAGE_MAX);
        for variant in ["absurd-record", "absurd-vector"] {
            assert!(understood(&huge(variant, &usual())).is_err(), "{variant}");
        }
    }

    #[test]
    fn a_renegotiating_hello_is_well_formed() {
        let message = renegotiating(&"site.example".try_into().unwrap(), &[9; 12]);
        assert!(
            message
                .windows(17)
                .any(|window| window == [&[0xff, 1, 0, 13, 12][..], &[9; 12]].concat())
        );
        let hello = record(HANDSHAKE, FIRST_RECORD, &message);
        assert_eq!(understood(&hello).unwrap().as_deref(), Some("site.example"));
    }
}
