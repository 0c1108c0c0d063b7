//! Every kind of work against a TLS relay in this process with the real origin behind it; the relay's and the
//! origin's counts must agree with the report.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

mod attacks;
mod costs;
mod loads;
mod origins;
mod program;
mod relay;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use relay::{Fault, Relay};
use ringlock_perf::args::{Cli, Command, Io};
use ringlock_perf::origin::{Origin, OriginReport};
use ringlock_perf::report::Report;
use ringlock_perf::{PerfError, run};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};

/// Makes two tests of each function, `name::io_uring` and `name::epoll`.
macro_rules! both_drivers {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn io_uring() {
                super::$name(ringlock_perf::args::Io::IoUring);
            }
            #[test]
            fn epoll() {
                super::$name(ringlock_perf::args::Io::Epoll);
            }
        }
    )+};
}

both_drivers!(
    handshakes_are_counted_once_each_and_closed_in_order,
    an_exchange_brings_one_byte_to_the_origin_and_back,
    every_measured_connection_resumes_the_session_of_another,
    sessions_of_a_cache_are_resumed_in_tls_1_2,
    more_tickets_than_connections_use_do_no_harm,
    a_few_declined_sessions_are_counted_and_more_refuse_the_figure,
    a_server_that_gives_no_session_is_named_before_anything_is_measured,
    a_close_by_the_server_can_be_waited_for,
    version_suite_and_group_are_the_ones_asked_for,
    echoed_messages_are_all_at_the_origin,
    an_open_loop_begins_as_many_units_as_it_should,
    a_unit_begins_when_it_is_due_even_if_nothing_else_happens,
    latencies_of_an_open_loop_hold_the_wait_for_a_slow_server,
    a_connection_at_rest_does_not_time_out_and_one_that_fails_is_opened_anew,
    a_changed_byte_in_an_echo_is_noticed,
    uploaded_bytes_all_arrive_at_the_origin,
    a_bounded_download_ends_in_order_and_is_counted_to_the_byte,
    idle_connections_are_held_and_measured,
    idle_connections_that_the_server_closes_are_lost,
    a_missing_close_notify_is_told_apart,
    nobody_listening_is_refused_and_given_up,
    a_silent_server_times_out,
    a_certificate_of_another_ca_is_refused_unless_insecure,
    a_server_that_asks_for_a_certificate_gets_it,
    json_has_the_documented_fields,
    what_goes_wrong_in_a_handshake_is_counted_by_its_cause,
    the_report_names_the_driver,
);

/// An origin that runs in a thread until it is asked for its counts.
struct RunningOrigin {
    address: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<OriginReport>,
}

fn origin(mode: &str, more: &[&str]) -> RunningOrigin {
    let line = ["ringlock-perf", "origin", "--listen", "127.0.0.1:0", "--mode", mode];
    let Command::Origin(args) = Cli::parse_from(line.iter().chain(more)).command else {
        panic!("origin is a command")
    };
    let mut origin = Origin::new(&args).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (address, stopped) = (origin.address().to_string(), stop.clone());
    RunningOrigin {
        address,
        stop,
        thread: std::thread::spawn(move || origin.run(&stopped).unwrap()),
    }
}

