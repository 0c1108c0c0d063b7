//! The result of a run, as JSON (docs/perf.md describes it).

pub mod command;
mod course;
mod figures;
mod files;
pub mod html;
mod numbers;
mod probe;
mod server;
mod setting;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use course::{Capacity, Interval, Percentile, Step, Unanswered};
pub use probe::ProbeEstablished;
pub(crate) use probe::ProbeLatencies;
pub use server::{ContextSwitches, Memory, MemoryPerConnection, PageFaults, Server, ServerMemory, SystemCalls};
pub use setting::Setting;

use crate::cost::Window;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::procfs;

/// Version of the JSON layout: raised when a field changes its meaning or goes, not when one is added.
pub const SCHEMA: u32 = 1;

/// One million bytes.
const MEGABYTE: f64 = 1e6;

/// What costs are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A handshake with its connect and close.
    Handshake,
    /// A message there and back.
    Message,
    /// A request and its response.
    Request,
    /// 1,000,000 bytes of payload.
    Megabyte,
    /// A connection opened.
    Connection,
}

/// The result of a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Kind of work: `handshake`, `handshake_exchange`, `handshake_expect_close`, `resume`, `echo`, `http`,
    /// `bulk_download`, `bulk_upload` or `idle`.
    pub work: String,
    /// Address of the server.
    pub target: String,
    /// Connections in flight or held.
    pub connections: usize,
    /// Length of the measuring window, seconds.
    pub duration_s: f64,
    /// What costs are divided by.
    pub unit: Unit,
    /// Units done in the window.
    pub units: f64,
    /// Units per second in the window.
    pub rate_per_s: f64,
    /// Payload bytes moved in the window.
    pub bytes: u64,
    /// The units by kind, when they are handshakes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshakes: Option<Handshakes>,
    /// HTTP responses in the window by status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub statuses: BTreeMap<String, u64>,
    /// Time per unit, in an open loop from when it was due; absent for bulk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
    /// In an open loop (--rate, --ramp, --find-capacity): time per unit from when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_us: Option<Latency>,
    /// What had begun and was not done at the end of the window; absent for bulk and `idle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Unanswered>,
    /// Both times by quantile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<Percentile>,
    /// The measuring window, second by second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Interval>,
    /// The rates of a ramp or of a search for the capacity, in their order. Everything else in the report is of the last
    /// step that held, or of the first, if none did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// With --find-capacity: what was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// In an open loop: what should have begun, and what did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_loop: Option<OpenLoop>,
    /// What the server used, when --server-pid was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// What this client used.
    pub client: Cpu,
    /// Memory, for `idle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// With --probe-established: echoed messages over standing connections, alone and beside the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_established: Option<ProbeEstablished>,
    /// The TLS parameters that were negotiated, with the number of connections.
    pub negotiated: Vec<NegotiatedCount>,
    /// Of the whole run, warm-up and closing included.
    pub totals: Totals,
    /// Failed connections of the whole run by kind; empty when all went well.
    pub errors: BTreeMap<String, ErrorCount>,
    /// Why the figures say more about this client, or about chance, than about the server; empty when nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where and how it was measured.
    #[serde(default)]
    pub setting: Setting,
}

/// Handshakes in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Handshakes {
    /// Full ones. In the work `resume`: those that should have been resumed.
    pub full: u64,
    /// Resumed ones: `by_ticket` + `by_session_id`.
    pub resumed: u64,
    /// Resumed by a client that offers tickets (in TLS 1.2 a session id, if that is all the server gives).
    #[serde(default)]
    pub by_ticket: u64,
    /// Resumed by a client that offers nothing but a session id.
    #[serde(default)]
    pub by_session_id: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Longest.
    pub max: f64,
}

/// An open loop, from the begin of the warm-up to the end of the window.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct OpenLoop {
    /// Units that should begin per second.
    pub rate_per_s: u32,
    /// Units whose time came.
    pub due: u64,
    /// Units that began.
    pub started: u64,
    /// Units that were due and did not begin, because as many as may be were in flight: `due` - `started`.
    pub not_started: u64,
    /// Units that began late for the same reason, until something could take them.
    #[serde(default)]
    pub held: u64,
    /// By how much units began late though something could take them, because the client was busy: median, microseconds.
    #[serde(default)]
    pub late_p50_us: f64,
    /// 99th percentile.
    #[serde(default)]
    pub late_p99_us: f64,
}

