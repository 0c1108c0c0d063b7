//! The counters of all workers as OpenMetrics text, rendered when somebody asks. `docs/metrics.md` explains each.

mod clients;
mod keys;
mod ocsp;
mod reloads;
mod sessions;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

pub use self::clients::CrlView;
pub use self::keys::{KeyGroupView, TokenView};
pub use self::ocsp::{StapleView, StaplingView};
pub use self::reloads::{Reloads, Trigger};
pub use self::sessions::SessionCacheView;
use crate::error::{Cause, HandshakeFailure, KeyFailure};
use crate::metrics::{Counter, GROUPS, Negotiated, RESUMPTION, SUITES, ServerMetrics, VERSIONS, WorkerMetrics};
use crate::tls::tickets::InUse;

/// What can be seen of the gateway at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// In the order in which they were started.
    pub workers: Vec<WorkerView>,
    /// Of the current snapshot, in file order.
    pub upstreams: Vec<UpstreamView>,
    /// Certificates in use, one entry for each identity.
    pub certificates: Arc<[CertificateView]>,
    /// Revocation lists of clients in use.
    pub crls: Vec<CrlView>,
    /// Their OCSP staples.
    pub stapling: StaplingView,
    /// Groups of tokens that the current snapshot has keys in.
    pub key_groups: Vec<KeyGroupView>,
    /// Tokens in use.
    pub tokens: Vec<TokenView>,
    /// What session tickets are sealed with.
    pub tickets: InUse,
    /// Of the current snapshot's listeners that have one.
    pub session_caches: Vec<SessionCacheView>,
    /// Number of the current snapshot; the one of the start is 1.
    pub epoch: u64,
    /// Open connections by the snapshot they were accepted under.
    pub connections_by_epoch: Vec<(u64, u64)>,
    /// Reloads since start.
    pub reloads: Reloads,
    /// Log lines that were not written since start.
    pub log_lines_lost: u64,
    /// What the process gives up after its start, and whether it has.
    pub confinement: [(&'static str, bool); 4],
    /// When the process started.
    pub started: SystemTime,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// The processor it is pinned to: its name in labels.
    pub cpu: usize,
    /// `"io_uring"` or `"epoll"`.
    pub driver: &'static str,
    /// Its counters.
    pub metrics: Arc<WorkerMetrics>,
}

/// One upstream group.
#[derive(Clone, Debug)]
pub struct UpstreamView {
    /// Its name in the configuration.
    pub name: String,
    /// Its servers, in file order.
    pub servers: Vec<ServerView>,
}

/// One server of an upstream group.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// As in the configuration.
    pub address: String,
    /// The counters of each worker.
    pub workers: Vec<Arc<ServerMetrics>>,
}

/// The leaf certificate of an identity.
#[derive(Clone, Debug)]
pub struct CertificateView {
    /// Name of the identity in the configuration.
    pub identity: String,
    /// Beginning of its validity in seconds since 1970.
    pub not_before_unix: i64,
    /// End of its validity in seconds since 1970.
    pub not_after_unix: i64,
    /// Its serial number in hexadecimal.
    pub serial: String,
}

/// The whole exposition in OpenMetrics 1.0 text.
#[must_use]
pub fn render(view: View) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(view));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a String cannot fail");
    text
}

/// The same in the older Prometheus text format 0.0.4, whose types belong to the names of the samples and which knows
/// no `info`, no units and no end mark.
#[must_use]
pub fn to_prometheus_text(openmetrics: &str) -> String {
    let types: HashMap<&str, &str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let comment = line.strip_prefix("# ").and_then(|rest| {
            let mut words = rest.splitn(3, ' ');
            Some((words.next()?, words.next().unwrap_or(""), words.next().unwrap_or("")))
        });
        match comment {
            Some(("EOF" | "UNIT", ..)) => continue,
            Some((keyword, name, rest)) => {
                let (suffix, renamed) = match types.get(name) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(_) | None => ("", rest),
                };
                let rest = if keyword == "TYPE" { renamed } else { rest };
                text.extend(["# ", keyword, " ", name, suffix, " ", rest]);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

type Labels<'v> = Vec<(&'static str, Cow<'v, str>)>;

/// One metric and its samples.
struct Family<'v, V> {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: Vec<(Labels<'v>, V)>,
}

/// Writes families with the suffixes and types of OpenMetrics.
struct Exposition<'e>(DescriptorEncoder<'e>);

