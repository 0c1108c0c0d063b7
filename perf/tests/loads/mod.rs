//! Who connects, at which rate and for what: personas, ramps, the search for the capacity, HTTP, threads, scenarios.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use ringlock_perf::args::{Cli, Command};
use ringlock_perf::report::Report;
use ringlock_perf::{PerfError, run, scenario};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use crate::relay::{Fault, Relay};
use crate::{RunningOrigin, origin};

/// Runs a command line against the relay.
fn drive(relay: &Relay, work: &str) -> Result<Report, PerfError> {
    let line = format!(
        "ringlock-perf {work} --target {} --ca {} --warmup 0s",
        relay.address,
        relay.ca()
    );
    run(&Cli::parse_from(line.split(' ')).command)
}

/// Sees what clients ask for.
struct Seen {
    resolver: Arc<dyn ResolvesServerCert>,
    hellos: Mutex<BTreeMap<String, usize>>,
    what: fn(&ClientHello<'_>) -> String,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

impl ResolvesServerCert for Seen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        *self.hellos.lock().unwrap().entry((self.what)(&hello)).or_insert(0) += 1;
        self.resolver.resolve(hello)
    }
}

/// A relay that counts what its clients ask for.
fn seeing(origin: &RunningOrigin, what: fn(&ClientHello<'_>) -> String) -> (Relay, Arc<Seen>) {
    let mut seen = None;
    let verifier = WebPkiClientVerifier::no_client_auth();
    let relay = Relay::start_with(&origin.address, Fault::None, verifier, |config| {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let watching = Arc::new(Seen {
            resolver: config.cert_resolver.clone(),
            hellos: Mutex::default(),
            what,
        });
        config.cert_resolver = watching.clone();
        seen = Some(watching);
    });
    (relay, seen.unwrap())
}

#[test]
fn names_versions_and_protocols_are_asked_for_by_their_weights() {
    let origin = origin("discard", &[]);
    let (relay, seen) = seeing(&origin, |hello| {
        let alpn: Vec<String> = hello
            .alpn()
            .into_iter()
            .flatten()
            .map(|protocol| String::from_utf8_lossy(protocol).into_owned())
            .collect();
        format!("{} {}", hello.server_name().unwrap_or("-"), alpn.join(","))
    });
    let work = "handshake --connections 4 --threads 2 --count 400 --duration 60s --server-name a.localhost=3,localhost \
                --tls 1.3=3,1.2=1 --group any --suite any --alpn h2,http/1.1";
    // The certificate has only one of the names.
    let line = format!("ringlock-perf {work} --target {} --insecure --warmup 0s", relay.address);
    let report = run(&Cli::parse_from(line.split_whitespace()).command).unwrap();
    assert!(report.is_clean(), "{report}");
    let hellos = seen.hellos.lock().unwrap().clone();
    let of = |name: &str| hellos.get(&format!("{name} h2,http/1.1")).copied().unwrap_or(0) as f64;
    let all = hellos.values().sum::<usize>() as f64;
    assert_eq!(of("a.localhost") + of("localhost"), all, "{hellos:?}");
    assert!((0.6..0.9).contains(&(of("a.localhost") / all)), "{hellos:?}");
    let by_version = |version: &str| {
        let of_version = report
            .negotiated
            .iter()
            .filter(|parameters| parameters.version == version);
        of_version.map(|parameters| parameters.count).sum::<u64>() as f64
    };
    let share = by_version("TLSv1_3") / (by_version("TLSv1_3") + by_version("TLSv1_2"));
    assert!((0.6..0.9).contains(&share), "{report}");
    assert_eq!(report.setting.threads, 2);
    relay.finish();
    origin.finish();
}

#[test]
fn groups_and_signature_schemes_are_offered_in_their_order() {
    let origin = origin("discard", &[]);
    let (relay, seen) = seeing(&origin, |hello| {
        format!(
            "{:?} {:?}",
            hello.named_groups().unwrap_or_default(),
            hello.signature_schemes()
        )
    });
    let work = "handshake --connections 1 --count 3 --duration 60s --group secp384r1,X25519 --signature-scheme \
                ECDSA_NISTP256_SHA256,RSA_PSS_SHA256 --alpn http/1.1";
    let report = drive(&relay, &work.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
    assert!(report.is_clean(), "{report}");
    let hellos = seen.hellos.lock().unwrap().clone();
    let [only] = hellos.keys().collect::<Vec<_>>()[..] else {
        panic!("all hellos are alike: {hellos:?}")
    };
    assert_eq!(only, "[secp384r1, X25519] [ECDSA_NISTP256_SHA256, RSA_PSS_SHA256]");
    // The server has an ECDSA key.
    let error = drive(
        &relay,
        "handshake --connections 1 --errors-max 2 --signature-scheme ED25519 --alpn http/1.1",
    )
    .unwrap_err();
    assert!(error.to_string().contains("gave up"), "{error}");
    let error = drive(&relay, "handshake --signature-scheme MD5")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--signature-scheme: found `MD5`") && error.contains("ED25519"),
        "{error}"
    );
    relay.finish();
    origin.finish();
}

/// A CA, and a folder with so many clients' certificates below it.
fn clients(folder: &Path, count: usize) -> RootCertStore {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    for number in 0..count {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![format!("client-{number}.example")]).unwrap();
        let own = params.signed_by(&key, &issuer).unwrap();
        let name = folder.join(format!("client-{number}"));
        if number % 2 == 0 {
            fs::write(name.with_extension("crt"), own.pem()).unwrap();
            fs::write(name.with_extension("key"), key.serialize_pem()).unwrap();
        } else {
            fs::write(name.with_extension("pem"), own.pem() + &key.serialize_pem()).unwrap();
        }
    }
    // What else lies in such a folder.
    fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    fs::write(folder.join("README"), "clients").unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    roots
}

