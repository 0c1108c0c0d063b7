//! A closed loop with rest: after a unit its connection, or the next one in its place, waits a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Work;
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::Tally;

/// Slots that rest.
pub(super) struct Thinking {
    time: Duration,
    /// A unit is a message over a standing connection, not a connection.
    messages: bool,
    /// When each goes on, the first one first.
    resting: BTreeSet<(Instant, usize)>,
    /// The same by slot: each is there once, also one whose connection has been replaced while it rested.
    wakes: BTreeMap<usize, Instant>,
}

impl Thinking {
    pub(super) fn new(time: Duration, messages: bool) -> Self {
        Self {
            time,
            messages,
            resting: BTreeSet::new(),
            wakes: BTreeMap::new(),
        }
    }

    /// The slot goes on then, and not before if it should have.
    fn rest(&mut self, slot: usize, wake: Instant) {
        if let Some(earlier) = self.wakes.insert(slot, wake) {
            self.resting.remove(&(earlier, slot));
        }
        self.resting.insert((wake, slot));
    }

    /// A slot whose time has come.
    fn next(&mut self, now: Instant) -> Option<usize> {
        let &(wake, slot) = self.resting.first()?;
        if wake > now {
            return None;
        }
        self.resting.pop_first();
        self.wakes.remove(&slot);
        Some(slot)
    }

    /// Lets those go on whose time has come, then one turn of the engine.
    pub(super) fn turn(
        &mut self,
        engine: &mut Engine<'_>,
        timeout: Duration,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        let now = Instant::now();
        let wake = now + self.time;
        for slot in engine.take_rested() {
            self.rest(slot, wake);
        }
        for slot in engine.take_freed() {
            if self.messages {
                engine.open(slot, now, work, tally);
            } else {
                self.rest(slot, wake);
            }
        }
        while let Some(slot) = self.next(now) {
            if self.messages {
                // One that has failed meanwhile rests no more.
                engine.resume(slot, now, work, tally);
            } else {
                engine.open(slot, now, work, tally);
            }
        }
        let timeout = self
            .resting
            .first()
            .map_or(timeout, |&(at, _)| timeout.min(at.saturating_duration_since(now)));
        engine.turn(timeout, work, tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_rests_anew_goes_on_once_and_not_before() {
        let mut thinking = Thinking::new(Duration::from_secs(1), true);
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        thinking.rest(7, at(1));
        thinking.rest(3, at(2));
        // The server has closed its connection, and another one rests in its place.
        thinking.rest(7, at(3));
        assert_eq!(thinking.resting.len(), 2);
        assert_eq!((thinking.next(at(2)), thinking.next(at(2))), (Some(3), None));
        assert_eq!((thinking.next(at(3)), thinking.next(at(9))), (Some(7), None));
    }
}
