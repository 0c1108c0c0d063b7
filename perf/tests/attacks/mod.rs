//! Attacks against small servers in this process: what the servers count must agree with the result.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use ringlock_perf::PerfError;
use ringlock_perf::args::{self, Cli};
use ringlock_perf::attack::report::{AttackReport, EndedBy};
use ringlock_perf::attack::run;
use rustix::process::{Pid, Signal, kill_process};
use rustls::crypto::aws_lc_rs;
use rustls::version::TLS12;
use rustls::{ALL_VERSIONS, ServerConfig, ServerConnection, SupportedProtocolVersion};
use rustls_pki_types::PrivateKeyDer;

use super::relay::{Fault, Relay};
use super::{Tickets, origin};

/// handshake_failure in its record.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

fn attack(target: &str, flags: &str) -> Result<AttackReport, PerfError> {
    attack_until(target, flags, &AtomicBool::new(false))
}

fn attack_until(target: &str, flags: &str, stop: &AtomicBool) -> Result<AttackReport, PerfError> {
    let line = ["ringlock-perf", "attack", "--target", target]
        .into_iter()
        .chain(flags.split(' '));
    let args::Command::Attack(args) = Cli::parse_from(line).command else {
        panic!("attack is a command")
    };
    run(&args, stop)
}

/// What a server saw of connections that are over.
#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicU64,
    bytes: AtomicU64,
    resets: AtomicU64,
}

/// A server that does the same with each connection, in a thread, and then reads to its end.
fn raw(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, serve) = (Arc::new(Seen::default()), Arc::new(serve));
    let counted = seen.clone();
    // Both end with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, seen, serve) = (stream.unwrap(), counted.clone(), serve.clone());
            std::thread::spawn(move || {
                seen.accepted.fetch_add(1, Ordering::SeqCst);
                serve(&mut stream);
                let mut buffer = [0; 65536];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => drop(seen.bytes.fetch_add(length as u64, Ordering::SeqCst)),
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                            seen.resets.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    (address, seen)
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Endings as `variant ending alert`, with their counts.
fn endings(report: &AttackReport) -> Vec<(String, u64)> {
    let shown = |alert: &Option<String>| alert.clone().unwrap_or_else(|| "-".into());
    let line = |count: &ringlock_perf::attack::report::EndingCount| {
        let ending = &count.ending;
        let text = format!("{} {} {}", ending.variant, ending.ending, shown(&ending.alert));
        (text, count.count)
    };
    report.endings.iter().map(line).collect()
}

#[test]
fn only_loopback_is_attacked_unless_its_owner_says_so() {
    let stranger = attack("192.0.2.1:443", "reset").unwrap_err().to_string();
    assert!(
        stranger.contains("--target") && stranger.ends_with("--i-own 192.0.2.1"),
        "{stranger}"
    );
    let slip = attack("192.0.2.1:443", "reset --i-own 192.0.2.2")
        .unwrap_err()
        .to_string();
    assert!(slip.contains("--i-own: found `192.0.2.2`"), "{slip}");
}

/// The program with these arguments of `attack`.
fn program(arguments: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringlock-perf"));
    program
        .arg("attack")
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    program
}

#[test]
fn the_exit_status_tells_refusals_from_servers_that_do_not_survive() {
    let refused = program("reset --target 192.0.2.1:443").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--i-own 192.0.2.1"));

    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = "--duration 500ms --connections 1 --baseline 200ms";
    let good = program(&format!("stalled-hello {flags} --target {}", relay.address))
        .output()
        .unwrap();
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert!(
        String::from_utf8_lossy(&good.stdout).contains("\n  survived "),
        "{good:?}"
    );
    let target = serving(5, &relay.address);
    let bad = program(&format!("stalled-hello {flags} --target {target}"))
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nothing = program(&format!("reset --target {nobody} --connections-max 3 --witness-rate 0"))
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    relay.finish();
    origin.finish();
}

#[test]
fn ctrl_c_ends_it_with_the_result() {
    let (target, seen) = raw(|_| {});
    let flags = format!("stalled-hello --duration 1h --connections 3 --witness-rate 0 --json --target {target}");
    let attack = program(&flags).spawn().unwrap();
    eventually("the attack", || {
        seen.accepted.load(Ordering::SeqCst) == 3 && seen.bytes.load(Ordering::SeqCst) > 0
    });
    kill_process(Pid::from_child(&attack), Signal::INT).unwrap();
    let ended = attack.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&report["ended_by"], &report["endings"][0]["count"]),
        (&"signal".into(), &3.into())
    );
}

