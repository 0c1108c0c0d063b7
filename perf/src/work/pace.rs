//! The open loop: a unit begins when it is due, not when another is done. A server that is slow therefore shows in the
//! latencies of the units that had to wait for it, too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::Work;
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::{Tally, histogram, nanoseconds};
use crate::report::OpenLoop;

/// Begins units at a steady rate. One that is due when nothing can take it waits, and begins late.
pub(super) struct Pace {
    /// When the first unit is due; number `n`, from 0, is due `n / rate` seconds later.
    first: Instant,
    /// Units per second, 0 < rate
    rate: f64,
    /// Slots that may take a unit; the one that waited longest is first.
    waiting: VecDeque<usize>,
    /// A unit is a message over a standing connection, not a connection.
    messages: bool,
    /// True exactly when the next unit was due while nothing could take it.
    held: bool,
    counts: Paced,
}

/// What an open loop did.
#[derive(Clone)]
pub(super) struct Paced {
    /// Units whose time came.
    due: u64,
    /// Units that began.
    started: u64,
    /// Units that began late because nothing could take them: the server was slow.
    held: u64,
    /// Nanoseconds by which the others began late: this client was slow.
    late: Histogram<u64>,
}

impl Pace {
    /// Connections are opened at this rate, at most `slots` at a time.
    pub(super) fn of_connections(first: Instant, rate: f64, slots: usize) -> Self {
        Self {
            waiting: (0..slots).collect(),
            messages: false,
            ..Self::of_messages(first, rate)
        }
    }

    /// Messages are sent at this rate over connections at rest.
    pub(super) fn of_messages(first: Instant, rate: f64) -> Self {
        Self {
            first,
            rate,
            waiting: VecDeque::new(),
            messages: true,
            held: false,
            counts: Paced {
                due: 0,
                started: 0,
                held: 0,
                late: histogram(),
            },
        }
    }

    /// Begins what is due, then one turn of the engine, which ends when the next unit is due.
    pub(super) fn turn(
        &mut self,
        engine: &mut Engine<'_>,
        timeout: Duration,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        self.waiting.extend(engine.take_rested());
        for slot in engine.take_freed() {
            if self.messages {
                engine.open(slot, Instant::now(), work, tally);
            } else {
                self.waiting.push_back(slot);
            }
        }
        let now = Instant::now();
        while self.next_due() <= now
            && let Some(slot) = self.waiting.pop_front()
        {
            let due = self.next_due();
            let begun = if self.messages {
                engine.resume(slot, due, work, tally)
            } else {
                engine.open(slot, due, work, tally);
                true
            };
            if begun {
                self.begun(due);
            }
        }
        let next = self.next_due();
        self.held |= next <= now;
        let timeout = if self.waiting.is_empty() {
            timeout
        } else {
            timeout.min(next.saturating_duration_since(now))
        };
        engine.turn(timeout, work, tally)
    }

    fn begun(&mut self, due: Instant) {
        self.counts.started += 1;
        if std::mem::take(&mut self.held) {
            self.counts.held += 1;
        } else {
            self.counts.late.saturating_record(nanoseconds(due, Instant::now()));
        }
    }

    /// What should have begun by `now`, and what did.
    pub(super) fn so_far(&self, now: Instant) -> Paced {
        let elapsed = now.saturating_duration_since(self.first).as_secs_f64();
        // Rounding must not make one due after it began.
        Paced {
            due: ((elapsed * self.rate) as u64 + 1).max(self.counts.started),
            ..self.counts.clone()
        }
    }

    fn next_due(&self) -> Instant {
        self.first + Duration::from_secs_f64(self.counts.started as f64 / self.rate)
    }
}

impl Paced {
    pub(super) fn add(&mut self, other: &Self) {
        self.due += other.due;
        self.started += other.started;
        self.held += other.held;
        self.late.add(&other.late).expect("both have the same bounds");
    }

    /// For the report of a run that was asked for `rate` units per second.
    pub(super) fn open_loop(&self, rate: f64) -> OpenLoop {
        let late_us = |quantile| self.late.value_at_quantile(quantile) as f64 / 1e3;
        OpenLoop {
            rate_per_s: rate.round() as u32,
            due: self.due,
            started: self.started,
            not_started: self.due - self.started,
            held: self.held,
            late_p50_us: late_us(0.5),
            late_p99_us: late_us(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_due_at_even_distances_and_those_that_did_not_begin_are_counted() {
        let first = Instant::now();
        let mut pace = Pace::of_connections(first, 200.0, 1);
        assert_eq!(pace.next_due(), first);
        pace.counts.started = 3;
        assert_eq!(pace.next_due() - first, Duration::from_millis(15));
        let counts = pace.so_far(first + Duration::from_millis(48)).open_loop(200.0);
        assert_eq!((counts.due, counts.started, counts.not_started), (10, 3, 7));
    }
}
