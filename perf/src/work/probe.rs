//! Established connections beside a work: does a flood of handshakes hold up those who are already in?
//!
//! A thread of its own sends messages over a few standing connections at a steady rate, first alone, then while the work runs.
//! A message belongs to the window in which it was due, and its latency counts from then. So a server that stands still
//! shows, also when nothing is answered until the window is over.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use super::echo::EchoWork;
use super::pace::Pace;
use super::{Next, Work};
use crate::connection::{Connection, Failure, Progress};
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::{Tally, histogram, nanoseconds};
use crate::plan::ClientPlan;
use crate::report::{ProbeEstablished, ProbeLatencies};

/// Bytes of a message: small, so that a record is all it takes.
const MESSAGE: usize = 64;

/// Long enough for the tail of a server that has nothing else to do.
const ALONE_MAX: Duration = Duration::from_secs(10);

/// How long it may take until all connections are open, on top of the plan's timeout.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// How often the thread looks whether the window is over.
const LOOK: Duration = Duration::from_millis(10);

/// How long connecting anew waits after a connection has failed.
const REOPEN_AFTER: Duration = Duration::from_millis(50);

/// The probe's thread before those that make the load: it hardly runs, and its waiting for a CPU would look like the server's.
const PRIORITY: i32 = -10;

/// Established connections that are asked for their echo. Dropping it ends them.
pub(crate) struct Probe {
    marks: Arc<Marks>,
    /// `None` exactly when it has been waited for.
    thread: Option<JoinHandle<Result<ProbeEstablished, PerfError>>>,
}

/// What the probe's thread is told.
#[derive(Default)]
struct Marks {
    /// The window in which the work is measured.
    begin: OnceLock<Instant>,
    end: OnceLock<Instant>,
    /// Nobody waits for the result.
    given_up: AtomicBool,
}

impl Probe {
    /// The probe of a run, if one was asked for, measured alone for as long as the work will be, but no longer than
    /// [`ALONE_MAX`].
    ///
    /// # Errors
    /// As [`Probe::start`].
    pub(crate) fn beside(plan: &ClientPlan) -> Result<Option<Self>, PerfError> {
        let alone = plan.duration.min(ALONE_MAX);
        plan.probe.clone().map(|probe| Self::start(probe, alone)).transpose()
    }

    /// Opens `plan.connections` connections and measures them for `alone`. Returns when that is over; the messages go on.
    ///
    /// # Errors
    /// When the connections cannot be opened.
    pub(crate) fn start(plan: Arc<ClientPlan>, alone: Duration) -> Result<Self, PerfError> {
        let marks = Arc::new(Marks::default());
        let (ready, measured_alone) = channel();
        let seen = marks.clone();
        let spawned = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || Prober::open(&plan, seen)?.run(alone, ready));
        let thread = spawned.map_err(|error| PerfError::io("start the probe's thread", error))?;
        let probe = Self {
            marks,
            thread: Some(thread),
        };
        match wait(&measured_alone) {
            Ok(()) => Ok(probe),
            Err(ended) => Err(probe.finish().err().unwrap_or(ended)),
        }
    }

    /// The work's measuring window begins now.
    pub(crate) fn mark_begin(&self) {
        // Only the first call counts.
        let _ = self.marks.begin.set(Instant::now());
    }

    /// The window ends now.
    pub(crate) fn mark_end(&self) {
        let _ = self.marks.end.set(Instant::now());
    }

    /// Waits for the answers that are outstanding, at most the plan's timeout; ends the window, if nobody has.
    ///
    /// # Errors
    /// When the probe's thread failed.
    pub(crate) fn finish(mut self) -> Result<ProbeEstablished, PerfError> {
        self.mark_begin();
        self.mark_end();
        let thread = self.thread.take().expect("it is waited for here or when it is dropped");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Probe {
    /// A run that failed leaves no load behind.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.marks.given_up.store(true, Ordering::Relaxed);
            // Why the run failed is said already.
            let _ = thread.join();
        }
    }
}

fn wait(measured_alone: &Receiver<()>) -> Result<(), PerfError> {
    measured_alone
        .recv()
        .map_err(|_| PerfError::GaveUp("the probe ended before the work began".to_owned()))
}

/// The probe's thread.
struct Prober<'plan> {
    plan: &'plan ClientPlan,
    engine: Engine<'plan>,
    work: ProbeWork,
    tally: Tally,
    pace: Pace,
    /// Connections to be opened anew, and not before.
    failed: VecDeque<(usize, Instant)>,
}

