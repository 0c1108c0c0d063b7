//! The exposition is checked line by line against the format, and against the manual.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringlock_hsm::protocol::{Breaker, TokenStatus};

use super::*;
use crate::error::ClientRefusal;
use crate::metrics::KeyMetrics;
use crate::tls::session_cache::Usage;

/// A view in which everything that can be counted has been.
pub(in crate::control) fn busy() -> View {
    let workers: Vec<WorkerView> = [2, 5]
        .into_iter()
        .map(|cpu| {
            let metrics = WorkerMetrics::default();
            metrics.accepted.add(100);
            metrics.shed.add(7);
            metrics.live.add(60);
            for (count, done) in (1..).zip(&metrics.done) {
                done.add(count);
            }
            metrics.handshake_failures[HandshakeFailure::Key(KeyFailure::Down).index()].add(3);
            let kind = Negotiated {
                version: 1,
                suite: 0,
                group: 1,
                resumption: 0,
            };
            metrics.handshakes(kind).add(21);
            metrics.downstream_received.add(u64::from(u32::MAX) + 1);
            WorkerView {
                cpu,
                driver: "epoll",
                metrics: Arc::new(metrics),
            }
        })
        .collect();
    let server = |n: u64| {
        let metrics = ServerMetrics::default();
        metrics.connections.add(n);
        metrics.ejected.set(1);
        Arc::new(metrics)
    };
    View {
        workers,
        upstreams: vec![UpstreamView {
            name: "a \"quoted\\ name\"\nof two lines".to_owned(),
            servers: vec![ServerView {
                address: "127.0.0.1:8080".to_owned(),
                workers: vec![server(4), server(5)],
            }],
        }],
        certificates: Arc::new([CertificateView {
            identity: "site".to_owned(),
            not_before_unix: 1_790_000_000,
            not_after_unix: 1_900_000_000,
            serial: "0a1b".to_owned(),
        }]),
        crls: [1_800_000_000, 1_700_000_000]
            .map(|next_update_unix| CrlView {
                listener: "edge".to_owned(),
                file: "clients.crl".to_owned(),
                issuer: "CN=clients".to_owned(),
                this_update_unix: 1_600_000_000,
                next_update_unix,
            })
            .into(),
        stapling: StaplingView {
            staples: vec![
                StapleView {
                    identity: "site".to_owned(),
                    result: Some("good"),
                    age: Some(60),
                    next_update_unix: Some(1_900_000_000),
                    is_missing: Some(false),
                },
                StapleView {
                    identity: "bare".to_owned(),
                    result: None,
                    age: None,
                    next_update_unix: None,
                    is_missing: Some(true),
                },
            ],
            responses: vec![("good", 3), ("revoked", 0)],
        },
        key_groups: vec![KeyGroupView {
            name: "edge".to_owned(),
            workers: vec![key_metrics(), key_metrics()],
        }],
        tokens: vec![TokenView {
            name: "edge-1".to_owned(),
            status: TokenStatus {
                breaker: Breaker::HalfOpen,
                sessions: 8,
                errors: vec![("CKR_DEVICE_REMOVED".to_owned(), 2)],
                recoveries: 1,
                ..TokenStatus::default()
            },
            signer_restarts: 4,
        }],
        tickets: InUse {
            epoch: 498_000,
            secrets: 2,
        },
        session_caches: vec![SessionCacheView {
            listener: "edge".to_owned(),
            usage: Usage {
                entries: 7,
                bytes: 3_000,
                capacity: 1 << 26,
                evicted: 5,
            },
        }],
        epoch: 3,
        connections_by_epoch: vec![(2, 4), (3, 0)],
        reloads: reloads(),
        log_lines_lost: 9,
        confinement: [
            ("capabilities", true),
            ("memory", true),
            ("files", false),
            ("system_calls", true),
        ],
        started: UNIX_EPOCH + Duration::from_millis(1_795_000_000_250),
    }
}

fn reloads() -> Reloads {
    let at = UNIX_EPOCH + Duration::from_secs(1_795_000_100);
    let mut reloads = Reloads::new(UNIX_EPOCH);
    reloads.count(Trigger::Signal, true, true, at);
    reloads.count(Trigger::File, true, true, at);
    reloads.count(Trigger::File, false, false, at);
    reloads
}

fn key_metrics() -> Arc<KeyMetrics> {
    let metrics = KeyMetrics::default();
    metrics.signed.add(10);
    metrics.waiting.set(3);
    metrics.wait.observe(100);
    metrics.signing.observe(101);
    metrics.signing.observe(60_000_000);
    Arc::new(metrics)
}

