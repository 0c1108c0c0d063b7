use proptest::prelude::*;
use rustls::SignatureScheme;

use super::*;

/// What clients of these names sent to a bare listener.
const RECORDED: [(&str, &str); 9] = [
    (
        "openssl s_client",
        include_str!("../../../tests/data/hellos/openssl-3.0-s_client.hex"),
    ),
    (
        "openssl, TLS 1.2",
        include_str!("../../../tests/data/hellos/openssl-3.0-tls12-no-sni.hex"),
    ),
    (
        "openssl, TLS 1.0",
        include_str!("../../../tests/data/hellos/openssl-3.0-tls10.hex"),
    ),
    ("curl", include_str!("../../../tests/data/hellos/curl-7.88.hex")),
    ("gnutls", include_str!("../../../tests/data/hellos/gnutls-3.7.hex")),
    ("python", include_str!("../../../tests/data/hellos/python-3.hex")),
    (
        "python, IP address",
        include_str!("../../../tests/data/hellos/python-3-ip-address.hex"),
    ),
    ("node", include_str!("../../../tests/data/hellos/node.hex")),
    ("java", include_str!("../../../tests/data/hellos/java-17.hex")),
];

fn recorded(client: &str) -> Vec<u8> {
    let (_, hex) = RECORDED
        .iter()
        .find(|(name, _)| *name == client)
        .expect("the client is in RECORDED");
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("two digits"))
        .collect()
}

fn prefixed(bytes_of_length: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - bytes_of_length..], content].concat()
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn extension(extension_type: u16, content: &[u8]) -> Vec<u8> {
    [u16s(&[extension_type]), prefixed(2, content)].concat()
}

fn server_name(name: &str) -> Vec<u8> {
    extension(0, &prefixed(2, &[vec![0], prefixed(2, name.as_bytes())].concat()))
}

fn body(suites: &[u16], extensions: &[Vec<u8>]) -> Vec<u8> {
    [
        vec![3, 3],
        vec![7; 32],
        prefixed(1, &[9; 32]),
        prefixed(2, &u16s(suites)),
        prefixed(1, &[0]),
        prefixed(2, &extensions.concat()),
    ]
    .concat()
}

/// Shaped like Chromium's: GREASE in every list, X25519MLKEM768 before X25519.
fn chromium() -> Vec<u8> {
    let shares = [
        [u16s(&[0x2a2a]), prefixed(2, &[0])].concat(),
        [u16s(&[0x11ec]), prefixed(2, &[1; 1216])].concat(),
        [u16s(&[0x001d]), prefixed(2, &[2; 32])].concat(),
    ]
    .concat();
    body(
        &[0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xcca9],
        &[
            extension(0x3a3a, &[]),
            server_name("www.example.org"),
            extension(10, &prefixed(2, &u16s(&[0x2a2a, 0x11ec, 0x001d, 0x0017]))),
            extension(13, &prefixed(2, &u16s(&[0x0403, 0x0804, 0x0401]))),
            extension(16, &prefixed(2, b"\x02\x9a\x9a\x02h2\x08http/1.1")),
            extension(43, &prefixed(1, &u16s(&[0x4a4a, 0x0304, 0x0303]))),
            extension(51, &prefixed(2, &shares)),
            extension(0x5a5a, &[0]),
        ],
    )
}

fn message(body: &[u8]) -> Vec<u8> {
    [vec![1], prefixed(3, body)].concat()
}

/// `message` in records whose payloads have these lengths, in turn.
fn records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (payload, tail) = rest.split_at(length.min(rest.len()));
        out.extend([0x16, 3, 1]);
        out.extend(prefixed(2, payload));
        rest = tail;
    }
    out
}

fn every_hello() -> Vec<(&'static str, Vec<u8>)> {
    let mut all: Vec<_> = RECORDED.iter().map(|&(name, _)| (name, recorded(name))).collect();
    all.push(("chromium", records(&message(&chromium()), &[usize::MAX])));
    all
}

