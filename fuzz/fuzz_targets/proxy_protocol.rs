//! Any bytes as a PROXY header: no panic, bounds kept, and what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock::limits::PROXY_HEADER_BYTES_MAX;
use ringlock::proxy::proxy_protocol::{ClientInfo, Parsed, TlsInfo, parse, write_v1, write_v2};

fuzz_target!(|bytes: &[u8]| {
    let parsed = parse(bytes);
    if let Some((_, before)) = bytes.split_last() {
        match (parse(before), parsed) {
            (Parsed::NeedMore, _) | (Parsed::Invalid(_), Parsed::Invalid(_)) => {}
            (early, late) => assert_eq!(early, late, "one byte less"),
        }
    }
    let Parsed::Complete {
        consumed,
        source,
        destination,
    } = parsed
    else {
        return;
    };
    assert!(consumed <= bytes.len() && consumed <= PROXY_HEADER_BYTES_MAX);
    let (Some(source), Some(destination)) = (source, destination) else {
        assert_eq!(source, destination);
        return;
    };

    // What follows is taken for the certificate of a client.
    let certificate = &bytes[consumed..];
    let tls = TlsInfo {
        alpn: None,
        authority: None,
        client: Some(ClientInfo {
            shown_now: certificate.len().is_multiple_of(2),
            common_name: None,
            certificate: Some(certificate),
        }),
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
    };
    let (mut text, mut binary) = (Vec::new(), Vec::new());
    write_v1(source, destination, &mut text);
    let is_whole = write_v2(source, destination, &tls, &mut binary);
    assert!(binary.len() <= PROXY_HEADER_BYTES_MAX);
    assert!(binary.ends_with(certificate) || !is_whole);
    for header in [text, binary] {
        let Parsed::Complete {
            consumed,
            source: Some(again),
            ..
        } = parse(&header)
        else {
            panic!("our own header cannot be read: {header:?}");
        };
        assert_eq!(consumed, header.len());
        assert_eq!(
            (again.ip().to_canonical(), again.port()),
            (source.ip().to_canonical(), source.port())
        );
    }
});
