//! What `ringlock-perf attack` does, against the gateway and against nginx: others are served all the time, each connection ends
//! by a bound, and nothing is left behind.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use ringlock_perf::args::{Cli, Command};
use ringlock_perf::attack::report::{AttackReport, EndedBy};
use tempfile::TempDir;

use crate::support::*;

both_drivers!(
    a_stalled_hello_ends_by_the_handshake_timeout,
    a_hello_byte_by_byte_ends_by_the_handshake_timeout,
    a_handshake_that_is_not_answered_ends_by_the_handshake_timeout,
    a_storm_of_key_updates_ends_its_connection,
    a_hello_that_is_too_long_is_refused,
    what_is_too_long_holds_up_nobody,
    one_ticket_for_all_costs_no_more_than_any,
    renegotiation_is_declined_and_then_refused,
    resets_leave_nothing_behind,
    stalled_connections_stay_below_the_limit,
);

/// Memory that a hundred connections may take, and that allocators may keep: a debug build, with buffers that are pooled.
const MEMORY_MAX: u64 = 64 << 20;

#[track_caller]
fn attack(target: SocketAddr, pid: u32, flags: &str) -> AttackReport {
    let line = format!(
        "ringlock-perf attack --target {target} --server-name {SITE} --server-pid {pid} --baseline 300ms {flags}"
    );
    let Command::Attack(args) = Cli::parse_from(line.split(' ')).command else {
        panic!("attack is a command")
    };
    ringlock_perf::attack::run(&args, &AtomicBool::new(false)).unwrap()
}

/// The gateway, with a handshake timeout that a test has time for, is attacked and survives.
#[track_caller]
fn survives(io: Io, flags: &str) -> (Gateway, AttackReport) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("handshake_timeout = \"2s\"")
        .start();
    let report = attack(gateway.address, gateway.pid(), flags);
    let shown = format!("{report}");
    assert!(report.is_clean(), "{shown}");
    let witness = report.witness.as_ref().expect("there is one by default");
    assert_eq!(witness.does, "exchange");
    assert!(witness.during.succeeded > 0 && witness.after.succeeded > 0, "{shown}");
    assert!(report.attempts > 0 && report.connected > 0, "{shown}");
    let server = report.server.as_ref().expect("its process id was given");
    assert!(server.rss_most < server.rss_before + MEMORY_MAX, "{shown}");
    assert!(server.rss_after < server.rss_before + MEMORY_MAX, "{shown}");
    let metrics = gateway.wait_until_quiet();
    assert!(metrics.count("ringlock_connections_accepted_total", &[]) >= report.connected);
    exchange(&gateway);
    (gateway, report)
}

/// Connections that ended in this way with this alert.
fn ended(report: &AttackReport, ending: &str, alert: &str) -> u64 {
    let endings = report.endings.iter();
    let same = endings.filter(|count| count.ending.ending == ending && count.ending.alert.as_deref() == Some(alert));
    same.map(|count| count.count).sum()
}

/// All of the attack's connections that were not cut by its end were ended by the server, and none was kept for longer than its timeout and
/// as long again.
#[track_caller]
fn all_end_by_the_server(report: &AttackReport) {
    let by_server = report.ended("closed_by_server") + report.ended("reset_by_server");
    assert!(by_server > 0, "{report}");
    assert_eq!(by_server + report.ended("open_at_end"), report.attempts, "{report}");
}

fn ends_by_the_handshake_timeout(io: Io, flags: &str) {
    let flags = format!("{flags} --connections 100 --connections-max 200 --duration 60s");
    let (gateway, report) = survives(io, &flags);
    assert_eq!(report.ended_by, EndedBy::ConnectionsMax, "{report}");
    all_end_by_the_server(&report);
    assert_eq!(report.ended("open_at_end"), 0, "{report}");
    assert!(report.kept_ms.p50 >= 1900.0, "not before the timeout: {report}");
    let ended = gateway.metrics().ended();
    assert_eq!(ended.get("handshake_timeout"), Some(&200), "{ended:?}");
}

fn a_stalled_hello_ends_by_the_handshake_timeout(io: Io) {
    ends_by_the_handshake_timeout(io, "stalled-hello");
}

fn a_hello_byte_by_byte_ends_by_the_handshake_timeout(io: Io) {
    ends_by_the_handshake_timeout(io, "slow-hello --pause 20ms");
}

fn a_handshake_that_is_not_answered_ends_by_the_handshake_timeout(io: Io) {
    ends_by_the_handshake_timeout(io, "half-open");
}

