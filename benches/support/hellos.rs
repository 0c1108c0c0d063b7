//! ClientHellos, as they come over the wire.

use rustls::NamedGroup;
use rustls::version::TLS13;

use super::tls::{Key, Site, client, flight};

/// Of other people's clients, recorded; of rustls with and without a share of ML-KEM; and one that nearly fills a record.
pub(crate) fn hellos() -> Vec<(&'static str, Vec<u8>)> {
    let recorded = |text: &str| {
        let digits: String = text.split_whitespace().collect();
        data_encoding::HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .expect("it is hexadecimal")
    };
    let site = Site::new(Key::P256);
    let ours = |group| {
        let mut bytes = Vec::new();
        flight(&mut client(&site.client(&TLS13, group)), &mut bytes);
        bytes
    };
    let curl = recorded(include_str!("../../tests/data/hellos/curl-7.88.hex"));
    vec![
        ("rustls, X25519", ours(NamedGroup::X25519)),
        ("rustls, X25519MLKEM768", ours(NamedGroup::X25519MLKEM768)),
        ("Java", recorded(include_str!("../../tests/data/hellos/java-17.hex"))),
        ("curl, padded", padded(&curl)),
        ("curl", curl),
    ]
}

/// The same with an extension of nothing but padding (RFC 7685) behind the others.
fn padded(hello: &[u8]) -> Vec<u8> {
    const PADDING: u16 = 15_000;
    let mut padded = hello.to_vec();
    padded.extend([0, 21]);
    padded.extend(PADDING.to_be_bytes());
    padded.resize(padded.len() + usize::from(PADDING), 0);
    // Record, message, extensions: each says how long it is.
    let more = PADDING + 4;
    let longer = |bytes: &mut [u8]| {
        let length = u16::from_be_bytes([bytes[0], bytes[1]]) + more;
        bytes.copy_from_slice(&length.to_be_bytes());
    };
    longer(&mut padded[3..5]);
    longer(&mut padded[7..9]);
    let session_id = 5 + 4 + 2 + 32;
    let suites = session_id + 1 + usize::from(padded[session_id]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([padded[suites], padded[suites + 1]]));
    let extensions = methods + 1 + usize::from(padded[methods]);
    longer(&mut padded[extensions..extensions + 2]);
    padded
}
