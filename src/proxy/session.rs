//! One client connection as a pure state machine: bytes, time and results in, commands out.
//!
//! After each [`Session::handle`] or [`Session::handle_timeout`] drain [`Session::poll_output`] to `None`, then arm [`Session::poll_timeout`].
//! Commands follow from the state, they are not queued: nothing can be forgotten in a queue, and an idle session holds none.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::leg::{Leg, Receive, Socket, Write};
use super::proxy_protocol::{self, Parsed, TlsInfo};
use super::upstream::{Balancer, ServerId, Tried};
use crate::address::Endpoints;
use crate::buffers::{SendBuffer, SendPool};
use crate::config::{self, ConnectOn, SendProxy, UpstreamId};
use crate::crypto::{CryptoOp, CryptoResult, OpId};
use crate::error::{Cause, HandshakeFailure, IoError};
use crate::limits::{HANDSHAKE_BYTES_MAX, HIGH_WATER_BYTES, LINGER_BYTES_MAX, PROXY_HEADER_BYTES_MAX};
use crate::metrics::{self, WorkerMetrics};
use crate::mutants::{Mutant, active};
use crate::snapshot::{Listener, Snapshot};
use crate::tls::records::missing;
use crate::tls::{Opened, Outboxes, Step, Tls, handshake};

/// One of the two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's: TLS.
    Downstream,
    /// The server's: plain.
    Upstream,
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
    /// Of the phases that have a deadline of their own: Connecting and Lingering.
    phase_deadline: Instant,
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
                let cause = if stalled(&self.upstream) {
                    Cause::WriteTimeout { upstream: true }
                } else if stalled(&self.downstream) {
                    Cause::WriteTimeout { upstream: false }
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
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Closing(cause) if self.is_gone() && !active(Mutant::DoneMissing) => {
                debug_assert!(
                    self.downstream.outbox.queued() + self.upstream.outbox.queued() == 0,
                    "invariant 7"
                );
                Some(Output::Done(cause))
            }
            phase => {
                self.phase = phase;
                self.check_invariants();
                None
            }
        }
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
                stalls.into_iter().flatten().chain(idle).min()
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

/// Inputs, one by one.
impl<T: Tls> Session<T> {
    fn on_received(&mut self, side: Side, bytes: &mut [u8], more: bool, cx: &mut Context<'_>) {
        let counter = match side {
            Side::Downstream => &cx.metrics.downstream_received,
            Side::Upstream => &cx.metrics.upstream_received,
        };
        counter.add(bytes.len() as u64);
        let leg = self.leg_mut(side);
        leg.receive = if bytes.is_empty() {
            Receive::Ended
        } else {
            Receive::Idle
        };
        leg.more = more;
        leg.overdue = false;
        self.active_at = self.now;
        self.heard |= side == Side::Downstream && !bytes.is_empty();
        match (&self.phase, side) {
            (Phase::Closing(_) | Phase::Done, _) | (Phase::Lingering(_), Side::Upstream) => {}
            (Phase::Lingering(_), Side::Downstream) => self.lingered += bytes.len(),
            (_, Side::Downstream) if bytes.is_empty() => self.on_downstream_end(cx),
            (_, Side::Downstream) => self.take_in(bytes, cx),
            (_, Side::Upstream) if bytes.is_empty() => self.on_upstream_end(cx),
            (_, Side::Upstream) => {
                if active(Mutant::BytesOutOfOrder) {
                    bytes.rotate_left(1);
                }
                self.tls.seal(bytes, &mut self.downstream.outbox.sink(cx.pool));
                self.sent += bytes.len() as u64;
            }
        }
    }