fn a_storm_of_key_updates_ends_its_connection(io: Io) {
    let (gateway, report) = survives(io, "key-update --connections 10 --connections-max 40 --duration 60s");
    all_end_by_the_server(&report);
    assert_eq!(report.ended("open_at_end"), 0, "{report}");
    assert!(report.messages > 40 * 16, "{report}");
    gateway.wait_for_cause("client sent too many KeyUpdates");
}

fn a_hello_that_is_too_long_is_refused(io: Io) {
    let (_gateway, report) = survives(io, "huge-hello --connections 10 --connections-max 50 --duration 60s");
    let of = |variant: &str, ending: &str| -> u64 {
        let endings = report.endings.iter();
        let same = endings.filter(|count| count.ending.variant == variant && count.ending.ending.starts_with(ending));
        same.map(|count| count.count).sum()
    };
    // It is a usual one, in many records.
    assert_eq!(of("one-byte-records", "answered"), 10, "{report}");
    for variant in ["many-records", "absurd-message", "absurd-record", "absurd-vector"] {
        assert_eq!(
            of(variant, "closed_by_server") + of(variant, "reset_by_server"),
            10,
            "{variant}: {report}"
        );
    }
    assert_eq!(report.ended("answered"), 10, "{report}");
}

/// Those who send far too much must not keep those who send what is right from being read for as long as they go on.
fn what_is_too_long_holds_up_nobody(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("handshake_timeout = \"5s\"")
        .start();
    let flags = "huge-hello --connections 100 --duration 7s --witness-rate 0";
    let report = attack(gateway.address, gateway.pid(), flags);
    let ended: Vec<_> = report
        .endings
        .iter()
        .filter(|count| count.ending.variant == "one-byte-records")
        .collect();
    assert!(ended.iter().any(|count| count.ending.ending == "answered"), "{report}");
    for count in ended {
        assert!(
            ["answered", "open_at_end"].contains(&count.ending.ending.as_str()),
            "{report}"
        );
    }
    gateway.wait_until_quiet();
}

fn one_ticket_for_all_costs_no_more_than_any(io: Io) {
    let (_gateway, report) = survives(
        io,
        "ticket-replay --connections 10 --connections-max 100 --duration 60s",
    );
    // A ticket may come back as often as its client likes: there is no early data that could be repeated with it.
    assert_eq!(report.ended("resumed"), 100, "{report}");
    assert!(report.left_out.is_empty(), "{report}");
}

fn renegotiation_is_declined_and_then_refused(io: Io) {
    let (gateway, report) = survives(io, "renegotiation --connections 10 --connections-max 40 --duration 60s");
    all_end_by_the_server(&report);
    assert_eq!(report.ended("renegotiated"), 0, "{report}");
    assert_eq!(ended(&report, "closed_by_server", "no_renegotiation"), 40, "{report}");
    assert!((40..=40 * 20).contains(&report.messages), "{report}");
    // There was one handshake for each connection of either client, and the one behind the attack.
    let witness = report.witness.as_ref().expect("there is one by default");
    let witnessed = witness.before.succeeded + witness.during.succeeded + witness.after.succeeded;
    let handshakes = gateway.metrics().count("ringlock_handshakes_total", &[]);
    assert_eq!(handshakes, 40 + witnessed + 2);
}

fn resets_leave_nothing_behind(io: Io) {
    let (_gateway, report) = survives(io, "reset --connections 50 --connections-max 400 --duration 60s");
    assert_eq!(report.ended("reset_by_client"), 400, "{report}");
}