#[test]
fn whoever_stops_it_waits_for_no_part_of_it_that_is_left() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::Slow(Duration::from_millis(100)));
    let stop = AtomicBool::new(false);
    let flags = "stalled-hello --connections 1 --duration 1h --baseline 200ms --witness-rate 20";
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The first look has one, the part before at most five.
            eventually("the attack", || relay.handshakes() >= 15);
            stop.store(true, Ordering::Relaxed);
        });
        attack_until(&relay.address, flags, &stop).unwrap()
    });
    let witness = report.witness.as_ref().unwrap();
    assert!(
        witness.during.succeeded > 0 && witness.during.failed == 0,
        "those under way come to their end: {report}"
    );
    assert_eq!(witness.after.succeeded + witness.after.failed, 0, "{report}");
    let shown = report.to_string();
    assert!(
        shown.contains("nothing was observed after") && !shown.contains("survived "),
        "{shown}"
    );
    relay.finish();
    origin.finish();
}

#[test]
fn there_are_descriptors_for_the_witness_too() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let line = format!(
        "ulimit -S -n 300; exec \"$0\" attack stalled-hello --connections 200 --duration 1h --target {}",
        relay.address
    );
    let attack = Command::new("sh")
        .args(["-c", &line, env!("CARGO_BIN_EXE_ringlock-perf")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let process = PathBuf::from(format!("/proc/{}", attack.id()));
    eventually("200 connections", || {
        std::fs::read_dir(process.join("fd")).unwrap().count() > 200
    });
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft = files.split_whitespace().nth(3).unwrap();
    // The witness may have 256.
    assert!(soft.parse::<u64>().unwrap() >= 200 + 256, "{files}");
    kill_process(Pid::from_child(&attack), Signal::TERM).unwrap();
    attack.wait_with_output().unwrap();
    relay.finish();
    origin.finish();
}

#[test]
fn flags_out_of_bounds_are_refused_by_name() {
    for (flags, name) in [
        ("reset --connections 0", "--connections"),
        ("reset --connections 100001", "--connections"),
        ("reset --connections-max 0", "--connections-max"),
        ("reset --rate 0", "--rate"),
        ("reset --duration 25h", "--duration"),
        ("reset --duration 0", "--duration"),
        ("reset --timeout 0", "--timeout"),
        ("reset --baseline 25h", "--baseline"),
        ("reset --variant sideways", "--variant"),
        ("reset --pause 5ms", "--pause"),
        ("slow-hello --pause 0", "--pause"),
        ("reset --witness-rate 0 --witness-p99-max 5ms", "--witness-p99-max"),
        ("reset --server-pid 4294967294", "--server-pid"),
    ] {
        let error = attack("127.0.0.1:1", flags).unwrap_err().to_string();
        assert!(error.contains(name), "{flags}: {error}");
    }
}

#[test]
fn a_server_that_does_not_serve_at_all_is_not_attacked() {
    let (target, seen) = raw(|stream| stream.shutdown(Shutdown::Both).unwrap());
    let error = attack(&target, "reset").unwrap_err().to_string();
    assert!(error.contains("even without an attack"), "{error}");
    assert_eq!(seen.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_is_told_by_its_alert() {
    let (target, seen) = raw(|stream| {
        let mut begin = [0; 16];
        stream.read_exact(&mut begin).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&ALERT).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let flags = "stalled-hello --connections 4 --connections-max 20 --witness-rate 0 --duration 60s";
    let report = attack(&target, flags).unwrap();
    assert_eq!(
        endings(&report),
        [("hello closed_by_server handshake_failure".to_owned(), 20)]
    );
    assert_eq!((report.attempts, report.connected), (20, 20));
    assert_eq!(report.ended_by, EndedBy::ConnectionsMax);
    assert!(report.open_most <= 4 && report.kept_ms.p50 >= 49.0, "{report}");
    eventually("all bytes", || {
        seen.bytes.load(Ordering::SeqCst) + 20 * 16 == report.bytes_sent
    });
    assert_eq!(seen.accepted.load(Ordering::SeqCst), 20);
    assert_eq!(report.bytes_received, 20 * ALERT.len() as u64);
}

#[test]
fn a_connection_is_kept_for_its_time_and_no_longer() {
    let (target, _) = raw(|_| {});
    let flags = "slow-hello --pause 1ms --connections 3 --connections-max 6 --timeout 300ms --witness-rate 0";
    let report = attack(&target, flags).unwrap();
    assert_eq!(report.ended("timed_out"), 6, "{report}");
    // Bytes go one by one, in no less than the pause.
    assert!((6..6 * 310).contains(&report.bytes_sent), "{report}");
    assert!(report.kept_ms.p50 >= 299.0, "{report}");
}

#[test]
fn a_reset_is_seen_as_one_at_each_stage() {
    let (target, seen) = raw(|stream| {
        // Whoever waits for an answer gets the begin of one.
        let mut header = [0; 5];
        if stream.read_exact(&mut header).is_ok() {
            let _ = stream.write_all(&[22, 3, 3, 0, 100, 2]);
        }
    });
    let flags = "reset --connections 4 --connections-max 40 --witness-rate 0 --duration 60s";
    let report = attack(&target, flags).unwrap();
    let expected =
        ["answered", "connected", "half-hello", "hello"].map(|stage| (format!("{stage} reset_by_client -"), 10));
    assert_eq!(endings(&report), expected);
    eventually("the resets", || seen.accepted.load(Ordering::SeqCst) == 40);
    // The reading before it may have had the RST of the others.
    eventually("those behind the header", || seen.resets.load(Ordering::SeqCst) >= 10);
}

#[test]
fn where_nobody_listens_nothing_is_attacked() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = "reset --connections-max 4 --witness-rate 0";
    let error = attack(&address.to_string(), flags).unwrap_err().to_string();
    assert!(
        error.starts_with("nothing was attacked: found 1 answered refused; 1 connected refused;"),
        "{error}"
    );
}

#[test]
fn a_mode_that_the_server_does_not_let_begin_is_no_attack() {
    let (target, _) = tls_server(&[&TLS12]);
    let flags = "key-update --connections 2 --connections-max 4 --duration 60s --witness-rate 0";
    let error = attack(&target, flags).unwrap_err().to_string();
    let found =
        "2 updates closed_by_server, alert protocol_version; 2 with-data closed_by_server, alert protocol_version";
    assert!(error.contains(found), "{error}");
    assert!(error.contains("expected a handshake of TLS 1.3"), "{error}");
}

#[test]
fn no_more_connections_are_opened_than_the_rate_allows() {
    let (target, _) = raw(|_| {});
    let report = attack(&target, "reset --rate 50 --duration 1s --witness-rate 0").unwrap();
    assert!((1..=51).contains(&report.attempts), "{report}");
    assert_eq!(report.ended_by, EndedBy::Duration);
}

#[test]
fn whoever_stops_it_gets_the_result() {
    let (target, seen) = raw(|_| {});
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("five with half a hello", || {
                seen.accepted.load(Ordering::SeqCst) == 5 && seen.bytes.load(Ordering::SeqCst) > 0
            });
            stop.store(true, Ordering::Relaxed);
        });
        attack_until(
            &target,
            "stalled-hello --connections 5 --duration 1h --witness-rate 0",
            &stop,
        )
        .unwrap()
    });
    assert_eq!(report.ended_by, EndedBy::Signal);
    assert_eq!(report.ended("open_at_end"), 5, "{report}");
}

