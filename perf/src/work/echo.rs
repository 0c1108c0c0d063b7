//! Messages sent and waited for, one in flight per connection. The bytes that come back are compared.

use std::sync::Arc;
use std::time::Instant;

use super::steady::Steady;
use super::{FULL, Next, Work, rates};
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
    let mut plan = ClientPlan::with_load(&args.client, &args.load, &FULL)?;
    let rests = args.load.rests();
    let steady = Steady {
        name: "echo",
        unit: Unit::Message,
        standing: true,
        units_max: args.load.count,
        bytes_max: None,
        close_in_order: true,
        work: &|thread| Box::new(EchoWork::new(args.size, rests, thread)),
        prepare: &|_, _| Ok(()),
    };
    rates::run(&args.load, &mut plan, |plan| steady.run(plan))
}

pub(super) struct EchoWork {
    size: usize,
    /// Each message waits for its time.
    rests: bool,
    /// Number of the next connection; each gets a message of its own, so that bytes of another would be noticed.
    connections: u64,
}

impl EchoWork {
    /// `rests`: each message waits for its time. `thread`: tells its messages from those of other threads.
    pub(super) fn new(size: usize, rests: bool, thread: usize) -> Self {
        Self {
            size,
            rests,
            connections: (thread as u64) << 32,
        }
    }

    fn send(&self, connection: &mut Connection, due: Instant, now: Instant) -> Result<(), Failure> {
        let message = connection
            .expected()
            .expect("what comes back is set when the connection is established");
        connection.unit_due = due;
        connection.unit_started = now;
        connection.limit_unit();
        connection.queue(&message)
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
            connection.expect(Inbound::Match { message, at: 0 });
        }
        if connection.state.resting && progress.received > 0 {
            return Err(Failure::Corrupted);
        }
        connection.state.received += progress.received;
        let answered = connection.state.received >= self.size;
        if answered {
            tally.unit(connection.times(now));
            tally.bytes(self.size);
            connection.state.received = 0;
        }
        let free = answered || progress.established;
        if let Some(due) = connection.state.due.take().or((free && !self.rests).then_some(now)) {
            self.send(connection, due, now)?;
        }
        if progress.peer_closed {
            Err(Failure::ClosedByPeer)
        } else if free && self.rests {
            Ok(Next::Rest)
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