impl Exposition<'_> {
    fn counter(&mut self, family: Family<'_, u64>) -> fmt::Result {
        self.family(family, MetricType::Counter, |mut encoder, value| {
            encoder.encode_counter::<NoLabelSet, u64, f64>(value, None)
        })
    }

    fn gauge<V: EncodeGaugeValue>(&mut self, family: Family<'_, V>) -> fmt::Result {
        self.family(family, MetricType::Gauge, |mut encoder, value| {
            encoder.encode_gauge(value)
        })
    }

    /// Each sample has the number of observations of 1, 2, 3 and so on.
    fn histogram(&mut self, family: Family<'_, Vec<u64>>) -> fmt::Result {
        self.family(family, MetricType::Histogram, |mut encoder, counts| {
            let bounded = (1..).map(f64::from).zip(counts.iter().copied());
            let buckets: Vec<(f64, u64)> = bounded.chain([(f64::INFINITY, 0)]).collect();
            let sum: u64 = (1..).zip(counts).map(|(value, count)| value * count).sum();
            #[expect(
                clippy::cast_precision_loss,
                reason = "what is lost of 2^53 and more does not matter"
            )]
            let sum = sum as f64;
            encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
        })
    }

    fn family<V>(
        &mut self,
        family: Family<'_, V>,
        kind: MetricType,
        encode: impl Fn(MetricEncoder<'_>, &V) -> fmt::Result,
    ) -> fmt::Result {
        let Family {
            name,
            help,
            unit,
            samples,
        } = family;
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in &samples {
            encode(encoder.encode_family(labels)?, value)?;
        }
        Ok(())
    }

    fn info(&mut self, name: &'static str, help: &'static str, rows: &[Labels<'_>]) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        for labels in rows {
            encoder.encode_info(labels)?;
        }
        Ok(())
    }
}

impl Collector for View {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut exposition = Exposition(encoder);
        self.encode_workers(&mut exposition)?;
        self.encode_handshakes(&mut exposition)?;
        self.encode_clients(&mut exposition)?;
        self.encode_sessions(&mut exposition)?;
        self.encode_upstreams(&mut exposition)?;
        self.encode_keys(&mut exposition)?;
        self.encode_configuration(&mut exposition)?;
        self.encode_stapling(&mut exposition)?;
        encode_process(self.started, &mut exposition)
    }
}