#[test]
fn staples_are_told_of_identities_that_have_them() {
    let families = parse(&render(busy()));
    let (site, bare) = (("identity", "site"), ("identity", "bare"));
    let count = |name: &str| families[name].samples.len();
    assert_eq!(value(&families, "ringlock_ocsp_staple_age_seconds", &[site]), 60.0);
    assert_eq!(count("ringlock_ocsp_staple_age_seconds"), 1);
    let end = value(&families, "ringlock_ocsp_staple_next_update_seconds", &[site]);
    assert_eq!(end, 1_900_000_000.0);
    let missing = |identity| value(&families, "ringlock_ocsp_must_staple_missing", &[identity]);
    assert_eq!([missing(site), missing(bare)], [0.0, 1.0]);
    let last = [site, ("result", "good")];
    assert_eq!(value(&families, "ringlock_ocsp_last_result", &last), 1.0);
    assert_eq!(count("ringlock_ocsp_last_result"), 1);
    let good = ("result", "good");
    assert_eq!(value(&families, "ringlock_ocsp_responses", &[good]), 3.0);
}

#[test]
fn keys_elsewhere_are_told_by_group_and_by_token() {
    let families = parse(&render(busy()));
    let group = ("group", "edge");
    assert_eq!(value(&families, "ringlock_key_requests_waiting", &[group]), 6.0);
    let signed = [group, ("result", "signed")];
    assert_eq!(value(&families, "ringlock_key_requests", &signed), 20.0);
    let of = |name: &str, suffix: &str, le: Option<&str>| {
        let samples = &families[name].samples;
        let wanted = |(sample, labels, _): &&(String, BTreeMap<String, String>, f64)| {
            *sample == format!("{name}{suffix}") && labels.get("le").map(String::as_str) == le
        };
        samples.iter().find(wanted).unwrap().2
    };
    assert_eq!(of("ringlock_key_wait_seconds", "_bucket", Some("0.0001")), 2.0);
    assert_eq!(of("ringlock_key_signing_seconds", "_bucket", Some("0.0001")), 0.0);
    assert_eq!(of("ringlock_key_signing_seconds", "_bucket", Some("0.00025")), 2.0);
    assert_eq!(of("ringlock_key_signing_seconds", "_bucket", Some("10.0")), 2.0);
    assert_eq!(of("ringlock_key_signing_seconds", "_count", None), 4.0);
    let token = ("token", "edge-1");
    assert_eq!(value(&families, "ringlock_token_sessions", &[token]), 8.0);
    let state = |state| value(&families, "ringlock_token_breaker", &[token, ("state", state)]);
    assert_eq!([state("closed"), state("half_open"), state("open")], [0.0, 1.0, 0.0]);
    let error = [token, ("error", "CKR_DEVICE_REMOVED")];
    assert_eq!(value(&families, "ringlock_token_errors", &error), 2.0);
    assert_eq!(value(&families, "ringlock_signer_restarts", &[token]), 4.0);
}