impl RunningOrigin {
    fn finish(self) -> OriginReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Runs `work` (a command with its own flags) against the relay, as short as its counts allow.
fn drive(io: Io, relay: &Relay, work: &str) -> Result<Report, PerfError> {
    drive_target(io, &relay.address, relay.ca(), work)
}

fn drive_target(io: Io, target: &str, ca: &str, work: &str) -> Result<Report, PerfError> {
    let pid = std::process::id().to_string();
    let io = io.to_possible_value().expect("every driver has a name");
    let io = ["--io", io.get_name()];
    let common = ["--target", target, "--ca", ca, "--warmup", "0s", "--server-pid", &pid];
    let line = std::iter::once("ringlock-perf")
        .chain(work.split(' '))
        .chain(common)
        .chain(io);
    run(&Cli::parse_from(line).command)
}

fn assert_negotiated(report: &Report, version: &str, suite: &str, group: &str) {
    assert_parameters(report, [version, suite, group, "Full"]);
}

/// All connections had these: version, suite, group and kind of handshake.
fn assert_parameters(report: &Report, expected: [&str; 4]) {
    let [parameters] = report.negotiated.as_slice() else {
        panic!("one set of parameters: {:?}", report.negotiated)
    };
    let found = [
        &parameters.version,
        &parameters.suite,
        &parameters.group,
        &parameters.handshake,
    ]
    .map(String::as_str);
    assert_eq!(found, expected);
    assert_eq!(parameters.count, report.totals.established);
}

fn handshakes_are_counted_once_each_and_closed_in_order(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(io, &relay, "handshake --connections 4 --count 40 --duration 30s").unwrap();
    assert!(report.is_clean(), "{report}");
    assert!((40.0..44.0).contains(&report.units), "{report}");
    let totals = report.totals;
    assert_eq!(
        (totals.established, totals.closed_in_order),
        (totals.opened, totals.opened)
    );
    assert_eq!(totals.units, totals.opened);
    assert_negotiated(&report, "TLSv1_3", "TLS13_AES_128_GCM_SHA256", "X25519");
    let latency = report.latency_us.unwrap();
    assert!(
        0.0 < latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max,
        "{latency:?}"
    );
    assert!(report.server.unwrap().cpu_us_per_unit > 0.0);
    assert_eq!(relay.finish().handshakes, totals.opened);
    assert_eq!(origin.finish().accepted, totals.opened);
}

fn an_exchange_brings_one_byte_to_the_origin_and_back(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        io,
        &relay,
        "handshake --exchange --connections 2 --count 10 --duration 30s",
    )
    .unwrap();
    assert!(report.is_clean(), "{report}");
    relay.finish();
    let counts = origin.finish();
    assert!(report.totals.units >= 10);
    // The last connections may be closed before their byte comes back.
    assert!(
        (report.totals.units..=report.totals.units + 2).contains(&counts.received),
        "{counts:?} {report}"
    );
    assert_eq!(counts.received, counts.sent);
    assert_eq!(counts.accepted, report.totals.opened);
}

/// Tickets that are what they hold, of which every so many are not recognised.
#[derive(Debug)]
struct Tickets {
    /// 1: none is recognised; 0: each is.
    declined_every: u64,
    seen: AtomicU64,
}

impl Tickets {
    fn declining_every(every: u64) -> Arc<Self> {
        Arc::new(Self {
            declined_every: every,
            seen: AtomicU64::new(0),
        })
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        3600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        Some(plain.to_vec())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let number = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        let declined = self.declined_every > 0 && number.is_multiple_of(self.declined_every);
        (!declined).then(|| ticket.to_vec())
    }
}

fn every_measured_connection_resumes_the_session_of_another(io: Io) {
    let origin = origin("echo", &[]);
    let ticketer = Tickets::declining_every(0);
    let relay = Relay::start_resuming(&origin.address, 1, ticketer.clone());
    let mut connections = 0;
    for (version, suite, group) in [
        ("1.3", "TLS13_AES_128_GCM_SHA256", "X25519"),
        ("1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "none"),
    ] {
        for pace in ["", " --rate 200"] {
            let flags = format!("resume --connections 4 --count 40 --duration 30s --tls {version}{pace}");
            let report = drive(io, &relay, &flags).unwrap();
            assert!(report.is_clean(), "{report}");
            assert_eq!(report.work, "resume");
            assert_eq!(report.handshakes.unwrap().full, 0, "{report}");
            assert_eq!(report.handshakes.unwrap().resumed as f64, report.units, "{report}");
            assert!(report.to_string().contains("0 full, 4"), "{report}");
            // The sessions were there before the first connection of the run.
            assert_parameters(&report, [version_name(version), suite, group, "Resumed"]);
            assert_eq!(report.totals.closed_in_order, report.totals.opened);
            connections += 4 + report.totals.opened;
        }
    }
    assert_eq!(relay.finish().handshakes, connections);
    // No ticket is offered twice, and no connection goes without.
    assert_eq!(ticketer.seen.load(Ordering::SeqCst), connections - 4 * 4);
    let counts = origin.finish();
    assert_eq!((counts.accepted, counts.received), (connections, counts.sent));
}

fn version_name(version: &str) -> &'static str {
    if version == "1.2" { "TLSv1_2" } else { "TLSv1_3" }
}