/// CPU use of the client in the window.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Cpu {
    /// Microseconds of CPU time per unit.
    pub cpu_us_per_unit: f64,
    /// CPU time by wall time: 1.0 is one CPU busy all the time.
    pub cpu_share: f64,
}

/// Memory of the server around idle connections, bytes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Idle {
    /// Connections that were open when memory was read.
    pub held: usize,
    /// Connections that were no longer open at the end of --hold.
    pub lost: usize,
    /// The server's memory, when --server-pid was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<IdleMemory>,
}

/// Memory summed over the server's processes, bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct IdleMemory {
    /// (`pss_holding` - `pss_before`) / held: the figure to compare.
    pub bytes_per_connection: f64,
    /// As `bytes_per_connection`, of resident pages.
    pub rss_per_connection: f64,
    /// As `bytes_per_connection`, of private pages.
    pub private_per_connection: f64,
    /// After one connection was opened and closed, before the others.
    pub pss_before: u64,
    /// With all connections open.
    pub pss_holding: u64,
    /// After all were closed.
    pub pss_closed: u64,
    #[serde(skip)]
    rss_before: u64,
    #[serde(skip)]
    private_before: u64,
}

/// TLS parameters by their names in rustls, and how many connections had them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NegotiatedCount {
    /// For example `TLSv1_3`.
    pub version: String,
    /// For example `TLS13_AES_128_GCM_SHA256`.
    pub suite: String,
    /// For example `X25519`; `none` in a resumed TLS 1.2 handshake.
    pub group: String,
    /// `Full`, `FullWithHelloRetryRequest` or `Resumed`.
    pub handshake: String,
    /// Connections.
    pub count: u64,
}

/// Counts of a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Totals {
    /// Connections begun.
    pub opened: u64,
    /// Handshakes completed.
    pub established: u64,
    /// Units done (bulk: 0, see `bytes`).
    pub units: u64,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Connections closed by both sides with close_notify.
    pub closed_in_order: u64,
    /// Connections that the server closed without close_notify after ours.
    pub closed_without_notify: u64,
    /// Connections that the server reset after our close.
    pub reset_after_close: u64,
    /// Connections that the server closed between two requests, as it may; each was opened anew after a pause.
    #[serde(default)]
    pub closed_at_rest: u64,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

impl Unit {
    /// How many there are in so many units of work and bytes.
    pub(crate) fn count(self, units: u64, bytes: u64) -> f64 {
        match self {
            Self::Handshake | Self::Message | Self::Request | Self::Connection => units as f64,
            Self::Megabyte => bytes as f64 / MEGABYTE,
        }
    }
}

impl Report {
    pub(crate) fn new(work: &str, unit: Unit, plan: &ClientPlan, tally: &Tally, window: &Window) -> Self {
        let units = unit.count(tally.units, tally.bytes);
        let seconds = window.wall.as_secs_f64();
        Self {
            schema: SCHEMA,
            work: work.to_owned(),
            target: plan.target.to_string(),
            connections: plan.connections,
            duration_s: rounded(seconds),
            unit,
            units: rounded(units),
            rate_per_s: rounded(quotient(units, seconds)),
            bytes: tally.bytes,
            handshakes: (unit == Unit::Handshake).then(|| Handshakes {
                full: tally.units - tally.resumed_by_ticket - tally.resumed_by_session_id,
                resumed: tally.resumed_by_ticket + tally.resumed_by_session_id,
                by_ticket: tally.resumed_by_ticket,
                by_session_id: tally.resumed_by_session_id,
            }),
            statuses: tally
                .statuses
                .iter()
                .map(|(status, &count)| (status.to_string(), count))
                .collect(),
            latency_us: (!tally.latency.is_empty()).then(|| Latency::new(&tally.latency)),
            service_us: None,
            unanswered: None,
            percentiles: Vec::new(),
            series: Vec::new(),
            steps: Vec::new(),
            capacity: None,
            open_loop: None,
            server: window.server.as_ref().map(|used| Server::new(used, units, window.wall)),
            client: Cpu::new(window.client.cpu.total, units, window.wall),
            idle: None,
            probe_established: None,
            negotiated: negotiated(tally),
            totals: Totals {
                opened: tally.opened,
                established: tally.established,
                units: tally.units_total,
                bytes: tally.bytes_total,
                closed_in_order: tally.orderly,
                closed_without_notify: tally.truncated,
                reset_after_close: tally.reset,
                closed_at_rest: tally.closed_at_rest,
            },
            errors: errors(tally),
            warnings: Vec::new(),
            setting: Setting {
                threads: plan.threads,
                io: plan.io.name().to_owned(),
                ..Setting::here()
            },
        }
    }