    /// The client's TCP stream ended, without a close_notify (after one nothing is received any more).
    fn on_downstream_end(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::ProxyHeader | Phase::Handshaking | Phase::AwaitingCrypto(_) => {
                self.close(
                    if self.heard {
                        Cause::ClosedInHandshake
                    } else {
                        Cause::ClosedBeforeHello
                    },
                    cx,
                );
            }
            Phase::Relaying if self.upstream.receive == Receive::Ended => {}
            Phase::Relaying if active(Mutant::TruncationPassedAsEnd) => self.upstream.finish(),
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying => self.linger(Cause::Truncated, cx),
            Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => {}
        }
    }

    fn on_upstream_end(&mut self, cx: &mut Context<'_>) {
        if self.upstream.write == Write::Failed {
            return self.linger(Cause::UpstreamReset, cx);
        }
        if !active(Mutant::CloseNotifyMissing) {
            self.tls.close_notify(&mut self.downstream.outbox.sink(cx.pool));
        }
        self.downstream.finish();
    }

    fn on_receive_failed(&mut self, side: Side, _error: IoError, cx: &mut Context<'_>) {
        let leg = self.leg_mut(side);
        leg.receive = Receive::Ended;
        if leg.socket != Socket::Open {
            return;
        }
        match side {
            Side::Downstream => self.on_downstream_lost(cx),
            Side::Upstream => match &self.phase {
                Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => {}
                Phase::ProxyHeader
                | Phase::Handshaking
                | Phase::AwaitingCrypto(_)
                | Phase::AwaitingFirstByte
                | Phase::Connecting
                | Phase::Relaying => self.linger(Cause::UpstreamReset, cx),
            },
        }
    }

    /// Nothing more comes from the client or reaches it.
    fn on_downstream_lost(&mut self, cx: &mut Context<'_>) {
        self.downstream.receive = match self.downstream.receive {
            Receive::Armed => Receive::Armed,
            Receive::Idle | Receive::Ended => Receive::Ended,
        };
        self.downstream.write = Write::Failed;
        self.downstream.outbox.clear(cx.pool);
        match &self.phase {
            Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => {}
            // All was said; the client did not wait for our end.
            Phase::Relaying if self.upstream.receive == Receive::Ended && self.sent_everything() => {
                self.close(Cause::Finished, cx);
            }
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying => self.linger(Cause::PeerReset, cx),
            Phase::ProxyHeader | Phase::Handshaking | Phase::AwaitingCrypto(_) => self.close(Cause::PeerReset, cx),
        }
    }

    fn on_sent(&mut self, side: Side, buffer: SendBuffer, result: Result<usize, IoError>, cx: &mut Context<'_>) {
        let leg = match side {
            Side::Downstream => &mut self.downstream,
            Side::Upstream => &mut self.upstream,
        };
        leg.send_ended();
        leg.outbox.returned(buffer, result.unwrap_or(0), cx.pool);
        match (result, side) {
            (Ok(sent), _) => {
                let counter = match side {
                    Side::Downstream => &cx.metrics.downstream_sent,
                    Side::Upstream => &cx.metrics.upstream_sent,
                };
                counter.add(sent as u64);
                self.active_at = self.now;
            }
            (Err(_), _) if self.leg(side).socket != Socket::Open => {}
            (Err(_), Side::Downstream) => self.on_downstream_lost(cx),
            // The server may have answered before it stopped reading: the answer is still relayed.
            (Err(_), Side::Upstream) => {
                self.upstream.write = Write::Failed;
                self.upstream.outbox.clear(cx.pool);
                if self.upstream.receive == Receive::Ended {
                    self.linger(Cause::UpstreamReset, cx);
                }
            }
        }
        if matches!(self.phase, Phase::Closing(_)) && !active(Mutant::BufferLeakedWhileClosing) {
            self.leg_mut(side).outbox.clear(cx.pool);
        }
    }

    fn on_connected(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
        let server = self.server.expect("a connection attempt has a server");
        self.upstream.connecting = false;
        let in_time = self.upstream.socket == Socket::Open;
        match (&self.phase, result) {
            (Phase::Connecting, Ok(())) if in_time => {
                cx.balancer.connected(server);
                self.counted = true;
                self.phase = Phase::Relaying;
                self.active_at = self.now;
            }
            (Phase::Connecting, Ok(()) | Err(_)) => {
                self.upstream.leave();
                cx.balancer.connect_failed(server, self.now);
                if active(Mutant::NextServerNotTried) {
                    return self.linger(Cause::UpstreamUnreachable, cx);
                }
                self.choose_server(cx);
            }
            (_, Ok(()) | Err(_)) => {
                self.upstream.leave();
                cx.balancer.abandoned(server);
            }
        }
    }

    fn on_crypto_done(&mut self, id: OpId, result: CryptoResult, cx: &mut Context<'_>) {
        if self.phase != Phase::AwaitingCrypto(id) && !active(Mutant::StaleCryptoResult) {
            return;
        }
        self.phase = Phase::Handshaking;
        self.tls.crypto_done(result);
        self.take_in(&mut [], cx);
    }
}