#[test]
fn clients_of_a_folder_take_turns_and_resume_their_own_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let roots = clients(folder.path(), 5);
    let origin = origin("echo", &[]);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
    let relay = Relay::start_with(&origin.address, Fault::None, verifier.build().unwrap(), |config| {
        config.send_tls13_tickets = 1;
    });
    let folder_name = folder.path().to_str().unwrap();
    let report = drive(
        &relay,
        &format!("handshake --client-certs {folder_name} --connections 4 --count 60 --duration 60s"),
    )
    .unwrap();
    assert!(report.is_clean() && report.units >= 60.0, "{report}");
    let mixed = format!(
        "handshake --client-certs {folder_name} --connections 4 --count 60 --duration 60s --exchange --mix full=1,ticket=3"
    );
    let report = drive(&relay, &mixed).unwrap();
    let handshakes = report.handshakes.unwrap();
    assert!(
        report.is_clean() && handshakes.by_ticket > 20 && handshakes.full > 5,
        "{report}"
    );
    let empty = tempfile::tempdir().unwrap();
    let error = drive(&relay, &format!("handshake --client-certs {}", empty.path().display()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--client-certs") && error.contains("NAME.key"),
        "{error}"
    );
    relay.finish();
    origin.finish();
}

#[test]
fn a_mix_of_full_ticket_and_session_id_is_what_was_asked_for() {
    let origin = origin("echo", &[]);
    // rustls' own cache gives session ids, its ticketer tickets.
    let relay = Relay::start_with(
        &origin.address,
        Fault::None,
        WebPkiClientVerifier::no_client_auth(),
        |config| {
            config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        },
    );
    let work = "handshake --tls 1.2 --group any --exchange --mix full=1,ticket=1,session-id=2 --connections 8 --count 400 --duration 60s";
    let report = drive(&relay, work).unwrap();
    assert!(report.is_clean(), "{report}");
    let handshakes = report.handshakes.unwrap();
    assert_eq!(handshakes.resumed, handshakes.by_ticket + handshakes.by_session_id);
    let share = |count: u64| count as f64 / report.units;
    assert!((0.12..0.45).contains(&share(handshakes.full)), "{handshakes:?}");
    assert!((0.12..0.40).contains(&share(handshakes.by_ticket)), "{handshakes:?}");
    assert!(
        (0.30..0.65).contains(&share(handshakes.by_session_id)),
        "{handshakes:?}"
    );
    let error = drive(&relay, "handshake --mix session-id").unwrap_err().to_string();
    assert!(error.contains("--mix") && error.contains("--tls 1.2"), "{error}");
    relay.finish();
    origin.finish();
}

#[test]
fn http_requests_are_counted_by_their_status_over_connections_that_stay_or_not() {
    let origin = origin("http", &["--bytes", "100"]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(&relay, "http --connections 4 --count 200 --duration 60s").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.totals.opened, 4);
    let requests = report.units as u64;
    assert!((200..204).contains(&requests), "{report}");
    assert_eq!(report.statuses, BTreeMap::from([("200".to_owned(), requests)]));
    assert_eq!(report.bytes, 100 * requests);

    let report = drive(
        &relay,
        "http --connections 4 --requests-per-connection 1 --count 40 --duration 60s",
    )
    .unwrap();
    assert!(report.is_clean() && report.totals.opened >= 40, "{report}");
    let report = drive(
        &relay,
        "http --connections 2 --requests-per-connection 10 --count 100 --duration 60s",
    )
    .unwrap();
    assert!(
        report.is_clean() && (10..=14).contains(&report.totals.opened),
        "{report}"
    );
    let posted = "http --method POST --body 10KiB --connections 2 --count 50 --duration 60s --rate 500";
    let report = drive(&relay, posted).unwrap();
    assert!(report.is_clean() && report.service_us.is_some(), "{report}");
    relay.finish();
    let counts = origin.finish();
    assert!(counts.received > 50 * 10 * 1024, "{counts:?}");
}

/// A server that answers each connection's first request with a body that ends with the connection.
fn answers_until_the_end() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            // Who asks for nothing has gone.
            if client.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\nwhole");
            }
        }
    });
    address
}

