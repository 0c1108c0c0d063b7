use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use super::*;
use crate::buffers::{Outbox, SendPool};
use crate::tls::unbuffered;

/// One suite of each form of record.
const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const TLS13: CipherSuite = SUITES[0];
const TLS12: CipherSuite = SUITES[1];

/// The gateway's end, with what it says.
struct Gateway {
    records: Records,
    pool: SendPool,
    plain: Outbox,
    sealed: Outbox,
    now: Instant,
}

impl Gateway {
    fn open(&mut self, received: &[u8]) -> (usize, Opened) {
        let mut outboxes = Outboxes {
            plain: &mut self.plain,
            sealed: &mut self.sealed,
            pool: &mut self.pool,
        };
        self.records.open(self.now, received, &mut outboxes)
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), Cause> {
        self.records.seal(plain, &mut self.sealed.sink(&mut self.pool))
    }

    fn close_notify(&mut self) {
        self.records.close_notify(&mut self.sealed.sink(&mut self.pool));
    }

    /// What is queued for the upstream.
    fn data(&mut self) -> Vec<u8> {
        drain(&mut self.plain, &mut self.pool)
    }

    /// What is queued for the client.
    fn output(&mut self) -> Vec<u8> {
        drain(&mut self.sealed, &mut self.pool)
    }
}

fn drain(outbox: &mut Outbox, pool: &mut SendPool) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(buffer) = outbox.take() {
        bytes.extend_from_slice(buffer.pending());
        let length = buffer.len();
        outbox.returned(buffer, length, pool);
    }
    assert_eq!(outbox.queued(), 0);
    bytes
}

/// Both ends after a handshake with rustls' own client.
fn connected(suite: CipherSuite) -> (Gateway, ClientConnection) {
    let certified = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite);
    let provider = Arc::new(provider);
    let versions = [provider.cipher_suites[0].version()];
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let mut client_config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client_config.enable_secret_extraction = true;
    let name = "site.example".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client_config), name).unwrap();
    let mut server = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
    while server.is_handshaking() || client.is_handshaking() {
        let mut flight = sent(&mut client);
        let processed = unbuffered::process(&mut server, &mut flight);
        assert!(processed.error.is_none() && processed.discard == flight.len());
        heard(&mut client, &processed.output).unwrap();
    }
    let gateway = Gateway {
        records: Records::new(server).unwrap(),
        pool: SendPool::default(),
        plain: Outbox::default(),
        sealed: Outbox::default(),
        now: Instant::now(),
    };
    (gateway, client)
}

/// What the client has to send.
fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// What the client gets from these records: data, and whether the stream ended.
fn heard(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(Vec<u8>, bool), rustls::Error> {
    use std::io::Read;
    let (mut data, mut closed) = (Vec::new(), false);
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        let state = client.process_new_packets()?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        client.reader().read_exact(&mut plain).unwrap();
        data.extend(plain);
        closed = state.peer_has_closed();
    }
    Ok((data, closed))
}

fn says(client: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut bytes = Vec::new();
    for chunk in plain.chunks(FRAGMENT_BYTES) {
        client.writer().write_all(chunk).unwrap();
        bytes.extend(sent(client));
    }
    bytes
}

/// Both ends, with the client's keys in our hands: it says what no client would.
fn crafting(suite: CipherSuite) -> (Gateway, Protection, Protection) {
    let (gateway, client) = connected(suite);
    let suite = client.negotiated_cipher_suite().unwrap();
    let keys = client.dangerous_extract_secrets().unwrap();
    let outgoing = Protection::new(keys.tx, suite).unwrap();
    (gateway, outgoing, Protection::new(keys.rx, suite).unwrap())
}

fn crafted(outgoing: &mut Protection, content: ContentType, plain: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plain.len() + EXPANSION_BYTES];
    let length = outgoing.seal(content, plain, &mut record).unwrap();
    record.truncate(length);
    record
}

