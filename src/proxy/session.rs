//! One client connection as a pure state machine: bytes, time and results in, commands out.
//!
//! After each [`Session::handle`] or [`Session::handle_timeout`] drain [`Session::poll_output`] to `None`, then arm [`Session::poll_timeout`].
//! Commands follow from the state, they are not queued: nothing can be forgotten in a queue, and an idle session holds none.

mod client;
mod inputs;
mod ways;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::leg::{Leg, Receive, Socket};
use super::upstream::{Balancer, ServerId, Tried};
use crate::address::Endpoints;
use crate::buffers::{SendBuffer, SendPool};
use crate::config::UpstreamId;
use crate::crypto::{CryptoOp, CryptoResult, OpId};
use crate::error::{Cause, IoError};
use crate::metrics::WorkerMetrics;
use crate::mutants::{Mutant, active};
use crate::snapshot::Snapshot;
use crate::tls::Tls;

/// One of the two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's: TLS.
    Downstream,
    /// The server's: plain.
    Upstream,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        }
    }
}

/// What happened to a session.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes came; none at all is the end of the stream.
    Received {
        /// From here.
        side: Side,
        /// May be decrypted in place.
        bytes: &'a mut [u8],
        /// The next receive will complete at once.
        more: bool,
    },
    /// A receive failed, or was cancelled.
    ReceiveFailed(Side, IoError),
    /// A send ended.
    Sent {
        /// To here.
        side: Side,
        /// As it was lent.
        buffer: SendBuffer,
        /// How many of its bytes are sent.
        result: Result<usize, IoError>,
    },
    /// The connection attempt ended.
    Connected(Result<(), IoError>),
    /// The answer to an [`Output::Crypto`].
    CryptoDone(OpId, CryptoResult),
    /// The time for finishing is over.
    Drain,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Output {
    /// Receive one buffer.
    Receive(Side),
    /// Send this.
    Send(Side, SendBuffer),
    /// Connect to this server of the session's snapshot.
    Connect(ServerId),
    /// Compute this.
    Crypto(OpId, CryptoOp),
    /// Tell this side that nothing more comes.
    ShutdownWrite(Side),
    /// Cancel what is in flight; it still completes.
    Cancel(Side),
    /// Close a socket that has nothing in flight.
    Close {
        /// Which.
        side: Side,
        /// The other end shall see a reset.
        reset: bool,
    },
    /// The session is over and holds nothing. Comes exactly once, last.
    Done(Cause),
}

/// What a session borrows from its worker for the length of a call.
pub struct Context<'a> {
    /// The snapshot that the session started with.
    pub snapshot: &'a Snapshot,
    /// That snapshot's upstream state.
    pub balancer: &'a mut Balancer,
    /// Where send buffers come from.
    pub pool: &'a mut SendPool,
    /// The worker's counters.
    pub metrics: &'a WorkerMetrics,
}

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The PROXY header is being received.
    ProxyHeader,
    /// The handshake goes on.
    Handshaking,
    /// The handshake waits for this operation, and nothing is received meanwhile (invariant 5).
    AwaitingCrypto(OpId),
    /// The handshake is complete; the upstream is connected when the client's first byte comes.
    AwaitingFirstByte,
    /// The upstream is being connected.
    Connecting,
    /// Bytes flow.
    Relaying,
    /// Nothing more is relayed: what is queued is sent, then our end, then the client's is awaited.
    Lingering(Cause),
    /// Sockets are being closed; no deadline (invariant 6).
    Closing(Cause),
    /// Over.
    Done,
}

