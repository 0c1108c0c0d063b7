//! Resumed handshakes with one byte there and back. The sessions come from full handshakes before the warm-up, and from
//! then on from the resumed connections themselves.

use std::time::{Duration, Instant};

use super::Work;
use super::handshake::{After, run_handshakes};
use crate::args::{HandshakesArgs, Offer, Weighted};
use crate::engine::Engine;
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::Report;

/// How often connections are opened to obtain sessions.
const OBTAIN_ROUNDS_MAX: usize = 20;

/// The share of measured connections that may be full handshakes. With more of them the figure is none of resumption.
const FULL_MAX: f64 = 0.03;

pub(super) fn run(args: &HandshakesArgs) -> Result<Report, PerfError> {
    let tickets = Weighted {
        value: Offer::Ticket,
        weight: 1,
    };
    let mut plan = ClientPlan::with_load(&args.client, &args.load, &[tickets])?;
    let report = run_handshakes("resume", &args.load, &mut plan, &After::exchange())?;
    refuse_full(&report)?;
    Ok(report)
}

/// Full handshakes for as many sessions as will be offered at once; they are in no report. A server sends tickets some time
/// after the handshake: the connections end when theirs have come.
pub(super) fn obtain_sessions(plan: &ClientPlan, work: &mut dyn Work) -> Result<(), PerfError> {
    let wanted = (plan.personas.resuming() * plan.connections as f64).ceil() as usize;
    if wanted == 0 {
        return Ok(());
    }
    let mut tally = Tally::new();
    let mut engine = Engine::new(plan)?;
    // With a mix, some of the first connections offer nothing and get nothing.
    for _ in 0..OBTAIN_ROUNDS_MAX {
        for slot in 0..plan.connections {
            engine.open(slot, Instant::now(), work, &mut tally);
        }
        while engine.live() > 0 {
            engine.turn(Duration::MAX, work, &mut tally)?;
        }
        engine.take_freed();
        if plan.personas.sessions_waiting() >= wanted {
            return Ok(());
        }
        if plan.personas.resuming() == 1.0 {
            break;
        }
    }
    let found = plan.personas.sessions_waiting();
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