#[test]
fn key_updates_are_real_ones() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    // rustls counts those without data between them, and gives up. The relay then just drops the connection.
    let flags = "key-update --variant updates --connections 2 --connections-max 6 --duration 60s --baseline 200ms";
    let report = attack(&relay.address, flags).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        report.ended("closed_by_server") + report.ended("reset_by_server"),
        6,
        "{report}"
    );
    assert!(report.messages >= 6 * 32, "{report}");
    // With data between them it goes on and on: rustls can open every one.
    let flags = "key-update --variant with-data --connections 2 --connections-max 2 --duration 1s --baseline 200ms";
    let report = attack(&relay.address, flags).unwrap();
    assert_eq!(endings(&report), [("with-data open_at_end -".to_owned(), 2)]);
    assert!(report.messages > 1000 && report.bytes_received > 0, "{report}");
    relay.finish();
    origin.finish();
}

/// A server that does handshakes of these versions, and then what rustls does.
fn tls_server(versions: &[&'static SupportedProtocolVersion]) -> (String, Arc<Seen>) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    raw(move |stream| {
        let mut tls = ServerConnection::new(config.clone()).unwrap();
        while tls.complete_io(stream).is_ok_and(|moved| moved != (0, 0)) {}
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

#[test]
fn renegotiation_is_asked_for_until_the_server_has_enough() {
    let (target, _) = tls_server(ALL_VERSIONS);
    let flags = "renegotiation --connections 2 --connections-max 6 --duration 60s --witness-rate 0";
    let report = attack(&target, flags).unwrap();
    // rustls declines once by a warning, and then gives up.
    assert_eq!(report.messages, 12, "{report}");
    assert_eq!(
        endings(&report),
        [("tls12 closed_by_server no_renegotiation".to_owned(), 6)]
    );
}

#[test]
fn one_session_is_offered_by_all() {
    let origin = origin("echo", &[]);
    let ticketer = Tickets::declining_every(0);
    let relay = Relay::start_resuming(&origin.address, 1, ticketer.clone());
    let flags = "ticket-replay --connections 2 --connections-max 20 --duration 60s --baseline 200ms";
    let report = attack(&relay.address, flags).unwrap();
    assert_eq!(
        endings(&report),
        [("tls12 resumed -".to_owned(), 10), ("tls13 resumed -".to_owned(), 10)]
    );
    assert_eq!(ticketer.seen.load(Ordering::SeqCst), 20);
    relay.finish();
    // A server that knows no tickets cannot be attacked with one.
    let relay = Relay::start(&origin.address, Fault::None);
    let error = attack(&relay.address, "ticket-replay --baseline 0s --variant tls13")
        .unwrap_err()
        .to_string();
    assert!(error.contains("gives no session"), "{error}");
    relay.finish();
    // One that recognises none does full handshakes.
    let relay = Relay::start_resuming(&origin.address, 1, Tickets::declining_every(1));
    let report = attack(&relay.address, flags).unwrap();
    assert_eq!(report.ended("full_handshake"), 20, "{report}");
    relay.finish();
    origin.finish();
}

#[test]
fn hellos_are_as_huge_as_they_say() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = "huge-hello --connections 2 --connections-max 10 --duration 60s --baseline 200ms";
    let report = attack(&relay.address, flags).unwrap();
    for variant in ["many-records", "one-byte-records"] {
        let answered = format!("{variant} answered -");
        assert!(endings(&report).contains(&(answered, 2)), "{report}");
    }
    let refused: u64 = endings(&report)
        .iter()
        .filter(|(end, _)| end.starts_with("absurd"))
        .map(|(_, count)| count)
        .sum();
    assert!(refused == 6 && report.bytes_sent > 2 * 60 * 1024, "{report}");
    assert!(report.is_clean(), "{report}");
    relay.finish();
    origin.finish();
}

#[test]
fn half_open_handshakes_are_held() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = "half-open --connections 4 --duration 500ms --baseline 200ms";
    let report = attack(&relay.address, flags).unwrap();
    assert_eq!(
        endings(&report),
        [
            ("tls12 open_at_end -".to_owned(), 2),
            ("tls13 open_at_end -".to_owned(), 2)
        ]
    );
    assert!(report.bytes_received > 4 * 400, "the flights were read: {report}");
    let witness = report.witness.as_ref().unwrap();
    assert_eq!(witness.does, "exchange");
    assert!(witness.during.succeeded > 0 && witness.during.p50_ms > 0.0, "{report}");
    relay.finish();
    origin.finish();
}