/// See the module.
pub struct Session<T> {
    tls: T,
    phase: Phase,
    listener: usize,
    downstream: Leg,
    upstream: Leg,
    /// The beginning of a record or message whose end has not come.
    inbox: Vec<u8>,
    accepted_at: Instant,
    /// The last time bytes moved.
    active_at: Instant,
    /// Of the phases that have a deadline of their own: Connecting, Lingering, and Relaying once it has `aged`.
    phase_deadline: Instant,
    /// The client has been told that nothing more comes, because of the connection's age, and may finish what it has to say.
    aged: bool,
    /// The time of the call being handled.
    now: Instant,
    endpoints: Option<Endpoints>,
    upstream_id: UpstreamId,
    tried: Tried,
    /// The server of the last attempt.
    server: Option<ServerId>,
    /// The balancer counts an established connection to `server`.
    counted: bool,
    /// Chosen, not yet given out as [`Output::Connect`].
    connect: Option<ServerId>,
    crypto: Option<CryptoOp>,
    next_op: u32,
    /// The client has sent something.
    heard: bool,
    received: u64,
    sent: u64,
    lingered: usize,
}

impl<T: Tls> Session<T> {
    /// A connection just accepted by the listener at this position of the snapshot.
    #[must_use]
    pub fn new(now: Instant, snapshot: &Snapshot, listener: usize, endpoints: Option<Endpoints>) -> Session<T> {
        let settings = &snapshot.listeners[listener];
        Session {
            tls: T::accept(&settings.policy),
            phase: if settings.settings().accept_proxy {
                Phase::ProxyHeader
            } else {
                Phase::Handshaking
            },
            listener,
            downstream: Leg::new(Socket::Open),
            upstream: Leg::new(Socket::Absent),
            inbox: Vec::new(),
            accepted_at: now,
            active_at: now,
            phase_deadline: now,
            aged: false,
            now,
            endpoints,
            upstream_id: settings.settings().upstream,
            tried: Tried::default(),
            server: None,
            counted: false,
            connect: None,
            crypto: None,
            next_op: 0,
            heard: false,
            received: 0,
            sent: 0,
            lingered: 0,
        }
    }

    /// Takes an input. Time only moves forward.
    pub fn handle(&mut self, now: Instant, input: Input<'_>, cx: &mut Context<'_>) {
        self.now = now;
        match input {
            Input::Received { side, bytes, more } => self.on_received(side, bytes, more, cx),
            Input::ReceiveFailed(side, error) => self.on_receive_failed(side, error, cx),
            Input::Sent { side, buffer, result } => self.on_sent(side, buffer, result, cx),
            Input::Connected(result) => self.on_connected(result, cx),
            Input::CryptoDone(id, result) => self.on_crypto_done(id, result, cx),
            Input::Drain => self.close(Cause::Drained, cx),
        }
        self.settle(cx);
    }

