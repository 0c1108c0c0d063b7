//! Ends of streams pass through: half-close both ways, truncation as a reset, a reset as truncation.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;

use crate::support::*;

both_drivers!(
    a_client_that_ends_first_still_gets_the_answer,
    an_origin_that_ends_first_still_gets_the_rest,
    a_client_that_ends_without_close_notify_resets_the_origin,
    an_origin_that_resets_gives_no_close_notify,
    both_may_end_at_once,
    an_origin_that_says_nothing_ends_in_order,
);

fn a_client_that_ends_first_still_gets_the_answer(io: Io) {
    let origin = Origin::start(|mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        assert_eq!(request, pattern(100_000));
        stream.write_all(&pattern(1_000_000)).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        connection.send(&pattern(100_000));
        assert!(connection.finish() == pattern(1_000_000));
        // And with the TCP stream ended as well, right behind close_notify.
        let mut connection = client.connect();
        connection.send(&pattern(100_000));
        connection.close_notify();
        connection.fin();
        let (answer, end) = connection.receive_to_end();
        assert!(answer == pattern(1_000_000), "{} bytes", answer.len());
        assert_eq!(end, End::CloseNotify);
    }
    gateway.wait_for_ended("finished", 4);
    gateway.wait_until_quiet();
}

fn an_origin_that_ends_first_still_gets_the_rest(io: Io) {
    let (sender, results) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let origin = Origin::start(move |mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest).map(|_| rest);
        sender.lock().unwrap().send(ended).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    // TLS 1.2 has no half-close: rustls as a client allows it all the same.
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        let (said, end) = connection.receive_to_end();
        assert_eq!((said.as_slice(), end), (&b"that is all"[..], End::CloseNotify));
        let data = pattern(1_000_000);
        connection.send(&data);
        connection.close_notify();
        let got = results.recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(got == data, "{} bytes", got.len());
    }
    gateway.wait_for_ended("finished", 2);
    gateway.wait_until_quiet();
}

fn a_client_that_ends_without_close_notify_resets_the_origin(io: Io) {
    let (sender, results) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let origin = Origin::start(move |mut stream| {
        let mut got = [0; 5];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        stream.write_all(b"go on").unwrap();
        let ended = stream.read(&mut got).map_err(|error| error.kind());
        sender.lock().unwrap().send(ended).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        connection.send(b"hello");
        assert_eq!(connection.receive(5), b"go on");
        connection.fin();
        let ended = results.recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            ended,
            Err(ErrorKind::ConnectionReset),
            "a request cut off must not look complete"
        );
        // There was no end of the answer either.
        let (_, end) = connection.receive_to_end();
        assert_ne!(end, End::CloseNotify);
    }
    gateway.wait_for_cause("client ended its stream without close_notify");
    gateway.wait_for_ended("truncated", 2);
    gateway.wait_until_quiet();
}

fn an_origin_that_resets_gives_no_close_notify(io: Io) {
    let origin = Origin::start(|mut stream| {
        stream.write_all(b"some").unwrap();
        // The client's word that it has come: a reset may overtake data.
        let mut word = [0; 3];
        stream.read_exact(&mut word).unwrap();
        reset(stream);
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        assert_eq!(connection.receive(4), b"some");
        connection.send(b"got");
        let (rest, end) = connection.receive_to_end();
        assert!(rest.is_empty());
        assert_ne!(end, End::CloseNotify, "an answer cut off must not look complete");
    }
    gateway.wait_for_cause("upstream connection failed");
    gateway.wait_for_ended("upstream_reset", 2);
    gateway.wait_until_quiet();
}

fn both_may_end_at_once(io: Io) {
    let origin = Origin::start(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    for _ in 0..20 {
        let mut connection = Client::new(&gateway).connect();
        connection.send(b"bye");
        assert_eq!(connection.finish(), b"bye");
    }
    gateway.wait_for_ended("finished", 20);
    gateway.wait_until_quiet();
}

fn an_origin_that_says_nothing_ends_in_order(io: Io) {
    let origin = Origin::closing();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    assert_eq!(connection.receive_to_end(), (Vec::new(), End::CloseNotify));
    connection.close_notify();
    drop(connection);
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}