fn stalled_connections_stay_below_the_limit(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .listener("connections_max = 40\nhandshake_timeout = \"1s\"")
        .start();
    let flags = "stalled-hello --connections 100 --connections-max 300 --duration 60s --witness-rate 0";
    let mut live_most: f64 = 0.0;
    let report = std::thread::scope(|scope| {
        let attack = scope.spawn(|| attack(gateway.address, gateway.pid(), flags));
        while !attack.is_finished() {
            live_most = live_most.max(gateway.metrics().sum("ringlock_connections_live", &[]));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        attack.join().unwrap()
    });
    assert!((1.0..=40.0).contains(&live_most), "{live_most} were live");
    let metrics = gateway.wait_until_quiet();
    assert!(metrics.count("ringlock_connections_shed_total", &[]) > 0, "{report}");
    all_end_by_the_server(&report);
    exchange(&gateway);
}

/// nginx as it comes, but for TLS 1.3, and handshakes that may take no longer than a test has time for.
struct Nginx {
    address: SocketAddr,
    balancer: Balancer,
    _folder: TempDir,
}

impl Nginx {
    fn start() -> Nginx {
        let folder = TempDir::new().unwrap();
        let ca = Ca::new(folder.path());
        ca.issue("site", &[SITE], KeyKind::Ecdsa);
        let (certificate, key) = (ca.certificate_file("site"), ca.key_file("site"));
        let address = free_address();
        let blocks = format!(
            "http {{ client_header_timeout 1s; ssl_session_cache shared:s:1m; ssl_protocols TLSv1.2 TLSv1.3;\n\
             server {{ listen {address} ssl;\
             ssl_certificate {}; ssl_certificate_key {}; return 200; }} }}",
            certificate.display(),
            key.display()
        );
        Nginx {
            address,
            balancer: Balancer::nginx(&blocks, address),
            _folder: folder,
        }
    }

    #[track_caller]
    fn survives(&self, flags: &str) -> AttackReport {
        let report = self.outlives(flags);
        assert!(report.is_clean(), "{report}");
        report
    }

    /// It serves afterwards, whatever it did meanwhile.
    #[track_caller]
    fn outlives(&self, flags: &str) -> AttackReport {
        let report = attack(self.address, self.balancer.program.pid(), flags);
        let after = &report.witness.as_ref().expect("there is one by default").after;
        assert!(after.failed == 0 && after.succeeded > 0, "{report}");
        assert!(report.connected > 0, "{report}");
        assert!(self.balancer.program.is_running(), "{report}");
        let server = report.server.as_ref().expect("its process id was given");
        assert!(server.rss_most < server.rss_before + MEMORY_MAX, "{report}");
        report
    }
}

#[test]
fn nginx_survives_handshakes_that_are_not_finished() {
    let nginx = Nginx::start();
    for mode in ["stalled-hello", "slow-hello --pause 20ms", "half-open"] {
        let flags = format!("{mode} --connections 50 --connections-max 100 --duration 60s");
        let report = nginx.survives(&flags);
        all_end_by_the_server(&report);
        assert!(report.kept_ms.p50 >= 900.0, "{report}");
    }
    let report = nginx.survives("reset --connections 50 --connections-max 200 --duration 60s");
    assert_eq!(report.ended("reset_by_client"), 200, "{report}");
}

#[test]
fn nginx_survives_what_is_too_much() {
    let nginx = Nginx::start();
    let report = nginx.survives("huge-hello --connections 10 --connections-max 50 --duration 60s");
    assert!(report.ended("answered") < 50, "{report}");
    // OpenSSL 3.0 has no bound for them, and reads on while there are any: others wait.
    let report = nginx.outlives("key-update --connections 4 --duration 2s");
    assert!(report.messages > 1000 && report.ended("open_at_end") > 0, "{report}");
    let report = nginx.survives("renegotiation --connections 4 --duration 1s");
    assert_eq!(report.ended("renegotiated"), 0, "{report}");
    let report = nginx.survives("ticket-replay --connections 10 --connections-max 100 --duration 60s");
    assert!(report.ended("resumed") > 0, "{report}");
}

/// The attack would see a server that lets itself in for it.
#[test]
fn openssl_renegotiates_when_it_is_told_to() {
    let folder = TempDir::new().unwrap();
    let ca = Ca::new(folder.path());
    ca.issue("site", &[SITE], KeyKind::Ecdsa);
    let (certificate, key) = (ca.certificate_file("site"), ca.key_file("site"));
    for allowed in [true, false] {
        let address = free_address();
        let mut arguments = vec!["s_server".to_owned(), "-accept".to_owned(), address.to_string()];
        arguments.extend(["-cert".to_owned(), certificate.display().to_string()]);
        arguments.extend(["-key".to_owned(), key.display().to_string(), "-www".to_owned()]);
        if allowed {
            arguments.push("-client_renegotiation".to_owned());
        }
        let server = Program::start("openssl", &arguments);
        server.wait_for("ACCEPT");
        // It serves one connection at a time.
        let flags = "renegotiation --connections 1 --connections-max 2 --duration 5s --timeout 2s --witness-rate 0";
        let report = attack(address, server.pid(), flags);
        assert_eq!(
            report.ended("renegotiated") == 2,
            allowed,
            "{report}\n{}",
            server.text()
        );
    }
}
