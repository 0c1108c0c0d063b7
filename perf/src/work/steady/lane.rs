//! What one thread does of a run.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::super::pace::{Pace, Paced};
use super::super::think::Thinking;
use super::super::{Work, remaining};
use super::{Done, INTERVAL, News, Schedule, Shared, Steady};
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;

/// How long the last connections may take to close after a run.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long it may take until all connections are open, on top of the plan's timeout.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// How often threads look whether they are still needed.
const LOOK: Duration = Duration::from_millis(10);

/// One thread's share of a run.
pub(super) struct Lane<'a> {
    pub(super) steady: &'a Steady<'a>,
    pub(super) plan: ClientPlan,
    pub(super) number: usize,
    /// When its first unit is due, after that of the run.
    pub(super) offset: Duration,
    pub(super) shared: &'a Shared,
    pub(super) tell: &'a Sender<News>,
}

/// Begins units: by a clock, or when something else is done.
enum Begin {
    Paced(Pace),
    AtOnce,
    Thinking(Thinking),
}

impl Lane<'_> {
    /// From the first connection to the last.
    pub(super) fn run(&self, started: &Receiver<Schedule>) -> Result<Done, PerfError> {
        let (plan, steady) = (&self.plan, self.steady);
        plan.enter()?;
        let mut work = (steady.work)(self.number);
        let work = work.as_mut();
        (steady.prepare)(plan, work)?;
        let mut tally = if plan.rate.is_some() {
            Tally::paced()
        } else {
            Tally::new()
        };
        let mut engine = Engine::new(plan)?;
        if steady.standing {
            self.open_all(&mut engine, work, &mut tally)?;
        }
        // Nobody listens when another thread has failed, and then nobody starts this one.
        let _ = self.tell.send(News::Ready);
        let Ok(schedule) = started.recv() else {
            engine.abort();
            return Err(PerfError::GaveUp("another thread failed".to_owned()));
        };
        let mut next = self.begin(schedule.first, &mut engine, work, &mut tally);
        while let (false, Some(left)) = (self.shared.stop.load(Ordering::Relaxed), remaining(schedule.warm)) {
            next.turn(&mut engine, left, work, &mut tally)?;
        }
        self.measure(schedule, &mut engine, &mut next, work, &mut tally)?;
        let ended = Instant::now();
        let paced = next.paced(ended);
        let unanswered = engine.unanswered(ended);
        self.go_on(&mut engine, &mut next, work, &mut tally)?;
        if steady.close_in_order {
            let drained_at = Instant::now() + DRAIN_MAX.min(plan.timeout);
            engine.drain(work, &mut tally);
            while let (true, Some(left)) = (engine.live() > 0, remaining(drained_at)) {
                engine.turn(left, work, &mut tally)?;
            }
            engine.give_up(&mut tally);
        }
        engine.abort();
        Ok(Done {
            tally,
            paced,
            unanswered,
        })
    }

    /// Opens every connection and waits until all are established.
    fn open_all(&self, engine: &mut Engine<'_>, work: &mut dyn Work, tally: &mut Tally) -> Result<(), PerfError> {
        let plan = &self.plan;
        let opened_at = Instant::now();
        for slot in 0..plan.connections {
            engine.open(slot, Instant::now(), work, tally);
        }
        while engine.established() < plan.connections {
            if opened_at.elapsed() > plan.timeout + OPENING_MAX || self.shared.stop.load(Ordering::Relaxed) {
                let (established, connections) = (engine.established(), plan.connections);
                return Err(PerfError::GaveUp(format!(
                    "only {established} of {connections} connections opened"
                )));
            }
            engine.turn(Duration::MAX, work, tally)?;
            for slot in engine.take_freed() {
                engine.open(slot, Instant::now(), work, tally);
            }
        }
        Ok(())
    }

    fn begin(&self, first: Instant, engine: &mut Engine<'_>, work: &mut dyn Work, tally: &mut Tally) -> Begin {
        let plan = &self.plan;
        let first = first + self.offset;
        match (plan.rate, self.steady.standing) {
            (Some(rate), true) => return Begin::Paced(Pace::of_messages(first, rate)),
            (Some(rate), false) => return Begin::Paced(Pace::of_connections(first, rate, plan.connections)),
            (None, true) => {}
            (None, false) => {
                for slot in 0..plan.connections {
                    engine.open(slot, Instant::now(), work, tally);
                }
            }
        }
        match plan.think_time {
            Some(time) => Begin::Thinking(Thinking::new(time, self.steady.standing)),
            None => Begin::AtOnce,
        }
    }

    fn measure(
        &self,
        schedule: Schedule,
        engine: &mut Engine<'_>,
        next: &mut Begin,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        let (shared, steady) = (self.shared, self.steady);
        tally.set_measuring(true);
        let mut interval = 0;
        let mut interval_end = schedule.warm + INTERVAL;
        let mut told = (0, 0);
        while let (false, Some(left)) = (shared.stop.load(Ordering::Relaxed), remaining(schedule.end)) {
            match remaining(interval_end) {
                Some(of_interval) => next.turn(engine, left.min(of_interval), work, tally)?,
                None => {
                    self.tell_interval(interval, tally, false);
                    interval += 1;
                    interval_end += INTERVAL;
                }
            }
            let (units, bytes) = tally.measured();
            let units_all = shared.units.fetch_add(units - told.0, Ordering::Relaxed) + units - told.0;
            let bytes_all = shared.bytes.fetch_add(bytes - told.1, Ordering::Relaxed) + bytes - told.1;
            told = (units, bytes);
            if steady.units_max.is_some_and(|most| units_all >= most)
                || steady.bytes_max.is_some_and(|most| bytes_all >= most)
            {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        // Nobody listens when another thread has failed.
        let _ = self.tell.send(News::Measured);
        self.tell_interval(interval, tally, true);
        tally.set_measuring(false);
        Ok(())
    }

    /// Keeps the connections until the server has been looked at. Only to count system calls the work goes on.
    fn go_on(
        &self,
        engine: &mut Engine<'_>,
        next: &mut Begin,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        let shared = self.shared;
        let mut told = (tally.units_total, tally.bytes_total);
        while !shared.close.load(Ordering::Relaxed) {
            if self.plan.cost.syscalls {
                next.turn(engine, LOOK, work, tally)?;
            } else {
                engine.turn(LOOK, work, tally)?;
            }
            let (units, bytes) = (tally.units_total, tally.bytes_total);
            shared.units_after.fetch_add(units - told.0, Ordering::Relaxed);
            shared.bytes_after.fetch_add(bytes - told.1, Ordering::Relaxed);
            told = (units, bytes);
        }
        Ok(())
    }

    fn tell_interval(&self, number: u64, tally: &mut Tally, last: bool) {
        let _ = self.tell.send(News::Interval(number, Box::new(tally.interval()), last));
    }
}

impl Begin {
    /// One turn of the engine, with what is to begin before it.
    fn turn(
        &mut self,
        engine: &mut Engine<'_>,
        timeout: Duration,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        match self {
            Self::Paced(pace) => pace.turn(engine, timeout, work, tally),
            Self::Thinking(thinking) => thinking.turn(engine, timeout, work, tally),
            Self::AtOnce => {
                engine.turn(timeout, work, tally)?;
                for slot in engine.take_freed() {
                    engine.open(slot, Instant::now(), work, tally);
                }
                Ok(())
            }
        }
    }

    fn paced(&self, now: Instant) -> Option<Paced> {
        match self {
            Self::Paced(pace) => Some(pace.so_far(now)),
            Self::AtOnce | Self::Thinking(_) => None,
        }
    }
}