fn complete(received: &[u8]) -> Cow<'_, [u8]> {
    match gather(received) {
        Gathered::Complete(body) => body,
        other @ (Gathered::NeedMore | Gathered::Refused(_)) => panic!("no whole ClientHello: {other:?}"),
    }
}

/// What rustls reads in the same bytes: name, protocols, suites and schemes.
type Seen = (Option<String>, Vec<Vec<u8>>, Vec<CipherSuite>, Vec<SignatureScheme>);

fn seen_by_rustls(mut received: &[u8]) -> Option<Seen> {
    let mut acceptor = rustls::server::Acceptor::default();
    while !received.is_empty() {
        acceptor.read_tls(&mut received).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some((
                hello.server_name().map(str::to_owned),
                hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                hello.cipher_suites().to_vec(),
                hello.signature_schemes().to_vec(),
            ));
        }
    }
    None
}

fn seen_by_us(hello: &ClientHello<'_>) -> Seen {
    (
        hello.server_name().map(str::to_ascii_lowercase),
        hello.alpn().map(<[u8]>::to_vec).collect(),
        hello.cipher_suites().collect(),
        hello.signature_schemes().collect(),
    )
}

fn without_grease((name, alpn, mut suites, mut schemes): Seen) -> Seen {
    suites.retain(|&suite| !is_grease(suite.into()));
    schemes.retain(|&scheme| !is_grease(scheme.into()));
    (name, alpn, suites, schemes)
}

#[test]
fn recorded_clients_are_read_as_rustls_reads_them() {
    for (client, received) in every_hello() {
        let body = complete(&received);
        assert!(
            matches!(body, Cow::Borrowed(_)),
            "{client}: one record must not be copied"
        );
        let hello = ClientHello::parse(&body).unwrap();
        let Some(theirs) = seen_by_rustls(&received) else {
            // rustls refuses a client that sends no signature schemes, which TLS 1.0 has not.
            assert_eq!(client, "openssl, TLS 1.0");
            continue;
        };
        assert_eq!(seen_by_us(&hello), without_grease(theirs), "{client}");
    }
}

#[test]
fn recorded_clients_have_the_values_they_were_asked_to_send() {
    let received = recorded("openssl s_client");
    let body = complete(&received);
    let hello = ClientHello::parse(&body).unwrap();
    assert_eq!(hello.server_name(), Some("www.example.com"));
    assert_eq!(hello.alpn().collect::<Vec<_>>(), [b"h2".as_slice(), b"http/1.1"]);
    assert_eq!(hello.best_version(), 0x0304);
    assert_eq!(hello.groups().next(), Some(NamedGroup::X25519));
    assert_eq!(hello.key_share(NamedGroup::X25519).map(<[u8]>::len), Some(32));
    assert_eq!(hello.key_share(NamedGroup::secp256r1), None);
    assert!(!hello.prefers_chacha());

    let received = recorded("openssl, TLS 1.2");
    let body = complete(&received);
    let hello = ClientHello::parse(&body).unwrap();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().count(), 0);
    assert_eq!((hello.versions().count(), hello.best_version()), (0, 0x0303));
    assert!(hello.prefers_chacha());

    let received = recorded("openssl, TLS 1.0");
    let body = complete(&received);
    assert_eq!(ClientHello::parse(&body).unwrap().best_version(), 0x0301);

    let received = recorded("python, IP address");
    let body = complete(&received);
    assert_eq!(ClientHello::parse(&body).unwrap().server_name(), None);

    let received = recorded("java");
    let body = complete(&received);
    let hello = ClientHello::parse(&body).unwrap();
    assert_eq!(hello.key_share(NamedGroup::secp256r1).map(<[u8]>::len), Some(65));
    assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0304, 0x0303]);
}

#[test]
fn grease_is_left_out_and_the_order_kept() {
    let body = chromium();
    let hello = ClientHello::parse(&body).unwrap();
    let groups: Vec<_> = hello.groups().collect();
    assert_eq!(
        groups,
        [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1]
    );
    assert_eq!(
        hello.cipher_suites().next(),
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256)
    );
    assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0304, 0x0303]);
    assert_eq!(hello.best_version(), 0x0304);
    assert_eq!(hello.key_share(NamedGroup::X25519MLKEM768), Some([1; 1216].as_slice()));
    assert_eq!(hello.key_share(NamedGroup::X25519), Some([2; 32].as_slice()));
}

