//! The ways on: towards a server, and to the end.

use std::time::Instant;

use super::{Context, Output, Phase, Session, Side};
use crate::buffers::SendBuffer;
use crate::config;
use crate::error::Cause;
use crate::limits::{HIGH_WATER_BYTES, LINGER_BYTES_MAX, POOL_CLASS_BYTES};
use crate::mutants::{Mutant, active};
use crate::proxy::leg::{Leg, Receive, Socket, Write};
use crate::snapshot::Snapshot;
use crate::tls::Tls;
impl<T: Tls> Session<T> {
    pub(super) fn connect_upstream(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Connecting;
        self.choose_server(Cause::UpstreamUnreachable, cx);
    }

    /// Connects to the next server; where none is left, the session ends for this cause.
    pub(super) fn choose_server(&mut self, otherwise: Cause, cx: &mut Context<'_>) {
        self.connect = cx.balancer.choose(self.upstream_id, &mut self.tried, self.now);
        self.phase_deadline = self.now + cx.snapshot.upstreams[self.upstream_id.0].settings.connect_timeout;
        if self.connect.is_none() {
            self.linger(otherwise, cx);
        }
    }

    /// Ends the session, but sends what is queued first and gives the client time to read it.
    pub(super) fn linger(&mut self, cause: Cause, cx: &mut Context<'_>) {
        self.phase_deadline = self.now + self.settings(cx.snapshot).linger_timeout;
        self.downstream.finish();
        if self.upstream.connecting {
            self.upstream.leave();
        }
        self.give_back_chosen(cx);
        self.phase = Phase::Lingering(cause);
    }

    /// When the connection's age is to be acted upon; none when it does not matter.
    pub(super) fn age_ends_at(&self, settings: &config::Listener) -> Option<Instant> {
        if self.aged {
            return Some(self.phase_deadline);
        }
        let max = settings
            .connection_age_max
            .filter(|_| !active(Mutant::ConnectionAgeNotArmed))?;
        // Clients that have come together, as after a restart, are not to come again together: the ports of clients spread well.
        let thousandths = self
            .endpoints
            .map_or(0, |endpoints| u32::from(endpoints.peer.port()) % 101);
        Some(self.accepted_at + max / 1000 * (1000 - thousandths))
    }

    /// The connection is as old as it may get. The client hears that nothing more comes, and has its time to end its stream: only then
    /// is the server told that it has ended. A client that does not answer has its stream cut off.
    pub(super) fn retire(&mut self, cx: &mut Context<'_>) {
        if self.downstream.write == Write::Open {
            self.tls.close_notify(&mut self.downstream.outbox.sink(cx.pool));
        }
        if self.phase == Phase::AwaitingFirstByte {
            return self.linger(Cause::ConnectionAge, cx);
        }
        self.aged = true;
        self.downstream.finish();
        self.phase_deadline = self.now + self.settings(cx.snapshot).linger_timeout;
    }

    /// Nothing more comes from the server, or it is not passed on.
    pub(super) fn answered(&self) -> bool {
        self.upstream.receive == Receive::Ended || self.aged
    }

    /// Why a session has ended both of whose directions have.
    pub(super) fn ended(&self) -> Cause {
        if self.aged {
            Cause::ConnectionAge
        } else {
            Cause::Finished
        }
    }

    /// Ends the session at once: what is queued is lost.
    pub(super) fn close(&mut self, cause: Cause, cx: &mut Context<'_>) {
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
    pub(super) fn give_back_chosen(&mut self, cx: &mut Context<'_>) {
        if let Some(server) = self.connect.take() {
            cx.balancer.abandoned(server);
        }
    }

    /// Moves on when the last thing that a phase waited for has happened.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::Relaying => {
                if self.downstream.receive == Receive::Ended && self.answered() && self.sent_everything() {
                    self.close(self.ended(), cx);
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

    pub(super) fn sent_everything(&self) -> bool {
        let upstream_open = self.upstream.is_connected();
        self.downstream.outbox.queued() == 0 && (self.upstream.outbox.queued() == 0 || !upstream_open)
    }

    pub(super) fn wants_receive(&self, side: Side) -> bool {
        let (leg, other) = match side {
            Side::Downstream => (&self.downstream, &self.upstream),
            Side::Upstream => (&self.upstream, &self.downstream),
        };
        let room = other.outbox.queued() < HIGH_WATER_BYTES || active(Mutant::NoBackpressure);
        leg.is_connected()
            && (leg.receive == Receive::Idle || leg.receive == Receive::Armed && active(Mutant::ReceiveArmedTwice))
            && match (&self.phase, side) {
                (Phase::ProxyHeader | Phase::Handshaking | Phase::Lingering(_), Side::Downstream) => true,
                (Phase::Relaying, Side::Upstream) => room && !self.aged,
                (Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying, _) => room,
                (Phase::ProxyHeader | Phase::Handshaking | Phase::Lingering(_), Side::Upstream)
                | (Phase::AwaitingCrypto(_) | Phase::Closing(_) | Phase::Done, _) => false,
            }
    }

    /// The next buffer for this side, unless more is about to be gathered into it: bytes per send decide the throughput.
    pub(super) fn next_send(&mut self, side: Side) -> Option<SendBuffer> {
        if self.holds_for(side) {
            return None;
        }
        let now = self.now;
        self.leg_mut(side).take_send(now)
    }

    /// Bytes for this side wait for those that the other side is about to bring.
    pub(super) fn holds_for(&self, side: Side) -> bool {
        let (leg, other) = match side {
            Side::Downstream => (&self.downstream, &self.upstream),
            Side::Upstream => (&self.upstream, &self.downstream),
        };
        let more = other.more && other.receive == Receive::Armed && self.phase == Phase::Relaying;
        more && (1..HIGH_WATER_BYTES).contains(&leg.outbox.ready())
    }

    pub(super) fn close_leg(&mut self, side: Side, cx: &mut Context<'_>) -> Output {
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

    pub(super) fn is_gone(&self) -> bool {
        self.downstream.socket == Socket::Absent && self.upstream.socket == Socket::Absent
    }

    pub(super) fn settings<'a>(&self, snapshot: &'a Snapshot) -> &'a config::Listener {
        snapshot.listeners[self.listener].settings()
    }

    pub(super) fn leg(&self, side: Side) -> &Leg {
        match side {
            Side::Downstream => &self.downstream,
            Side::Upstream => &self.upstream,
        }
    }

    pub(super) fn leg_mut(&mut self, side: Side) -> &mut Leg {
        match side {
            Side::Downstream => &mut self.downstream,
            Side::Upstream => &mut self.upstream,
        }
    }

    /// Holds whenever all commands have been drained.
    pub(super) fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            let bound = POOL_CLASS_BYTES[POOL_CLASS_BYTES.len() - 1];
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
