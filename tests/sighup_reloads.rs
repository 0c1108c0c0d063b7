//! SIGHUP: a whole new configuration for new connections, the old one for those that are open, and no connection lost.

use crate::support::*;

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

both_drivers!(
    a_new_certificate_is_served_to_new_connections,
    a_refused_configuration_leaves_the_old_one_in_force,
    listeners_come_and_go,
    new_connections_go_to_the_new_upstream,
    twenty_reloads_lose_no_connection_and_no_count,
    connections_are_counted_over_a_reload,
);

#[track_caller]
fn failing_reload(gateway: &Gateway) {
    let labels = [("result", "failed")];
    let name = "ringlock_configuration_reloads_total";
    let before = gateway.metrics().sum(name, &labels);
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, name, &labels, before + 1.0);
}

fn a_new_certificate_is_served_to_new_connections(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).workers(2).start();
    let mut old = Client::new(&gateway).connect();
    echoes(&mut old, b"before");
    gateway.ca.issue("site", &[SITE], KeyKind::Rsa);
    reload(&gateway);
    // Each worker takes the new snapshot when it is woken.
    eventually("the new certificate", || {
        let new = Client::new(&gateway).connect();
        let changed = new.certificate() != old.certificate();
        new.finish();
        changed.then_some(())
    });
    echoes(&mut old, b"after");
    assert!(old.finish().is_empty());
    let certificates = gateway.metrics();
    assert!(
        certificates.has("ringlock_certificate_not_after_seconds", &[("identity", "site")]),
        "{}",
        certificates.text()
    );
}

fn a_refused_configuration_leaves_the_old_one_in_force(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let first = Client::new(&gateway).connect();
    let wanted = first.certificate().to_owned();
    assert!(first.finish().is_empty());

    gateway.edit_config("upstream = \"app\"", "upstraem = \"app\"");
    failing_reload(&gateway);
    let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
    let why = line["why"].as_str().unwrap();
    assert!(why.contains("upstraem") && why.contains("ringlock.toml:"), "{why}");
    exchange(&gateway);

    gateway.edit_config("upstraem = \"app\"", "upstream = \"app\"");
    // The new certificate is there, its key is not yet: as when somebody copies the files one by one.
    let key = std::fs::read(gateway.folder().join("site.key")).unwrap();
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    let new_key = std::fs::read(gateway.folder().join("site.key")).unwrap();
    std::fs::write(gateway.folder().join("site.key"), key).unwrap();
    failing_reload(&gateway);
    gateway.wait_for_line("the pair does not fit", |line| {
        line["why"].as_str().is_some_and(|why| why.contains("does not belong"))
    });
    let still = Client::new(&gateway).connect();
    assert_eq!(still.certificate(), wanted, "the old certificate with its old key");
    assert!(still.finish().is_empty());
    assert_eq!(gateway.ask("/readyz").0, 200);
    assert_eq!(gateway.metrics().sum("ringlock_configuration_epoch", &[]), 1.0);

    std::fs::write(gateway.folder().join("site.key"), new_key).unwrap();
    reload(&gateway);
    eventually("the new certificate", || {
        let new = Client::new(&gateway).connect();
        let changed = new.certificate() != wanted;
        new.finish();
        changed.then_some(())
    });
    assert_eq!(
        gateway
            .metrics()
            .sum("ringlock_configuration_reloads_total", &[("result", "failed")]),
        2.0
    );
}

fn listeners_come_and_go(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).workers(2).start();
    let second = free_address();
    let text = std::fs::read_to_string(gateway.config_file()).unwrap();
    let more = format!(
        "{text}\n[[listener]]\nname = \"second\"\naddress = \"{second}\"\nidentities = [\"site\"]\nupstream = \"app\"\n"
    );
    std::fs::write(gateway.config_file(), more).unwrap();
    reload(&gateway);
    let mut there = Client::new(&gateway).open();
    there.stream = TcpStream::connect(second).unwrap();
    there.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    there.handshake().unwrap();
    echoes(&mut there, b"before");
    exchange(&gateway);

    std::fs::write(gateway.config_file(), text).unwrap();
    reload(&gateway);
    eventually("the second address to be closed", || TcpStream::connect(second).err());
    echoes(&mut there, b"after");
    assert!(there.finish().is_empty());
    exchange(&gateway);
}

