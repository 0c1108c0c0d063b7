//! Upstream servers that refuse, do not answer, fail again and again, or come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::*;
use socket2::{Domain, Socket, Type};

both_drivers!(
    the_next_server_serves_when_the_first_refuses,
    a_server_that_does_not_answer_in_time_is_passed_over,
    a_server_that_fails_again_and_again_is_left_alone_until_it_returns,
    with_no_server_left_the_client_is_closed_without_close_notify,
    a_client_that_leaves_while_connecting_leaves_nothing_behind,
);

#[track_caller]
fn assert_served(gateway: &Gateway) {
    let mut client = Client::new(gateway).connect();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    client.finish();
}

fn server_count(gateway: &Gateway, metric: &str, server: SocketAddr) -> u64 {
    let server = server.to_string();
    gateway
        .metrics()
        .count(metric, &[("upstream", "app"), ("server", &server)])
}

const FAILURES: &str = "ringlock_upstream_server_connect_failures_total";
const CONNECTED: &str = "ringlock_upstream_server_connected_total";
const EJECTED: &str = "ringlock_upstream_server_ejected_workers";

fn the_next_server_serves_when_the_first_refuses(io: Io) {
    let origin = Origin::echo();
    for balance in ["round_robin", "least_connections"] {
        let refusing = [free_address(), free_address()];
        let servers = [refusing[0], refusing[1], origin.address()];
        let gateway = Setup::new(io, &servers)
            .upstream(&format!("balance = \"{balance}\""))
            .start();
        for _ in 0..10 {
            assert_served(&gateway);
        }
        for server in refusing {
            assert!(server_count(&gateway, FAILURES, server) >= 1, "{balance}");
        }
        assert_eq!(server_count(&gateway, CONNECTED, origin.address()), 10);
        gateway.wait_until_quiet();
    }
}

/// A listener whose backlog is full, so that the kernel drops every SYN; it answers nobody until it is dropped.
struct FullListener {
    _listener: Socket,
    _waiting: Vec<Socket>,
    address: SocketAddr,
}

impl FullListener {
    fn new() -> FullListener {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::new(own_ip(), 0).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        loop {
            let next = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let connected = next.connect_timeout(&address.into(), Duration::from_millis(500));
            if connected.is_err() {
                break;
            }
            waiting.push(next);
            assert!(waiting.len() < 100, "the backlog never fills");
        }
        FullListener {
            _listener: listener,
            _waiting: waiting,
            address,
        }
    }
}

fn a_server_that_does_not_answer_in_time_is_passed_over(io: Io) {
    let (origin, full) = (Origin::echo(), FullListener::new());
    let servers = [full.address, origin.address()];
    let gateway = Setup::new(io, &servers)
        .upstream("balance = \"round_robin\"\nconnect_timeout = \"200ms\"")
        .start();
    for _ in 0..4 {
        assert_served(&gateway);
    }
    assert!(server_count(&gateway, FAILURES, full.address) >= 1);
    assert_eq!(server_count(&gateway, CONNECTED, full.address), 0);
    gateway.wait_until_quiet();
}

fn a_server_that_fails_again_and_again_is_left_alone_until_it_returns(io: Io) {
    let (origin, down) = (Origin::echo(), free_address());
    let started = Instant::now();
    let gateway = Setup::new(io, &[down, origin.address()])
        .upstream("balance = \"round_robin\"")
        .start();
    for _ in 0..40 {
        assert_served(&gateway);
    }
    assert_eq!(server_count(&gateway, EJECTED, down), 1);
    // Three failures eject it; after that there is one trial a second at most. Without ejection there would be 20 failures.
    let (failures, seconds) = (server_count(&gateway, FAILURES, down), started.elapsed().as_secs());
    assert!(
        failures >= 3 && failures <= 4 + seconds,
        "{failures} failures in {seconds} s"
    );

    let back = Origin::start_at(down, |stream| {
        let mut copy = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut copy, &mut &stream);
    });
    eventually("the server to be found again", || {
        assert_served(&gateway);
        (back.accepted() > 0 && server_count(&gateway, EJECTED, down) == 0).then_some(())
    });
    let before = back.accepted();
    for _ in 0..10 {
        assert_served(&gateway);
    }
    assert_eq!(back.accepted() - before, 5, "it has its share again");
    gateway.wait_until_quiet();
}

fn with_no_server_left_the_client_is_closed_without_close_notify(io: Io) {
    let gateway = Setup::new(io, &[free_address(), free_address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        let (data, end) = connection.receive_to_end();
        assert!(data.is_empty());
        assert_ne!(end, End::CloseNotify, "no answer must not look like an empty one");
    }
    let line = gateway.wait_for_cause("no upstream server accepted a connection");
    assert_eq!(line["fault"], "upstream");
    gateway.wait_for_ended("upstream_unreachable", 2);
    gateway.wait_until_quiet();
    // Nothing listens behind a socket file that does not exist, either.
    let missing = format!("unix:{}/missing", gateway.folder().display());
    let gateway = Setup::new(io, &[missing]).start();
    let (_, end) = Client::new(&gateway).connect().receive_to_end();
    assert_ne!(end, End::CloseNotify);
    gateway.wait_for_ended("upstream_unreachable", 1);
    gateway.wait_until_quiet();
}

fn a_client_that_leaves_while_connecting_leaves_nothing_behind(io: Io) {
    let full = FullListener::new();
    let gateway = Setup::new(io, &[full.address])
        .upstream("connect_timeout = \"20s\"")
        .start();
    let connecting = || gateway.metrics().count("ringlock_upstream_server_connections", &[]);
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let mut connection = client.connect();
        connection.send(b"request");
        eventually("the gateway to connect", || (connecting() == 1).then_some(()));
        connection.reset();
        eventually("the attempt to end", || (connecting() == 0).then_some(()));
    }
    gateway.wait_for_ended("peer_reset", 2);
    gateway.wait_until_quiet();
}