    /// The time that [`Session::poll_timeout`] asked for has come, or some other: early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant, cx: &mut Context<'_>) {
        self.now = now;
        if self.poll_timeout(cx.snapshot).is_none_or(|deadline| now < deadline) {
            return;
        }
        let settings = self.settings(cx.snapshot);
        match &self.phase {
            Phase::ProxyHeader | Phase::Handshaking | Phase::AwaitingCrypto(_) => {
                self.close(Cause::HandshakeTimeout, cx);
            }
            Phase::Connecting => self.upstream.leave(),
            Phase::AwaitingFirstByte | Phase::Relaying => {
                let stalled = |leg: &Leg| leg.stalls_at(settings).is_some_and(|at| at <= now);
                let too_old = self.age_ends_at(settings).is_some_and(|at| at <= now);
                let cause = if stalled(&self.upstream) {
                    Cause::WriteTimeout { upstream: true }
                } else if stalled(&self.downstream) {
                    Cause::WriteTimeout { upstream: false }
                } else if too_old && !self.aged {
                    self.retire(cx);
                    return self.settle(cx);
                } else if too_old {
                    Cause::ConnectionAge
                } else {
                    Cause::IdleTimeout
                };
                self.close(cause, cx);
            }
            Phase::Lingering(cause) => {
                let cause = cause.clone();
                self.close(cause, cx);
            }
            Phase::Closing(_) | Phase::Done => {}
        }
        self.settle(cx);
    }

    /// The next command, until there is none.
    pub fn poll_output(&mut self, cx: &mut Context<'_>) -> Option<Output> {
        for side in [Side::Downstream, Side::Upstream] {
            if self.leg_mut(side).take_cancel() {
                return Some(Output::Cancel(side));
            }
            if self.leg(side).is_ready_to_close() {
                return Some(self.close_leg(side, cx));
            }
        }
        if let Some(server) = self.connect.take_if(|_| self.upstream.socket == Socket::Absent) {
            self.upstream.socket = Socket::Open;
            self.upstream.connecting = true;
            self.server = Some(server);
            return Some(Output::Connect(server));
        }
        if let (Some(op), &Phase::AwaitingCrypto(id)) = (self.crypto.take(), &self.phase) {
            return Some(Output::Crypto(id, op));
        }
        for side in [Side::Downstream, Side::Upstream] {
            if self.wants_receive(side) {
                self.leg_mut(side).receive = Receive::Armed;
                return Some(Output::Receive(side));
            }
        }
        for side in [Side::Downstream, Side::Upstream] {
            if let Some(buffer) = self.next_send(side) {
                return Some(Output::Send(side, buffer));
            }
            if self.leg_mut(side).take_shutdown() {
                return Some(Output::ShutdownWrite(side));
            }
        }
        if self.is_gone()
            && let Phase::Closing(cause) = &self.phase
            && !active(Mutant::DoneMissing)
        {
            debug_assert!(
                self.downstream.outbox.queued() + self.upstream.outbox.queued() == 0,
                "invariant 7"
            );
            let cause = cause.clone();
            self.phase = Phase::Done;
            return Some(Output::Done(cause));
        }
        self.check_invariants();
        None
    }

    /// Whether bytes are held back because a receive is expected to bring more at once. Then call
    /// [`Session::end_of_turn`] after each turn of the worker, while this is so.
    #[must_use]
    pub fn holds_bytes(&self) -> bool {
        self.holds_for(Side::Downstream) || self.holds_for(Side::Upstream)
    }

    /// The worker has seen all that completed. A receive that should have completed by now does not hold bytes back any longer:
    /// a driver's word that more is there is a hint.
    pub fn end_of_turn(&mut self) {
        for leg in [&mut self.downstream, &mut self.upstream] {
            leg.more &= !leg.overdue || active(Mutant::HeldBytesForgotten);
            leg.overdue = true;
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self, snapshot: &Snapshot) -> Option<Instant> {
        let settings = self.settings(snapshot);
        match &self.phase {
            Phase::ProxyHeader | Phase::Handshaking | Phase::AwaitingCrypto(_) => {
                (!active(Mutant::HandshakeTimeoutNotArmed)).then(|| self.accepted_at + settings.handshake_timeout)
            }
            Phase::Connecting => {
                let waits = self.upstream.socket == Socket::Open && !active(Mutant::ConnectTimeoutNotArmed);
                waits.then_some(self.phase_deadline)
            }
            Phase::AwaitingFirstByte | Phase::Relaying => {
                let idle = (!active(Mutant::IdleTimeoutNotArmed)).then(|| self.active_at + settings.idle_timeout);
                let stalls = [self.downstream.stalls_at(settings), self.upstream.stalls_at(settings)];
                let age = self.age_ends_at(settings);
                stalls.into_iter().flatten().chain(idle).chain(age).min()
            }
            Phase::Lingering(_) => (!active(Mutant::LingerTimeoutNotArmed)).then_some(self.phase_deadline),
            Phase::Closing(_) | Phase::Done => None,
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Position of the listener in the session's snapshot.
    #[must_use]
    pub fn listener(&self) -> usize {
        self.listener
    }

    /// The server that was connected, or tried last.
    #[must_use]
    pub fn server(&self) -> Option<ServerId> {
        self.server
    }

    /// The client's address, by the PROXY header where there was one.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.endpoints.map(|endpoints| endpoints.peer)
    }

    /// The TLS of the session.
    #[must_use]
    pub fn tls(&self) -> &T {
        &self.tls
    }

    /// Plain bytes taken from the client, and given to it.
    #[must_use]
    pub fn relayed(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// Time since accept.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.now.saturating_duration_since(self.accepted_at)
    }
}