impl<'plan> Prober<'plan> {
    fn open(plan: &'plan ClientPlan, marks: Arc<Marks>) -> Result<Self, PerfError> {
        plan.enter()?;
        // Without the right to it the probe is as good as the others.
        let _ = setpriority_process(Some(gettid()), PRIORITY);
        let now = Instant::now();
        let mut prober = Self {
            plan,
            engine: Engine::new(plan)?,
            work: ProbeWork::new(marks),
            tally: Tally::new(),
            pace: Pace::of_messages(now, f64::from(plan.cost.probe_rate)),
            failed: (0..plan.connections).map(|slot| (slot, now)).collect(),
        };
        let end = now + plan.timeout + OPENING_MAX;
        while prober.engine.established() < plan.connections {
            if Instant::now() > end {
                let (established, failures) = (prober.engine.established(), prober.tally.failure_kinds());
                return Err(PerfError::GaveUp(format!(
                    "only {established} of {} connections of --probe-established opened; {failures}",
                    plan.connections
                )));
            }
            prober.turn(LOOK)?;
        }
        Ok(prober)
    }

    fn run(mut self, alone: Duration, ready: Sender<()>) -> Result<ProbeEstablished, PerfError> {
        let first = Instant::now();
        let alone_end = first + alone;
        self.pace.begin_at(first);
        self.work.alone = Some((first, alone_end));
        let mut ready = Some(ready);
        while !self.work.marks.given_up.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= alone_end
                && let Some(ready) = ready.take()
            {
                // Nobody listens when the run was given up.
                let _ = ready.send(());
            }
            let end = self.work.marks.end.get().copied();
            // None begins that is due after the end.
            let last = end.map_or(now, |end| end.min(now));
            self.pace
                .begin_due(last, &mut self.engine, &mut self.work, &mut self.tally);
            let idle = match end {
                Some(end) if self.is_over(now, end) => break,
                Some(_) => LOOK,
                None => self.pace.idle().min(LOOK),
            };
            self.turn(idle)?;
        }
        Ok(self.finish(Instant::now()))
    }

    /// One turn of the engine; connections that failed are opened anew, but not as fast as they fail.
    fn turn(&mut self, timeout: Duration) -> Result<(), PerfError> {
        let now = Instant::now();
        while let Some(&(slot, after)) = self.failed.front()
            && after <= now
        {
            self.failed.pop_front();
            self.engine.open(slot, now, &mut self.work, &mut self.tally);
        }
        self.engine.turn(timeout, &mut self.work, &mut self.tally)?;
        let now = Instant::now();
        let freed = self.pace.take(&mut self.engine, now);
        self.failed
            .extend(freed.into_iter().map(|slot| (slot, now + REOPEN_AFTER)));
        Ok(())
    }

    /// Everything that was due has been answered, or has had its time.
    fn is_over(&self, now: Instant, end: Instant) -> bool {
        let answered = self.pace.next_due() >= end && self.work.unanswered.is_empty();
        answered || now >= end + self.plan.timeout
    }

    /// What was never answered counts with the time that it waited: its latency is longer than that.
    fn finish(mut self, now: Instant) -> ProbeEstablished {
        let end = self.work.marks.end.get().copied().unwrap_or(now);
        let mut waiting = std::mem::take(&mut self.work.unanswered);
        waiting.extend(self.pace.not_begun(end));
        waiting.iter().for_each(|&due| self.work.record(due, now));
        self.engine.abort();
        ProbeEstablished::new(&ProbeLatencies {
            connections: self.plan.connections,
            rate_per_s: self.plan.cost.probe_rate,
            alone: &self.work.latency_alone,
            beside: &self.work.latency_beside,
            late: self.pace.late(),
            failed: self.tally.failures_total(),
            unanswered: waiting.len() as u64,
        })
    }
}

/// Echoed messages, counted in the window in which they were due.
struct ProbeWork {
    echo: EchoWork,
    marks: Arc<Marks>,
    alone: Option<(Instant, Instant)>,
    /// When messages that wait for their answer were due, also those whose connection has failed.
    unanswered: BTreeSet<Instant>,
    /// Nanoseconds.
    latency_alone: Histogram<u64>,
    latency_beside: Histogram<u64>,
}

impl ProbeWork {
    fn new(marks: Arc<Marks>) -> Self {
        Self {
            echo: EchoWork::new(MESSAGE, true, 0),
            marks,
            alone: None,
            unanswered: BTreeSet::new(),
            latency_alone: histogram(),
            latency_beside: histogram(),
        }
    }

    fn record(&mut self, due: Instant, done: Instant) {
        let latency = nanoseconds(due, done);
        let Marks { begin, end, .. } = &*self.marks;
        if self.alone.is_some_and(|(begin, end)| begin <= due && due < end) {
            self.latency_alone.saturating_record(latency);
        } else if begin.get().is_some_and(|begin| *begin <= due) && end.get().is_none_or(|end| due < *end) {
            self.latency_beside.saturating_record(latency);
        }
    }
}

impl Work for ProbeWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        let (last_due, answers) = (connection.unit_due, tally.units_total);
        if let Some(due) = connection.state.due {
            self.unanswered.insert(due);
        }
        let next = self.echo.progress(connection, progress, now, tally)?;
        if tally.units_total > answers && self.unanswered.remove(&last_due) {
            self.record(last_due, now);
        }
        Ok(next)
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}
