//! The result of an attack, as JSON (docs/attacks.md describes it) and as text.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::server::ServerCost;
use super::tally::Ending;
use super::witness::Observed;

/// Version of the JSON layout: raised when a field changes its meaning or goes, not when one is added.
pub(super) const SCHEMA: u32 = 1;

/// The result of an attack.
#[derive(Clone, Debug, Serialize)]
pub struct AttackReport {
    /// Version of this layout.
    pub schema: u32,
    /// What the connections did.
    pub mode: String,
    /// Address of the server.
    pub target: String,
    /// How long the attack took, seconds.
    pub duration_s: f64,
    /// Why it ended: `duration`, `connections_max`, `signal`, or `server_gone`: a process of --server-pid has ended.
    pub ended_by: EndedBy,
    /// Connections begun.
    pub attempts: u64,
    /// Of which the server's kernel took the TCP connection.
    pub connected: u64,
    /// Most connections that were open at a time.
    pub open_most: usize,
    /// How often connections ended in each way.
    pub endings: Vec<EndingCount>,
    /// How long connections were kept.
    pub kept_ms: Kept,
    /// Bytes handed to the kernel.
    pub bytes_sent: u64,
    /// Bytes that came back.
    pub bytes_received: u64,
    /// KeyUpdates sent, or renegotiations asked for; 0 in the other modes.
    pub messages: u64,
    /// Variants of the mode that could not be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// What it cost the server, with --server-pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerCost>,
    /// Why there is no such figure although it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_lost: Option<String>,
    /// CPU time of this client by wall time, the witness included.
    pub client_cpu_share: f64,
    /// The well-behaved client beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<WitnessReport>,
    /// What the exit status 2 is about; empty when nothing spoke against the server.
    pub verdict: Vec<String>,
}

/// Why an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Its time was over.
    Duration,
    /// All connections had been there.
    ConnectionsMax,
    /// SIGINT or SIGTERM.
    Signal,
    /// A process of the server has ended.
    ServerGone,
}

/// One way in which connections ended.
#[derive(Clone, Debug, Serialize)]
pub struct EndingCount {
    /// Which.
    #[serde(flatten)]
    pub ending: Ending,
    /// How often.
    pub count: u64,
}

/// A variant that could not be used.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub variant: String,
    /// Why.
    pub why: String,
}

/// How long connections were kept, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kept {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

/// The well-behaved client.
#[derive(Clone, Debug, Serialize)]
pub struct WitnessReport {
    /// What it did in a connection: `handshake`, or `exchange`: a byte more, which the server answered.
    pub does: String,
    /// Before the attack.
    pub before: Observed,
    /// Beside it.
    pub during: Observed,
    /// After it.
    pub after: Observed,
}

impl Kept {
    /// Of microseconds.
    pub(super) fn of(kept: &Histogram<u64>) -> Self {
        let at = |quantile| kept.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            mean: kept.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: kept.max() as f64 / 1e3,
        }
    }
}

impl WitnessReport {
    /// What is wrong with the service that it got.
    pub(super) fn complaints(&self, p99_max: Option<Duration>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (when, observed) in [("during", &self.during), ("after", &self.after)] {
            if observed.failed > 0 {
                let of = observed.failed + observed.succeeded;
                complaints.push(format!(
                    "the witness failed {} of {of} times {when} the attack",
                    observed.failed
                ));
            }
        }
        if let Some(most) = p99_max.map(|most| most.as_secs_f64() * 1e3)
            && self.during.p99_ms > most
        {
            complaints.push(format!(
                "the witness' p99 was {:.1} ms during the attack, more than --witness-p99-max {most} ms",
                self.during.p99_ms
            ));
        }
        complaints
    }
}

impl AttackReport {
    /// Nothing speaks against the server. That it has survived is known only if the witness was served after the attack, too.
    pub fn is_clean(&self) -> bool {
        self.verdict.is_empty()
    }

    /// How many connections ended so, over all variants and alerts.
    pub fn ended(&self, ending: &str) -> u64 {
        let same = self.endings.iter().filter(|count| count.ending.ending == ending);
        same.map(|count| count.count).sum()
    }

    /// The JSON document of docs/attacks.md.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report holds only strings, numbers and lists")
    }
}

impl Display for AttackReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "attack {} on {}, {:.1} s", self.mode, self.target, self.duration_s)?;
        writeln!(
            f,
            "  attempts        {}, {} connected, at most {} at a time, {:.0} per second",
            self.attempts,
            self.connected,
            self.open_most,
            self.attempts as f64 / self.duration_s.max(1e-9)
        )?;
        for left_out in &self.left_out {
            writeln!(f, "  left out        {}: {}", left_out.variant, left_out.why)?;
        }
        for EndingCount { ending, count } in &self.endings {
            writeln!(f, "  ended           {count} {ending}")?;
        }
        let kept = self.kept_ms;
        writeln!(
            f,
            "  kept            p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            kept.p50, kept.p90, kept.p99, kept.max
        )?;
        writeln!(
            f,
            "  bytes           {} sent, {} received",
            self.bytes_sent, self.bytes_received
        )?;
        if self.messages > 0 {
            writeln!(f, "  messages        {}", self.messages)?;
        }
        if let Some(server) = &self.server {
            writeln!(
                f,
                "  server CPU      {:.1} us per attempt; {:.0} % of a CPU, {:.0} % before",
                server.cpu_us_per_attempt,
                server.cpu_share * 100.0,
                server.cpu_share_before * 100.0
            )?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "  server memory   {:.1} MiB before, {:.1} MiB at most ({:.0} bytes per connection), {:.1} MiB after",
                mib(server.rss_before),
                mib(server.rss_most),
                server.rss_bytes_per_connection,
                mib(server.rss_after)
            )?;
        }
        writeln!(f, "  client CPU      {:.0} % of a CPU", self.client_cpu_share * 100.0)?;
        if let Some(witness) = &self.witness {
            let parts = [
                ("before", &witness.before),
                ("during", &witness.during),
                ("after", &witness.after),
            ];
            for (when, observed) in parts {
                writeln!(
                    f,
                    "  witness {when:<7} {} served, {} failed, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                    observed.succeeded, observed.failed, observed.p50_ms, observed.p99_ms, observed.max_ms
                )?;
                for (why, count) in &observed.failures {
                    writeln!(f, "                  {count} {why}")?;
                }
            }
        }
        for complaint in &self.verdict {
            writeln!(f, "  NOT SURVIVED    {complaint}")?;
        }
        if self.verdict.is_empty()
            && let Some(witness) = &self.witness
        {
            let line = if witness.after.succeeded > 0 {
                "survived        the witness was served all the time"
            } else {
                "not known       nothing was observed after the attack: it was stopped, or --baseline is too short"
            };
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}