#[test]
fn a_body_that_ends_with_the_connection_is_whole_only_with_close_notify() {
    let work = "http --connections 1 --requests-per-connection 1 --count 3 --errors-max 3 --duration 60s";
    let relay = Relay::start(&answers_until_the_end(), Fault::None);
    let report = drive(&relay, work).unwrap();
    assert!(report.is_clean() && report.bytes >= 15, "{report}");
    relay.finish();
    let relay = Relay::start(&answers_until_the_end(), Fault::NoCloseNotify);
    let error = drive(&relay, work).unwrap_err().to_string();
    assert!(error.contains("without close_notify"), "{error}");
    relay.finish();
}

#[test]
fn what_a_server_closes_between_two_requests_is_counted_and_opened_anew_after_a_pause() {
    let origin = origin("close", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let began = Instant::now();
    let report = drive(&relay, "http --connections 1 --think-time 1h --duration 2s").unwrap();
    let totals = report.totals;
    assert!(report.errors.is_empty() && totals.closed_at_rest >= 2, "{report}");
    // The pause is 100 ms at least.
    let most = began.elapsed().as_millis() / 100 + 2;
    assert!(u128::from(totals.opened) <= most, "{most} {report}");
    relay.finish();
    origin.finish();
}

#[test]
fn an_answer_that_is_no_http_is_an_error_of_its_own() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let error = drive(&relay, "http --connections 1 --errors-max 3")
        .unwrap_err()
        .to_string();
    assert!(error.contains("HTTP: no response"), "{error}");
    relay.finish();
    origin.finish();
}

#[test]
fn a_ramp_has_a_step_for_each_of_its_rates() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let report = drive(
        &relay,
        "echo --size 64 --connections 4 --ramp 40..120/3 --duration 500ms",
    )
    .unwrap();
    assert!(report.is_clean(), "{report}");
    let rates: Vec<f64> = report.steps.iter().map(|step| step.rate_per_s).collect();
    assert_eq!(rates, [40.0, 80.0, 120.0]);
    for step in &report.steps {
        assert!(
            step.p50_us > 0.0 && step.p50_us <= step.p99_us && step.client_cpu_share > 0.0,
            "{step:?}"
        );
    }
    relay.finish();
    origin.finish();
}

/// A server that takes 10 ms for each message on each of 4 connections cannot do more than 400 a second.
#[test]
fn the_capacity_of_a_server_with_a_known_one_is_found() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::Slow(Duration::from_millis(10)));
    let work =
        "echo --size 64 --connections 4 --find-capacity --p99-max 200ms --rate-min 20 --duration 1500ms --timeout 30s";
    let report = drive(&relay, work).unwrap();
    let capacity = report.capacity.clone().unwrap();
    assert!((20.0..=400.0).contains(&capacity.rate_per_s), "{capacity:?}");
    assert!(capacity.limited_by.is_some(), "{capacity:?}");
    assert!(
        report.steps.len() >= 3 && report.steps.iter().any(|step| step.refused.is_some()),
        "{:?}",
        report.steps
    );
    relay.finish();
    origin.finish();
}

#[test]
fn a_connection_rests_for_the_think_time() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    for work in ["echo --size 64", "handshake"] {
        let report = drive(
            &relay,
            &format!("{work} --connections 5 --think-time 100ms --duration 1s"),
        )
        .unwrap();
        // Five connections with at most ten units each, and the first without a rest before it.
        assert!(report.is_clean() && (5.0..=55.0).contains(&report.units), "{report}");
    }
    relay.finish();
    origin.finish();
}

#[test]
fn a_scenario_of_ones_own_runs_with_paths_relative_to_it() {
    let origin = origin("http", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(relay.ca(), folder.path().join("ca.pem")).unwrap();
    let file = folder.path().join("mine.toml");
    fs::write(&file, "work = \"http\"\nca = \"ca.pem\"\ncount = 20\nwarmup = \"0s\"\nduration = \"60s\"\nheader = [\"A: b\", \"C: d, e\"]\n").unwrap();
    let line = [
        "ringlock-perf",
        "run",
        file.to_str().unwrap(),
        "--target",
        &relay.address,
        "--connections",
        "2",
    ];
    let Command::Run(args) = Cli::parse_from(line).command else {
        panic!("run is a command")
    };
    let report = run(&scenario::read(&args).unwrap()).unwrap();
    assert!(report.is_clean() && report.connections == 2, "{report}");
    relay.finish();
    origin.finish();
}

#[test]
fn one_thread_that_cannot_go_on_ends_the_run_with_its_reason() {
    let origin = origin("echo", &[]);
    let relay = Relay::start(&origin.address, Fault::HangUp(Duration::from_millis(1)));
    let error = drive(&relay, "echo --connections 8 --threads 4 --errors-max 8 --duration 60s")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("gave up") && error.contains("closed by the server"),
        "{error}"
    );
    let error = drive(&relay, "echo --connections 2 --threads 4")
        .unwrap_err()
        .to_string();
    assert!(error.contains("--threads: found `4`"), "{error}");
    relay.finish();
    origin.finish();
}
