//! Handshakes: connect, handshake, perhaps one byte there and back, orderly close.

use std::sync::Arc;
use std::time::Instant;

use super::{Next, Steady, Work, nanoseconds_since};
use crate::args::{HandshakeArgs, HandshakesArgs};
use crate::connection::{Connection, Failure, Inbound, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};

/// The byte of `--exchange`.
const PROBE: [u8; 1] = *b"x";

pub(super) fn run(args: &HandshakeArgs) -> Result<Report, PerfError> {
    let HandshakesArgs {
        client,
        connections,
        rate,
        count,
    } = &args.handshakes;
    let plan = ClientPlan::new(client, *connections, *rate)?;
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
    let steady = Steady {
        unit: Unit::Handshake,
        standing: false,
        units_max: *count,
        bytes_max: None,
        close_in_order: true,
    };
    steady.run(name, &plan, &mut HandshakeWork { after })
}

/// What follows the handshake.
enum After {
    Close,
    Exchange(Arc<[u8]>),
    ExpectClose,
}

impl After {
    fn exchange() -> Self {
        Self::Exchange(Arc::new(PROBE))
    }
}

/// A unit is counted when the connection is closed; its latency runs from the connect (in an open loop: from
/// when that was due) to the complete handshake,
/// or to the returned byte.
pub(super) struct HandshakeWork {
    after: After,
}

impl HandshakeWork {
    /// One byte there and back follows the handshake.
    pub(super) fn exchange() -> Self {
        Self {
            after: After::exchange(),
        }
    }
}

impl Work for HandshakeWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        let elapsed = nanoseconds_since(connection.unit_due, now);
        if progress.established {
            // The timeout of the handshake goes on for what follows it.
            connection.limit_unit();
        }
        match &self.after {
            After::Close => {
                connection.state.latency_ns = Some(elapsed);
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
                    connection.state.latency_ns = Some(elapsed);
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
                    connection.state.latency_ns = Some(elapsed);
                }
                Ok(if progress.peer_closed { Next::Close } else { Next::Wait })
            }
        }
    }

    fn finished(&mut self, connection: &Connection, tally: &mut Tally) {
        if let Some(latency_ns) = connection.state.latency_ns {
            tally.handshake(latency_ns, connection.is_resumed());
        }
    }
}