/// The client's bytes.
impl<T: Tls> Session<T> {
    /// Takes bytes from the client, behind those that wait in the inbox.
    fn take_in(&mut self, mut bytes: &mut [u8], cx: &mut Context<'_>) {
        // While data flows a record that was cut is completed by just its missing bytes, so that the rest is not copied.
        while self.carries_data() && !self.inbox.is_empty() && !bytes.is_empty() {
            let (now, later) = bytes.split_at_mut(missing(&self.inbox).min(bytes.len()));
            self.inbox.extend_from_slice(now);
            bytes = later;
            if missing(&self.inbox) == 0 {
                let mut inbox = std::mem::take(&mut self.inbox);
                let used = self.consume(&mut inbox, cx);
                debug_assert!(used == inbox.len() || !self.carries_data(), "a whole record is used up");
                if self.downstream.receive == Receive::Ended {
                    // RFC 8446 section 6.1: what follows a close_notify is ignored.
                    return;
                }
            }
        }
        if self.inbox.is_empty() {
            let used = self.consume(bytes, cx);
            self.inbox.extend_from_slice(&bytes[used..]);
            return;
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.extend_from_slice(bytes);
        let used = self.consume(&mut inbox, cx);
        if used < inbox.len() {
            inbox.drain(..used);
            self.inbox = inbox;
        }
        if self.inbox.len() > HANDSHAKE_BYTES_MAX {
            self.fail_handshake(HandshakeFailure::HelloTooLarge, cx);
        }
    }

    fn carries_data(&self) -> bool {
        matches!(
            self.phase,
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying
        )
    }

    /// Uses up as many bytes as the phase can, through as many phases as they carry it; returns how many.
    fn consume(&mut self, bytes: &mut [u8], cx: &mut Context<'_>) -> usize {
        let mut used = 0;
        loop {
            let rest = &mut bytes[used..];
            match &self.phase {
                Phase::ProxyHeader => match proxy_protocol::parse(rest) {
                    Parsed::NeedMore if rest.len() > PROXY_HEADER_BYTES_MAX => {
                        self.close(Cause::ProxyHeader("longer than expected"), cx);
                    }
                    Parsed::NeedMore => return used,
                    Parsed::Complete {
                        consumed,
                        source,
                        destination,
                    } => {
                        used += consumed;
                        if let (Some(peer), Some(local)) = (source, destination) {
                            self.endpoints = Some(Endpoints { peer, local });
                        }
                        self.phase = Phase::Handshaking;
                    }
                    Parsed::Invalid(why) => self.close(Cause::ProxyHeader(why), cx),
                },
                Phase::Handshaking => {
                    let mut outboxes = Outboxes {
                        plain: &mut self.upstream.outbox,
                        sealed: &mut self.downstream.outbox,
                        pool: cx.pool,
                    };
                    let (n, step) = self.tls.handshake(rest, &mut outboxes);
                    used += n;
                    match step {
                        Step::NeedsInput => return used,
                        Step::Crypto(op) => {
                            self.next_op = self.next_op.wrapping_add(1);
                            self.phase = Phase::AwaitingCrypto(OpId(self.next_op));
                            self.crypto = Some(op);
                        }
                        Step::Established => self.on_established(cx),
                        Step::Failed(failure) => self.fail_handshake(failure, cx),
                    }
                }
                Phase::AwaitingCrypto(_) => return used,
                Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying => {
                    return used + self.open(used, bytes, cx);
                }
                Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => return bytes.len(),
            }
        }
    }

    /// Opens records and queues what they say for the upstream.
    fn open(&mut self, start: usize, bytes: &mut [u8], cx: &mut Context<'_>) -> usize {
        let before = self.upstream.outbox.queued();
        let mut outboxes = Outboxes {
            plain: &mut self.upstream.outbox,
            sealed: &mut self.downstream.outbox,
            pool: cx.pool,
        };
        let (used, opened) = self.tls.open(self.now, &mut bytes[start..], &mut outboxes);
        let gained = self.upstream.outbox.queued() - before;
        self.received += gained as u64;
        if self.upstream.write == Write::Failed {
            self.upstream.outbox.clear(cx.pool);
        }
        match opened {
            Opened::Open => {}
            Opened::Closed => self.on_close_notify(cx),
            Opened::Failed(cause) => {
                self.linger(cause, cx);
                return bytes.len() - start;
            }
        }
        if gained > 0 && self.phase == Phase::AwaitingFirstByte {
            self.connect_upstream(cx);
        }
        used
    }

    fn on_close_notify(&mut self, cx: &mut Context<'_>) {
        if !active(Mutant::WriteAfterShutdown) {
            self.downstream.receive = Receive::Ended;
        }
        self.upstream.finish();
        if self.phase == Phase::AwaitingFirstByte && self.received == 0 {
            self.tls.close_notify(&mut self.downstream.outbox.sink(cx.pool));
            self.linger(Cause::Finished, cx);
        }
    }

    fn fail_handshake(&mut self, failure: HandshakeFailure, cx: &mut Context<'_>) {
        cx.metrics.handshake_failures[failure.index()].add(1);
        self.linger(Cause::Handshake(failure), cx);
    }

    fn on_established(&mut self, cx: &mut Context<'_>) {
        if let Some(kind) = self.tls.negotiated() {
            cx.metrics.handshakes(kind).add(1);
        }
        let listener: &Listener = &cx.snapshot.listeners[self.listener];
        self.upstream_id = listener.route(self.tls.server_name());
        let upstream = &cx.snapshot.upstreams[self.upstream_id.0].settings;
        self.active_at = self.now;
        self.queue_proxy_header(upstream.send_proxy, cx);
        match upstream.connect_on {
            ConnectOn::Handshake => self.connect_upstream(cx),
            ConnectOn::FirstByte => self.phase = Phase::AwaitingFirstByte,
        }
    }

    fn queue_proxy_header(&mut self, version: SendProxy, cx: &mut Context<'_>) {
        let Some(Endpoints { peer, local }) = self.endpoints else {
            return;
        };
        let mut header = Vec::new();
        match version {
            SendProxy::Off => return,
            SendProxy::V1 => proxy_protocol::write_v1(peer, local, &mut header),
            SendProxy::V2 => {
                let negotiated = self.tls.negotiated();
                let suite = negotiated.map(|kind| handshake::SUITES[usize::from(kind.suite)]);
                let tls = TlsInfo {
                    alpn: self.tls.alpn(),
                    authority: self.tls.server_name(),
                    version: negotiated.map_or("TLSv1.3", |kind| match metrics::VERSIONS[usize::from(kind.version)] {
                        "1.2" => "TLSv1.2",
                        _ => "TLSv1.3",
                    }),
                    cipher: suite.and_then(proxy_protocol::openssl_cipher_name).unwrap_or(""),
                };
                proxy_protocol::write_v2(peer, local, &tls, &mut header);
            }
        }
        self.upstream.outbox.sink(cx.pool).write(&header);
    }
}

/// The ways forward.
impl<T: Tls> Session<T> {
    fn connect_upstream(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Connecting;
        self.choose_server(cx);
    }

