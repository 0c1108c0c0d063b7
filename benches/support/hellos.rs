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
        ("curl, prolonged", prolonged(&curl)),
        ("curl", curl),
    ]
}

/// The same with an extension that nobody knows behind the others.
fn prolonged(hello: &[u8]) -> Vec<u8> {
    const MORE: u16 = 15_000;
    let mut longest = hello.to_vec();
    longest.extend([0xff, 2]);
    longest.extend(MORE.to_be_bytes());
    longest.resize(longest.len() + usize::from(MORE), 0);
    // Record, message, extensions: each says how long it is.
    let more = MORE + 4;
    let longer = |bytes: &mut [u8]| {
        let length = u16::from_be_bytes([bytes[0], bytes[1]]) + more;
        bytes.copy_from_slice(&length.to_be_bytes());
    };
    longer(&mut longest[3..5]);
    longer(&mut longest[7..9]);
    let session_id = 5 + 4 + 2 + 32;
    let suites = session_id + 1 + usize::from(longest[session_id]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([longest[suites], longest[suites + 1]]));
    let extensions = methods + 1 + usize::from(longest[methods]);
    longer(&mut longest[extensions..extensions + 2]);
    longest
}