fn sessions_of_a_cache_are_resumed_in_tls_1_2(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(io, &relay, "resume --connections 4 --count 40 --duration 30s --tls 1.2").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.handshakes.unwrap().full, 0, "{report}");
    relay.finish();
    origin.finish();
}

fn more_tickets_than_connections_use_do_no_harm(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start_resuming(&origin.address, 3, Tickets::declining_every(0));
    let report = drive(io, &relay, "resume --connections 2 --count 40 --duration 30s").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.handshakes.unwrap().full, 0, "{report}");
    relay.finish();
    origin.finish();
}

fn a_few_declined_sessions_are_counted_and_more_refuse_the_figure(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start_resuming(&origin.address, 1, Tickets::declining_every(50));
    let report = drive(io, &relay, "resume --connections 2 --count 200 --duration 60s").unwrap();
    assert!(report.is_clean(), "{report}");
    let handshakes = report.handshakes.unwrap();
    assert!((3..=5).contains(&handshakes.full), "{report}");
    assert_eq!((handshakes.full + handshakes.resumed) as f64, report.units, "{report}");
    let kinds: Vec<&str> = report.negotiated.iter().map(|found| &*found.handshake).collect();
    assert_eq!(kinds, ["Full", "Resumed"], "{report}");
    relay.finish();

    let relay = Relay::start_resuming(&origin.address, 1, Tickets::declining_every(10));
    let error = drive(io, &relay, "resume --connections 2 --count 200 --duration 60s")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("not resumed") && error.contains("measured connections were full handshakes"),
        "{error}"
    );
    relay.finish();
    origin.finish();
}

fn a_server_that_gives_no_session_is_named_before_anything_is_measured(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let error = drive(io, &relay, "resume --connections 3 --duration 30s")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the server gave sessions to 0 of 3 full handshakes, expected 3"),
        "{error}"
    );
    assert_eq!(relay.finish().handshakes, 3);
    origin.finish();
}

fn a_close_by_the_server_can_be_waited_for(io: Io) {
    let origin = origin("close", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        io,
        &relay,
        "handshake --expect-close --connections 2 --count 10 --duration 30s",
    )
    .unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.totals.closed_in_order, report.totals.opened);
    relay.finish();
    assert_eq!(origin.finish().accepted, report.totals.opened);
}

fn version_suite_and_group_are_the_ones_asked_for(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = "--connections 1 --count 2 --duration 30s --tls 1.2 --group secp384r1";
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let report = drive(io, &relay, &format!("handshake {flags} --suite {suite}")).unwrap();
    assert_negotiated(&report, "TLSv1_2", suite, "secp384r1");
    let report = drive(
        io,
        &relay,
        "handshake --connections 1 --count 2 --duration 30s --group x25519mlkem768",
    )
    .unwrap();
    assert_negotiated(&report, "TLSv1_3", "TLS13_AES_128_GCM_SHA256", "X25519MLKEM768");
    relay.finish();
    origin.finish();
}

fn echoed_messages_are_all_at_the_origin(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(io, &relay, "echo --connections 3 --size 700 --count 60 --duration 30s").unwrap();
    assert!(report.is_clean(), "{report}");
    assert!((60.0..=63.0).contains(&report.units), "{report}");
    assert_eq!(report.totals.opened, 3);
    relay.finish();
    let counts = origin.finish();
    let bytes = report.totals.units * 700;
    assert!(
        (bytes..=bytes + 3 * 700).contains(&counts.received),
        "{counts:?} {report}"
    );
}

