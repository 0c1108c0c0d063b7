//! What a worker asks of the kernel, and what it hears back. Two drivers for real sockets ([`super::uring`], [`super::epoll`])
//! and one for simulated ones ([`super::sim`]).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::address::{Endpoints, ServerEndpoint};
use crate::buffers::SendBuffer;
use crate::error::IoError;
use crate::net::buffer::ReceiveBuffer;

/// A socket of one driver, until it is closed. Indexes are reused after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket(pub u32);

/// Who asked: given with every operation, comes back with its completion. The worker compares the generation, so that a
/// completion reaches only the session that submitted it (invariant 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The worker's slot, the position of a listener, or the number of a signer.
    pub slot: u32,
    /// Changes each time the slot is used anew.
    pub generation: u32,
    /// Which socket of the slot.
    pub role: Role,
}

/// Which socket of a slot an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The client's.
    Downstream,
    /// The server's.
    Upstream,
    /// A listening socket.
    Listener,
    /// A signer's.
    Signer,
}

/// An operation. Each ends with exactly one completion, except [`Op::Accept`], which goes on until it fails or is cancelled.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until told otherwise.
    Accept(Socket),
    /// Receive at most one buffer; at most one of these per socket (invariant 1).
    Receive(Socket),
    /// Send some or all of the buffer; at most one of these per socket (invariant 1).
    Send(Socket, SendBuffer),
    /// End what is in flight on the socket. Each operation still completes, mostly as cancelled; what was accepted before
    /// is handed out first.
    Cancel(Socket),
}

/// What happened.
#[derive(Debug)]
pub enum Completion {
    /// A new connection.
    Accepted {
        /// Of the [`Op::Accept`].
        token: Token,
        /// The connection.
        socket: Socket,
    },
    /// Accepting ended: submit [`Op::Accept`] again, later if the error says so.
    AcceptFailed {
        /// Of the [`Op::Accept`].
        token: Token,
        /// Why.
        error: IoError,
    },
    /// Bytes arrived; none at all is the end of the stream.
    Received {
        /// Of the [`Op::Receive`].
        token: Token,
        /// Where they are; `None` at the end of the stream.
        buffer: Option<ReceiveBuffer>,
        /// The kernel has more: another receive would complete at once.
        more: bool,
    },
    /// A receive failed.
    ReceiveFailed {
        /// Of the [`Op::Receive`].
        token: Token,
        /// Why.
        error: IoError,
    },
    /// A send ended; the buffer comes back.
    Sent {
        /// Of the [`Op::Send`].
        token: Token,
        /// As it was lent.
        buffer: SendBuffer,
        /// How many of its bytes the kernel took, at least 1.
        result: Result<usize, IoError>,
    },
    /// A connection attempt ended.
    Connected {
        /// Of [`Driver::connect`].
        token: Token,
        /// Established, or why not.
        result: Result<(), IoError>,
    },
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// What was sent still arrives.
    Orderly,
    /// The other end sees a reset.
    Reset,
}

/// The kernel, or a simulation of it.
pub trait Driver {
    /// The time that [`Driver::wait`] last looked at the clock.
    fn now(&self) -> Instant;

    /// How long that is ago: the time that this turn has taken so far.
    fn busy(&self) -> Duration;

    /// Takes over a listening socket.
    fn listen(&mut self, listener: OwnedFd) -> Result<Socket, IoError>;

    /// Takes over a connected stream socket.
    fn adopt(&mut self, stream: OwnedFd) -> Result<Socket, IoError>;

    /// Starts a connection; a [`Completion::Connected`] follows if this returns a socket.
    fn connect(&mut self, token: Token, endpoint: &ServerEndpoint) -> Result<Socket, IoError>;

    /// Queues an operation; it reaches the kernel in [`Driver::wait`] at the latest.
    fn submit(&mut self, token: Token, op: Op);

    /// Begins what was submitted, without waiting. What completes at once is appended, and counts as found by the next wait.
    fn begin(&mut self, completions: &mut Vec<Completion>);

    /// Waits until something completes, `deadline` passes (no deadline: for ever) or the driver is woken, and appends
    /// what completed.
    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>);

    /// The bytes that a receive brought.
    fn received<'a>(&'a mut self, buffer: &'a ReceiveBuffer) -> &'a mut [u8];

    /// Gives a receive buffer back.
    fn recycle(&mut self, buffer: ReceiveBuffer);

    /// Tells the peer that nothing more comes.
    fn shutdown_write(&mut self, socket: Socket);

    /// Closes a socket with nothing in flight, or one that accepts. The index may be reused from here on.
    fn close(&mut self, socket: Socket, how: Close);

    /// Both ends of an accepted connection; `None` when it is already gone.
    fn endpoints(&self, socket: Socket) -> Option<Endpoints>;
}