    fn choose_server(&mut self, cx: &mut Context<'_>) {
        self.connect = cx.balancer.choose(self.upstream_id, &mut self.tried, self.now);
        self.phase_deadline = self.now + cx.snapshot.upstreams[self.upstream_id.0].settings.connect_timeout;
        if self.connect.is_none() {
            self.linger(Cause::UpstreamUnreachable, cx);
        }
    }

    /// Ends the session, but sends what is queued first and gives the client time to read it.
    fn linger(&mut self, cause: Cause, cx: &mut Context<'_>) {
        self.phase_deadline = self.now + self.settings(cx.snapshot).linger_timeout;
        self.downstream.finish();
        if self.upstream.connecting {
            self.upstream.leave();
        }
        self.give_back_chosen(cx);
        self.phase = Phase::Lingering(cause);
    }

    /// Ends the session at once: what is queued is lost.
    fn close(&mut self, cause: Cause, cx: &mut Context<'_>) {
        if matches!(self.phase, Phase::Closing(_) | Phase::Done) {
            return;
        }
        self.give_back_chosen(cx);
        for side in [Side::Downstream, Side::Upstream] {
            let leg = self.leg_mut(side);
            leg.finish_by_close();
            leg.outbox.clear(cx.pool);
            leg.leave();
        }
        self.crypto = None;
        self.inbox = Vec::new();
        self.phase = Phase::Closing(cause);
    }

    /// A server that was chosen and not connected to is no attempt of its own.
    fn give_back_chosen(&mut self, cx: &mut Context<'_>) {
        if let Some(server) = self.connect.take() {
            cx.balancer.abandoned(server);
        }
    }

    /// Moves on when the last thing that a phase waited for has happened.
    fn settle(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::Relaying => {
                let ended = self.downstream.receive == Receive::Ended && self.upstream.receive == Receive::Ended;
                if ended && self.sent_everything() {
                    self.close(Cause::Finished, cx);
                }
            }
            Phase::Lingering(cause) => {
                let heard = self.downstream.receive == Receive::Ended
                    || self.downstream.write == Write::Failed
                    || self.lingered > LINGER_BYTES_MAX;
                if heard && self.sent_everything() {
                    let cause = cause.clone();
                    self.close(cause, cx);
                }
            }
            Phase::ProxyHeader
            | Phase::Handshaking
            | Phase::AwaitingCrypto(_)
            | Phase::AwaitingFirstByte
            | Phase::Connecting
            | Phase::Closing(_)
            | Phase::Done => {}
        }
    }