fn an_open_loop_begins_as_many_units_as_it_should(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let mut connections = 0;
    for work in ["handshake", "echo"] {
        let report = drive(io, &relay, &format!("{work} --rate 50 --connections 8 --duration 1s")).unwrap();
        assert!(report.is_clean(), "{report}");
        let counts = report.open_loop.unwrap();
        assert_eq!(counts.due, counts.started + counts.not_started, "{report}");
        // 50 in a second, if the machine is not too busy to run this at all; a closed loop would do far more.
        assert!((50..=500).contains(&counts.due), "{report}");
        assert!((25.0..500.0).contains(&report.units), "{report}");
        // Messages that are on their way when the window ends are not waited for.
        assert!(
            (counts.started - 8..=counts.started).contains(&report.totals.units),
            "{report}"
        );
        let opened = if work == "echo" { 8 } else { counts.started };
        assert_eq!(report.totals.opened, opened, "{report}");
        connections += opened;
    }
    assert_eq!(relay.finish().handshakes, connections);
    origin.finish();
}

fn a_unit_begins_when_it_is_due_even_if_nothing_else_happens(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    // The engine looks around every 250 ms at least. Whoever relies on that is late in some attempts.
    let first = |_| {
        let report = drive(io, &relay, "echo --rate 1 --connections 1 --count 1 --duration 30s").unwrap();
        report.latency_us.unwrap().max
    };
    let mut longest: Vec<f64> = (0..30).map(first).collect();
    longest.sort_by(f64::total_cmp);
    assert!(longest[27] < 200_000.0, "µs: {longest:?}");
    relay.finish();
    origin.finish();
}

fn latencies_of_an_open_loop_hold_the_wait_for_a_slow_server(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::Slow(Duration::from_millis(20)));
    for work in ["handshake", "echo"] {
        let twenty = format!("{work} --connections 1 --count 20 --duration 60s");
        let closed = drive(io, &relay, &twenty).unwrap();
        assert!(closed.open_loop.is_none(), "{closed}");
        let open = drive(io, &relay, &format!("{twenty} --rate 1000")).unwrap();
        assert!(open.is_clean(), "{open}");
        // Due within 20 ms, and done one after the other: the last one waits for nineteen.
        let (alone, last) = (closed.latency_us.unwrap().p50, open.latency_us.unwrap().max);
        assert!(last > 5.0 * alone, "{closed}{open}");
        let counts = open.open_loop.unwrap();
        assert!(counts.not_started > counts.started, "{open}");
        assert_eq!(counts.due, counts.started + counts.not_started, "{open}");
    }
    relay.finish();
    origin.finish();
}

fn a_connection_at_rest_does_not_time_out_and_one_that_fails_is_opened_anew(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = "echo --rate 2 --connections 2 --duration 2s --timeout 500ms";
    let report = drive(io, &relay, flags).unwrap();
    assert!(report.is_clean() && report.totals.opened == 2, "{report}");
    relay.finish();
    let relay = Relay::start(&origin.address, Fault::HangUp(Duration::from_millis(300)));
    let report = drive(io, &relay, "echo --rate 1 --connections 1 --duration 2s").unwrap();
    assert!(report.totals.opened > 2 && !report.is_clean(), "{report}");
    relay.finish();
    origin.finish();
}

fn a_changed_byte_in_an_echo_is_noticed(io: Io) {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::ChangeByte);
    let error = drive(io, &relay, "echo --connections 1 --duration 30s --errors-max 3")
        .unwrap_err()
        .to_string();
    assert!(error.contains("other bytes than were sent"), "{error}");
    relay.finish();
    origin.finish();
}

fn uploaded_bytes_all_arrive_at_the_origin(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        io,
        &relay,
        "bulk --direction upload --connections 2 --bytes 4MB --duration 30s",
    )
    .unwrap();
    assert!(report.is_clean() && report.bytes >= 4_000_000, "{report}");
    assert_eq!(report.totals.closed_in_order, 2);
    relay.finish();
    assert_eq!(origin.finish().received, report.totals.bytes);
}

