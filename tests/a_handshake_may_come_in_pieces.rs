//! How the bytes of a handshake are cut into segments and records does not matter.

use std::io::Write;

use crate::support::*;
use rustls::NamedGroup;

both_drivers!(
    a_handshake_is_accepted_byte_by_byte,
    every_message_may_come_in_many_records_and_segments,
    a_post_quantum_hello_is_accepted_in_many_records_and_segments,
    data_may_come_together_with_the_end_of_the_handshake,
);

/// Does the handshake, and sends each byte by itself.
fn byte_by_byte(connection: &mut Connection) {
    loop {
        for byte in connection.take_outgoing() {
            connection.stream.write_all(&[byte]).unwrap();
        }
        if !connection.tls.is_handshaking() {
            return;
        }
        assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
        connection.tls.process_new_packets().unwrap();
    }
}

fn a_handshake_is_accepted_byte_by_byte(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.open();
        byte_by_byte(&mut connection);
        connection.tls.writer().write_all(b"and data").unwrap();
        for byte in connection.take_outgoing() {
            connection.stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(connection.receive(8), b"and data");
        connection.finish();
    }
    gateway.wait_for_ended("finished", 2);
}

/// Does the handshake, and sends each record when the gateway has received those before.
fn record_by_record(gateway: &Gateway, connection: &mut Connection) {
    let labels = [("side", "downstream"), ("direction", "received")];
    let received = || gateway.metrics().count("ringlock_transferred_bytes_total", &labels);
    let mut sent = received();
    while connection.tls.is_handshaking() || connection.tls.wants_write() {
        let flight = connection.take_outgoing();
        let mut rest = &flight[..];
        while let [_, _, _, high, low, ..] = rest {
            let (record, later) = rest.split_at(5 + usize::from(u16::from_be_bytes([*high, *low])));
            connection.stream.write_all(record).unwrap();
            sent += record.len() as u64;
            eventually("the record to be received", || (received() == sent).then_some(()));
            rest = later;
        }
        if connection.tls.is_handshaking() {
            assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
            connection.tls.process_new_packets().unwrap();
        }
    }
}

/// Records of at most 27 bytes: none holds a whole message.
fn every_message_may_come_in_many_records_and_segments(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        for group in [NamedGroup::X25519, NamedGroup::secp256r1] {
            let client = client.clone().groups(&[group]).fragments(32);
            let mut connection = client.open();
            record_by_record(&gateway, &mut connection);
            connection.send(b"and data");
            assert_eq!(connection.receive(8), b"and data");
            connection.finish();
            gateway.wait_until_quiet();
            let mut connection = client.connect();
            connection.send(b"and data");
            assert_eq!(connection.receive(8), b"and data");
            connection.finish();
            gateway.wait_until_quiet();
        }
    }
    gateway.wait_for_ended("finished", 8);
}

fn a_post_quantum_hello_is_accepted_in_many_records_and_segments(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let client = Client::new(&gateway).tls13().groups(&[NamedGroup::X25519MLKEM768]);
    for sizes in [&[1, 1, 1, 1, 1, 100, 3][..], &[700], &[4], &[1200, 1]] {
        for at_once in [true, false] {
            let mut connection = client.open();
            let hello = connection.take_outgoing();
            assert!(hello.len() > 1200, "the hello has a post-quantum share");
            let (mut rest, mut sizes, mut all) = (&hello[5..], sizes.iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                let bytes = record(22, piece);
                if at_once {
                    all.extend(bytes);
                } else {
                    connection.stream.write_all(&bytes).unwrap();
                }
                rest = later;
            }
            connection.stream.write_all(&all).unwrap();
            connection.handshake().unwrap();
            assert_eq!(connection.negotiated().2, NamedGroup::X25519MLKEM768);
            connection.send(b"x");
            assert_eq!(connection.receive(1), b"x");
            connection.finish();
        }
    }
    gateway.wait_for_ended("finished", 8);
}

fn data_may_come_together_with_the_end_of_the_handshake(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let data = pattern(300_000);
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        for length in [1, 16 * 1024, data.len()] {
            let mut connection = client.open();
            // The last flight, the data and our end in one write.
            let mut flight = connection.take_outgoing();
            loop {
                connection.stream.write_all(&flight).unwrap();
                assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
                connection.tls.process_new_packets().unwrap();
                flight = connection.take_outgoing();
                // TLS 1.2 ends with the server's Finished: our last flight is the one before.
                if !connection.tls.is_handshaking() {
                    break;
                }
            }
            connection.tls.set_buffer_limit(None);
            connection.tls.writer().write_all(&data[..length]).unwrap();
            connection.tls.send_close_notify();
            flight.extend(connection.take_outgoing());
            let mut writer = connection.stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || writer.write_all(&flight).unwrap());
            let (got, end) = connection.receive_to_end();
            sender.join().unwrap();
            assert!(got == data[..length], "{} of {length} bytes", got.len());
            assert_eq!(end, End::CloseNotify);
        }
    }
    gateway.wait_for_ended("finished", 6);
    gateway.wait_until_quiet();
}
