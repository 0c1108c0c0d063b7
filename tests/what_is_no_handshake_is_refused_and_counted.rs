//! Whoever sends nonsense gets the right alert, is counted by cause, and disturbs nobody.

use std::io::Write;

use crate::support::*;
use rustls::AlertDescription;

both_drivers!(
    other_protocols_get_no_alert,
    broken_hellos_get_their_alert,
    an_oversized_hello_is_refused_at_its_length,
    a_flood_of_empty_records_is_refused,
    nonsense_after_a_good_hello_ends_the_handshake,
    nonsense_after_the_handshake_ends_the_connection,
);

/// Sends `bytes`, expects `answer` and the cause, then that the gateway still serves.
#[track_caller]
fn refused(gateway: &Gateway, bytes: &[u8], answer: Alert, cause: &str) {
    let before = failures(gateway, cause);
    let mut client = gateway.connect_tcp();
    // The gateway may refuse before it has all.
    let _ = client.write_all(bytes);
    assert_eq!(read_alert(&mut client), answer, "{cause}");
    drop(client);
    gateway.wait_until_quiet();
    assert_eq!(failures(gateway, cause), before + 1, "{:?}", gateway.metrics().text());
    still_serves(gateway);
}

fn failures(gateway: &Gateway, cause: &str) -> u64 {
    gateway
        .metrics()
        .count("ringlock_handshake_failures_total", &[("cause", cause)])
}

#[track_caller]
fn still_serves(gateway: &Gateway) {
    let mut client = Client::new(gateway).connect();
    client.send(b"x");
    assert_eq!(client.receive(1), b"x");
    client.finish();
}

fn other_protocols_get_no_alert(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for nonsense in [
        &b"\x00\x00\x00\x00"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0xff; 4096],
        b"\x80\x2e\x01\x00\x02",
    ] {
        refused(&gateway, nonsense, Alert::Nothing, "not_tls");
    }
    // An alert or data first is no handshake either.
    refused(&gateway, &record(21, &[2, 40]), Alert::Nothing, "not_tls");
    refused(&gateway, &record(23, &[0; 100]), Alert::Nothing, "not_tls");
    // A record of SSL 5.
    refused(&gateway, &[22, 5, 1, 0, 4, 1, 0, 0, 0], Alert::Nothing, "not_tls");
    for request in [
        "GET / HTTP/1.1\r\nHost: site.example\r\n\r\n",
        "POST /a HTTP/1.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n",
    ] {
        refused(&gateway, request.as_bytes(), Alert::Nothing, "plain_http");
    }
    gateway.wait_for_cause("client speaks plain HTTP to a TLS port");
    gateway.wait_for_cause("client does not speak TLS");
}

fn broken_hellos_get_their_alert(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let malformed = Alert::Fatal(AlertDescription::DecodeError);
    // A Finished first.
    refused(
        &gateway,
        &record(22, &[20, 0, 0, 4, 1, 2, 3, 4]),
        malformed,
        "malformed_hello",
    );
    // Lengths that lead outside.
    refused(
        &gateway,
        &record(22, &[1, 0, 0, 4, 3, 3, 0xff, 0xff]),
        malformed,
        "malformed_hello",
    );
    let mut cut = Hello::new(0x0303).message();
    cut.pop();
    cut[3] -= 1;
    refused(&gateway, &record(22, &cut), malformed, "malformed_hello");
    // The same extension twice.
    let twice = Hello::new(0x0303).extension(11, vec![1, 0]);
    refused(&gateway, &twice.record(), malformed, "malformed_hello");
    // A ClientHello interrupted by data.
    let message = Hello::new(0x0303).message();
    let interrupted = [record(22, &message[..10]), record(23, &message[10..])].concat();
    refused(&gateway, &interrupted, malformed, "malformed_hello");
    gateway.wait_for_cause("ClientHello is malformed");
}