fn a_bounded_download_ends_in_order_and_is_counted_to_the_byte(io: Io) {
    let origin = origin("send", &["--bytes", "300000"]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        io,
        &relay,
        "bulk --direction download --connections 1 --bytes 3MB --duration 30s",
    )
    .unwrap();
    assert!(report.is_clean() && report.bytes >= 3_000_000, "{report}");
    let totals = report.totals;
    assert!(totals.closed_in_order >= 9, "{report}");
    let (least, most) = (totals.closed_in_order * 300_000, totals.opened * 300_000);
    assert!((least..=most).contains(&totals.bytes), "{report}");
    relay.finish();
    assert!(origin.finish().sent >= totals.bytes);
}

fn idle_connections_are_held_and_measured(io: Io) {
    let origin = origin("accept", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        io,
        &relay,
        "idle --connections 40 --opening 8 --settle 100ms --hold 100ms",
    )
    .unwrap();
    assert!(report.is_clean(), "{report}");
    let idle = report.idle.unwrap();
    assert_eq!((idle.held, idle.lost), (40, 0));
    let memory = idle.memory.unwrap();
    // This process is server, client and origin: a connection must show.
    assert!(
        memory.pss_holding > memory.pss_before && memory.bytes_per_connection > 0.0,
        "{memory:?}"
    );
    assert_eq!((report.totals.opened, report.totals.closed_in_order), (41, 41));
    relay.finish();
    origin.finish();
}

fn idle_connections_that_the_server_closes_are_lost(io: Io) {
    let relay = Relay::start("127.0.0.1:1", Fault::HangUp(Duration::from_millis(800)));
    let report = drive(io, &relay, "idle --connections 5 --settle 0s --hold 2s").unwrap();
    let idle = report.idle.unwrap();
    assert_eq!((idle.held, idle.lost), (5, 5));
    assert!(
        !report.is_clean() && report.errors.contains_key("closed_by_peer"),
        "{report}"
    );
    relay.finish();
}

fn a_missing_close_notify_is_told_apart(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::NoCloseNotify);
    let report = drive(io, &relay, "handshake --connections 1 --count 3 --duration 30s").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.totals.closed_in_order, report.totals.closed_without_notify),
        (0, report.totals.opened)
    );
    relay.finish();
    origin.finish();
}

fn nobody_listening_is_refused_and_given_up(io: Io) {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let relay = Relay::start(&address, Fault::None);
    let error = drive_target(io, &address, relay.ca(), "handshake --errors-max 5")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("connection refused") && error.contains("gave up"),
        "{error}"
    );
    relay.finish();
}

fn a_silent_server_times_out(io: Io) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let relay = Relay::start(&address, Fault::None);
    let flags = "handshake --connections 1 --errors-max 1 --timeout 100ms";
    let error = drive_target(io, &address, relay.ca(), flags).unwrap_err().to_string();
    assert!(
        error.contains("timed out while connecting or in the handshake"),
        "{error}"
    );
    relay.finish();
}

fn what_goes_wrong_in_a_handshake_is_counted_by_its_cause(io: Io) {
    for (fault, expected) in [
        (Fault::ResetInHandshake, "reset by the server"),
        (Fault::CloseInHandshake, "closed before the handshake was complete"),
    ] {
        let relay = Relay::start("127.0.0.1:1", fault);
        let error = drive(io, &relay, "handshake --connections 2 --errors-max 5")
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(relay.finish().handshakes, 0);
    }
}

fn the_report_names_the_driver(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(io, &relay, "handshake --connections 1 --count 1 --duration 30s").unwrap();
    let expected = match io {
        Io::Auto | Io::IoUring => "io_uring",
        Io::Epoll => "epoll",
    };
    assert_eq!(report.setting.io, expected);
    relay.finish();
    origin.finish();
}

