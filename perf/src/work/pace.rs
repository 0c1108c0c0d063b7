//! The open loop: a unit begins when it is due, not when another is done. A server that is slow therefore shows in the
//! latencies of the units that had to wait for it, too.

use std::collections::{BTreeSet, VecDeque};
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
    /// Slots that may take a unit, each once, with when they came. The one that waited longest is first.
    waiting: VecDeque<(usize, Instant)>,
    /// A unit is a message over a standing connection, not a connection.
    messages: bool,
    /// When the last turn ended: what came meanwhile has been free since then.
    turned: Instant,
    /// Units that began.
    started: u64,
    /// Units that began late because nothing could take them: the server was slow.
    held: u64,
    /// Nanoseconds by which units began late though something could take them: this client was slow.
    late: Histogram<u64>,
}

/// What an open loop did.
pub(super) struct Paced {
    /// Units whose time came.
    due: u64,
    /// As those of [`Pace`].
    started: u64,
    held: u64,
    late: Histogram<u64>,
}

impl Pace {
    /// Connections are opened at this rate, at most `slots` at a time.
    pub(super) fn of_connections(first: Instant, rate: f64, slots: usize) -> Self {
        Self {
            waiting: (0..slots).map(|slot| (slot, first)).collect(),
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
            turned: first,
            started: 0,
            held: 0,
            late: histogram(),
        }
    }

    /// The first unit is due at `first`. To be called before any has begun.
    pub(super) fn begin_at(&mut self, first: Instant) {
        self.first = first;
    }

    /// Begins what is due, then one turn of the engine, which ends when the next unit is due.
    pub(super) fn turn(
        &mut self,
        engine: &mut Engine<'_>,
        timeout: Duration,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        let freed = self.take(engine, self.turned);
        if self.messages {
            for slot in freed {
                engine.open(slot, Instant::now(), work, tally);
            }
        }
        self.begin_due(Instant::now(), engine, work, tally);
        engine.turn(timeout.min(self.idle()), work, tally)?;
        self.turned = Instant::now();
        Ok(())
    }

    /// Takes the slots that can take a unit since `since`. Returns those whose connection has ended: a message needs a new one.
    pub(super) fn take(&mut self, engine: &mut Engine<'_>, since: Instant) -> Vec<usize> {
        let freed = engine.take_freed();
        self.came(&engine.take_rested(), &freed, since);
        freed
    }

    fn came(&mut self, rested: &[usize], freed: &[usize], since: Instant) {
        self.waiting.extend(rested.iter().map(|&slot| (slot, since)));
        if !self.messages {
            self.waiting.extend(freed.iter().map(|&slot| (slot, since)));
        } else if !freed.is_empty() {
            // A connection may end at rest. The next one in its slot comes to rest by itself.
            let freed: BTreeSet<usize> = freed.iter().copied().collect();
            self.waiting.retain(|(slot, _)| !freed.contains(slot));
        }
    }

    /// Begins the units that are due at `until` or before, as far as something can take them.
    pub(super) fn begin_due(
        &mut self,
        until: Instant,
        engine: &mut Engine<'_>,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) {
        while self.next_due() <= until
            && let Some((slot, since)) = self.waiting.pop_front()
        {
            let (due, now) = (self.next_due(), Instant::now());
            let begins = if self.messages {
                engine.resume(slot, due, work, tally)
            } else {
                engine.open(slot, due, work, tally);
                true
            };
            if begins {
                self.begun(due, since, now);
            }
        }
    }

    /// A unit that was due at `due` began at `now`, in a slot that could take it since `since`.
    fn begun(&mut self, due: Instant, since: Instant, now: Instant) {
        self.started += 1;
        self.held += u64::from(since > due);
        self.late.saturating_record(nanoseconds(due.max(since), now));
    }

    /// How long nothing begins unless another slot comes.
    pub(super) fn idle(&self) -> Duration {
        if self.waiting.is_empty() {
            Duration::MAX
        } else {
            self.next_due().saturating_duration_since(Instant::now())
        }
    }

    /// What should have begun by `now`, and what did.
    pub(super) fn so_far(&self, now: Instant) -> Paced {
        let elapsed = now.saturating_duration_since(self.first).as_secs_f64();
        Paced {
            // Rounding must not make one due after it began.
            due: ((elapsed * self.rate) as u64 + 1).max(self.started),
            started: self.started,
            held: self.held,
            late: self.late.clone(),
        }
    }

    /// Nanoseconds by which units began late though something could take them.
    pub(super) fn late(&self) -> &Histogram<u64> {
        &self.late
    }

    /// When the units were due that should have begun before `end` and did not.
    pub(super) fn not_begun(&self, end: Instant) -> impl Iterator<Item = Instant> {
        (self.started..)
            .map(|number| self.due(number))
            .take_while(move |&due| due < end)
    }

    pub(super) fn next_due(&self) -> Instant {
        self.due(self.started)
    }

    fn due(&self, number: u64) -> Instant {
        self.first + Duration::from_secs_f64(number as f64 / self.rate)
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
        pace.started = 3;
        assert_eq!(pace.next_due() - first, Duration::from_millis(15));
        let counts = pace.so_far(first + Duration::from_millis(48)).open_loop(200.0);
        assert_eq!((counts.due, counts.started, counts.not_started), (10, 3, 7));
    }

    #[test]
    fn a_late_begin_is_the_servers_doing_until_a_slot_is_free_and_this_clients_from_then() {
        let at = |ms| Duration::from_millis(ms);
        let first = Instant::now();
        let mut pace = Pace::of_messages(first, 1.0);
        // Due at 100, in a slot that was free before.
        pace.begun(first + at(100), first + at(50), first + at(108));
        assert_eq!((pace.started, pace.held), (1, 0));
        assert!(pace.late.max().abs_diff(8_000_000) < 80_000, "{}", pace.late.max());
        // Free 60 ms after it was due; that this was not known beforehand changes nothing.
        pace.begun(first + at(100), first + at(160), first + at(161));
        assert_eq!((pace.started, pace.held), (2, 1));
        assert!(pace.late.min().abs_diff(1_000_000) < 10_000, "{}", pace.late.min());
    }

    #[test]
    fn a_connection_that_ends_at_rest_is_not_in_the_queue_twice() {
        let (first, later) = (Instant::now(), Instant::now() + Duration::from_millis(1));
        let mut pace = Pace::of_messages(first, 1.0);
        pace.came(&[3, 4], &[], first);
        pace.came(&[], &[3], first);
        assert_eq!(pace.waiting, [(4, first)]);
        pace.came(&[3], &[], later);
        assert_eq!(pace.waiting, [(4, first), (3, later)]);
        // It came to rest and ended in one turn.
        pace.came(&[5], &[5], later);
        assert_eq!(pace.waiting.len(), 2);
        // A connection that is a unit takes the next one when it is over.
        let mut pace = Pace::of_connections(first, 1.0, 1);
        assert_eq!(pace.waiting.pop_front(), Some((0, first)));
        pace.came(&[], &[0], later);
        assert_eq!(pace.waiting, [(0, later)]);
    }

    #[test]
    fn what_did_not_begin_before_the_end_is_told_with_when_it_was_due() {
        let first = Instant::now();
        let mut pace = Pace::of_messages(first + Duration::from_secs(1), 100.0);
        pace.begin_at(first);
        pace.started = 2;
        let due: Vec<Duration> = pace
            .not_begun(first + Duration::from_millis(35))
            .map(|due| due - first)
            .collect();
        assert_eq!(due, [Duration::from_millis(20), Duration::from_millis(30)]);
        assert_eq!(pace.idle(), Duration::MAX);
    }
}