fn an_oversized_hello_is_refused_at_its_length(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let too_large = Alert::Fatal(AlertDescription::RecordOverflow);
    // The length alone is enough; nobody waits for the rest.
    refused(
        &gateway,
        &record(22, &[1, 0xff, 0xff, 0xff]),
        too_large,
        "hello_too_large",
    );
    // One that is really sent, in two records.
    let padded = Hello::new(0x0303).extension(21, vec![0; 17_000]).message();
    let (first, second) = padded.split_at(16_000);
    refused(
        &gateway,
        &[record(22, first), record(22, second)].concat(),
        too_large,
        "hello_too_large",
    );
    // A message of 60 KB that comes in records of one byte: the framing is bounded as well.
    let tiny: Vec<u8> = padded.iter().take(4000).flat_map(|&byte| record(22, &[byte])).collect();
    refused(&gateway, &tiny, too_large, "hello_too_large");
    gateway.wait_for_cause("ClientHello is longer than 16384 bytes");
    // A large one within the limit is welcome.
    let large = Hello::new(0x0303).extension(21, vec![0; 15_000]);
    let mut client = gateway.connect_tcp();
    client.write_all(&large.record()).unwrap();
    let mut first = [0];
    std::io::Read::read_exact(&mut client, &mut first).unwrap();
    assert_eq!(first, [22], "a ServerHello");
}

fn a_flood_of_empty_records_is_refused(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let malformed = Alert::Fatal(AlertDescription::DecodeError);
    let flood: Vec<u8> = record(22, &[]).repeat(2000);
    refused(&gateway, &flood, malformed, "malformed_hello");
    // And in the middle of a hello.
    let message = Hello::new(0x0303).message();
    let inside = [record(22, &message[..4]), flood].concat();
    refused(&gateway, &inside, malformed, "malformed_hello");
}

fn nonsense_after_a_good_hello_ends_the_handshake(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    // Encrypted records that are none; an unencrypted one; a bad Finished of TLS 1.2; a record that is too long.
    let wrong_key = record(23, &pattern(100));
    for (client, nonsense, alert) in [
        (
            Client::new(&gateway).tls13(),
            &wrong_key,
            AlertDescription::BadRecordMac,
        ),
        (
            Client::new(&gateway).tls13(),
            &record(22, &[20, 0, 0, 1, 0]),
            AlertDescription::BadRecordMac,
        ),
        (
            Client::new(&gateway).tls12(),
            &record(22, &[20, 0, 0, 1, 0]),
            AlertDescription::UnexpectedMessage,
        ),
        (
            Client::new(&gateway).tls12(),
            &record(99, &[1]),
            AlertDescription::DecodeError,
        ),
    ] {
        let mut connection = client.open();
        let mut bytes = connection.take_outgoing();
        bytes.extend(nonsense);
        connection.stream.write_all(&bytes).unwrap();
        let error = loop {
            match connection.tls.read_tls(&mut connection.stream) {
                Ok(0) => panic!("no alert for {nonsense:?}"),
                Ok(_) => {}
                Err(error) => panic!("{error} for {nonsense:?}"),
            }
            if let Err(error) = connection.tls.process_new_packets() {
                break error;
            }
        };
        assert_eq!(error, rustls::Error::AlertReceived(alert), "{nonsense:?}");
        drop(connection);
        gateway.wait_until_quiet();
        still_serves(&gateway);
    }
    assert_eq!(failures(&gateway, "protocol"), 4);
}

fn nonsense_after_the_handshake_ends_the_connection(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        connection.send(b"x");
        assert_eq!(connection.receive(1), b"x");
        connection.stream.write_all(&record(23, &pattern(100))).unwrap();
        let error = connection.read(&mut [0; 100]).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        drop(connection);
        gateway.wait_until_quiet();
        still_serves(&gateway);
    }
    assert_eq!(gateway.metrics().ended()["record"], 2);
}
