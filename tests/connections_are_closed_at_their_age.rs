//! `connection_age_max`: connections are closed in order when they get too old, and those of clients that do not answer are cut off.

use std::io::{Read, Write};
use std::sync::mpsc::channel;

use crate::support::*;

both_drivers!(
    both_sides_see_an_orderly_end,
    what_the_client_still_sends_reaches_the_server,
    a_client_that_does_not_answer_is_cut_off,
    a_connection_without_a_server_is_closed,
    without_the_key_connections_stay,
    clients_that_came_together_do_not_leave_together,
);

const AGE: &str = "connection_age_max = \"700ms\"";

fn both_sides_see_an_orderly_end(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).listener(AGE).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        echoes(&mut connection, b"in time");
        assert_eq!(connection.receive_to_end(), (Vec::new(), End::CloseNotify));
        connection.close_notify();
    }
    gateway.wait_for_ended("connection_age_max", 2);
    gateway.wait_for_cause("as old as connection_age_max allows");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.ended().len(), 1, "{:?}", metrics.ended());
    let labels = [("cause", "connection_age_max"), ("fault", "none")];
    assert_eq!(metrics.sum("ringlock_connections_ended_total", &labels), 2.0);
}

/// An upload in the middle of which the connection gets too old: the server gets all that the client sends before its end, then an
/// orderly end.
fn what_the_client_still_sends_reaches_the_server(io: Io) {
    let (told, heard) = channel();
    let origin = Origin::start(move |mut stream| {
        let mut all = Vec::new();
        let end = stream.read_to_end(&mut all).map_err(|error| error.kind());
        told.send((all, end.is_ok())).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).listener(AGE).start();
    let mut connection = Client::new(&gateway).connect();
    let message = pattern(300_000);
    let (first, rest) = message.split_at(100_000);
    connection.send(first);
    assert_eq!(connection.receive_to_end(), (Vec::new(), End::CloseNotify));
    connection.send(rest);
    connection.close_notify();
    let (all, in_order) = heard.recv_timeout(PATIENCE).unwrap();
    assert!(in_order, "the server sees the end of a stream");
    assert!(all == message, "{} of {} bytes", all.len(), message.len());
    gateway.wait_for_ended("connection_age_max", 1);
}

fn a_client_that_does_not_answer_is_cut_off(io: Io) {
    let (told, heard) = channel();
    let origin = Origin::start(move |mut stream| {
        stream.write_all(b"hello").unwrap();
        let mut all = Vec::new();
        let end = stream.read_to_end(&mut all).map_err(|error| error.kind());
        told.send((all, end.is_ok())).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()])
        .listener(&format!("{AGE}\nlinger_timeout = \"300ms\""))
        .start();
    let mut connection = Client::new(&gateway).connect();
    connection.send(b"half an upload");
    assert_eq!(connection.receive(5), b"hello");
    let (all, in_order) = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(all, b"half an upload");
    assert!(!in_order, "nobody takes half an upload for a whole one");
    gateway.wait_for_ended("connection_age_max", 1);
    gateway.wait_until_quiet();
}

fn a_connection_without_a_server_is_closed(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener(AGE)
        .upstream("connect_on = \"first_byte\"")
        .start();
    let mut connection = Client::new(&gateway).connect();
    assert_eq!(connection.receive_to_end(), (Vec::new(), End::CloseNotify));
    connection.close_notify();
    gateway.wait_for_ended("connection_age_max", 1);
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.sum("ringlock_upstream_server_connected_total", &[]), 0.0);
}

fn without_the_key_connections_stay(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    std::thread::sleep(std::time::Duration::from_secs(2));
    echoes(&mut connection, b"still here");
    assert!(connection.finish().is_empty());
}

/// By their ports, of 4 seconds the first has nine tenths and the second all.
fn clients_that_came_together_do_not_leave_together(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("accept_proxy = true\nconnection_age_max = \"4s\"")
        .start();
    let open = |port: u16| {
        let mut connection = Client::new(&gateway).open();
        let header = format!("PROXY TCP4 192.0.2.1 192.0.2.2 {port} 443\r\n");
        connection.stream.write_all(header.as_bytes()).unwrap();
        connection.handshake().unwrap();
        echoes(&mut connection, b"here");
        connection
    };
    let connections = [1110, 1010].map(open);
    for mut connection in connections {
        assert_eq!(connection.receive_to_end(), (Vec::new(), End::CloseNotify));
        connection.close_notify();
    }
    gateway.wait_for_ended("connection_age_max", 2);
    let age_ms = |port: u16| {
        let peer = format!("192.0.2.1:{port}");
        let line = gateway.wait_for_line(&peer, |line| line["peer"] == peer.as_str());
        line["duration_ms"].as_f64().unwrap()
    };
    let (short, long) = (age_ms(1110), age_ms(1010));
    assert!(
        short >= 3600.0 && long >= 4000.0 && short < long,
        "{short} ms, {long} ms"
    );
}
