//! What `--probe-established` saw.

use std::fmt::{self, Display, Formatter};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Latency, quotient, rounded};

/// Echoed messages over standing connections, alone and beside the work.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct ProbeEstablished {
    /// Standing connections.
    pub connections: usize,
    /// Messages due per second, over all of them.
    pub rate_per_s: u32,
    /// Messages that were due before the work began.
    pub messages_alone: u64,
    /// Messages that were due in the measuring window of the work.
    pub messages_beside: u64,
    /// Time from when a message was due to its answer, microseconds, before the work began.
    pub alone: Latency,
    /// The same in the measuring window of the work.
    pub beside: Latency,
    /// `beside.p99` by `alone.p99`.
    pub p99_ratio: f64,
    /// Connections that failed and were opened anew, from the first one on.
    pub failed: u64,
    /// Messages without an answer, of all that were due from the first to the end of the measuring window. Those that were due in
    /// one of the two windows are in its latencies, with the time that they waited; those of the time between, as the
    /// warm-up, are only here.
    pub unanswered: u64,
    /// By how much messages began late because the probe itself was not there in time: 99th percentile, microseconds.
    pub late_p99_us: f64,
}

/// What was seen, in nanoseconds.
pub(crate) struct ProbeLatencies<'a> {
    pub(crate) connections: usize,
    pub(crate) rate_per_s: u32,
    pub(crate) alone: &'a Histogram<u64>,
    pub(crate) beside: &'a Histogram<u64>,
    pub(crate) late: &'a Histogram<u64>,
    pub(crate) failed: u64,
    pub(crate) unanswered: u64,
}

impl ProbeEstablished {
    pub(crate) fn new(seen: &ProbeLatencies<'_>) -> Self {
        let (alone, beside) = (Latency::new(seen.alone), Latency::new(seen.beside));
        Self {
            connections: seen.connections,
            rate_per_s: seen.rate_per_s,
            messages_alone: seen.alone.len(),
            messages_beside: seen.beside.len(),
            alone,
            beside,
            p99_ratio: rounded(quotient(beside.p99, alone.p99)),
            failed: seen.failed,
            unanswered: seen.unanswered,
            late_p99_us: Latency::new(seen.late).p99,
        }
    }
}

impl Display for ProbeEstablished {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            connections,
            rate_per_s,
            alone,
            beside,
            p99_ratio,
            failed,
            unanswered,
            ..
        } = self;
        write!(
            f,
            "{connections} established connections, {rate_per_s} messages/s: p50 {} p99 {} µs alone, p50 {} p99 {} µs beside the \
             work ({p99_ratio} times); {unanswered} unanswered, {failed} connections failed",
            alone.p50, alone.p99, beside.p50, beside.p99
        )
    }
}
