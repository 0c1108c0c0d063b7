//! Connections that do nothing: what one of them costs the server in memory.

use std::time::{Duration, Instant};

use super::probe::Probe;
use super::{FULL, Next, Work, remaining};
use crate::args::IdleArgs;
use crate::connection::{Connection, Failure, Progress};
use crate::cost::{Meter, Watched};
use crate::engine::Engine;
use crate::error::PerfError;
use crate::limits;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::procfs::Memory;
use crate::report::{IdleMemory, Report, Unit};

/// How long closing all connections may take, on top of the plan's timeout.
const CLOSING_MAX: Duration = Duration::from_secs(30);

pub(super) fn run(args: &IdleArgs) -> Result<Report, PerfError> {
    if args.opening == 0 {
        let (found, expected) = ("0".to_owned(), "at least 1".to_owned());
        return Err(PerfError::Flag {
            flag: "--opening",
            found,
            expected,
        });
    }
    let plan = ClientPlan::new(&args.client, args.connections, &FULL)?;
    if plan.threads > 1 {
        return Err(PerfError::Flag {
            flag: "--threads",
            found: plan.threads.to_string(),
            expected: "1 for idle connections (--cpu with one CPU)".to_owned(),
        });
    }
    if args.client.cost.syscalls {
        return Err(PerfError::Flag {
            flag: "--syscalls",
            found: "idle".to_owned(),
            expected: "a work that does something, or no --syscalls".to_owned(),
        });
    }
    plan.enter()?;
    let watched = Watched::new(&plan.cost)?;
    let probe = Probe::beside(&plan)?;
    let mut tally = Tally::new();
    let mut work = IdleWork;
    let mut engine = Engine::new(&plan)?;
    open_one_and_close(&mut engine, &plan, &mut work, &mut tally)?;
    let memory_before = watched.server_memory()?;
    let mut memory = memory_before.map(IdleMemory::before);
    let meter = Meter::start(&watched)?;
    if let Some(probe) = &probe {
        probe.mark_begin();
    }
    tally.set_measuring(true);
    open_all(&mut engine, &plan, args.opening, &mut work, &mut tally)?;
    let window = meter.stop()?;
    let probed = probe.map(Probe::finish).transpose()?;
    tally.set_measuring(false);

    keep(&mut engine, args.settle, &mut work, &mut tally)?;
    let held = engine.established();
    let memory_holding = watched.server_memory()?;
    record(&mut memory, memory_holding, |memory, now| memory.holding(now, held));
    keep(&mut engine, args.hold, &mut work, &mut tally)?;
    let lost = plan.connections - engine.established();

    engine.drain(&mut work, &mut tally);
    let closed_at = Instant::now() + plan.timeout + CLOSING_MAX;
    while let (true, Some(left)) = (engine.live() > 0, remaining(closed_at)) {
        engine.turn(left, &mut work, &mut tally)?;
    }
    record(&mut memory, watched.server_memory()?, IdleMemory::closed);
    let mut report = Report::new("idle", Unit::Connection, &plan, &tally, &window);
    report.set_idle(held, lost, memory);
    report.set_server_memory(Ok(memory_before), Ok(memory_holding), held);
    report.probe_established = probed;
    report.warnings = limits::warnings(&report, &window, &plan);
    Ok(report)
}

/// What the first connection allocates (caches, pools) is not what a connection costs.
fn open_one_and_close(
    engine: &mut Engine<'_>,
    plan: &ClientPlan,
    work: &mut IdleWork,
    tally: &mut Tally,
) -> Result<(), PerfError> {
    engine.open(0, Instant::now(), work, tally);
    let end = Instant::now() + plan.timeout;
    while let (true, Some(left)) = (engine.live() > engine.established(), remaining(end)) {
        engine.turn(left, work, tally)?;
    }
    engine.drain(work, tally);
    while let (true, Some(left)) = (engine.live() > 0, remaining(end)) {
        engine.turn(left, work, tally)?;
    }
    engine.end_drain();
    engine.take_freed();
    Ok(())
}

/// Opens all connections with at most `opening` handshakes in flight; failed ones are tried again.
fn open_all(
    engine: &mut Engine<'_>,
    plan: &ClientPlan,
    opening: usize,
    work: &mut IdleWork,
    tally: &mut Tally,
) -> Result<(), PerfError> {
    let mut waiting: Vec<usize> = (0..plan.connections).rev().collect();
    let mut established = 0;
    while established < plan.connections {
        let in_flight = plan.connections - waiting.len() - established;
        for _ in in_flight..opening {
            let Some(slot) = waiting.pop() else { break };
            engine.open(slot, Instant::now(), work, tally);
        }
        engine.turn(Duration::MAX, work, tally)?;
        waiting.extend(engine.take_freed());
        established = engine.established();
    }
    Ok(())
}

/// Serves the connections for a while without opening any.
fn keep(engine: &mut Engine<'_>, time: Duration, work: &mut IdleWork, tally: &mut Tally) -> Result<(), PerfError> {
    let end = Instant::now() + time;
    while let Some(left) = remaining(end) {
        engine.turn(left, work, tally)?;
    }
    Ok(())
}

fn record(memory: &mut Option<IdleMemory>, now: Option<Memory>, store: impl FnOnce(&mut IdleMemory, Memory)) {
    if let (Some(memory), Some(now)) = (memory, now) {
        store(memory, now);
    }
}

struct IdleWork;

impl Work for IdleWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        if progress.established {
            tally.unit(connection.times(now));
        }
        if progress.peer_closed {
            Err(Failure::ClosedByPeer)
        } else {
            Ok(Next::Wait)
        }
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}