/// Serves so many connections, then resets each.
fn serving(count: u64, relay: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, relay) = (listener.local_addr().unwrap().to_string(), relay.to_owned());
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            if number as u64 >= count {
                continue;
            }
            let server = TcpStream::connect(&relay).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

#[test]
fn a_server_that_stops_serving_has_not_survived() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    // The first look, and four connections before the attack.
    let target = serving(5, &relay.address);
    let flags = "stalled-hello --connections 1 --duration 500ms --baseline 200ms --witness-rate 20";
    let report = attack(&target, flags).unwrap();
    let witness = report.witness.as_ref().unwrap();
    assert!(witness.during.failed > 0 && witness.before.failed == 0, "{report}");
    assert!(
        !report.is_clean() && report.to_string().contains("NOT SURVIVED"),
        "{report}"
    );
    relay.finish();
    origin.finish();
}

#[test]
fn a_server_that_becomes_slow_has_not_survived_if_that_matters() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::Slow(Duration::from_millis(20)));
    let flags = "stalled-hello --connections 1 --duration 500ms --baseline 0s --witness-rate 5";
    let report = attack(&relay.address, flags).unwrap();
    assert!(report.is_clean(), "without a bound it is told only: {report}");
    let shown = report.to_string();
    assert!(
        shown.contains("nothing was observed after") && !shown.contains("survived "),
        "{shown}"
    );
    let report = attack(&relay.address, &format!("{flags} --witness-p99-max 10ms")).unwrap();
    assert!(
        report.verdict.iter().any(|line| line.contains("--witness-p99-max")),
        "{report}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["mode"], "stalled-hello");
    assert_eq!(json["schema"], 1);
    assert_eq!(json["endings"][0]["variant"], "hello");
    assert!(json["witness"]["during"]["p99_ms"].as_f64().unwrap() >= 20.0);
    relay.finish();
    origin.finish();
}

#[test]
fn the_cost_of_the_server_is_in_the_result() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let pid = std::process::id();
    let flags =
        format!("half-open --connections 2 --connections-max 2 --timeout 500ms --baseline 200ms --server-pid {pid}");
    let report = attack(&relay.address, &flags).unwrap();
    let server = report.server.unwrap();
    assert!(
        server.cpu_s > 0.0 && server.rss_before > 0 && server.rss_most >= server.rss_before,
        "{report}"
    );
    relay.finish();
    origin.finish();
}