fn new_connections_go_to_the_new_upstream(io: Io) {
    let (old_origin, new_origin) = (Origin::echo(), Origin::saying("new"));
    let gateway = Setup::new(io, &[old_origin.address()]).workers(2).start();
    let mut old = Client::new(&gateway).connect();
    echoes(&mut old, b"before");
    gateway.edit_config(&old_origin.address().to_string(), &new_origin.address().to_string());
    reload(&gateway);
    eventually("the new origin to be asked", || {
        let mut new = Client::new(&gateway).connect();
        new.close_notify();
        (new.receive_to_end() == (b"new".to_vec(), End::CloseNotify)).then_some(())
    });
    echoes(&mut old, b"after");
    assert!(old.finish().is_empty());
}

fn twenty_reloads_lose_no_connection_and_no_count(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).workers(2).start();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut long = Client::new(&gateway).connect();
    std::thread::scope(|scope| {
        let loops: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let client = Client::new(&gateway);
                    let mut errors = Vec::new();
                    while !stop.load(Ordering::SeqCst) {
                        match try_exchange(&client) {
                            Ok(()) => _ = done.fetch_add(1, Ordering::SeqCst),
                            Err(error) => errors.push(error),
                        }
                    }
                    errors
                })
            })
            .collect();
        for round in 0..20 {
            let at_least = done.load(Ordering::SeqCst) + 3;
            gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
            reload(&gateway);
            let message = pattern(50_000 + round);
            echoes(&mut long, &message);
            eventually("connections between the reloads", || {
                (done.load(Ordering::SeqCst) >= at_least || loops.iter().any(|one| one.is_finished())).then_some(())
            });
        }
        stop.store(true, Ordering::SeqCst);
        for one in loops {
            let errors = one.join().unwrap();
            assert!(errors.is_empty(), "{errors:?}\n{}", gateway.log());
        }
    });
    assert!(long.finish().is_empty());
    let metrics = gateway.wait_until_quiet();
    let connections = done.load(Ordering::SeqCst) as u64 + 1;
    assert_eq!(metrics.count("ringlock_connections_accepted_total", &[]), connections);
    assert_eq!(
        metrics.ended().get("finished"),
        Some(&connections),
        "{:?}",
        metrics.ended()
    );
    assert_eq!(
        metrics.count("ringlock_upstream_server_connected_total", &[]),
        connections,
        "a reload keeps the counters of a server that stays"
    );
    assert_eq!(
        metrics.count("ringlock_configuration_reloads_total", &[("result", "succeeded")]),
        20
    );
}

fn connections_are_counted_over_a_reload(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("connections_max = 2")
        .start();
    let mut first = Client::new(&gateway).connect();
    let mut second = Client::new(&gateway).connect();
    reload(&gateway);
    echoes(&mut first, b"first");
    echoes(&mut second, b"second");
    assert_eq!(
        gateway.metrics().count("ringlock_upstream_server_connections", &[]),
        2,
        "those of the old configuration are still connections"
    );
    let mut third = gateway.connect_tcp();
    let mut byte = [0];
    assert!(!matches!(third.read(&mut byte), Ok(1)), "it is shed");
    wait_for_metric(&gateway, "ringlock_connections_shed_total", &[], 1.0);
    assert!(first.finish().is_empty());
    eventually("room for one", || {
        try_exchange(&Client::new(&gateway)).ok().or_else(|| {
            std::thread::sleep(Duration::from_millis(5));
            None
        })
    });
    assert!(second.finish().is_empty());
}

#[test]
fn what_needs_a_restart_is_said() {
    let origin = Origin::echo();
    let gateway = Setup::new(Io::Epoll, &[origin.address()]).start();
    gateway.edit_config("io = \"epoll\"", "io = \"auto\"");
    reload(&gateway);
    let line = gateway.wait_for_line("the key and when it takes effect", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("global.io"))
    });
    assert_eq!(line["level"], "WARN");
    assert!(line["message"].as_str().unwrap().contains("next start"), "{line}");
    exchange(&gateway);
}