impl View {
    /// One sample for each worker.
    fn of_workers(
        &self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        counter: impl Fn(&WorkerMetrics) -> &Counter,
    ) -> Family<'_, u64> {
        let samples = self
            .workers
            .iter()
            .map(|worker| (vec![worker_label(worker)], counter(&worker.metrics).value()))
            .collect();
        Family {
            name,
            help,
            unit,
            samples,
        }
    }

    fn encode_workers(&self, to: &mut Exposition<'_>) -> fmt::Result {
        to.counter(self.of_workers(
            "ringlock_connections_accepted",
            "Connections taken from the kernel",
            None,
            |m| &m.accepted,
        ))?;
        to.counter(self.of_workers(
            "ringlock_connections_shed",
            "Connections refused because of connections_max",
            None,
            |m| &m.shed,
        ))?;
        to.gauge(self.of_workers("ringlock_connections_live", "Connections open", None, |m| &m.live))?;
        to.counter(self.of_workers(
            "ringlock_accept_failures",
            "Failures to accept for lack of descriptors or memory",
            None,
            |m| &m.accept_failures,
        ))?;
        to.counter(Family {
            name: "ringlock_connections_ended",
            help: "Connections ended, by cause and by who has to act on it",
            unit: None,
            samples: self.workers.iter().flat_map(ended).collect(),
        })?;
        to.counter(Family {
            name: "ringlock_transferred",
            help: "Bytes on the wire: TLS downstream, plain upstream",
            unit: Some(Unit::Bytes),
            samples: self.workers.iter().flat_map(transferred).collect(),
        })?;
        to.counter(Family {
            name: "ringlock_crypto_operations",
            help: "Private key and key exchange operations answered through the crypto queue",
            unit: None,
            samples: self.workers.iter().flat_map(crypto_operations).collect(),
        })?;
        to.histogram(Family {
            name: "ringlock_crypto_batch_operations",
            help: "Calls that computed several operations at once, by how many",
            unit: None,
            samples: self.workers.iter().map(batches).collect(),
        })?;
        to.counter(Family {
            name: "ringlock_crypto_made_ahead",
            help: "Key pairs and signature set-ups made ahead, by what became of them; missing: used and not made ahead",
            unit: None,
            samples: self.workers.iter().flat_map(made_ahead).collect(),
        })?;
        to.counter(self.of_workers("ringlock_loop_turns", "Turns of the worker's loop", None, |m| &m.turns))?;
        to.gauge(self.of_workers(
            "ringlock_send_buffers",
            "Memory of send buffers that are lent to connections or the kernel",
            Some(Unit::Bytes),
            |m| &m.buffer_bytes,
        ))?;
        to.counter(self.of_workers(
            "ringlock_proxy_certificates_left_out",
            "Certificates of clients that would have made a PROXY header too long",
            None,
            |m| &m.proxy_certificates_left_out,
        ))?;
        to.counter(self.of_workers(
            "ringlock_log_records_dropped",
            "Connection records dropped because the log could not keep up",
            None,
            |m| &m.log_dropped,
        ))?;
        let drivers: Vec<Labels<'_>> = self
            .workers
            .iter()
            .map(|worker| vec![worker_label(worker), ("driver", worker.driver.into())])
            .collect();
        to.info(
            "ringlock_worker",
            "The workers, by processor, and their driver",
            &drivers,
        )
    }

    /// Summed over the workers: which one made a handshake says nothing about its kind.
    fn encode_handshakes(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let mut samples = Vec::new();
        for (version, version_name) in (0u8..).zip(VERSIONS) {
            for (suite, suite_name) in (0u8..).zip(SUITES) {
                for (group, group_name) in (0u8..).zip(GROUPS) {
                    for (resumption, resumption_name) in (0u8..).zip(RESUMPTION) {
                        let kind = Negotiated {
                            version,
                            suite,
                            group,
                            resumption,
                        };
                        let count: u64 = self.workers.iter().map(|w| w.metrics.handshakes(kind).value()).sum();
                        // Most of the 180 combinations cannot occur, and most of the others never do.
                        if count > 0 {
                            let labels = vec![
                                ("version", version_name.into()),
                                ("suite", suite_name.into()),
                                ("group", group_name.into()),
                                ("resumption", resumption_name.into()),
                            ];
                            samples.push((labels, count));
                        }
                    }
                }
            }
        }
        to.counter(Family {
            name: "ringlock_handshakes",
            help: "Handshakes completed; combinations that never occurred are left out",
            unit: None,
            samples,
        })?;
        to.counter(Family {
            name: "ringlock_handshake_failures",
            help: "Handshakes failed, by cause",
            unit: None,
            samples: (0..HandshakeFailure::LABELS.len())
                .map(|index| {
                    let failures = self.workers.iter().map(|w| w.metrics.handshake_failures[index].value());
                    (vec![("cause", HandshakeFailure::LABELS[index].into())], failures.sum())
                })
                .collect(),
        })
    }

    /// Summed over the workers.
    fn of_servers(
        &self,
        name: &'static str,
        help: &'static str,
        counter: impl Fn(&ServerMetrics) -> &Counter,
    ) -> Family<'_, u64> {
        let mut samples = Vec::new();
        for upstream in &self.upstreams {
            for server in &upstream.servers {
                let labels = vec![
                    ("upstream", upstream.name.as_str().into()),
                    ("server", server.address.as_str().into()),
                ];
                samples.push((
                    labels,
                    server.workers.iter().map(|metrics| counter(metrics).value()).sum(),
                ));
            }
        }
        Family {
            name,
            help,
            unit: None,
            samples,
        }
    }

    fn encode_upstreams(&self, to: &mut Exposition<'_>) -> fmt::Result {
        to.gauge(self.of_servers(
            "ringlock_upstream_server_connections",
            "Connections to the server, open or opening",
            |m| &m.connections,
        ))?;
        to.counter(self.of_servers(
            "ringlock_upstream_server_connected",
            "Connections to the server established",
            |m| &m.connected,
        ))?;
        to.counter(self.of_servers(
            "ringlock_upstream_server_connect_failures",
            "Attempts to connect to the server that failed",
            |m| &m.connect_failures,
        ))?;
        to.gauge(self.of_servers(
            "ringlock_upstream_server_ejected_workers",
            "Workers that do not choose the server because it fails",
            |m| &m.ejected,
        ))
    }

    fn encode_configuration(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let build = vec![("version", env!("CARGO_PKG_VERSION").into())];
        to.info("ringlock_build", "The version that runs", &[build])?;
        to.gauge(Family {
            name: "ringlock_configuration_epoch",
            help: "Number of the configuration in force; the one of the start is 1",
            unit: None,
            samples: vec![(vec![], self.epoch)],
        })?;
        self.encode_reloads(to)?;
        to.counter(Family {
            name: "ringlock_log_lines_lost",
            help: "Log lines that were not written: the queue was full, or the file did not take them",
            unit: None,
            samples: vec![(vec![], self.log_lines_lost)],
        })?;
        to.gauge(Family {
            name: "ringlock_given_up",
            help: "What the process has given up after its start: 1, or 0 if it still has it",
            unit: None,
            samples: self
                .confinement
                .iter()
                .map(|&(what, in_force)| (vec![("what", what.into())], u64::from(in_force)))
                .collect(),
        })?;
        to.gauge(self.of_certificates(
            "ringlock_certificate_not_before",
            "First second of the validity of the certificate in use, in Unix time",
            |certificate| certificate.not_before_unix,
        ))?;
        to.gauge(self.of_certificates(
            "ringlock_certificate_not_after",
            "Last second of the validity of the certificate in use, in Unix time",
            |certificate| certificate.not_after_unix,
        ))
    }

    /// One sample for each certificate.
    fn of_certificates(
        &self,
        name: &'static str,
        help: &'static str,
        value: impl Fn(&CertificateView) -> i64,
    ) -> Family<'_, i64> {
        let samples = self.certificates.iter().map(|certificate| {
            let labels = vec![
                ("identity", Cow::Borrowed(certificate.identity.as_str())),
                ("serial", Cow::Borrowed(certificate.serial.as_str())),
            ];
            (labels, value(certificate))
        });
        Family {
            name,
            help,
            unit: Some(Unit::Seconds),
            samples: samples.collect(),
        }
    }
}