#[derive(Debug, Default)]
struct Parsed {
    kind: String,
    help: String,
    unit: Option<String>,
    /// Sample name, labels, value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|c| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Takes `name{label="value",…} number` apart; panics where OpenMetrics would refuse it.
fn parse_sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(is_name(key), "{line}");
            let mut value = String::new();
            let mut chars = quoted.char_indices();
            let close = loop {
                match chars.next().unwrap_or_else(|| panic!("unterminated label: {line}")) {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        other => panic!("escape {other:?}: {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(key.to_owned(), value).is_none(), "label twice: {line}");
            rest = &quoted[close + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space: {line}"));
    assert!(!value.contains(' '), "timestamps are not expected: {line}");
    (
        name.to_owned(),
        labels,
        value.parse().unwrap_or_else(|_| panic!("no number: {line}")),
    )
}

fn parse(text: &str) -> BTreeMap<String, Parsed> {
    let body = text.strip_suffix("# EOF\n").expect("the last line is the end mark");
    let mut families: BTreeMap<String, Parsed> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        assert!(!line.is_empty());
        if let Some(comment) = line.strip_prefix("# ") {
            let [keyword, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            assert!(is_name(name), "{line}");
            if keyword == "HELP" {
                assert!(!families.contains_key(name), "family twice: {line}");
                current = name.to_owned();
            }
            assert_eq!(name, current, "{line}");
            let family = families.entry(current.clone()).or_default();
            assert!(family.samples.is_empty(), "{line}");
            match keyword {
                "HELP" => family.help = rest.to_owned(),
                "TYPE" => family.kind = rest.to_owned(),
                "UNIT" => family.unit = Some(rest.to_owned()),
                other => panic!("{other}: {line}"),
            }
        } else {
            let (name, labels, value) = parse_sample(line);
            let family = families.get_mut(&current).expect("a sample has a family");
            let suffixes: &[&str] = match &*family.kind {
                "counter" => &["_total"],
                "info" => &["_info"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("type {other}"),
            };
            let fits = |suffix: &&str| name == format!("{current}{suffix}");
            assert!(suffixes.iter().any(fits), "{line}");
            assert!(seen.insert((name.clone(), labels.clone())), "sample twice: {line}");
            family.samples.push((name, labels, value));
        }
    }
    for (name, family) in &families {
        assert!(!family.help.is_empty() && !family.kind.is_empty(), "{name}");
        assert!(
            family.unit.iter().all(|unit| name.ends_with(&format!("_{unit}"))),
            "{name}"
        );
        assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}");
    }
    families
}

fn value(families: &BTreeMap<String, Parsed>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: BTreeMap<String, String> = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let samples = &families.get(name).unwrap_or_else(|| panic!("no {name}")).samples;
    let found: Vec<_> = samples.iter().filter(|sample| sample.1 == labels).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {samples:?}");
    found[0].2
}

#[test]
fn the_exposition_keeps_the_format_and_carries_the_counters() {
    let families = parse(&render(busy()));
    assert_eq!(
        value(&families, "ringlock_connections_accepted", &[("worker", "5")]),
        100.0
    );
    assert_eq!(value(&families, "ringlock_connections_live", &[("worker", "2")]), 60.0);
    let labels = [("worker", "2"), ("side", "downstream"), ("direction", "received")];
    assert_eq!(value(&families, "ringlock_transferred_bytes", &labels), 4_294_967_296.0);
    let labels = [
        ("version", "1.3"),
        ("suite", "TLS_AES_128_GCM_SHA256"),
        ("group", "X25519"),
        ("resumption", "full"),
    ];
    assert_eq!(
        value(&families, "ringlock_handshakes", &labels),
        42.0,
        "summed over workers"
    );
    assert_eq!(
        families["ringlock_handshakes"].samples.len(),
        1,
        "what never occurred is left out"
    );
    assert_eq!(
        value(
            &families,
            "ringlock_handshake_failures",
            &[("cause", "key_unavailable")]
        ),
        6.0
    );
    assert_eq!(
        value(&families, "ringlock_configuration_last_reload_timestamp_seconds", &[]),
        1_795_000_100.0
    );
    assert_eq!(
        value(&families, "ringlock_configuration_last_reload_successful", &[]),
        0.0
    );
    assert_eq!(
        value(&families, "ringlock_connections_by_epoch", &[("epoch", "2")]),
        4.0
    );
    let labels = [
        ("upstream", "a \"quoted\\ name\"\nof two lines"),
        ("server", "127.0.0.1:8080"),
    ];
    assert_eq!(value(&families, "ringlock_upstream_server_connections", &labels), 9.0);
    assert_eq!(
        value(&families, "ringlock_upstream_server_ejected_workers", &labels),
        2.0
    );
    assert_eq!(
        value(
            &families,
            "ringlock_configuration_reloads",
            &[("result", "failed"), ("trigger", "file")]
        ),
        1.0
    );
    assert_eq!(value(&families, "process_start_time_seconds", &[]), 1_795_000_000.25);
    assert!(value(&families, "process_resident_memory_bytes", &[]) > 1e6);
    assert!(value(&families, "process_open_fds", &[]) >= 3.0);
    assert!(value(&families, "process_cpu_seconds", &[]) > 0.0);
}

#[test]
fn batches_are_a_histogram_of_their_operations() {
    let view = busy();
    let batches = &view.workers[0].metrics.crypto_batches;
    batches[1].add(3);
    batches[7].add(5);
    let families = parse(&render(view));
    let samples = &families["ringlock_crypto_batch_operations"].samples;
    let of = |name: &str, bound: Option<&str>| {
        let fits = |labels: &BTreeMap<String, String>| {
            labels["worker"] == "2" && labels.get("le").map(String::as_str) == bound
        };
        let found = samples.iter().find(|sample| sample.0 == name && fits(&sample.1));
        found.unwrap_or_else(|| panic!("{name} {bound:?}: {samples:?}")).2
    };
    let buckets = ["1.0", "2.0", "7.0", "8.0", "+Inf"];
    let counts = buckets.map(|bound| of("ringlock_crypto_batch_operations_bucket", Some(bound)));
    assert_eq!(counts, [0.0, 3.0, 3.0, 8.0, 8.0]);
    assert_eq!(of("ringlock_crypto_batch_operations_sum", None), 46.0);
    assert_eq!(of("ringlock_crypto_batch_operations_count", None), 8.0);
    let labels = [("worker", "2"), ("engine", "batch")];
    assert_eq!(value(&families, "ringlock_crypto_operations", &labels), 46.0);
}

#[test]
fn ended_connections_add_up_and_name_who_must_act() {
    let families = parse(&render(busy()));
    let samples = &families["ringlock_connections_ended"].samples;
    let sum: f64 = samples.iter().filter(|s| s.1["worker"] == "2").map(|s| s.2).sum();
    let labels = Cause::LABELS.len();
    assert_eq!(
        sum as usize,
        labels * (labels + 1) / 2,
        "every ended connection is in exactly one sample"
    );
    let of = |cause: &str, fault: &str| {
        let labels = [("worker", "2"), ("cause", cause), ("fault", fault)];
        value(&families, "ringlock_connections_ended", &labels)
    };
    assert_eq!(of("handshake", "key"), 3.0);
    assert_eq!(of("handshake", "peer"), 5.0);
    assert_eq!(of("finished", "none"), 1.0);
}

#[test]
fn the_fault_of_each_label_is_the_fault_of_its_cause() {
    for cause in [
        Cause::Finished,
        Cause::ClosedBeforeHello,
        Cause::Drained,
        Cause::ProxyHeader(""),
        Cause::HandshakeTimeout,
        Cause::IdleTimeout,
        Cause::Handshake(HandshakeFailure::NoSharedSuite),
        Cause::ClosedInHandshake,
        Cause::Truncated,
        Cause::PeerReset,
        Cause::Record(String::new()),
        Cause::KeyUpdateFlood,
        Cause::KeyLimit,
        Cause::UpstreamUnreachable,
        Cause::UpstreamReset,
        Cause::Exhausted,
        Cause::Internal(""),
        Cause::ConnectionAge,
        Cause::ClientRevoked(String::new()),
    ] {
        assert_eq!(FAULTS[cause.index()], cause.fault().label(), "{cause:?}");
    }
}

/// Two lists of one CA in one file are one series, which Prometheus insists on.
#[test]
fn the_list_that_ends_first_is_told() {
    let text = render(busy());
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("ringlock_crl_next_update_seconds{"))
        .collect();
    let expected =
        r#"ringlock_crl_next_update_seconds{listener="edge",file="clients.crl",issuer="CN=clients"} 1700000000"#;
    assert_eq!(lines, [expected]);
}

#[test]
fn the_older_format_has_the_same_samples_under_the_types_it_knows() {
    let openmetrics = render(busy());
    let older = to_prometheus_text(&openmetrics);
    let samples = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(samples(&older), samples(&openmetrics));
    let mut declared = BTreeSet::new();
    for line in older.lines().filter_map(|line| line.strip_prefix("# ")) {
        let [keyword, name, rest] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        match keyword {
            "HELP" => assert!(!rest.is_empty(), "{line}"),
            "TYPE" => {
                assert!(matches!(rest, "counter" | "gauge" | "histogram"), "{line}");
                declared.insert(name.to_owned());
            }
            other => panic!("{other}: {line}"),
        }
    }
    for sample in samples(&older) {
        let name = parse_sample(&sample).0;
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let family = family.filter(|family| declared.contains(*family)).unwrap_or(&name);
        assert!(declared.contains(family), "{name} has no type");
    }
    assert!(older.contains("# TYPE ringlock_connections_accepted_total counter\n"));
    assert!(older.contains("# TYPE ringlock_build_info gauge\n"));
}

#[test]
fn the_manual_explains_every_metric_and_no_other() {
    let text = include_str!("../../../docs/metrics.md");
    let manual: BTreeMap<&str, BTreeSet<String>> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            assert_eq!(cells.len(), 6, "| `name` | type | labels | meaning |: {line}");
            assert!(!cells[4].is_empty(), "{line}");
            let labels = cells[3].split(", ").filter(|label| !label.is_empty());
            Some((name, labels.map(|label| label.trim_matches('`').to_owned()).collect()))
        })
        .collect();
    let mut rendered = BTreeMap::new();
    for cause in Cause::LABELS {
        assert!(text.contains(&format!("| {cause} |")), "{cause} is not explained");
    }
    for cause in HandshakeFailure::LABELS {
        assert!(text.contains(cause), "{cause} is not explained");
    }
    for reason in ClientRefusal::LABELS {
        assert!(text.contains(&format!("| {reason} |")), "{reason} is not explained");
    }
    let families = parse(&render(busy()));
    for (family, parsed) in &families {
        let (name, labels, _) = parsed
            .samples
            .first()
            .unwrap_or_else(|| panic!("{family} has no sample"));
        // A histogram is one row, and known by its family.
        let name = if parsed.kind == "histogram" { family } else { name };
        rendered.insert(name.as_str(), labels.keys().cloned().collect::<BTreeSet<_>>());
    }
    assert_eq!(manual, rendered);
}
