//! What is looked at beside the work: the server's memory, context switches and system calls, established connections during
//! a flood, and what the report says of its own figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use ringlock_perf::args::{Cli, Command};
use ringlock_perf::origin::Origin;
use ringlock_perf::report::Report;
use ringlock_perf::run;

use crate::relay::{Fault, Relay};

/// A relay in this process with an echoing origin behind it, which runs in a thread.
struct Server {
    relay: Relay,
    stop: Arc<AtomicBool>,
    origin: JoinHandle<()>,
}

impl Server {
    fn start(fault: Fault) -> Self {
        let line = "ringlock-perf origin --listen 127.0.0.1:0 --mode echo";
        let Command::Origin(args) = Cli::parse_from(line.split(' ')).command else {
            panic!("origin is a command")
        };
        let mut origin = Origin::new(&args).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (relay, stopped) = (Relay::start(&origin.address().to_string(), fault), stop.clone());
        let origin = std::thread::spawn(move || {
            origin.run(&stopped).unwrap();
        });
        Self { relay, stop, origin }
    }

    /// Runs `work` against it; client, server and origin are this process.
    fn drive(&self, work: &str) -> Report {
        let pid = std::process::id();
        let (target, ca) = (&self.relay.address, self.relay.ca());
        let line = format!("ringlock-perf {work} --target {target} --ca {ca} --warmup 0s --server-pid {pid}");
        run(&Cli::parse_from(line.split(' ')).command).unwrap()
    }

    fn finish(self) {
        self.relay.finish();
        self.stop.store(true, Ordering::Relaxed);
        self.origin.join().unwrap();
    }
}

#[test]
fn established_connections_are_measured_alone_and_beside_the_work() {
    let server = Server::start(Fault::None);
    let report = server.drive("handshake --connections 2 --duration 1s --probe-established 3 --probe-rate 50");
    assert!(report.is_clean(), "{report}");
    let probe = report.probe_established.unwrap();
    assert_eq!((probe.connections, probe.rate_per_s), (3, 50));
    assert_eq!((probe.failed, probe.unanswered), (0, 0), "{report}");
    // Each message counts in the window in which it was due, however late its answer is.
    assert!((49..=51).contains(&probe.messages_alone), "{probe:?}");
    let due = report.duration_s * 50.0;
    assert!((probe.messages_beside as f64 - due).abs() <= 2.0, "{probe:?} {due}");
    assert!(0.0 < probe.alone.p50 && 0.0 < probe.beside.p50, "{probe:?}");
    assert!(report.to_string().contains("3 established connections"), "{report}");
    server.finish();
}

#[test]
fn a_server_that_stands_still_for_everyone_during_a_flood_shows_it() {
    let server = Server::start(Fault::StandStill(2));
    let report = server.drive("handshake --connections 2 --duration 1s --probe-established 2 --probe-rate 50");
    assert!(report.is_clean(), "{report}");
    let probe = report.probe_established.unwrap();
    assert_eq!((probe.failed, probe.unanswered), (0, 0), "{report}");
    // Two connections could carry two messages; the others were due, too, and waited from then.
    assert!(probe.messages_beside >= 48, "{probe:?}");
    assert!(
        probe.beside.p99 > 900_000.0 && probe.beside.p50 > 500_000.0,
        "{probe:?}"
    );
    assert!(probe.beside.p99 > probe.alone.p99 && probe.p99_ratio > 1.0, "{probe:?}");
    server.finish();
}

#[test]
fn messages_that_are_never_answered_count_with_the_time_they_waited() {
    let server = Server::start(Fault::StandStill(2));
    let flags = "--duration 2s --timeout 500ms --probe-established 2 --probe-rate 50";
    let report = server.drive(&format!("handshake --connections 2 {flags}"));
    let probe = report.probe_established.unwrap();
    assert!(probe.failed >= 2 && probe.unanswered >= 2, "{probe:?}");
    assert!(probe.beside.max >= 500_000.0, "{probe:?}");
    let warned = report.warnings.iter().any(|warning| warning.contains("never answered"));
    assert!(warned, "{report}");
    server.finish();
}

