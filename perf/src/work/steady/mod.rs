//! Runs of a steady load: warm-up, measuring window and end, with a thread for each share of the connections. The calling
//! thread keeps the time and reads the server's clocks.

mod lane;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lane::Lane;

use super::pace::Paced;
use super::probe::Probe;
use super::{Work, remaining};
use crate::cost::{Meter, Watched, Window};
use crate::course::Course;
use crate::error::PerfError;
use crate::limits;
use crate::measure::{Interval, Tally};
use crate::plan::ClientPlan;
use crate::procfs::Memory;
use crate::report::{Report, Unanswered, Unit};
use crate::syscalls::{self, Counted};

/// Length of the pieces of the window in the report and on the progress line.
const INTERVAL: Duration = Duration::from_secs(1);

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
    unanswered: Unanswered,
}

impl Steady<'_> {
    /// Keeps `plan.connections` connections at work, through warm-up and measuring window, then ends them.
    ///
    /// # Errors
    /// When a thread, the server's processes or this machine fail; failed connections are in the report instead.
    pub(super) fn run(&self, plan: &ClientPlan) -> Result<Report, PerfError> {
        let shared = Shared::default();
        // The thread that keeps the time runs where the others do, not beside the server.
        plan.stay()?;
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
                    let _farewell = Farewell { shared, tell: &tell };
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
            if self.unit != Unit::Megabyte {
                report.unanswered = Some(sum.unanswered);
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
        let mut course = Course::new(INTERVAL, starts.len(), self.unit, watched.server()?, plan.progress)?;
        // Without a warm-up the window begins with the first unit, and the clocks are read before.
        let mut meter = plan.warmup.is_zero().then(|| Meter::start(watched)).transpose()?;
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
        if meter.is_none() {
            meter = Some(Meter::start(watched)?);
            course.begin()?;
        }
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

/// Says that a thread has panicked. Without it the others would be waited for, and they for it.
struct Farewell<'a> {
    shared: &'a Shared,
    tell: &'a Sender<News>,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.stop.store(true, Ordering::Relaxed);
            let _ = self.tell.send(News::Failed(PerfError::GaveUp(
                "a thread of the client panicked".to_owned(),
            )));
        }
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
        self.unanswered.add(other.unanswered);
        if let (Some(sum), Some(paced)) = (&mut self.paced, other.paced) {
            sum.add(&paced);
        }
    }
}
