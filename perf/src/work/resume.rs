//! Resumed handshakes with one byte there and back. The sessions come from full handshakes before the warm-up, and from
//! then on from the resumed connections themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;

use super::handshake::HandshakeWork;
use super::{Steady, Work};
use crate::args::HandshakesArgs;
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};
use crate::sessions::Sessions;

/// The share of measured connections that may be full handshakes. With more of them the figure is none of resumption.
const FULL_MAX: f64 = 0.03;

pub(super) fn run(args: &HandshakesArgs) -> Result<Report, PerfError> {
    let mut plan = ClientPlan::new(&args.client, args.connections, args.rate)?;
    let sessions = Arc::new(Sessions::new(plan.connections));
    Arc::make_mut(&mut plan.tls).resumption = Resumption::store(sessions.clone());
    let mut work = HandshakeWork::exchange();
    obtain(&plan, &sessions, &mut work)?;
    let steady = Steady {
        unit: Unit::Handshake,
        standing: false,
        units_max: args.count,
        bytes_max: None,
        close_in_order: true,
    };
    let report = steady.run("resume", &plan, &mut work)?;
    refuse_full(&report)?;
    Ok(report)
}

/// One full handshake for each connection in flight; they are in no report. The tickets come before the byte that each of
/// them waits for.
fn obtain(plan: &ClientPlan, sessions: &Sessions, work: &mut dyn Work) -> Result<(), PerfError> {
    let mut tally = Tally::new();
    let mut engine = Engine::new(plan)?;
    for slot in 0..plan.connections {
        engine.open(slot, Instant::now(), work, &mut tally);
    }
    while engine.live() > 0 {
        engine.turn(Duration::MAX, work, &mut tally)?;
    }
    let (found, wanted) = (sessions.waiting(), plan.connections);
    if found >= wanted {
        return Ok(());
    }
    let full = tally.established;
    let failures = match tally.failures_total() {
        0 => String::new(),
        failed => format!("; {failed} connections failed ({})", tally.failure_kinds()),
    };
    Err(PerfError::NotResumed(format!(
        "the server gave sessions to {found} of {full} full handshakes, expected {wanted}{failures}; switch on its \
         session tickets, or for TLS 1.2 its session cache"
    )))
}

/// Nobody shall quote a figure of full handshakes as one of resumption.
fn refuse_full(report: &Report) -> Result<(), PerfError> {
    let Some(handshakes) = report.handshakes else {
        return Ok(());
    };
    let (full, all) = (handshakes.full, handshakes.full + handshakes.resumed);
    if full as f64 <= FULL_MAX * all as f64 {
        return Ok(());
    }
    Err(PerfError::NotResumed(format!(
        "{full} of {all} measured connections were full handshakes, expected at most {:.0} %; the server declines sessions \
         that it gave, or gives a resumed connection none",
        FULL_MAX * 100.0
    )))
}
