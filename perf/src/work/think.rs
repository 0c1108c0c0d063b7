//! A closed loop with rest: after a unit its connection, or the next one in its place, waits a while.

use std::collections::VecDeque;
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
    /// When each goes on. All rest equally long, so they go on in the order in which they came.
    resting: VecDeque<(Instant, usize)>,
}

impl Thinking {
    pub(super) fn new(time: Duration, messages: bool) -> Self {
        Self {
            time,
            messages,
            resting: VecDeque::new(),
        }
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
        self.resting
            .extend(engine.take_rested().into_iter().map(|slot| (wake, slot)));
        for slot in engine.take_freed() {
            if self.messages {
                engine.open(slot, now, work, tally);
            } else {
                self.resting.push_back((wake, slot));
            }
        }
        while let Some(&(at, slot)) = self.resting.front()
            && at <= now
        {
            self.resting.pop_front();
            if self.messages {
                // One that has failed meanwhile rests no more.
                engine.resume(slot, now, work, tally);
            } else {
                engine.open(slot, now, work, tally);
            }
        }
        let timeout = self
            .resting
            .front()
            .map_or(timeout, |&(at, _)| timeout.min(at.saturating_duration_since(now)));
        engine.turn(timeout, work, tally)
    }
}