    fn sent_everything(&self) -> bool {
        let upstream_open = self.upstream.is_connected();
        self.downstream.outbox.queued() == 0 && (self.upstream.outbox.queued() == 0 || !upstream_open)
    }

    fn wants_receive(&self, side: Side) -> bool {
        let (leg, other) = match side {
            Side::Downstream => (&self.downstream, &self.upstream),
            Side::Upstream => (&self.upstream, &self.downstream),
        };
        let room = other.outbox.queued() < HIGH_WATER_BYTES || active(Mutant::NoBackpressure);
        leg.is_connected()
            && (leg.receive == Receive::Idle || leg.receive == Receive::Armed && active(Mutant::ReceiveArmedTwice))
            && match (&self.phase, side) {
                (Phase::ProxyHeader | Phase::Handshaking | Phase::Lingering(_), Side::Downstream) => true,
                (Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying, _) => room,
                (Phase::ProxyHeader | Phase::Handshaking | Phase::Lingering(_), Side::Upstream)
                | (Phase::AwaitingCrypto(_) | Phase::Closing(_) | Phase::Done, _) => false,
            }
    }

    /// The next buffer for this side, unless more is about to be gathered into it: bytes per send decide the throughput.
    fn next_send(&mut self, side: Side) -> Option<SendBuffer> {
        if self.holds_for(side) {
            return None;
        }
        let now = self.now;
        self.leg_mut(side).take_send(now)
    }

    /// Bytes for this side wait for those that the other side is about to bring.
    fn holds_for(&self, side: Side) -> bool {
        let (leg, other) = match side {
            Side::Downstream => (&self.downstream, &self.upstream),
            Side::Upstream => (&self.upstream, &self.downstream),
        };
        let more = other.more && other.receive == Receive::Armed && self.phase == Phase::Relaying;
        more && (1..HIGH_WATER_BYTES).contains(&leg.outbox.ready())
    }

    fn close_leg(&mut self, side: Side, cx: &mut Context<'_>) -> Output {
        let reset = match (&self.phase, side) {
            // The server must be able to tell a stream that was cut off, for whatever reason, from one that ended.
            (Phase::Closing(cause), Side::Upstream) => {
                let cut_off = *cause != Cause::Finished && self.upstream.write != Write::Finished;
                self.counted && cut_off && !active(Mutant::ResetNotPassedOn)
            }
            (Phase::Closing(Cause::WriteTimeout { .. }), Side::Downstream) => true,
            (_, _) => false,
        };
        self.leg_mut(side).socket = Socket::Absent;
        if side == Side::Upstream && std::mem::take(&mut self.counted) && !active(Mutant::ServerCountKept) {
            cx.balancer
                .released(self.server.expect("a counted connection has a server"));
        }
        Output::Close { side, reset }
    }

    fn is_gone(&self) -> bool {
        self.downstream.socket == Socket::Absent && self.upstream.socket == Socket::Absent
    }

    fn settings<'a>(&self, snapshot: &'a Snapshot) -> &'a config::Listener {
        snapshot.listeners[self.listener].settings()
    }

    fn leg(&self, side: Side) -> &Leg {
        match side {
            Side::Downstream => &self.downstream,
            Side::Upstream => &self.upstream,
        }
    }

    fn leg_mut(&mut self, side: Side) -> &mut Leg {
        match side {
            Side::Downstream => &mut self.downstream,
            Side::Upstream => &mut self.upstream,
        }
    }

    /// Holds whenever all commands have been drained.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            let bound = HIGH_WATER_BYTES + HIGH_WATER_BYTES / 2;
            assert!(
                self.downstream.outbox.queued() <= bound,
                "backpressure bounds what is queued for the client"
            );
            assert!(
                self.upstream.outbox.queued() <= bound,
                "backpressure bounds what is queued for the server"
            );
            if let Phase::AwaitingCrypto(_) = self.phase {
                assert!(self.downstream.receive != Receive::Armed, "invariant 5");
            }
            if let Phase::Done = self.phase {
                assert!(self.is_gone(), "invariant 7");
            }
        }
    }
}