#[test]
fn every_byte_before_the_last_needs_more() {
    for (client, received) in every_hello() {
        for n in 0..received.len() {
            assert_eq!(gather(&received[..n]), Gathered::NeedMore, "{client} after {n} bytes");
        }
        let whole = complete(&received);
        let followed = [received.as_slice(), &[0x17, 3, 3, 0, 1, 0]].concat();
        assert_eq!(complete(&followed), whole, "{client} followed by early data");
    }
}

#[test]
fn records_of_one_byte_give_the_same_hello_to_us_and_to_rustls() {
    let message = message(&chromium());
    let received = records(&message, &[1]);
    assert_eq!(received.len(), 6 * message.len());
    let body = complete(&received);
    assert_eq!(body, &message[4..]);
    let hello = ClientHello::parse(&body).unwrap();
    assert_eq!(Some(seen_by_us(&hello)), seen_by_rustls(&received).map(without_grease));
}

#[test]
fn other_protocols_are_told_apart_by_their_first_bytes() {
    let not_tls = |plain_http| Gathered::Refused(HandshakeFailure::NotTls { plain_http });
    for request in [
        "GET / HTTP/1.1\r\n",
        "POST /",
        "HEAD /",
        "PUT /",
        "OPTIONS",
        "DELETE",
        "CONNECT",
        "PRI * HTTP/2.0",
    ] {
        assert_eq!(gather(&request.as_bytes()[..1]), Gathered::NeedMore, "{request}");
        assert_eq!(gather(&request.as_bytes()[..3]), Gathered::NeedMore, "{request}");
        assert_eq!(gather(&request.as_bytes()[..4]), not_tls(true), "{request}");
        assert_eq!(gather(request.as_bytes()), not_tls(true), "{request}");
    }
    for other in [
        b"\x00".as_slice(),
        b"SSH-2.0",
        b"GEX",
        b"\x80\x2e\x01\x00\x02",
        b"\x15\x03\x01",
        b"\x16\x02",
        b"\x16\x16",
    ] {
        assert_eq!(gather(other), not_tls(false), "{other:?}");
    }
    assert_eq!(gather(&[]), Gathered::NeedMore);
}

#[test]
fn what_cannot_become_a_hello_is_refused_at_once() {
    let malformed = Gathered::Refused(HandshakeFailure::MalformedHello);
    assert_eq!(gather(&[0x16, 3, 1, 0, 0]), malformed, "an empty record");
    assert_eq!(gather(&[0x16, 3, 1, 0, 4, 2]), malformed, "a ServerHello");
    assert_eq!(gather(&[0x16, 3, 1, 0, 2, 1, 0, 0x15]), malformed, "an alert inside");
    assert_eq!(
        gather(&[0x16, 3, 1, 0, 2, 1, 0, 0x16, 2]),
        malformed,
        "another version inside"
    );

    let too_large = Gathered::Refused(HandshakeFailure::HelloTooLarge);
    assert_eq!(gather(&[0x16, 3, 1, 0xff, 0xff]), too_large, "by the record's length");
    assert_eq!(
        gather(&[0x16, 3, 1, 0, 9, 1, 1, 0, 0]),
        too_large,
        "by the message's length"
    );
}

#[test]
fn the_bound_is_exact_and_counts_record_headers() {
    let largest = CLIENT_HELLO_BYTES_MAX - RECORD_HEADER_BYTES - MESSAGE_HEADER_BYTES;
    let received = records(&message(&vec![0; largest]), &[usize::MAX]);
    assert_eq!(received.len(), CLIENT_HELLO_BYTES_MAX);
    assert_eq!(complete(&received).len(), largest);

    let too_large = Gathered::Refused(HandshakeFailure::HelloTooLarge);
    assert_eq!(
        gather(&records(&message(&vec![0; largest + 1]), &[usize::MAX])),
        too_large
    );
    assert_eq!(gather(&records(&message(&vec![0; largest]), &[1000])), too_large);
}

