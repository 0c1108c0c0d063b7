//! Runs of a steady load: warm-up, measuring window and end, with a thread for each share of the connections. The calling
//! thread keeps the time and reads the server's clocks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::pace::{Pace, Paced};
use super::probe::Probe;
use super::think::Thinking;
use super::{Work, remaining};
use crate::cost::{Meter, Watched, Window};
use crate::course::Course;
use crate::engine::Engine;
use crate::error::PerfError;
use crate::limits;
use crate::measure::{Interval, Tally};
use crate::plan::ClientPlan;
use crate::procfs::Memory;
use crate::report::{Report, Unit};
use crate::syscalls::{self, Counted};

/// How long the last connections may take to close after a run.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long it may take until all connections are open, on top of the plan's timeout.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// Length of the pieces of the window in the report and on the progress line.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often threads look whether they are still needed.
const LOOK: Duration = Duration::from_millis(10);

/// How a steady run begins and ends.
pub(super) struct Steady<'a> {
    pub(super) name: &'a str,
    pub(super) unit: Unit,
    /// Units go over connections that stay open, and the warm-up begins when all are established. Otherwise a connection
    /// is a unit.
    pub(super) standing: bool,
    /// Stop after this many measured units.
    pub(super) units_max: Option<u64>,
    /// Stop after this many measured bytes.
    pub(super) bytes_max: Option<u64>,
    /// Connections are closed in order at the end, not dropped.
    pub(super) close_in_order: bool,
    /// The work of a thread, by the thread's number.
    pub(super) work: &'a (dyn Fn(usize) -> Box<dyn Work> + Sync),
    /// What a thread does before its connections count, as obtaining sessions.
    pub(super) prepare: &'a (dyn Fn(&ClientPlan, &mut dyn Work) -> Result<(), PerfError> + Sync),
}

/// What the threads of a run tell each other.
#[derive(Default)]
struct Shared {
    /// Measured so far, by all.
    units: AtomicU64,
    bytes: AtomicU64,
    /// Done after the window, by all, while the server is looked at.
    units_after: AtomicU64,
    bytes_after: AtomicU64,
    /// The window is over, or a thread has failed.
    stop: AtomicBool,
    /// The connections are not needed any more.
    close: AtomicBool,
}

/// What a thread tells the one that keeps the time.
enum News {
    /// Its connections are ready for the warm-up.
    Ready,
    /// What it measured in the interval with this number, and whether that was its last.
    Interval(u64, Box<Interval>, bool),
    /// Its window is over; the last interval follows.
    Measured,
    /// It cannot go on.
    Failed(PerfError),
}

/// The same for all threads.
#[derive(Clone, Copy)]
struct Schedule {
    first: Instant,
    warm: Instant,
    end: Instant,
}

/// What was read of the window.
struct Measured {
    window: Window,
    course: Course,
}

/// What was read of the server after the window, with the connections still there.
struct Seen {
    memory: Result<Option<Memory>, PerfError>,
    system_calls: Option<Result<(Counted, f64), String>>,
}

/// What a thread did.
struct Done {
    tally: Tally,
    paced: Option<Paced>,
}