/// The alert in `records`, the last of which is one.
fn alert(incoming: &mut Protection, records: &[u8]) -> [u8; 2] {
    let (mut at, mut said) = (0, None);
    while let Some(end) = record_end(records, at) {
        let mut plain = vec![0; end - at];
        let (content, length) = incoming.open(&records[at..end], &mut plain).unwrap();
        said = (content == ContentType::ALERT).then(|| plain[..length].try_into().unwrap());
        at = end;
    }
    said.expect("an alert")
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn missing_counts_to_the_end_of_the_last_record() {
    assert_eq!(missing(&[]), 0);
    assert_eq!(missing(&[23, 3]), 3);
    assert_eq!(missing(&[23, 3, 3, 0, 2]), 2);
    assert_eq!(missing(&[23, 3, 3, 0, 2, 9]), 1);
    assert_eq!(missing(&[23, 3, 3, 0, 2, 9, 9]), 0);
    assert_eq!(missing(&[23, 3, 3, 0, 2, 9, 9, 23]), 4);
    assert_eq!(record_end(&[23, 3, 3, 0, 2, 9, 9, 23], 0), Some(7));
    assert_eq!(record_end(&[23, 3, 3, 0, 2, 9, 9, 23], 7), None);
    assert!(is_oversized(&[23, 3, 3, 255, 255], 0) && !is_oversized(&[23, 3, 3, 64, 255], 0));
}

#[test]
fn data_goes_both_ways_in_every_form_of_record_until_each_way_ends() {
    for suite in SUITES {
        let (mut gateway, mut client) = connected(suite);
        for length in [1, 2, 1000, 16 * 1024, 16 * 1024 + 1, 100_000] {
            let plain = pattern(length);
            let records = says(&mut client, &plain);
            // The last record is cut: it waits.
            let cut = records.len() - 1;
            let (used, opened) = gateway.open(&records[..cut]);
            assert!(opened == Opened::Open && used < cut);
            assert_eq!(gateway.open(&records[used..]), (records.len() - used, Opened::Open));
            assert!(gateway.data() == plain, "{length} bytes up");
            gateway.seal(&plain).unwrap();
            assert!(
                heard(&mut client, &gateway.output()).unwrap() == (plain, false),
                "{length} bytes down"
            );
        }
        gateway.close_notify();
        gateway.seal(b"too late").unwrap();
        gateway.close_notify();
        assert_eq!(heard(&mut client, &gateway.output()).unwrap(), (vec![], true));
        let mut last = says(&mut client, b"last");
        client.send_close_notify();
        last.extend(sent(&mut client));
        last.extend([23, 3, 3, 0, 0]);
        assert_eq!(gateway.open(&last), (last.len(), Opened::Closed));
        assert_eq!(gateway.data(), b"last");
        assert_eq!(
            gateway.open(&last),
            (last.len(), Opened::Closed),
            "nothing counts after the end"
        );
        assert!(gateway.data().is_empty() && gateway.output().is_empty());
        assert_eq!(gateway.pool.lent_bytes(), 0);
    }
}

#[test]
fn keys_are_renewed_by_either_side_amid_data() {
    let (mut gateway, mut client) = connected(TLS13);
    for round in 0..10 {
        let plain = pattern(20_000 + round);
        if round % 3 == 0 {
            client.refresh_traffic_keys().unwrap();
        }
        if round % 2 == 0 {
            gateway.records.outgoing.wear_out();
        }
        let records = says(&mut client, &plain);
        assert_eq!(gateway.open(&records), (records.len(), Opened::Open));
        assert!(gateway.data() == plain);
        gateway.seal(&plain).unwrap();
        assert!(heard(&mut client, &gateway.output()).unwrap().0 == plain);
        assert!(!gateway.records.outgoing.is_worn());
    }
}

#[test]
fn an_answer_to_a_key_update_does_not_follow_our_end() {
    let (mut gateway, mut client) = connected(TLS13);
    gateway.close_notify();
    client.refresh_traffic_keys().unwrap();
    let records = says(&mut client, b"more");
    assert_eq!(gateway.open(&records), (records.len(), Opened::Open));
    assert_eq!(gateway.data(), b"more");
    assert_eq!(heard(&mut client, &gateway.output()).unwrap(), (vec![], true));
}

#[test]
fn a_worn_key_that_cannot_be_renewed_ends_the_connection_visibly() {
    let (mut gateway, mut client) = connected(TLS12);
    gateway.records.outgoing.wear_out();
    assert_eq!(gateway.seal(&pattern(10)), Err(Cause::KeyLimit));
    let heard = heard(&mut client, &gateway.output());
    assert_eq!(
        heard,
        Err(rustls::Error::AlertReceived(AlertDescription::InternalError))
    );
    assert_eq!(gateway.seal(&pattern(10)), Ok(()));
    assert!(gateway.output().is_empty());
}

#[test]
fn a_key_protects_as_many_blocks_as_full_records_would_have() {
    let (mut gateway, _) = connected(TLS12);
    let outgoing = &mut gateway.records.outgoing;
    let before = outgoing.blocks_left();
    crafted(outgoing, ContentType::DATA, &pattern(FRAGMENT_BYTES));
    assert_eq!(before - outgoing.blocks_left(), 1026);
    // 2^24 records, less our Finished and the one above.
    assert_eq!(before, ((1 << 24) - 1) * 1026);
    crafted(outgoing, ContentType::DATA, &pattern(17));
    assert_eq!(before - outgoing.blocks_left(), 1026 + 4);
}

#[test]
fn what_was_tampered_with_replayed_or_left_out_is_refused_with_an_alert() {
    for suite in SUITES {
        type Damage = fn(&mut Vec<u8>, usize);
        let damages: [(&str, Damage); 5] = [
            ("a bit of the text", |records, _| records[20] ^= 1),
            ("a bit of the tag", |records, end| records[end - 1] ^= 1),
            ("replayed", |records, end| records.extend_from_within(..end)),
            ("left out", |records, end| drop(records.drain(..end))),
            ("cut", |records, _| {
                records
                    .splice(3..records.len(), [0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
                    .for_each(drop)
            }),
        ];
        for (name, damage) in damages {
            let (mut gateway, mut client) = connected(suite);
            let mut records = says(&mut client, b"first message");
            let end = records.len();
            records.extend(says(&mut client, b"second message"));
            damage(&mut records, end);
            let (used, opened) = gateway.open(&records);
            assert_eq!(used, records.len());
            assert_eq!(
                opened,
                Opened::Failed(Cause::Record("it does not decrypt".into())),
                "{suite:?} {name}"
            );
            let told = heard(&mut client, &gateway.output());
            assert_eq!(
                told,
                Err(rustls::Error::AlertReceived(AlertDescription::BadRecordMac)),
                "{suite:?} {name}"
            );
            gateway.seal(b"nothing").unwrap();
            gateway.close_notify();
            assert!(gateway.output().is_empty(), "nothing follows a fatal alert");
        }
    }
}

#[test]
fn what_a_client_may_not_say_is_refused_with_the_right_alert() {
    use AlertDescription as A;
    let everywhere = [
        (ContentType::ALERT, vec![], A::DecodeError),
        (ContentType::ALERT, vec![1], A::DecodeError),
        (ContentType::ALERT, vec![1, 0, 0], A::DecodeError),
        (ContentType(20), vec![1], A::UnexpectedMessage),
        (ContentType(99), pattern(100), A::UnexpectedMessage),
        (ContentType::HANDSHAKE, vec![], A::UnexpectedMessage),
        (ContentType::HANDSHAKE, vec![11, 0, 0, 0], A::UnexpectedMessage),
        (ContentType::DATA, pattern(FRAGMENT_BYTES + 1), A::RecordOverflow),
    ];
    let tls13 = [
        // Nothing but padding.
        (ContentType(0), vec![0; 50], A::UnexpectedMessage),
        // A ClientHello: there is no renegotiation.
        (
            ContentType::HANDSHAKE,
            vec![CLIENT_HELLO, 0, 0, 1, 0],
            A::UnexpectedMessage,
        ),
        // Tickets come from servers.
        (ContentType::HANDSHAKE, vec![4, 0, 0, 1, 0], A::UnexpectedMessage),
        (
            ContentType::HANDSHAKE,
            vec![KEY_UPDATE, 0, 0, 1, 2],
            A::IllegalParameter,
        ),
        (ContentType::HANDSHAKE, vec![KEY_UPDATE, 0, 0, 1], A::UnexpectedMessage),
        (
            ContentType::HANDSHAKE,
            vec![KEY_UPDATE, 0, 0, 1, 0, 0],
            A::UnexpectedMessage,
        ),
        (
            ContentType::HANDSHAKE,
            vec![KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0],
            A::UnexpectedMessage,
        ),
    ];
    let tls12 = [(
        ContentType::HANDSHAKE,
        vec![KEY_UPDATE, 0, 0, 1, 0],
        A::UnexpectedMessage,
    )];
    let cases = SUITES
        .into_iter()
        .flat_map(|suite| everywhere.iter().map(move |case| (suite, case)));
    let cases = cases.chain(tls13.iter().map(|case| (TLS13, case)));
    for (suite, (content, plain, expected)) in cases.chain(tls12.iter().map(|case| (TLS12, case))) {
        let (mut gateway, mut outgoing, mut incoming) = crafting(suite);
        let record = crafted(&mut outgoing, *content, plain);
        let (used, opened) = gateway.open(&record);
        let what = format!("{suite:?} {content:?} {:?}", &plain[..plain.len().min(10)]);
        assert!(matches!(opened, Opened::Failed(Cause::Record(_))), "{what}: {opened:?}");
        assert_eq!(used, record.len(), "{what}");
        assert_eq!(
            alert(&mut incoming, &gateway.output()),
            [FATAL, u8::from(*expected)],
            "{what}"
        );
        assert!(gateway.data().is_empty(), "{what}");
    }
}

#[test]
fn a_record_that_is_not_protected_or_too_long_to_wait_for_is_refused() {
    let (mut gateway, _, mut incoming) = crafting(TLS13);
    let (_, opened) = gateway.open(&[21, 3, 3, 0, 2, 1, 0]);
    assert_eq!(opened, Opened::Failed(Cause::Record("it is not protected".into())));
    let expected = AlertDescription::UnexpectedMessage;
    assert_eq!(alert(&mut incoming, &gateway.output()), [FATAL, u8::from(expected)]);
    for suite in SUITES {
        let (mut gateway, _, mut incoming) = crafting(suite);
        let (used, opened) = gateway.open(&[23, 3, 3, 0xff, 0xff, 0]);
        assert_eq!(opened, Opened::Failed(Cause::Record(Violation::TOO_LONG.why.into())));
        assert_eq!(used, 6);
        let expected = AlertDescription::RecordOverflow;
        assert_eq!(alert(&mut incoming, &gateway.output()), [FATAL, u8::from(expected)]);
    }
}

#[test]
fn padding_is_taken_off() {
    let (mut gateway, mut outgoing, _) = crafting(TLS13);
    for padding in [1, 100, 16_000] {
        // The content type that is added to it is one more zero.
        let mut plain = vec![7, 0, 7, 0, ContentType::DATA.0];
        plain.resize(plain.len() + padding, 0);
        let record = crafted(&mut outgoing, ContentType(0), &plain);
        assert_eq!(gateway.open(&record), (record.len(), Opened::Open));
        assert_eq!(gateway.data(), [7, 0, 7, 0]);
    }
}

#[test]
fn alerts_end_the_connection_unless_they_are_warnings_that_do_not() {
    for suite in SUITES {
        let after = |level, description| {
            let (mut gateway, mut outgoing, _) = crafting(suite);
            let record = crafted(&mut outgoing, ContentType::ALERT, &[level, description]);
            let (_, opened) = gateway.open(&record);
            gateway.seal(b"more").unwrap();
            (opened, gateway.output().is_empty())
        };
        let gave_up = |why: &str| (Opened::Failed(Cause::Record(format!("peer sent {why}"))), true);
        assert_eq!(after(WARNING, 0), (Opened::Closed, false));
        assert_eq!(after(FATAL, 0), (Opened::Closed, false));
        assert_eq!(after(WARNING, 90), (Opened::Open, false), "user_canceled");
        assert_eq!(after(FATAL, 80), gave_up("internal_error"));
        let warned = after(WARNING, 46);
        let expected = if suite == TLS13 {
            gave_up("certificate_unknown")
        } else {
            (Opened::Open, false)
        };
        assert_eq!(warned, expected);
    }
}

#[test]
fn renegotiation_is_declined_and_the_connection_goes_on() {
    let (mut gateway, mut outgoing, mut incoming) = crafting(TLS12);
    let record = crafted(&mut outgoing, ContentType::HANDSHAKE, &[CLIENT_HELLO, 0, 0, 1, 0]);
    assert_eq!(gateway.open(&record), (record.len(), Opened::Open));
    let expected = AlertDescription::NoRenegotiation;
    assert_eq!(alert(&mut incoming, &gateway.output()), [WARNING, u8::from(expected)]);
    let record = crafted(&mut outgoing, ContentType::DATA, b"on");
    assert_eq!(gateway.open(&record), (record.len(), Opened::Open));
    assert_eq!(gateway.data(), b"on");
}

#[test]
fn records_without_data_are_bounded_per_second_whatever_they_are() {
    for (suite, content, plain) in [
        (TLS13, ContentType::DATA, &[][..]),
        (TLS13, ContentType::ALERT, &[WARNING, 90]),
        (TLS12, ContentType::DATA, &[]),
        (TLS12, ContentType::HANDSHAKE, &[CLIENT_HELLO, 0, 0, 1, 0]),
    ] {
        let (mut gateway, mut outgoing, _) = crafting(suite);
        for _ in 0..3 {
            for _ in 0..KEY_UPDATES_PER_SECOND_MAX {
                let record = crafted(&mut outgoing, content, plain);
                assert_eq!(gateway.open(&record), (record.len(), Opened::Open));
            }
            gateway.now += Duration::from_secs(1);
        }
        for _ in 0..KEY_UPDATES_PER_SECOND_MAX {
            assert_eq!(gateway.open(&crafted(&mut outgoing, content, plain)).1, Opened::Open);
        }
        let record = crafted(&mut outgoing, content, plain);
        assert_eq!(gateway.open(&record).1, Opened::Failed(Cause::KeyUpdateFlood));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A client that has the keys says anything, and others who have not send anything.
    #[test]
    fn nothing_that_comes_panics_or_leaves_a_buffer_behind(
        suite in 0..SUITES.len(),
        said in proptest::collection::vec(
            (any::<bool>(), 18u8..26, proptest::collection::vec(any::<u8>(), 0..40)),
            1..12,
        ),
    ) {
        let (mut gateway, mut outgoing, _) = crafting(SUITES[suite]);
        for (protected, content, plain) in said {
            let bytes = if protected {
                crafted(&mut outgoing, ContentType(content), &plain)
            } else {
                plain
            };
            let (used, opened) = gateway.open(&bytes);
            prop_assert!(used <= bytes.len());
            if opened == Opened::Open && used < bytes.len() {
                prop_assert!(missing(&bytes[used..]) > 0);
            }
            gateway.seal(b"data").unwrap();
        }
        gateway.data();
        gateway.output();
        prop_assert_eq!(gateway.pool.lent_bytes(), 0);
    }
}