#[test]
fn a_hello_without_extensions_is_one_of_tls_1_2() {
    let mut bytes = body(&[0xc02f], &[]);
    bytes.truncate(bytes.len() - 2);
    let hello = ClientHello::parse(&bytes).unwrap();
    assert_eq!(hello.best_version(), 0x0303);
    assert_eq!(
        hello.signature_schemes().count() + hello.groups().count() + hello.alpn().count(),
        0
    );
}

#[test]
fn malformed_hellos_are_refused() {
    let refused = |why: &str, bytes: &[u8]| {
        assert_eq!(
            ClientHello::parse(bytes),
            Err(HandshakeFailure::MalformedHello),
            "{why}"
        );
    };
    let with = |extensions: &[Vec<u8>]| body(&[0x1301], extensions);
    ClientHello::parse(&with(&[server_name("a.example")])).expect("the rest differs from this in one point each");

    refused("nothing", &[]);
    refused("no suites", &body(&[], &[]));
    refused("bytes left over", &[with(&[]), vec![0]].concat());
    refused("an extension twice", &with(&[extension(35, &[]), extension(35, &[])]));
    refused(
        "an unknown extension twice",
        &with(&[extension(0xfff0, &[]), extension(0xfff0, &[])]),
    );
    refused("an extension longer than the rest", &with(&[u16s(&[35, 1])]));
    refused(
        "an odd list of groups",
        &with(&[extension(10, &prefixed(2, &[0, 29, 0]))]),
    );
    refused("an empty list of groups", &with(&[extension(10, &prefixed(2, &[]))]));
    refused("bytes behind the groups", &with(&[extension(10, &[0, 2, 0, 29, 0])]));
    refused("no schemes", &with(&[extension(13, &prefixed(2, &[]))]));
    refused("no versions", &with(&[extension(43, &prefixed(1, &[]))]));
    refused(
        "an empty protocol",
        &with(&[extension(16, &prefixed(2, &[2, b'h', b'2', 0]))]),
    );
    refused("no protocols", &with(&[extension(16, &prefixed(2, &[]))]));
    refused(
        "an empty key share",
        &with(&[extension(51, &prefixed(2, &[0, 29, 0, 0]))]),
    );
    refused("no name", &with(&[extension(0, &prefixed(2, &[]))]));
    refused("two names", &with(&[extension(0, &prefixed(2, b"\0\0\x01a\0\0\x01b"))]));
    refused("no list of names", &with(&[extension(0, &[])]));
    for name in [
        "",
        ".",
        "a..example",
        "a.example.",
        "-a.example",
        "a b.example",
        "b\u{fc}cher.example",
        "a\0.example",
    ] {
        refused(name, &with(&[server_name(name)]));
    }
    refused("not UTF-8", &with(&[extension(0, &prefixed(2, b"\0\0\x01\xff"))]));
}

#[test]
fn names_are_validated_and_addresses_are_no_names() {
    let name_of = |name: &str| {
        let bytes = body(&[0x1301], &[server_name(name)]);
        ClientHello::parse(&bytes).unwrap().server_name().map(str::to_owned)
    };
    assert_eq!(name_of("WWW.Example.com").as_deref(), Some("WWW.Example.com"));
    assert_eq!(name_of("under_score.example").as_deref(), Some("under_score.example"));
    assert_eq!(
        name_of("xn--bcher-kva.example").as_deref(),
        Some("xn--bcher-kva.example")
    );
    assert_eq!(name_of("localhost").as_deref(), Some("localhost"));
    assert_eq!(name_of("192.0.2.1"), None);
    assert_eq!(name_of("2001:db8::1"), None);
}

