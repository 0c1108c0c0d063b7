//! What a server does to its answers is what the report says: delays of known distributions, and stops of the whole server.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ringlock_perf::args::Cli;
use ringlock_perf::report::Report;
use ringlock_perf::run;
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection, Stream};
use rustls_pki_types::PrivateKeyDer;

/// Bytes of a message.
const SIZE: usize = 64;

/// How long the server takes for the message with this number, counted over all connections.
type Delay = Arc<dyn Fn(u64) -> Duration + Send + Sync>;

/// An echo over TLS that answers each message after a delay; its threads end with the connections.
fn server(delay: Delay) -> String {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let messages = Arc::new(AtomicU64::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, delay, messages) = (config.clone(), delay.clone(), messages.clone());
            thread::spawn(move || echo(stream.unwrap(), config, &delay, &messages));
        }
    });
    address
}

fn echo(mut tcp: TcpStream, config: Arc<ServerConfig>, delay: &Delay, messages: &AtomicU64) {
    tcp.set_nodelay(true).unwrap();
    let mut session = ServerConnection::new(config).unwrap();
    let mut tls = Stream::new(&mut session, &mut tcp);
    let mut message = [0; SIZE];
    // The end of the connection is the end of the thread.
    while tls.read_exact(&mut message).is_ok() {
        thread::sleep(delay(messages.fetch_add(1, Ordering::Relaxed)));
        if tls.write_all(&message).is_err() {
            return;
        }
    }
}

fn measure(target: &str, flags: &str) -> Report {
    let line = format!("ringlock-perf echo --size {SIZE} --target {target} --insecure --warmup 0s --sources 0 {flags}");
    let report = run(&Cli::parse_from(line.split(' ')).command).unwrap();
    assert!(report.is_clean(), "{report}");
    report
}

/// Of 1,000 messages 900 take 20 ms, 90 take 150 ms and 10 take 700 ms.
fn of_three_kinds(number: u64) -> Duration {
    Duration::from_millis(match number % 100 {
        99 => 700,
        90..99 => 150,
        _ => 20,
    })
}

/// The time is what the server took and what this machine added: never less, and on the whole not much more.
fn assert_took(found_us: f64, ms: f64) {
    assert!(
        (ms * 1e3..ms * 1e3 * 1.6 + 80e3).contains(&found_us),
        "{found_us} µs instead of {ms} ms"
    );
}

#[test]
fn quantiles_are_those_of_the_delays() {
    let target = server(Arc::new(of_three_kinds));
    for threads in [1, 2] {
        let report = measure(
            &target,
            &format!("--connections 16 --count 1000 --duration 60s --threads {threads}"),
        );
        let latency = report.latency_us.unwrap();
        assert_took(latency.p50, 20.0);
        assert_took(latency.p999, 700.0);
        let at = |quantile: f64| {
            let found = report
                .percentiles
                .iter()
                .find(|percentile| percentile.quantile == quantile);
            found.unwrap().latency_us
        };
        assert_took(at(0.75), 20.0);
        assert_took(at(0.95), 150.0);
        assert_took(at(0.975), 150.0);
        assert_took(at(1.0), 700.0);
        // When the last message is counted, some slow ones are still under way.
        let mean_ms = 0.9 * 20.0 + 0.09 * 150.0 + 0.01 * 700.0;
        assert_took(latency.mean, mean_ms * 0.9);
        // In a closed loop a message begins when it is due.
        assert!(report.service_us.is_none());
    }
}

/// All connections stand still for a while, once, as in a pause of garbage collection.
struct Stop {
    begin: Duration,
    length: Duration,
    first: Mutex<Option<Instant>>,
}

impl Stop {
    fn delay(&self) -> Duration {
        let now = Instant::now();
        let first = *self.first.lock().unwrap().get_or_insert(now);
        let end = first + self.begin + self.length;
        if now < first + self.begin {
            Duration::ZERO
        } else {
            end.saturating_duration_since(now)
        }
    }
}

fn stopping() -> Delay {
    let stop = Stop {
        begin: Duration::from_millis(800),
        length: Duration::from_millis(800),
        first: Mutex::new(None),
    };
    Arc::new(move |_| stop.delay())
}

/// Gil Tene's coordinated omission: a closed loop asks nothing while the server stands still, so that the stop is in the
/// latency of as many messages as there are connections. Of those that should have been sent meanwhile an open loop has all.
#[test]
fn a_stop_of_the_server_is_in_every_message_that_was_due_meanwhile() {
    let closed = measure(&server(stopping()), "--connections 1 --duration 2400ms");
    let open = measure(&server(stopping()), "--connections 1 --rate 100 --duration 2400ms");
    let closed = closed.latency_us.unwrap();
    // One message in thousands.
    assert!(closed.max > 700e3 && closed.p99 < 100e3, "{closed:?}");
    let (latency, service) = (open.latency_us.unwrap(), open.service_us.unwrap());
    // A third of the time the server stood still, and the messages of that time waited half of it on average.
    assert!(
        latency.max > 700e3 && latency.p90 > 400e3 && latency.p50 < 200e3,
        "{latency:?}"
    );
    // Once begun, all but one went quickly.
    assert!(service.max > 700e3 && service.p90 < 100e3, "{service:?}");
    let loops = open.open_loop.unwrap();
    // They waited for the connection, not for this client.
    assert!(loops.held >= 40, "{loops:?}");
    assert!(loops.late_p50_us < 20e3, "{loops:?}");
}

#[test]
fn a_server_that_is_a_little_too_slow_for_the_rate_is_not_taken_for_a_slow_client() {
    // Each message is due a little before the one before it has been answered.
    let delay: Delay = Arc::new(|_| Duration::from_millis(200));
    let report = measure(&server(delay), "--connections 1 --rate 6 --duration 1s");
    let loops = report.open_loop.unwrap();
    assert!(loops.started >= 4 && loops.held + 1 >= loops.started, "{loops:?}");
    assert!(loops.late_p50_us < 20e3, "{loops:?}");
}

#[test]
fn the_course_of_the_run_shows_when_the_server_stood_still() {
    let report = measure(&server(stopping()), "--connections 4 --rate 200 --duration 4s");
    assert_eq!(report.series.len(), 4, "{:?}", report.series);
    let worst = |second: usize| report.series[second].max_us.unwrap();
    // From 0.8 s to 1.6 s.
    assert!(worst(1) > 400e3, "{:?}", report.series);
    assert!(worst(3) < worst(1), "{:?}", report.series);
    let units: f64 = report.series.iter().map(|interval| interval.units).sum();
    assert_eq!(units, report.units);
}

/// The server stops and does not go on before the end: no unit of that time is done, and none is in the latencies.
#[test]
fn a_server_that_stops_for_good_is_in_the_result() {
    let stop = Stop {
        begin: Duration::from_millis(800),
        length: Duration::from_secs(20),
        first: Mutex::new(None),
    };
    let target = server(Arc::new(move |_| stop.delay()));
    let line = format!(
        "ringlock-perf echo --size {SIZE} --target {target} --insecure --warmup 0s --sources 0 --connections 64 --rate 50 \
         --duration 1800ms --timeout 2s"
    );
    let report = run(&Cli::parse_from(line.split_whitespace()).command).unwrap();
    let unanswered = report.unanswered.unwrap();
    assert!(unanswered.units >= 30 && unanswered.longest_us > 500e3, "{report}");
    assert!(report.latency_us.unwrap().p99 < unanswered.longest_us, "{report}");
    assert!(
        report.warnings.iter().any(|warning| warning.contains("were not done")),
        "{report}"
    );
}
