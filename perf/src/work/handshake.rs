//! Handshakes: connect, handshake, perhaps one byte there and back, orderly close.

use std::sync::Arc;
use std::time::Instant;

use super::resume::obtain_sessions;
use super::steady::Steady;
use super::{Next, Work, rates};
use crate::args::{HandshakeArgs, HandshakesArgs, LoadArgs};
use crate::connection::{Connection, Failure, Inbound, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};

/// The byte of `--exchange`.
const PROBE: [u8; 1] = *b"x";

pub(super) fn run(args: &HandshakeArgs) -> Result<Report, PerfError> {
    let HandshakesArgs { client, load } = &args.handshakes;
    let mut plan = ClientPlan::with_load(client, load, &args.mix)?;
    let after = match (args.exchange, args.expect_close) {
        (true, _) => After::exchange(),
        (false, true) => After::ExpectClose,
        (false, false) => After::Close,
    };
    let name = match &after {
        After::Close => "handshake",
        After::Exchange(_) => "handshake_exchange",
        After::ExpectClose => "handshake_expect_close",
    };
    run_handshakes(name, load, &mut plan, &after)
}

/// Handshakes, after each thread has obtained what its personas offer.
pub(super) fn run_handshakes(
    name: &str,
    load: &LoadArgs,
    plan: &mut ClientPlan,
    after: &After,
) -> Result<Report, PerfError> {
    let steady = Steady {
        name,
        unit: Unit::Handshake,
        standing: false,
        units_max: load.count,
        bytes_max: None,
        close_in_order: true,
        work: &|_| Box::new(HandshakeWork { after: after.clone() }),
        prepare: &obtain_sessions,
    };
    rates::run(load, plan, |plan| steady.run(plan))
}

/// What follows the handshake.
#[derive(Clone)]
pub(super) enum After {
    Close,
    Exchange(Arc<[u8]>),
    ExpectClose,
}

impl After {
    /// One byte there and back.
    pub(super) fn exchange() -> Self {
        Self::Exchange(Arc::new(PROBE))
    }
}

/// A unit is counted when the connection is closed; its latency runs from the connect (in an open loop: from
/// when that was due) to the complete handshake,
/// or to the returned byte.
struct HandshakeWork {
    after: After,
}

impl Work for HandshakeWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        if progress.established {
            // The timeout of the handshake goes on for what follows it.
            connection.limit_unit();
        }
        match &self.after {
            After::Close => {
                connection.state.done = Some(now);
                Ok(Next::Close)
            }
            After::Exchange(probe) => {
                if progress.established {
                    connection.expect(Inbound::Match {
                        message: probe.clone(),
                        at: 0,
                    });
                    connection.queue(probe)?;
                }
                tally.bytes(progress.received);
                if progress.received > 0 {
                    connection.state.done = Some(now);
                    return Ok(Next::Close);
                }
                if progress.peer_closed {
                    Err(Failure::ClosedByPeer)
                } else {
                    Ok(Next::Wait)
                }
            }
            After::ExpectClose => {
                if progress.established {
                    connection.state.done = Some(now);
                }
                Ok(if progress.peer_closed { Next::Close } else { Next::Wait })
            }
        }
    }

    fn finished(&mut self, connection: &Connection, tally: &mut Tally) {
        if let Some(done) = connection.state.done {
            tally.handshake(connection.times(done), connection.resumed_by());
        }
    }
}
