//! What systemd is told, and the sockets that it hands over.

use crate::support::*;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

both_drivers!(
    it_is_told_of_readiness_reload_and_end,
    a_socket_that_is_handed_over_is_used,
    sockets_that_were_promised_and_are_not_there_do_no_harm,
);

fn it_is_told_of_readiness_reload_and_end(io: Io) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).expect("systemd is told something");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let gateway = Setup::new(io, &["127.0.0.1:9"])
        .environment("NOTIFY_SOCKET", path.to_str().unwrap())
        .start();
    let ready = next();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    assert!(ready.contains("STATUS=serving with 1 worker"), "{ready}");

    gateway.signal(Signal::HUP);
    let reloading = next();
    assert!(reloading.lines().any(|line| line == "RELOADING=1"), "{reloading}");
    let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap());
    let at = Duration::from_micros(at.expect("systemd wants the time").parse().unwrap());
    assert!(at <= now && now - at < Duration::from_secs(3600), "{at:?} {now:?}");
    let ready = next();
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");

    // A reload that fails is over as well: systemd must not wait for it.
    gateway.edit_config("name = \"edge\"", "nmae = \"edge\"");
    gateway.signal(Signal::HUP);
    assert!(next().contains("RELOADING=1"));
    let ready = next();
    assert!(ready.contains("READY=1") && ready.contains("reload failed"), "{ready}");

    gateway.signal(Signal::TERM);
    let stopping = next();
    assert!(stopping.lines().any(|line| line == "STOPPING=1"), "{stopping}");
    let (status, log) = gateway.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn a_socket_that_is_handed_over_is_used(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .workers(2)
        .through(&[tool("python3").to_str().unwrap(), "tests/support/with_sockets.py"])
        .start();
    for _ in 0..20 {
        exchange(&gateway);
    }
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_connections_accepted_total", &[]), 20);
    // A reload keeps it.
    gateway.signal(Signal::HUP);
    wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
    for _ in 0..5 {
        exchange(&gateway);
    }
}

fn sockets_that_were_promised_and_are_not_there_do_no_harm(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .environment("LISTEN_FDS", "5")
        .start();
    exchange(&gateway);
    assert_eq!(gateway.ask("/healthz").0, 200);
}