fn worker_label(worker: &WorkerView) -> (&'static str, Cow<'static, str>) {
    ("worker", worker.cpu.to_string().into())
}

/// Who has to act on each of [`Cause::LABELS`]. A failed handshake is the peer's fault but for the key's, which
/// [`ended`] takes apart; a write timeout is counted without its side.
const FAULTS: [&str; Cause::LABELS.len()] = [
    "none",
    "none",
    "none",
    "peer",
    "peer",
    "none",
    "peer_or_upstream",
    "peer",
    "peer",
    "peer",
    "peer",
    "peer",
    "peer",
    "none",
    "upstream",
    "upstream",
    "operator",
    "us",
    "none",
    "peer",
];

/// The operations of one worker, by how they were computed.
fn crypto_operations(worker: &WorkerView) -> Vec<(Labels<'static>, u64)> {
    let labels = |engine: &'static str| vec![worker_label(worker), ("engine", Cow::Borrowed(engine))];
    let batches = worker.metrics.crypto_batches.iter().map(Counter::value);
    let batched = (1..).zip(batches).map(|(operations, batches)| operations * batches);
    vec![
        (labels("inline"), worker.metrics.crypto_inline.value()),
        (labels("batch"), batched.sum()),
    ]
}

/// What became of what one worker has made ahead.
fn made_ahead(worker: &WorkerView) -> Vec<(Labels<'static>, u64)> {
    let WorkerMetrics {
        made_ahead_used,
        made_ahead_missing,
        made_ahead_expired,
        ..
    } = &*worker.metrics;
    let outcomes = [
        ("used", made_ahead_used),
        ("missing", made_ahead_missing),
        ("expired", made_ahead_expired),
    ];
    let sample = |(outcome, counter): (&'static str, &Counter)| {
        let labels = vec![worker_label(worker), ("outcome", Cow::Borrowed(outcome))];
        (labels, counter.value())
    };
    outcomes.map(sample).into()
}

/// The batches of one worker, by how many operations they had.
fn batches(worker: &WorkerView) -> (Labels<'static>, Vec<u64>) {
    let counts = worker.metrics.crypto_batches.iter().map(Counter::value).collect();
    (vec![worker_label(worker)], counts)
}

