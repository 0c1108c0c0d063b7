//! The kinds of work and the loop that those with a measuring window share.

mod bulk;
mod echo;
mod handshake;
mod idle;
mod pace;
mod probe;
mod resume;

use std::time::{Duration, Instant};

use crate::args::Command;
use crate::connection::{Connection, Failure, Progress};
use crate::cost::{Meter, Watched};
use crate::engine::Engine;
use crate::error::PerfError;
use crate::limits;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};
use crate::syscalls;
use pace::Pace;
use probe::Probe;

/// How long the last connections may take to close after a run.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long it may take until all connections are open, on top of the plan's timeout.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// What a kind of work does with its connections. Called by the engine.
pub(crate) trait Work {
    /// An established connection has news. Counts finished units, queues what is to be sent.
    ///
    /// # Errors
    /// Ends the connection and is counted.
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure>;

    /// A connection has been closed in order from our side.
    fn finished(&mut self, connection: &Connection, tally: &mut Tally);
}

/// What is to happen with the connection after [`Work::progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for events.
    Wait,
    /// Call again as soon as everything queued has been sent.
    Again,
    /// The unit is done; the next one begins with [`Engine::resume`], which sets `state.due`.
    Rest,
    /// Close in order.
    Close,
}

/// Runs a client command to its end.
///
/// # Errors
/// When the run could not start or has no result; failed connections are in the report instead.
pub(crate) fn run(command: &Command) -> Result<Report, PerfError> {
    match command {
        Command::Handshake(args) => handshake::run(args),
        Command::Resume(args) => resume::run(args),
        Command::Echo(args) => echo::run(args),
        Command::Bulk(args) => bulk::run(args),
        Command::Idle(args) => idle::run(args),
        Command::Origin(args) => Err(PerfError::Flag {
            flag: "command",
            found: format!("origin --listen {}", args.listen),
            expected: "a client command; run the origin with origin::Origin".to_owned(),
        }),
    }
}

/// How a steady run begins and ends.
pub(crate) struct Steady {
    pub(crate) unit: Unit,
    /// Units go over connections that stay open, and the warm-up begins when all are established. Otherwise a connection
    /// is a unit.
    pub(crate) standing: bool,
    /// Stop after this many measured units.
    pub(crate) units_max: Option<u64>,
    /// Stop after this many measured bytes.
    pub(crate) bytes_max: Option<u64>,
    /// Connections are closed in order at the end, not dropped.
    pub(crate) close_in_order: bool,
}

impl Steady {
    /// Keeps `plan.connections` connections at work, through warm-up and measuring window, then ends them.
    pub(crate) fn run(&self, name: &str, plan: &ClientPlan, work: &mut dyn Work) -> Result<Report, PerfError> {
        let watched = Watched::new(&plan.cost)?;
        let probe = Probe::beside(plan)?;
        let memory_before = if self.standing { watched.server_memory()? } else { None };
        let mut tally = Tally::new();
        let mut engine = Engine::new(plan)?;
        let opened_at = Instant::now();
        let paced_connections = plan.rate.is_some() && !self.standing;
        for slot in (0..plan.connections).filter(|_| !paced_connections) {
            engine.open(slot, Instant::now(), work, &mut tally);
        }
        if self.standing {
            while engine.established() < plan.connections {
                if opened_at.elapsed() > plan.timeout + OPENING_MAX {
                    let established = engine.established();
                    let connections = plan.connections;
                    return Err(PerfError::GaveUp(format!(
                        "only {established} of {connections} connections opened"
                    )));
                }
                turn(&mut engine, Duration::MAX, work, &mut tally, &mut None)?;
            }
        }
        let first = Instant::now();
        let mut pace = plan.rate.map(|rate| match self.standing {
            true => Pace::of_messages(first, rate),
            false => Pace::of_connections(first, rate, plan.connections),
        });
        let warm_at = first + plan.warmup;
        while let Some(left) = remaining(warm_at) {
            turn(&mut engine, left, work, &mut tally, &mut pace)?;
        }
        let meter = Meter::start(&watched)?;
        if let Some(probe) = &probe {
            probe.mark_begin();
        }
        self.measure(plan, &mut engine, work, &mut tally, &mut pace)?;
        let window = meter.stop()?;
        let probed = probe.map(Probe::finish).transpose()?;
        let memory_end = if self.standing { watched.server_memory()? } else { None };
        let open_loop = pace.as_ref().map(|pace| pace.counts(Instant::now()));
        let counted = match watched.server()?.filter(|_| watched.counts_system_calls()) {
            Some(server) => Some(syscalls::count(&server, syscalls::WINDOW.min(plan.duration), |time| {
                let (units, bytes) = (tally.units_total, tally.bytes_total);
                let end = Instant::now() + time;
                while let Some(left) = remaining(end) {
                    turn(&mut engine, left, work, &mut tally, &mut pace)?;
                }
                Ok(self.unit.count(tally.units_total - units, tally.bytes_total - bytes))
            })?),
            None => None,
        };
        if self.close_in_order {
            let drained_at = Instant::now() + DRAIN_MAX.min(plan.timeout);
            engine.drain(work, &mut tally);
            while let (true, Some(left)) = (engine.live() > 0, remaining(drained_at)) {
                engine.turn(left, work, &mut tally)?;
            }
        }
        engine.abort();
        let mut report = Report::new(name, self.unit, plan, &tally, &window);
        if let Some(counts) = open_loop {
            report.set_open_loop(counts);
        }
        report.probe_established = probed;
        report.set_server_memory(memory_before, memory_end, plan.connections);
        report.warnings = limits::warnings(
            &report,
            &window,
            None,
            plan.sources.len().max(1),
            plan.target.ip().is_loopback(),
        );
        if let Some(counted) = counted {
            report.set_system_calls(counted);
        }
        Ok(report)
    }

    fn measure(
        &self,
        plan: &ClientPlan,
        engine: &mut Engine<'_>,
        work: &mut dyn Work,
        tally: &mut Tally,
        pace: &mut Option<Pace>,
    ) -> Result<(), PerfError> {
        tally.set_measuring(true);
        let end = Instant::now() + plan.duration;
        while let Some(left) = remaining(end) {
            if self.units_max.is_some_and(|most| tally.units >= most)
                || self.bytes_max.is_some_and(|most| tally.bytes >= most)
            {
                break;
            }
            turn(engine, left, work, tally, pace)?;
        }
        tally.set_measuring(false);
        Ok(())
    }
}

/// One turn of the engine. Without a pace, what has ended is opened again.
fn turn(
    engine: &mut Engine<'_>,
    timeout: Duration,
    work: &mut dyn Work,
    tally: &mut Tally,
    pace: &mut Option<Pace>,
) -> Result<(), PerfError> {
    if let Some(pace) = pace {
        return pace.turn(engine, timeout, work, tally);
    }
    engine.turn(timeout, work, tally)?;
    for slot in engine.take_freed() {
        engine.open(slot, Instant::now(), work, tally);
    }
    Ok(())
}

/// The time left until `end`; `None` when it has come.
pub(crate) fn remaining(end: Instant) -> Option<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// Nanoseconds since a unit began.
pub(crate) fn nanoseconds_since(started: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(started).as_nanos()).unwrap_or(u64::MAX)
}