impl Steady<'_> {
    /// Keeps `plan.connections` connections at work, through warm-up and measuring window, then ends them.
    ///
    /// # Errors
    /// When a thread, the server's processes or this machine fail; failed connections are in the report instead.
    pub(super) fn run(&self, plan: &ClientPlan) -> Result<Report, PerfError> {
        let shared = Shared::default();
        let watched = Watched::new(&plan.cost)?;
        let probe = Probe::beside(plan)?;
        let memory_before = if self.standing {
            watched.server_memory()
        } else {
            Ok(None)
        };
        thread::scope(|scope| {
            let (tell, news) = channel();
            let mut starts = Vec::new();
            let mut threads = Vec::new();
            for number in 0..plan.threads {
                let (start, started) = channel();
                starts.push(start);
                let (tell, shared) = (tell.clone(), &shared);
                let share = plan.share(number);
                let offset = plan.offset(number);
                threads.push(scope.spawn(move || {
                    let thread = Lane {
                        steady: self,
                        plan: share,
                        number,
                        offset,
                        shared,
                        tell: &tell,
                    };
                    thread.run(&started).map_err(|error| {
                        shared.stop.store(true, Ordering::Relaxed);
                        // Nobody hears it when the run has ended for another reason.
                        let _ = tell.send(News::Failed(error));
                    })
                }));
            }
            drop(tell);
            let measured = self.keep_time(plan, &watched, probe.as_ref(), &news, &starts);
            let measured = measured.and_then(|measured| Ok((measured, self.look(plan, &watched, &shared)?)));
            shared.stop.store(true, Ordering::Relaxed);
            shared.close.store(true, Ordering::Relaxed);
            drop(starts);
            let done: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            let (Measured { window, course }, seen) = measured?;
            // What a server holds up as long as the work goes on is answered when it has ended.
            let probed = probe.map(Probe::finish).transpose()?;
            let mut sum: Option<Done> = None;
            for one in done {
                let one = match one {
                    Ok(Ok(done)) => done,
                    // Its error has been said, or comes now.
                    Ok(Err(())) => return Err(failure(&news)),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                match &mut sum {
                    None => sum = Some(one),
                    Some(sum) => sum.add(one),
                }
            }
            let sum = sum.expect("a plan has at least one thread");
            let mut report = Report::new(self.name, self.unit, plan, &sum.tally, &window);
            report.set_course(course.finish(window.wall), &sum.tally);
            if let Some(paced) = sum.paced {
                report.set_open_loop(paced.open_loop(plan.rate.unwrap_or_default()));
            }
            report.probe_established = probed;
            report.warnings = limits::warnings(&report, &window, plan);
            report.set_server_memory(memory_before, seen.memory, plan.connections);
            if let Some(calls) = seen.system_calls {
                report.set_system_calls(calls);
            }
            Ok(report)
        })
    }

    /// Looks at the server after the window, with the connections still there.
    fn look(&self, plan: &ClientPlan, watched: &Watched, shared: &Shared) -> Result<Seen, PerfError> {
        let memory = if self.standing {
            watched.server_memory()
        } else {
            Ok(None)
        };
        let done = || {
            (
                shared.units_after.load(Ordering::Relaxed),
                shared.bytes_after.load(Ordering::Relaxed),
            )
        };
        let keep_working = |time| {
            let (units, bytes) = done();
            thread::sleep(time);
            let (units_then, bytes_then) = done();
            Ok(self.unit.count(units_then - units, bytes_then - bytes))
        };
        let system_calls = match watched.server()?.filter(|_| watched.counts_system_calls()) {
            Some(server) => Some(syscalls::count(
                &server,
                syscalls::WINDOW.min(plan.duration),
                keep_working,
            )?),
            None => None,
        };
        Ok(Seen { memory, system_calls })
    }

    /// Waits until all are ready, starts them, and reads the clocks at both ends of the window.
    fn keep_time(
        &self,
        plan: &ClientPlan,
        watched: &Watched,
        probe: Option<&Probe>,
        news: &Receiver<News>,
        starts: &[Sender<Schedule>],
    ) -> Result<Measured, PerfError> {
        for _ in starts {
            match news.recv() {
                Ok(News::Ready) => {}
                Ok(News::Failed(error)) => return Err(error),
                Ok(News::Interval(..) | News::Measured) | Err(_) => unreachable!("a thread is ready before all else"),
            }
        }
        let first = Instant::now();
        let schedule = Schedule {
            first,
            warm: first + plan.warmup,
            end: first + plan.warmup + plan.duration,
        };
        for start in starts {
            // A thread that has failed does not listen; it has said why.
            let _ = start.send(schedule);
        }
        let mut early = Vec::new();
        while let Some(left) = remaining(schedule.warm) {
            match news.recv_timeout(left) {
                Ok(News::Failed(error)) => return Err(error),
                // Their clocks are a little ahead.
                Ok(told) => early.push(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(failure(news)),
            }
        }
        let server = watched.server()?;
        let mut course = Course::new(schedule.warm, INTERVAL, starts.len(), self.unit, server, plan.progress)?;
        let mut meter = Some(Meter::start(watched)?);
        if let Some(probe) = probe {
            probe.mark_begin();
        }
        let mut early = early.into_iter();
        let mut measured = None;
        let mut ended = 0;
        while ended < starts.len() {
            let told = early.next().map_or_else(|| news.recv(), Ok);
            match told {
                Ok(News::Interval(number, interval, last)) => {
                    course.add(number, &interval)?;
                    ended += usize::from(last);
                }
                Ok(News::Measured) => {
                    if let Some(meter) = meter.take() {
                        measured = Some(meter.stop()?);
                        if let Some(probe) = probe {
                            probe.mark_end();
                        }
                    }
                }
                Ok(News::Failed(error)) => return Err(error),
                Ok(News::Ready) => unreachable!("a thread is ready once"),
                Err(_) => return Err(failure(news)),
            }
        }
        let window = measured.expect("each thread says that its window is over before its last interval");
        Ok(Measured { window, course })
    }
}

/// What a thread said before it ended.
fn failure(news: &Receiver<News>) -> PerfError {
    let said = news.try_iter().find_map(|told| match told {
        News::Failed(error) => Some(error),
        News::Ready | News::Interval(..) | News::Measured => None,
    });
    said.unwrap_or_else(|| PerfError::GaveUp("a thread ended without a word".to_owned()))
}

impl Done {
    fn add(&mut self, other: Self) {
        self.tally.merge(other.tally);
        if let (Some(sum), Some(paced)) = (&mut self.paced, other.paced) {
            sum.add(&paced);
        }
    }
}

/// One thread's share of a run.
struct Lane<'a> {
    steady: &'a Steady<'a>,
    plan: ClientPlan,
    number: usize,
    /// When its first unit is due, after that of the run.
    offset: Duration,
    shared: &'a Shared,
    tell: &'a Sender<News>,
}