    pub(crate) fn set_course(&mut self, series: Vec<Interval>, tally: &Tally) {
        self.series = series;
        self.service_us = (!tally.service.is_empty()).then(|| Latency::new(&tally.service));
        let service = if tally.service.is_empty() {
            &tally.latency
        } else {
            &tally.service
        };
        self.percentiles = course::percentiles(&tally.latency, service);
    }

    pub(crate) fn set_open_loop(&mut self, counts: OpenLoop) {
        self.open_loop = Some(counts);
    }

    pub(crate) fn set_idle(&mut self, held: usize, lost: usize, memory: Option<IdleMemory>) {
        self.idle = Some(Idle { held, lost, memory });
    }

    /// True when units were done and no connection failed.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.units > 0.0
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self)
            .expect("a report holds only strings, finite numbers and maps with string keys")
    }
}

impl Latency {
    fn new(nanoseconds: &Histogram<u64>) -> Self {
        let at = |quantile: f64| rounded(nanoseconds.value_at_quantile(quantile) as f64 / 1e3);
        Self {
            mean: rounded(nanoseconds.mean() / 1e3),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: rounded(nanoseconds.max() as f64 / 1e3),
        }
    }
}

impl Cpu {
    fn new(used: Duration, units: f64, wall: Duration) -> Self {
        Self {
            cpu_us_per_unit: rounded(quotient(used.as_secs_f64() * 1e6, units)),
            cpu_share: rounded(ratio(used, wall)),
        }
    }
}

impl IdleMemory {
    /// The memory before connections are opened.
    pub(crate) fn before(memory: procfs::Memory) -> Self {
        Self {
            pss_before: memory.pss,
            rss_before: memory.rss,
            private_before: memory.private,
            ..Self::default()
        }
    }

    /// The memory with `held` connections open.
    pub(crate) fn holding(&mut self, memory: procfs::Memory, held: usize) {
        let per_connection = |now: u64, before: u64| rounded(quotient(now as f64 - before as f64, held as f64));
        self.pss_holding = memory.pss;
        self.bytes_per_connection = per_connection(memory.pss, self.pss_before);
        self.rss_per_connection = per_connection(memory.rss, self.rss_before);
        self.private_per_connection = per_connection(memory.private, self.private_before);
    }

    /// The memory after all were closed.
    pub(crate) fn closed(&mut self, memory: procfs::Memory) {
        self.pss_closed = memory.pss;
    }
}

fn negotiated(tally: &Tally) -> Vec<NegotiatedCount> {
    let count = |(parameters, &count): (&crate::connection::Negotiated, &u64)| NegotiatedCount {
        version: parameters.version(),
        suite: parameters.suite(),
        group: parameters.group(),
        handshake: parameters.handshake(),
        count,
    };
    tally.negotiated.iter().map(count).collect()
}

fn errors(tally: &Tally) -> BTreeMap<String, ErrorCount> {
    let entry = |(kind, failure): (&&str, &crate::measure::FailureCount)| {
        (
            (*kind).to_owned(),
            ErrorCount {
                count: failure.count,
                first: failure.first.clone(),
            },
        )
    };
    tally.failures.iter().map(entry).collect()
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    quotient(part.as_secs_f64(), whole.as_secs_f64())
}

/// 0 instead of a number that JSON cannot hold.
fn quotient(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// Three decimals: more are noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
