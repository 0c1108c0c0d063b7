//! Counting: what connections did.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::connection::{Ending, Failure, Negotiated};

/// Latencies are kept from 1 ns to this, with three significant digits; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(300);

/// What the connections of one run did. Units and bytes count inside the measuring window (and apart from
/// that in total); connections, failures and endings always.
pub(crate) struct Tally {
    measuring: bool,
    pub(crate) units: u64,
    /// Units that were resumed handshakes, `resumed <= units`.
    pub(crate) resumed: u64,
    pub(crate) bytes: u64,
    /// Units of the whole run, `units_total >= units`.
    pub(crate) units_total: u64,
    /// Bytes of the whole run, `bytes_total >= bytes`.
    pub(crate) bytes_total: u64,
    /// Nanoseconds per unit.
    pub(crate) latency: Histogram<u64>,
    pub(crate) opened: u64,
    pub(crate) established: u64,
    pub(crate) failures: BTreeMap<&'static str, FailureCount>,
    pub(crate) orderly: u64,
    pub(crate) truncated: u64,
    pub(crate) reset: u64,
    pub(crate) negotiated: BTreeMap<Negotiated, u64>,
}

/// How often one kind of failure happened, and what the first one said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureCount {
    pub(crate) count: u64,
    pub(crate) first: String,
}

/// An empty histogram of nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    let longest = LATENCY_MAX.as_nanos() as u64;
    Histogram::new_with_bounds(1, longest, 3).expect("bounds and digits are constants in range")
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            measuring: false,
            units: 0,
            resumed: 0,
            bytes: 0,
            units_total: 0,
            bytes_total: 0,
            latency: histogram(),
            opened: 0,
            established: 0,
            failures: BTreeMap::new(),
            orderly: 0,
            truncated: 0,
            reset: 0,
            negotiated: BTreeMap::new(),
        }
    }

    pub(crate) fn set_measuring(&mut self, measuring: bool) {
        self.measuring = measuring;
    }

    /// One unit of work is done.
    pub(crate) fn unit(&mut self, latency_ns: u64) {
        self.units_total += 1;
        if self.measuring {
            self.units += 1;
            self.latency.saturating_record(latency_ns);
        }
    }

    /// A handshake is done, which is a unit.
    pub(crate) fn handshake(&mut self, latency_ns: u64, resumed: bool) {
        self.unit(latency_ns);
        if self.measuring && resumed {
            self.resumed += 1;
        }
    }

    /// Payload was moved.
    pub(crate) fn bytes(&mut self, count: usize) {
        self.bytes_total += count as u64;
        if self.measuring {
            self.bytes += count as u64;
        }
    }

    pub(crate) fn established(&mut self, parameters: Negotiated) {
        self.established += 1;
        *self.negotiated.entry(parameters).or_insert(0) += 1;
    }

    pub(crate) fn failure(&mut self, failure: &Failure) {
        let entry = self.failures.entry(failure.kind()).or_insert_with(|| FailureCount {
            count: 0,
            first: failure.to_string(),
        });
        entry.count += 1;
    }

    pub(crate) fn failures_total(&self) -> u64 {
        self.failures.values().map(|failure| failure.count).sum()
    }

    /// How many failed of each kind, with what the first one said.
    pub(crate) fn failure_kinds(&self) -> String {
        let kind = |failure: &FailureCount| format!("{} × {}", failure.count, failure.first);
        self.failures.values().map(kind).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn ending(&mut self, ending: Ending) {
        match ending {
            Ending::Orderly => self.orderly += 1,
            Ending::Truncated => self.truncated += 1,
            Ending::Reset => self.reset += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_count_only_while_measuring_and_failures_always() {
        let mut tally = Tally::new();
        tally.unit(5);
        tally.bytes(100);
        tally.failure(&Failure::Reset);
        tally.set_measuring(true);
        tally.unit(1_000);
        tally.unit(3_000);
        tally.bytes(7);
        tally.set_measuring(false);
        tally.unit(9);
        tally.failure(&Failure::Reset);
        assert_eq!((tally.units, tally.bytes, tally.latency.len()), (2, 7, 2));
        assert_eq!((tally.units_total, tally.bytes_total), (4, 107));
        tally.handshake(9, true);
        tally.set_measuring(true);
        tally.handshake(1_000, false);
        tally.handshake(1_000, true);
        assert_eq!((tally.units, tally.resumed), (4, 1));
        assert!(tally.latency.max() >= 3_000 && tally.latency.min() <= 1_000);
        let expected = FailureCount {
            count: 2,
            first: "reset by the server".to_owned(),
        };
        assert_eq!(tally.failures.get("reset"), Some(&expected));
        assert_eq!(tally.failures_total(), 2);
    }
}