#[test]
fn a_run_that_fails_leaves_no_probe_behind() {
    let server = Server::start(Fault::None);
    // Nobody listens there.
    let line = format!(
        "ringlock-perf echo --connections 1 --errors-max 3 --duration 100ms --target 127.0.0.1:1 --insecure \
         --probe-established 2 --probe-target {}",
        server.relay.address
    );
    let error = run(&Cli::parse_from(line.split_whitespace()).command)
        .unwrap_err()
        .to_string();
    assert!(error.contains("gave up"), "{error}");
    // Waits until the probe's connections have ended.
    let (tell, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        server.finish();
        tell.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn the_probe_may_go_elsewhere_and_its_flags_are_checked() {
    let (server, other) = (Server::start(Fault::None), Server::start(Fault::None));
    let target = &other.relay.address;
    let flags = format!("--probe-established 2 --probe-target {target} --insecure");
    let pid = std::process::id();
    let line = format!(
        "ringlock-perf echo --connections 2 --duration 300ms --warmup 0s --server-pid {pid} --target {} {flags}",
        server.relay.address
    );
    let report = run(&Cli::parse_from(line.split(' ')).command).unwrap();
    assert_eq!(report.totals.opened, 2);
    assert_eq!(report.probe_established.unwrap().connections, 2);
    assert_eq!(server.relay.finish().handshakes, 2);
    assert_eq!(other.relay.finish().handshakes, 2);
    for (flags, expected) in [
        ("--probe-established 0", "--connections: found `0`"),
        ("--probe-established 1 --probe-rate 0", "--probe-rate: found `0`"),
    ] {
        let line = format!("ringlock-perf echo --target 127.0.0.1:1 --insecure {flags}");
        let error = run(&Cli::parse_from(line.split(' ')).command).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn system_calls_are_counted_after_the_window_or_it_is_said_why_not() {
    // The server has to be another process: a tool that stops it would stop itself with its client.
    let mut server = PlainServer::start();
    let target = server.address.clone();
    let line = format!(
        "ringlock-perf handshake --target {target} --insecure --warmup 0s --connections 1 --duration 500ms --syscalls --server-pid {}",
        server.child.id()
    );
    let report = run(&Cli::parse_from(line.split(' ')).command).unwrap();
    server.stop();
    let server = report.server.as_ref().unwrap();
    match &server.system_calls {
        Some(calls) => {
            assert!(calls.units > 0.0 && calls.per_unit >= 3.0, "{calls:?}");
            let sum: f64 = calls.by_name.values().sum();
            assert!((sum - calls.per_unit).abs() < 0.1, "{calls:?}");
            assert!(calls.by_name.keys().any(|name| name.starts_with("accept")), "{calls:?}");
            assert!(report.to_string().contains("system calls per unit"), "{report}");
        }
        None => assert!(
            report.warnings.iter().any(|warning| warning.contains("perf stat: ")),
            "{report}"
        ),
    }
    assert!(server.context_switches_per_unit.voluntary > 0.0, "{server:?}");
}

#[test]
fn memory_is_told_for_standing_connections_and_only_for_those() {
    let server = Server::start(Fault::None);
    let echo = server.drive("echo --connections 4 --duration 200ms");
    let memory = echo.server.unwrap().memory.unwrap();
    assert!(memory.before.rss > 0 && memory.end.pss > 0, "{memory:?}");
    let expected = (memory.end.rss as f64 - memory.before.rss as f64) / 4.0;
    assert!((memory.per_connection.rss - expected).abs() < 1.0, "{memory:?}");
    let handshake = server.drive("handshake --connections 1 --count 3 --duration 30s");
    assert!(handshake.server.unwrap().memory.is_none());
    server.finish();
}

#[test]
fn memory_that_cannot_be_read_is_a_warning_but_for_idle() {
    let server = Server::start(Fault::None);
    // A process that has ended and is not waited for has clocks, but no memory.
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let pid = ended.id();
    let stat = format!("/proc/{pid}/stat");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(std::time::Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let drive = |work: &str| {
        let (target, ca) = (&server.relay.address, server.relay.ca());
        let line = format!("ringlock-perf {work} --target {target} --ca {ca} --warmup 0s --server-pid {pid}");
        run(&Cli::parse_from(line.split(' ')).command)
    };
    let echo = drive("echo --connections 2 --duration 200ms").unwrap();
    assert!(
        echo.is_clean() && echo.server.as_ref().unwrap().memory.is_none(),
        "{echo}"
    );
    let why = format!("memory is not in this report: process {pid}");
    assert!(echo.warnings.iter().any(|warning| warning.contains(&why)), "{echo}");
    let handshake = drive("handshake --connections 1 --count 3 --duration 30s").unwrap();
    assert!(
        !handshake.warnings.iter().any(|warning| warning.contains(&why)),
        "{handshake}"
    );
    let error = drive("idle --connections 2 --settle 0s --hold 0s")
        .unwrap_err()
        .to_string();
    assert!(error.contains("smaps_rollup"), "{error}");
    ended.wait().unwrap();
    server.finish();
}

#[test]
fn a_report_warns_of_figures_that_are_chance() {
    let server = Server::start(Fault::None);
    let report = server.drive("handshake --connections 1 --count 3 --duration 30s");
    let warned = |part: &str| report.warnings.iter().any(|warning| warning.contains(part));
    assert!(warned("p99 and p99.9 are chance"), "{report}");
    let text = report.to_string();
    let (warning, rate) = (text.find("WARNING").unwrap(), text.find("rate ").unwrap());
    assert!(warning < rate, "{text}");
    // Warnings do not make a run fail.
    assert!(report.is_clean());
    server.finish();
}

/// `openssl s_server`, a process of its own.
struct PlainServer {
    address: String,
    child: std::process::Child,
    _folder: tempfile::TempDir,
}

impl PlainServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let certificate = write("server.pem", certified.cert.pem());
        let key = write("server.key", certified.signing_key.serialize_pem());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let child = std::process::Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &address, "-cert"])
            .arg(certificate)
            .arg("-key")
            .arg(key)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&address).is_err() {
            assert!(std::time::Instant::now() < end, "openssl does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            address,
            child,
            _folder: folder,
        }
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
