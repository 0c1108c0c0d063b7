//! One side of a session: its socket, what is in flight on it and what is queued for it.

use std::time::Instant;

use crate::buffers::{Outbox, SendBuffer};
use crate::config;
use crate::mutants::{Mutant, active};

/// The socket of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// There is none.
    Absent,
    /// There is one, connected unless [`Leg::connecting`].
    Open,
    /// There is one that is to be closed as soon as nothing is in flight on it.
    Leaving {
        /// What is in flight has been told to end.
        cancelled: bool,
    },
}

/// The stream that comes from a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// More may come; nothing is in flight.
    Idle,
    /// A receive is in flight.
    Armed,
    /// Nothing more comes, or it is of no interest.
    Ended,
}

/// The stream that goes to a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// More may be queued.
    Open,
    /// Our end follows what is queued.
    Finishing,
    /// Our end is sent.
    Finished,
    /// The side takes nothing more.
    Failed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) socket: Socket,
    /// A connection attempt is in flight.
    pub(super) connecting: bool,
    pub(super) receive: Receive,
    pub(super) write: Write,
    /// What is queued for this side.
    pub(super) outbox: Outbox,
    /// When the send in flight was submitted; some exactly while one is.
    send_since: Option<Instant>,
    /// The last receive said that the next one will complete at once.
    pub(super) more: bool,
    /// A turn of the worker has gone by since, and the next one has not completed.
    pub(super) overdue: bool,
}

impl Leg {
    pub(super) fn new(socket: Socket) -> Leg {
        Leg {
            socket,
            connecting: false,
            receive: Receive::Idle,
            write: Write::Open,
            outbox: Outbox::default(),
            send_since: None,
            more: false,
            overdue: false,
        }
    }

    /// Connected, and not about to be closed.
    pub(super) fn is_connected(&self) -> bool {
        self.socket == Socket::Open && !self.connecting
    }

    /// The socket, if there is one, is to be closed.
    pub(super) fn leave(&mut self) {
        if self.socket == Socket::Open {
            self.socket = Socket::Leaving { cancelled: false };
        }
    }

    /// Our end is to follow what is queued.
    pub(super) fn finish(&mut self) {
        if self.write == Write::Open {
            self.write = Write::Finishing;
        }
    }

    /// Before the socket is closed: if our end is all that is left to send, closing sends it.
    pub(super) fn finish_by_close(&mut self) {
        if self.is_connected() && self.write == Write::Finishing && self.outbox.queued() == 0 {
            self.write = Write::Finished;
        }
    }

    fn in_flight(&self) -> bool {
        self.connecting || self.receive == Receive::Armed || self.outbox.in_flight()
    }

    /// True once, when what is in flight has to be cancelled.
    pub(super) fn take_cancel(&mut self) -> bool {
        let due = self.socket == Socket::Leaving { cancelled: false } && self.in_flight();
        if due {
            self.socket = Socket::Leaving { cancelled: true };
        }
        due
    }

    pub(super) fn is_ready_to_close(&self) -> bool {
        matches!(self.socket, Socket::Leaving { .. }) && (!self.in_flight() || active(Mutant::CloseWithoutJoin))
    }

    /// True once, when our end is due.
    pub(super) fn take_shutdown(&mut self) -> bool {
        let empty = self.outbox.queued() == 0 || active(Mutant::EarlyHalfClose);
        let due = self.is_connected() && self.write == Write::Finishing && empty;
        if due {
            self.write = Write::Finished;
        }
        due
    }

    pub(super) fn take_send(&mut self, now: Instant) -> Option<SendBuffer> {
        if !self.is_connected() || self.write == Write::Failed {
            return None;
        }
        let buffer = self.outbox.take()?;
        self.send_since = Some(now);
        Some(buffer)
    }

    pub(super) fn send_ended(&mut self) {
        self.send_since = None;
    }

    /// When a peer that takes nothing has done so for too long.
    pub(super) fn stalls_at(&self, settings: &config::Listener) -> Option<Instant> {
        let since = self.send_since.filter(|_| !active(Mutant::WriteTimeoutNotArmed));
        since.map(|since| since + settings.write_timeout)
    }
}
