//! SIGTERM: nothing new is accepted, what is open is finished, and there is an end to the patience.

use crate::support::*;

use std::io::ErrorKind;
use std::net::TcpStream;

use rustix::process::Signal;

both_drivers!(
    an_open_connection_is_finished_and_new_ones_are_refused,
    what_is_still_open_at_the_deadline_is_cut_off,
    a_second_signal_ends_at_once,
    a_gateway_without_connections_ends_at_once,
);

fn wait_until_draining(gateway: &Gateway) {
    eventually("the gateway to drain", || {
        (gateway.ask("/readyz") == (503, "draining\n".to_owned())).then_some(())
    });
}

fn an_open_connection_is_finished_and_new_ones_are_refused(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .workers(2)
        .global("drain_timeout = \"1h\"")
        .start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"before");
    assert_eq!(client.receive(6), b"before");

    gateway.signal(Signal::TERM);
    wait_until_draining(&gateway);
    assert_eq!(gateway.ask("/healthz").0, 200, "a draining gateway is healthy");
    eventually("new connections to be refused", || {
        match TcpStream::connect(gateway.address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        }
    });

    // More than fits the buffers on the way, so the gateway has to work for it.
    let message = pattern(3_000_000);
    let mut back = Vec::new();
    for piece in message.chunks(100_000) {
        client.send(piece);
        back.extend(client.receive(piece.len()));
    }
    assert!(back == message, "the transfer is complete and the same");
    assert!(client.finish().is_empty());

    let (status, log) = gateway.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("\"draining\"") && log.contains("\"drained\""), "{log}");
    assert!(!log.contains("drain_timeout has passed"), "{log}");
}

fn what_is_still_open_at_the_deadline_is_cut_off(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .global("drain_timeout = \"300ms\"")
        .start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"before");
    assert_eq!(client.receive(6), b"before");
    let half_open = gateway.connect_tcp();
    eventually("both to be accepted", || {
        let accepted = gateway.metrics().sum("ringlock_connections_accepted_total", &[]);
        (accepted == 2.0).then_some(())
    });

    gateway.signal(Signal::TERM);
    let (rest, end) = client.receive_to_end();
    assert!(
        rest.is_empty() && end != End::CloseNotify,
        "not an orderly end: {end:?}"
    );
    drop(half_open);
    let (status, log) = gateway.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("drain_timeout has passed"), "{log}");
    let cut = log
        .lines()
        .filter(|line| line.contains("\"cause_label\":\"drained\""))
        .count();
    assert_eq!(cut, 2, "{log}");
}

fn a_second_signal_ends_at_once(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .global("drain_timeout = \"1h\"")
        .start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"before");
    assert_eq!(client.receive(6), b"before");
    gateway.signal(Signal::TERM);
    wait_until_draining(&gateway);
    gateway.signal(Signal::TERM);
    let (status, log) = gateway.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("asked to stop again"), "{log}");
}

fn a_gateway_without_connections_ends_at_once(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"])
        .global("drain_timeout = \"1h\"")
        .start();
    let log = gateway.stop();
    assert!(log.contains("\"drained\""), "{log}");
}
