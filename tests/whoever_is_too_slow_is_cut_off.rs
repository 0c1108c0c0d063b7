//! Timeouts: the handshake, idleness, and a peer that takes nothing.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::support::*;

both_drivers!(
    a_slow_loris_is_closed_by_the_handshake_timeout,
    silence_before_and_within_the_handshake_ends_as_well,
    an_idle_connection_ends_and_nobody_takes_it_for_the_end_of_the_stream,
    traffic_in_either_direction_is_no_idleness,
    a_client_that_reads_nothing_is_cut_off,
    an_origin_that_reads_nothing_is_cut_off,
);

fn a_slow_loris_is_closed_by_the_handshake_timeout(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("handshake_timeout = \"400ms\"")
        .start();
    let mut connection = Client::new(&gateway).open();
    let hello = connection.take_outgoing();
    let started = Instant::now();
    // Progress all the time, and never enough of it.
    let mut stopped = false;
    for byte in hello.iter().cycle() {
        if connection.stream.write_all(&[*byte]).is_err() {
            stopped = true;
            break;
        }
        // An end that has come shows in reading, too.
        connection
            .stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        match connection.stream.read(&mut [0; 100]) {
            Ok(0) => stopped = true,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => stopped = true,
            Ok(_) => panic!("an answer to half a hello"),
            Err(_) => {}
        }
        if stopped || started.elapsed() > PATIENCE {
            break;
        }
    }
    assert!(stopped, "the slow client was served all the time");
    gateway.wait_for_cause("handshake not complete in time");
    gateway.wait_until_quiet();
}

fn silence_before_and_within_the_handshake_ends_as_well(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("handshake_timeout = \"300ms\"")
        .start();
    let mut silent = gateway.connect_tcp();
    let mut half = Client::new(&gateway).open();
    let hello = half.take_outgoing();
    half.stream.write_all(&hello).unwrap();
    // Established connections are none of its business.
    let mut quick = Client::new(&gateway).connect();
    assert_eq!(read_alert(&mut silent), Alert::Nothing);
    let mut flight = Vec::new();
    half.stream.read_to_end(&mut flight).unwrap();
    assert!(!flight.is_empty());
    gateway.wait_for_ended("handshake_timeout", 2);
    quick.send(b"x");
    assert_eq!(quick.receive(1), b"x");
}

fn an_idle_connection_ends_and_nobody_takes_it_for_the_end_of_the_stream(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("idle_timeout = \"300ms\"")
        .start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        connection.send(b"x");
        assert_eq!(connection.receive(1), b"x");
        assert_eq!(connection.receive_to_end(), (Vec::new(), End::Truncated));
    }
    gateway.wait_for_ended("idle_timeout", 2);
    gateway.wait_until_quiet();
}

fn traffic_in_either_direction_is_no_idleness(io: Io) {
    // Says something ten times within one and a half idle timeouts, or listens as long.
    let origin = Origin::start(|mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        for _ in 0..10 {
            if first == *b"t" {
                std::thread::sleep(Duration::from_millis(300));
                stream.write_all(b"x").unwrap();
            } else {
                stream.read_exact(&mut [0]).unwrap();
            }
        }
    });
    let gateway = Setup::new(io, &[origin.address()])
        .listener("idle_timeout = \"2s\"")
        .start();
    let mut talking = Client::new(&gateway).connect();
    let mut listening = Client::new(&gateway).connect();
    listening.send(b"t");
    talking.send(b"l");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(300));
        talking.send(b"x");
    }
    for mut connection in [talking, listening] {
        let (_, end) = connection.receive_to_end();
        assert_eq!(end, End::CloseNotify);
        connection.close_notify();
    }
    gateway.wait_for_ended("finished", 2);
    assert_eq!(gateway.metrics().ended().get("idle_timeout"), None);
}

fn a_client_that_reads_nothing_is_cut_off(io: Io) {
    let origin = Origin::start(|mut stream| while stream.write_all(&pattern(100_000)).is_ok() {});
    let gateway = Setup::new(io, &[origin.address()])
        .listener("write_timeout = \"500ms\"")
        .start();
    let connection = Client::new(&gateway).connect();
    gateway.wait_for_cause("client reads nothing of what is queued for it");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.ended()["write_timeout"], 1);
    drop(connection);
}

fn an_origin_that_reads_nothing_is_cut_off(io: Io) {
    let origin = Origin::start(|stream| {
        // Until the gateway goes: then the peek ends.
        let mut byte = [0];
        while stream.peek(&mut byte).is_ok() && stream.take_error().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let gateway = Setup::new(io, &[origin.address()])
        .listener("write_timeout = \"500ms\"")
        .start();
    let mut connection = Client::new(&gateway).connect();
    let data = pattern(100_000);
    while connection.try_send(&data).is_ok() {}
    gateway.wait_for_cause("upstream reads nothing of what is queued for it");
    gateway.wait_until_quiet();
}