/// The connections of one worker that ended, by cause and fault.
fn ended(worker: &WorkerView) -> Vec<(Labels<'static>, u64)> {
    let labels = |cause: &'static str, fault: &'static str| -> Labels<'static> {
        vec![worker_label(worker), ("cause", cause.into()), ("fault", fault.into())]
    };
    let key_failures: u64 = KeyFailure::ALL
        .map(|failure| HandshakeFailure::Key(failure).index())
        .iter()
        .map(|&index| worker.metrics.handshake_failures[index].value())
        .sum();
    let handshake = Cause::Handshake(HandshakeFailure::Key(KeyFailure::Full));
    let mut samples: Vec<_> = (0..Cause::LABELS.len())
        .map(|index| {
            let all = worker.metrics.done[index].value();
            let count = if index == handshake.index() {
                // The two counters are read one after the other, so the second may be ahead.
                all.saturating_sub(key_failures)
            } else {
                all
            };
            (labels(Cause::LABELS[index], FAULTS[index]), count)
        })
        .collect();
    samples.push((labels(handshake.label(), handshake.fault().label()), key_failures));
    samples
}

fn transferred(worker: &WorkerView) -> Vec<(Labels<'static>, u64)> {
    let metrics = &worker.metrics;
    [
        ("downstream", "received", &metrics.downstream_received),
        ("downstream", "sent", &metrics.downstream_sent),
        ("upstream", "received", &metrics.upstream_received),
        ("upstream", "sent", &metrics.upstream_sent),
    ]
    .into_iter()
    .map(|(side, direction, counter)| {
        let labels = vec![
            worker_label(worker),
            ("side", side.into()),
            ("direction", direction.into()),
        ];
        (labels, counter.value())
    })
    .collect()
}

/// What the kernel tells of this process. Kept open: opening them may be given up (docs/security.md).
struct ProcessFiles {
    page_bytes: u64,
    statm: Option<File>,
    descriptors: Option<File>,
}

static PROCESS_FILES: OnceLock<ProcessFiles> = OnceLock::new();

/// To be called before files are given up; afterwards metrics of the process would be missing.
pub fn open_process_files() {
    process_files();
}

fn process_files() -> &'static ProcessFiles {
    PROCESS_FILES.get_or_init(|| ProcessFiles {
        // The first time somebody asks rustix, it may have to read /proc/self/auxv.
        page_bytes: rustix::param::page_size() as u64,
        statm: File::open("/proc/self/statm").ok(),
        descriptors: File::open("/proc/self/fd").ok(),
    })
}

fn count_descriptors(folder: &File) -> Option<u64> {
    rustix::fs::seek(folder, rustix::fs::SeekFrom::Start(0)).ok()?;
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = rustix::fs::RawDir::new(folder, buffer.spare_capacity_mut());
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        count += u64::from(entry.file_name() != c"." && entry.file_name() != c"..");
    }
    Some(count)
}

/// The process as the kernel sees it, under the names that Prometheus' client libraries share. What cannot be read has
/// no sample.
fn encode_process(started: SystemTime, to: &mut Exposition<'_>) -> fmt::Result {
    fn sample<V>(value: Option<V>) -> Vec<(Labels<'static>, V)> {
        value.into_iter().map(|value| (vec![], value)).collect()
    }
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let mut seconds = to.0.encode_descriptor(
        "process_cpu",
        "User and system time of all threads",
        Some(&Unit::Seconds),
        MetricType::Counter,
    )?;
    seconds.encode_counter::<NoLabelSet, f64, f64>(&(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9), None)?;

    let files = process_files();
    let mut statm = [0; 128];
    let length = files.statm.as_ref().and_then(|file| file.read_at(&mut statm, 0).ok());
    let statm = String::from_utf8_lossy(&statm[..length.unwrap_or(0)]);
    let mut sizes = statm
        .split_ascii_whitespace()
        .map(|pages| pages.parse::<u64>().map(|n| n * files.page_bytes));
    for (name, help) in [
        ("process_virtual_memory", "Virtual memory"),
        ("process_resident_memory", "Resident memory"),
    ] {
        to.gauge(Family {
            name,
            help,
            unit: Some(Unit::Bytes),
            samples: sample(sizes.next().and_then(Result::ok)),
        })?;
    }
    to.gauge(Family {
        name: "process_open_fds",
        help: "Open file descriptors",
        unit: None,
        samples: sample(files.descriptors.as_ref().and_then(count_descriptors)),
    })?;
    to.gauge(Family {
        name: "process_max_fds",
        help: "File descriptors this process may open",
        unit: None,
        samples: sample(rustix::process::getrlimit(rustix::process::Resource::Nofile).current),
    })?;
    to.gauge(Family {
        name: "process_start_time",
        help: "When the process started, in Unix time",
        unit: Some(Unit::Seconds),
        samples: sample(started.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())),
    })
}

#[cfg(test)]
pub(super) mod tests;
