//! Two hundred reloads while clients connect as fast as they can: certificates that are replaced, and SIGHUP in between.

use std::time::{Duration, Instant};

use crate::support::*;
use rustix::process::Signal;

both_drivers!(two_hundred_reloads_fail_no_handshake_and_end_no_connection);

const RELOADS: u64 = 200;
/// Threads that connect again and again.
const CLIENTS: usize = 6;
/// Connections that are open all the time.
const OPEN: usize = 20;

fn two_hundred_reloads_fail_no_handshake_and_end_no_connection(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .workers(2)
        .global("watch_files = true")
        .log("format = \"json\"\nconnections = \"failures\"")
        .start();
    let client = Client::new(&gateway);
    let mut open: Vec<_> = (0..OPEN).map(|_| client.connect()).collect();
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    let (load, ()) = under_load(&client, CLIENTS, |load| {
        load.wait_for_more(1);
        for number in 0..RELOADS {
            let kind = if number % 10 == 0 { KeyKind::Rsa } else { KeyKind::Ecdsa };
            // Prepared beside them: what is timed is the reload.
            gateway.ca.issue("next", &[SITE], kind);
            let wanted = leaf_in(&gateway.ca.certificate_file("next"));
            let replaced = Instant::now();
            for file in ["pem", "key"] {
                let [from, to] = ["next", "site"].map(|name| gateway.folder().join(format!("{name}.{file}")));
                if number % 4 < 2 {
                    std::fs::rename(from, to).unwrap();
                } else {
                    std::fs::copy(from, to).unwrap();
                }
            }
            if number % 2 == 0 {
                gateway.signal(Signal::HUP);
            }
            eventually("the new certificate", || {
                let new = client.connect();
                let served = new.certificate() == wanted;
                assert!(new.finish().is_empty());
                served.then_some(())
            });
            slowest = slowest.max(replaced.elapsed());
            let position = usize::try_from(number).unwrap() % OPEN;
            echoes(&mut open[position], b"as if nothing had happened");
        }
        load.wait_for_more(1);
    });
    let rate = load.succeeded() as f64 / began.elapsed().as_secs_f64();
    eprintln!(
        "{} connections, {rate:.0} each second; the slowest reload took {slowest:?}",
        load.succeeded()
    );
    assert_eq!(load.failures(), [""; 0]);
    for mut connection in open {
        echoes(&mut connection, b"to the end");
        assert!(connection.finish().is_empty());
    }
    let metrics = gateway.wait_until_quiet();
    let ended = metrics.ended();
    assert_eq!(
        ended.keys().collect::<Vec<_>>(),
        ["finished"],
        "each connection ended in order: {ended:?}"
    );
    assert_eq!(metrics.sum("ringlock_handshake_failures_total", &[]), 0.0);
    assert_eq!(metrics.sum("ringlock_connections_shed_total", &[]), 0.0);
    let reloads = |trigger| {
        let labels = [("result", "succeeded"), ("trigger", trigger)];
        metrics.count("ringlock_configuration_reloads_total", &labels)
    };
    assert_eq!(reloads("signal"), RELOADS / 2);
    assert!(reloads("file") >= RELOADS / 2, "{} by files", reloads("file"));
    assert_eq!(
        metrics.sum("ringlock_configuration_reloads_total", &[("result", "failed")]),
        0.0
    );
    assert_eq!(metrics.sum("ringlock_connections_by_epoch", &[]), 0.0);
}
