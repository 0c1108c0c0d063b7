//! `connections_max` and descriptors: what is too much is refused cheaply, and service goes on when there is room again.

use crate::support::*;

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

both_drivers!(
    connections_beyond_the_limit_are_shed_and_there_is_room_again,
    a_gateway_out_of_descriptors_waits_without_spinning,
);

fn connections_beyond_the_limit_are_shed_and_there_is_room_again(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .workers(2)
        .listener("connections_max = 10")
        .start();
    let mut open: Vec<Connection> = (0..10).map(|_| Client::new(&gateway).connect()).collect();
    for _ in 0..30 {
        let mut stream = gateway.connect_tcp();
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not a reset, but {other:?}"),
        }
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.count("ringlock_connections_shed_total", &[]), 30);
    assert_eq!(metrics.count("ringlock_connections_live", &[]), 10);
    assert_eq!(origin.accepted(), 10, "the origin hears of none of them");
    for connection in &mut open {
        connection.send(b"still here");
        assert_eq!(connection.receive(10), b"still here");
    }
    for _ in 0..3 {
        assert!(open.remove(0).finish().is_empty());
        eventually("room for one more", || {
            let mut connection = Client::new(&gateway).try_connect().ok()?;
            connection.send(b"new");
            assert_eq!(connection.receive(3), b"new");
            open.push(connection);
            Some(())
        });
    }
    for connection in open {
        assert!(connection.finish().is_empty());
    }
    gateway.wait_until_quiet();
}

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .count()
}

fn a_gateway_out_of_descriptors_waits_without_spinning(io: Io) {
    const LIMIT: usize = 64;
    let origin = Origin::echo();
    let limit = format!("--nofile={LIMIT}:{LIMIT}");
    let gateway = Setup::new(io, &[origin.address()])
        .through(&[tool("prlimit").to_str().unwrap(), &limit])
        .start();
    let mut first = Client::new(&gateway).open();
    let crowd: Vec<_> = (0..2 * LIMIT).map(|_| gateway.connect_tcp()).collect();
    eventually("the descriptors to be used up", || {
        (descriptors(&gateway) >= LIMIT).then_some(())
    });

    let (cpu, begin) = (cpu_time(gateway.pid()), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    let (used, elapsed) = (cpu_time(gateway.pid()) - cpu, begin.elapsed());
    assert!(used < elapsed / 3, "{used:?} of CPU time in {elapsed:?} of waiting");

    // A connection that was accepted gets its handshake; for one to the upstream nothing is left, and the upstream is not to
    // blame for that.
    first.handshake().unwrap();
    let (rest, _) = first.receive_to_end();
    assert!(rest.is_empty());
    drop(first);
    drop(crowd);
    eventually("service as before", || try_exchange(&Client::new(&gateway)).ok());
    let metrics = gateway.wait_until_quiet();
    assert!(metrics.count("ringlock_accept_failures_total", &[]) > 0);
    assert_eq!(
        metrics.count(
            "ringlock_connections_ended_total",
            &[("cause", "exhausted"), ("fault", "operator")]
        ),
        1,
        "{:?}",
        metrics.ended()
    );
    assert_eq!(metrics.count("ringlock_upstream_server_connect_failures_total", &[]), 0);
    assert_eq!(metrics.count("process_max_fds", &[]), LIMIT as u64);
    let line = gateway.wait_for_line("what to do", |line| line["cause_label"] == "exhausted");
    assert!(line["cause"].as_str().unwrap().contains("ulimit -n"), "{line}");
    assert_eq!(line["level"], "WARN", "{line}");
}