fn a_certificate_of_another_ca_is_refused_unless_insecure(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let other = Relay::start(&origin.address, Fault::None);
    let flags = "handshake --connections 1 --count 1 --errors-max 2";
    let error = drive_target(io, &relay.address, other.ca(), flags)
        .unwrap_err()
        .to_string();
    assert!(error.contains("certificate"), "{error}");
    let line = format!(
        "ringlock-perf {flags} --warmup 0s --target {} --insecure",
        relay.address
    );
    assert!(run(&Cli::parse_from(line.split(' ')).command).unwrap().is_clean());
    relay.finish();
    other.finish();
    origin.finish();
}

fn a_server_that_asks_for_a_certificate_gets_it(io: Io) {
    let origin = origin("discard", &[]);
    let certified = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let relay = Relay::start_asking(&origin.address, Fault::None, verifier.build().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = write("client.pem", certified.cert.pem());
    let key = write("client.key", certified.signing_key.serialize_pem());
    let flags = "handshake --connections 1 --count 3 --errors-max 2 --duration 30s";
    for version in ["1.2", "1.3"] {
        let shown = format!("{flags} --tls {version} --client-cert {certificate} --client-key {key}");
        let report = drive(io, &relay, &shown).unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(report.totals.established >= 3, "{report}");
        // In TLS 1.3 the refusal comes after the handshake; only who waits for something hears it.
        let refused = drive(io, &relay, &format!("{flags} --tls {version} --exchange"))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("alert"), "{refused}");
    }
    let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
    let other = write("other.key", other.signing_key.serialize_pem());
    for (certificate, key, expected) in [
        (&*certificate, &*other, "--client-key: found"),
        (
            "/nonexistent/client.pem",
            &key,
            "--client-cert: found `/nonexistent/client.pem`",
        ),
        (
            &certificate,
            "/nonexistent/client.key",
            "--client-key: found `/nonexistent/client.key`",
        ),
        (&key, &key, "--client-cert: found"),
    ] {
        let shown = format!("{flags} --client-cert {certificate} --client-key {key}");
        let error = drive(io, &relay, &shown).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    relay.finish();
    origin.finish();
}

fn json_has_the_documented_fields(io: Io) {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(io, &relay, "handshake --connections 1 --count 2 --duration 30s").unwrap();
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    for pointer in [
        "/schema",
        "/units",
        "/rate_per_s",
        "/handshakes/full",
        "/handshakes/resumed",
        "/latency_us/p999",
        "/server/cpu_us_per_unit",
        "/client/cpu_share",
        "/negotiated/0/suite",
        "/totals/opened",
        "/errors",
    ] {
        assert!(json.pointer(pointer).is_some(), "{pointer} is missing in {json}");
    }
    assert_eq!(
        (&json["work"], &json["unit"]),
        (&"handshake".into(), &"handshake".into())
    );
    relay.finish();
    origin.finish();
}

#[test]
fn flags_that_cannot_be_used_are_named() {
    let cases = [
        ("handshake --group X448", "--group: found `X448`"),
        ("handshake --suite RC4", "--suite: found `RC4`"),
        ("handshake --connections 0", "--connections: found `0`"),
        ("resume --connections 0", "--connections: found `0`"),
        ("echo --size 0", "--size: found `0`"),
        ("idle --opening 0", "--opening: found `0`"),
        ("handshake --duration 0s", "--duration"),
        ("handshake --rate 0", "--rate: found `0`, expected 1 to 1000000"),
        ("echo --rate 1000001", "--rate: found `1000001`"),
        ("handshake --cpu 100000", "--cpu: found `100000`"),
    ];
    for (work, expected) in cases {
        let line = format!("ringlock-perf {work} --target 127.0.0.1:1 --insecure");
        let error = run(&Cli::parse_from(line.split(' ')).command).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = drive_target(Io::Auto, "127.0.0.1:1", "/nonexistent/ca.pem", "handshake")
        .unwrap_err()
        .to_string();
    assert!(error.contains("--ca: found `/nonexistent/ca.pem`"), "{error}");
}
