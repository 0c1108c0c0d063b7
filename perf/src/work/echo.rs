//! Messages sent and waited for, one in flight per connection. The bytes that come back are compared.

use std::sync::Arc;
use std::time::Instant;

use super::{Next, Steady, Work, nanoseconds_since};
use crate::args::EchoArgs;
use crate::connection::{Connection, Failure, Inbound, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};

/// Larger messages are bulk: they would fill the buffers on the way before anything comes back.
const SIZE_MAX: usize = 1 << 20;

pub(super) fn run(args: &EchoArgs) -> Result<Report, PerfError> {
    if args.size == 0 || args.size > SIZE_MAX {
        let (found, expected) = (args.size.to_string(), "1 to 1MiB".to_owned());
        return Err(PerfError::Flag {
            flag: "--size",
            found,
            expected,
        });
    }
    let plan = ClientPlan::new(&args.client, args.connections)?;
    let steady = Steady {
        unit: Unit::Message,
        wait_for_all: true,
        units_max: args.count,
        bytes_max: None,
        close_in_order: true,
    };
    steady.run(
        "echo",
        &plan,
        &mut EchoWork {
            size: args.size,
            connections: 0,
        },
    )
}

struct EchoWork {
    size: usize,
    /// Connections so far; each gets a message of its own, so that bytes of another would be noticed.
    connections: u64,
}

impl EchoWork {
    fn send(&self, connection: &mut Connection, message: &[u8], now: Instant) -> Result<(), Failure> {
        connection.unit_started = now;
        connection.state.received = 0;
        connection.limit_unit();
        connection.queue(message)
    }
}

impl Work for EchoWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        if progress.established {
            let message: Arc<[u8]> = message(self.connections, self.size).into();
            self.connections += 1;
            connection.expect(Inbound::Match {
                message: message.clone(),
                at: 0,
            });
            self.send(connection, &message, now)?;
        }
        connection.state.received += progress.received;
        if connection.state.received >= self.size {
            tally.unit(nanoseconds_since(connection.unit_started, now));
            tally.bytes(self.size);
            if let Some(message) = connection.expected() {
                self.send(connection, &message, now)?;
            }
        }
        if progress.peer_closed {
            Err(Failure::ClosedByPeer)
        } else {
            Ok(Next::Wait)
        }
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}

/// Bytes that differ between connections and along the message.
fn message(connection: u64, size: usize) -> Vec<u8> {
    let number = connection.to_le_bytes();
    (0..size)
        .map(|at| number[at % number.len()].wrapping_add((at / number.len()) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_between_connections_and_along_their_length() {
        assert_ne!(message(1, 1024), message(2, 1024));
        assert_ne!(message(1, 1024)[..512], message(1, 1024)[512..]);
        assert_eq!(message(3, 5).len(), 5);
    }
}