/// Begins what is to begin: by a clock, or when something else is done.
enum Next {
    Paced(Pace),
    AtOnce,
    Thinking(Thinking),
}

impl Lane<'_> {
    fn run(&self, started: &Receiver<Schedule>) -> Result<Done, PerfError> {
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
        let paced = next.paced(Instant::now());
        self.go_on(&mut engine, &mut next, work, &mut tally)?;
        if steady.close_in_order {
            let drained_at = Instant::now() + DRAIN_MAX.min(plan.timeout);
            engine.drain(work, &mut tally);
            while let (true, Some(left)) = (engine.live() > 0, remaining(drained_at)) {
                engine.turn(left, work, &mut tally)?;
            }
        }
        engine.abort();
        Ok(Done { tally, paced })
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

    fn begin(&self, first: Instant, engine: &mut Engine<'_>, work: &mut dyn Work, tally: &mut Tally) -> Next {
        let plan = &self.plan;
        let first = first + self.offset;
        match (plan.rate, self.steady.standing) {
            (Some(rate), true) => return Next::Paced(Pace::of_messages(first, rate)),
            (Some(rate), false) => return Next::Paced(Pace::of_connections(first, rate, plan.connections)),
            (None, true) => {}
            (None, false) => {
                for slot in 0..plan.connections {
                    engine.open(slot, Instant::now(), work, tally);
                }
            }
        }
        match plan.think_time {
            Some(time) => Next::Thinking(Thinking::new(time, self.steady.standing)),
            None => Next::AtOnce,
        }
    }

    fn measure(
        &self,
        schedule: Schedule,
        engine: &mut Engine<'_>,
        next: &mut Next,
        work: &mut dyn Work,
        tally: &mut Tally,
    ) -> Result<(), PerfError> {
        let (shared, steady) = (self.shared, self.steady);
        tally.set_measuring(true);
        let mut interval = 0;
        let mut interval_end = schedule.warm + INTERVAL;
        let mut told = (0, 0);
        while let (false, Some(left)) = (shared.stop.load(Ordering::Relaxed), remaining(schedule.end)) {
            if let Some(left) = remaining(interval_end) {
                next.turn(engine, left, work, tally)?;
            } else {
                next.turn(engine, left.min(INTERVAL), work, tally)?;
                self.tell_interval(interval, tally, false);
                interval += 1;
                interval_end += INTERVAL;
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
        next: &mut Next,
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

impl Next {
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
