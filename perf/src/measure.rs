//! Counting: what connections did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::time::ClockId;

use crate::args::Offer;
use crate::connection::{Ending, Failure, Negotiated};
use crate::error::PerfError;

/// Latencies are kept from 1 ns to this, with three significant digits; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(300);

/// What the connections of one run did. Units and bytes count inside the measuring window (and apart from
/// that in total); connections, failures and endings always.
pub(crate) struct Tally {
    measuring: bool,
    /// In an open loop a unit may begin later than it was due.
    paced: bool,
    pub(crate) units: u64,
    /// Units that were handshakes resumed by what a ticket or a session id offered.
    pub(crate) resumed_by_ticket: u64,
    pub(crate) resumed_by_session_id: u64,
    pub(crate) bytes: u64,
    /// Units of the whole run, `units_total >= units`.
    pub(crate) units_total: u64,
    /// Bytes of the whole run, `bytes_total >= bytes`.
    pub(crate) bytes_total: u64,
    /// Nanoseconds per unit, from when it was due.
    pub(crate) latency: Histogram<u64>,
    /// Nanoseconds per unit, from when it began; empty in a closed loop, where that is when it was due.
    pub(crate) service: Histogram<u64>,
    /// What was measured since the last [`Tally::interval`], and is not in the sums above it.
    recent: Interval,
    pub(crate) opened: u64,
    pub(crate) established: u64,
    pub(crate) failures: BTreeMap<&'static str, FailureCount>,
    pub(crate) orderly: u64,
    pub(crate) truncated: u64,
    pub(crate) reset: u64,
    /// Connections that the server closed between two units, as it may.
    pub(crate) closed_at_rest: u64,
    pub(crate) negotiated: BTreeMap<Negotiated, u64>,
    /// HTTP responses by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Of the intervals so far.
    failures_before: u64,
}

/// When a unit was due, when it began and when it was done, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) due: Instant,
    pub(crate) started: Instant,
    pub(crate) done: Instant,
}

/// From one instant to a later one.
pub(crate) fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// What was measured in a piece of the window.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    pub(crate) units: u64,
    pub(crate) bytes: u64,
    pub(crate) failures: u64,
    /// Nanoseconds per unit, from when it was due.
    pub(crate) latency: Histogram<u64>,
}

impl Interval {
    pub(crate) fn new() -> Self {
        Self {
            units: 0,
            bytes: 0,
            failures: 0,
            latency: histogram(),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.bytes += other.bytes;
        self.failures += other.failures;
        add(&mut self.latency, &other.latency);
    }
}

/// An empty histogram of nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    let longest = LATENCY_MAX.as_nanos() as u64;
    Histogram::new_with_bounds(1, longest, 3).expect("bounds and digits are constants in range")
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.add(part).expect("both have the same bounds");
}

