//! The open loop: a unit begins when it is due, not when another is done. A server that is slow therefore shows in the
//! latencies of the units that had to wait for it, too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Work;
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::Tally;
use crate::report::OpenLoop;

/// Begins units at a steady rate. One that is due when nothing can take it waits, and begins late.
pub(super) struct Pace {
    /// When the first unit is due; number `n`, from 0, is due `n / rate` seconds later.
    first: Instant,
    rate: u32,
    /// Units that began.
    started: u64,
    /// Slots that may take a unit; the one that waited longest is first.
    waiting: VecDeque<usize>,
    /// A unit is a message over a standing connection, not a connection.
    messages: bool,
}

impl Pace {
    /// Connections are opened at this rate, at most `slots` at a time.
    pub(super) fn of_connections(first: Instant, rate: u32, slots: usize) -> Self {
        Self {
            first,
            rate,
            started: 0,
            waiting: (0..slots).collect(),
            messages: false,
        }
    }

    /// Messages are sent at this rate over connections at rest.
    pub(super) fn of_messages(first: Instant, rate: u32) -> Self {
        Self {
            first,
            rate,
            started: 0,
            waiting: VecDeque::new(),
            messages: true,
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
            self.started += u64::from(begun);
        }
        let timeout = if self.waiting.is_empty() {
            timeout
        } else {
            timeout.min(self.next_due().saturating_duration_since(now))
        };
        engine.turn(timeout, work, tally)
    }

    /// What should have begun by `now`, and what did.
    pub(super) fn counts(&self, now: Instant) -> OpenLoop {
        let elapsed = now.saturating_duration_since(self.first).as_secs_f64();
        // Rounding must not make one due after it began.
        let due = ((elapsed * f64::from(self.rate)) as u64 + 1).max(self.started);
        OpenLoop {
            rate_per_s: self.rate,
            due,
            started: self.started,
            not_started: due - self.started,
        }
    }

    fn next_due(&self) -> Instant {
        self.first + Duration::from_secs_f64(self.started as f64 / f64::from(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_due_at_even_distances_and_those_that_did_not_begin_are_counted() {
        let first = Instant::now();
        let mut pace = Pace::of_connections(first, 200, 1);
        assert_eq!(pace.next_due(), first);
        pace.started = 3;
        assert_eq!(pace.next_due() - first, Duration::from_millis(15));
        let counts = pace.counts(first + Duration::from_millis(48));
        assert_eq!((counts.due, counts.started, counts.not_started), (10, 3, 7));
    }
}