#[test]
fn the_best_version_is_the_highest_we_could_know() {
    let best = |versions: &[u16]| {
        let bytes = body(&[0x1301], &[extension(43, &prefixed(1, &u16s(versions)))]);
        ClientHello::parse(&bytes).unwrap().best_version()
    };
    assert_eq!(best(&[0x0303, 0x0304]), 0x0304);
    assert_eq!(best(&[0x7f1c, 0x0303]), 0x0303);
    assert_eq!(best(&[0x7f1c, 0x7f1b]), 0x7f1c);
    assert_eq!(best(&[0x1a1a]), 0x0303);
    let mut future = body(&[0x1301], &[]);
    future[..2].copy_from_slice(&[3, 9]);
    assert_eq!(ClientHello::parse(&future).unwrap().best_version(), 0x0303);
}

#[test]
fn chacha_is_preferred_when_it_comes_before_any_aes_gcm() {
    let prefers = |suites: &[u16]| ClientHello::parse(&body(suites, &[])).unwrap().prefers_chacha();
    assert!(prefers(&[0x1a1a, 0x1303, 0x1301]));
    assert!(prefers(&[0x00ff, 0xcca8, 0xc02f]));
    assert!(!prefers(&[0x1301, 0x1303]));
    assert!(!prefers(&[0xc030, 0xcca8]));
    assert!(!prefers(&[0x002f]));
}

#[test]
fn thousands_of_extensions_are_no_mistake() {
    let extensions: Vec<_> = (100_u16..4000)
        .map(|extension_type| extension(extension_type, &[]))
        .collect();
    let bytes = body(&[0x1301], &extensions);
    ClientHello::parse(&bytes).unwrap();
}

fn use_everything(received: &[u8]) {
    if let Gathered::Complete(body) = gather(received)
        && let Ok(hello) = ClientHello::parse(&body)
    {
        let _ = (hello.best_version(), hello.prefers_chacha());
        for group in hello.groups() {
            let _ = hello.key_share(group);
        }
        let ours = seen_by_us(&hello);
        // Where rustls goes on, it must have read what we chose by.
        if let Some(theirs) = seen_by_rustls(received) {
            assert_eq!(ours, without_grease(theirs));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), prefix in 0_usize..10) {
        let start = [0x16, 3, 1, 1, 0, 1, 0, 0, 200, 3];
        use_everything(&[&start[..prefix], &bytes].concat());
        let _ = ClientHello::parse(&bytes);
    }

    #[test]
    fn mutated_hellos_do_no_harm(
        index in 0_usize..10,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (_, mut received) = every_hello().swap_remove(index);
        for (at, value) in changes {
            let at = at.index(received.len());
            received[at] = value;
        }
        if let Some(cut) = cut {
            received.truncate(cut.index(received.len()));
        }
        use_everything(&received);
    }

    #[test]
    fn records_do_not_matter(index in 0_usize..10, lengths in prop::collection::vec(1_usize..400, 1..8)) {
        let (client, whole) = every_hello().swap_remove(index);
        let split = records(&whole[5..], &lengths);
        prop_assert_eq!(complete(&split), complete(&whole), "{}", client);
        let mut gathering = Gathering::default();
        for n in 0..split.len() {
            prop_assert_eq!(gather(&split[..n]), Gathered::NeedMore);
            prop_assert_eq!(gathering.gather(&split[..n]), Gathered::NeedMore);
        }
        for _ in 0..2 {
            prop_assert_eq!(gathering.gather(&split), gather(&split));
        }
    }

    #[test]
    fn more_bytes_never_change_a_decision(bytes in prop::collection::vec(any::<u8>(), 0..40), prefix in 0_usize..10) {
        let start = [0x16, 3, 1, 0, 6, 1, 0, 0, 2, 3];
        let received = [&start[..prefix], &bytes].concat();
        let end = gather(&received);
        let mut gathering = Gathering::default();
        for n in 0..received.len() {
            let early = gather(&received[..n]);
            prop_assert_eq!(&gathering.gather(&received[..n]), &early);
            prop_assert!(early == Gathered::NeedMore || early == end, "{:?} after {} bytes, then {:?}", early, n, end);
        }
    }
}