/// How often one kind of failure happened, and what the first one said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureCount {
    pub(crate) count: u64,
    pub(crate) first: String,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            measuring: false,
            paced: false,
            units: 0,
            resumed_by_ticket: 0,
            resumed_by_session_id: 0,
            bytes: 0,
            units_total: 0,
            bytes_total: 0,
            latency: histogram(),
            service: histogram(),
            recent: Interval::new(),
            opened: 0,
            established: 0,
            failures: BTreeMap::new(),
            orderly: 0,
            truncated: 0,
            reset: 0,
            closed_at_rest: 0,
            negotiated: BTreeMap::new(),
            statuses: BTreeMap::new(),
            failures_before: 0,
        }
    }

    /// Counts of an open loop.
    pub(crate) fn paced() -> Self {
        Self {
            paced: true,
            ..Self::new()
        }
    }

    pub(crate) fn set_measuring(&mut self, measuring: bool) {
        self.measuring = measuring;
        if measuring {
            self.failures_before = self.failures_total();
        } else {
            self.interval();
        }
    }

    /// One unit of work is done.
    pub(crate) fn unit(&mut self, times: Times) {
        self.units_total += 1;
        if self.measuring {
            self.recent.units += 1;
            self.recent
                .latency
                .saturating_record(nanoseconds(times.due, times.done));
            if self.paced {
                self.service.saturating_record(nanoseconds(times.started, times.done));
            }
        }
    }

    /// A handshake is done, which is a unit.
    pub(crate) fn handshake(&mut self, times: Times, resumed: Option<Offer>) {
        self.unit(times);
        if self.measuring
            && let Some(offer) = resumed
        {
            match offer {
                // A handshake that offers nothing is never resumed.
                Offer::Full => {}
                Offer::Ticket => self.resumed_by_ticket += 1,
                Offer::SessionId => self.resumed_by_session_id += 1,
            }
        }
    }

    /// What was measured since this was last called.
    pub(crate) fn interval(&mut self) -> Interval {
        self.units += self.recent.units;
        self.bytes += self.recent.bytes;
        add(&mut self.latency, &self.recent.latency);
        let failures = self.failures_total();
        self.recent.failures = failures - self.failures_before;
        self.failures_before = failures;
        std::mem::replace(&mut self.recent, Interval::new())
    }

    /// Units and bytes measured so far.
    pub(crate) fn measured(&self) -> (u64, u64) {
        (self.units + self.recent.units, self.bytes + self.recent.bytes)
    }

    /// Adds what another thread did.
    pub(crate) fn merge(&mut self, mut other: Self) {
        other.interval();
        self.units += other.units;
        self.resumed_by_ticket += other.resumed_by_ticket;
        self.resumed_by_session_id += other.resumed_by_session_id;
        self.bytes += other.bytes;
        self.units_total += other.units_total;
        self.bytes_total += other.bytes_total;
        add(&mut self.latency, &other.latency);
        add(&mut self.service, &other.service);
        self.opened += other.opened;
        self.established += other.established;
        for (kind, failure) in other.failures {
            let entry = self.failures.entry(kind).or_insert_with(|| FailureCount {
                count: 0,
                first: failure.first,
            });
            entry.count += failure.count;
        }
        self.orderly += other.orderly;
        self.truncated += other.truncated;
        self.reset += other.reset;
        self.closed_at_rest += other.closed_at_rest;
        for (parameters, count) in other.negotiated {
            *self.negotiated.entry(parameters).or_insert(0) += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_insert(0) += count;
        }
    }

    /// An HTTP response came.
    pub(crate) fn status(&mut self, status: u16) {
        if self.measuring {
            *self.statuses.entry(status).or_insert(0) += 1;
        }
    }

    /// Payload was moved.
    pub(crate) fn bytes(&mut self, count: usize) {
        self.bytes_total += count as u64;
        if self.measuring {
            self.recent.bytes += count as u64;
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

/// CPU time of all threads of this process.
pub(crate) fn own_cpu_time() -> Result<Duration, PerfError> {
    let used = ClockId::CLOCK_PROCESS_CPUTIME_ID.now();
    Ok(used
        .map_err(|errno| PerfError::io("read this process's CPU clock", errno))?
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(nanoseconds: u64) -> Times {
        let due = Instant::now();
        let done = due + Duration::from_nanos(nanoseconds);
        Times {
            due,
            started: due,
            done,
        }
    }

    #[test]
    fn units_count_only_while_measuring_and_failures_always() {
        let mut tally = Tally::new();
        tally.unit(took(5));
        tally.bytes(100);
        tally.failure(&Failure::Reset);
        tally.set_measuring(true);
        tally.unit(took(1_000));
        tally.unit(took(3_000));
        tally.bytes(7);
        assert_eq!(tally.measured(), (2, 7));
        tally.set_measuring(false);
        tally.unit(took(9));
        tally.failure(&Failure::Reset);
        assert_eq!((tally.units, tally.bytes, tally.latency.len()), (2, 7, 2));
        assert_eq!((tally.units_total, tally.bytes_total), (4, 107));
        tally.handshake(took(9), Some(Offer::Ticket));
        tally.set_measuring(true);
        tally.handshake(took(1_000), None);
        tally.handshake(took(1_000), Some(Offer::Ticket));
        tally.handshake(took(1_000), Some(Offer::SessionId));
        tally.set_measuring(false);
        assert_eq!(
            (tally.units, tally.resumed_by_ticket, tally.resumed_by_session_id),
            (5, 1, 1)
        );
        assert!(tally.latency.max() >= 3_000 && tally.latency.min() <= 1_000);
        let expected = FailureCount {
            count: 2,
            first: "reset by the server".to_owned(),
        };
        assert_eq!(tally.failures.get("reset"), Some(&expected));
        assert_eq!(tally.failures_total(), 2);
    }

    #[test]
    fn intervals_add_up_to_the_window() {
        let (mut tally, mut sum) = (Tally::new(), Interval::new());
        tally.failure(&Failure::Reset);
        tally.set_measuring(true);
        for piece in 1..=3_u64 {
            for unit in 0..piece {
                tally.unit(took(1_000 * (unit + 1)));
            }
            tally.bytes(10);
            tally.failure(&Failure::Reset);
            let interval = tally.interval();
            assert_eq!((interval.units, interval.bytes, interval.failures), (piece, 10, 1));
            sum.add(&interval);
        }
        tally.unit(took(7));
        tally.set_measuring(false);
        assert_eq!((sum.units, tally.units), (6, 7));
        assert_eq!((sum.latency.len(), tally.latency.len()), (6, 7));
        let mut both = Tally::new();
        both.merge(tally);
        assert_eq!((both.units, both.bytes, both.failures_total()), (7, 30, 4));
    }

    #[test]
    fn a_late_begin_is_in_the_latency_and_not_in_the_time_of_service() {
        let mut tally = Tally::paced();
        tally.set_measuring(true);
        let due = Instant::now();
        let started = due + Duration::from_millis(30);
        let done = started + Duration::from_millis(10);
        tally.unit(Times { due, started, done });
        tally.set_measuring(false);
        let near = |found: u64, ms: u64| found.abs_diff(ms * 1_000_000) < ms * 10_000;
        assert!(near(tally.latency.max(), 40) && near(tally.service.max(), 10));
    }
}
