//! What happens to a session, one input after another.

use super::{Context, Phase, Session, Side};
use crate::buffers::SendBuffer;
use crate::crypto::{CryptoResult, OpId};
use crate::error::{Cause, IoError};
use crate::mutants::{Mutant, active};
use crate::proxy::leg::{Receive, Socket, Write};
use crate::tls::Tls;
impl<T: Tls> Session<T> {
    pub(super) fn on_received(&mut self, side: Side, bytes: &mut [u8], more: bool, cx: &mut Context<'_>) {
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
        self.leg_mut(side.other()).outbox.expect(bytes.len());
        self.active_at = self.now;
        self.heard |= side == Side::Downstream && !bytes.is_empty();
        match (&self.phase, side) {
            (Phase::Closing(_) | Phase::Done, _) | (Phase::Lingering(_), Side::Upstream) => {}
            (Phase::Lingering(_), Side::Downstream) => self.lingered += bytes.len(),
            (_, Side::Downstream) if bytes.is_empty() => self.on_downstream_end(cx),
            (_, Side::Downstream) => self.take_in(bytes, cx),
            // The client has been told that nothing more comes.
            (_, Side::Upstream) if self.aged => {}
            (_, Side::Upstream) if bytes.is_empty() => self.on_upstream_end(cx),
            (_, Side::Upstream) => {
                if active(Mutant::BytesOutOfOrder) {
                    bytes.rotate_left(1);
                }
                self.sent += bytes.len() as u64;
                if let Err(cause) = self.tls.seal(bytes, &mut self.downstream.outbox.sink(cx.pool)) {
                    self.linger(cause, cx);
                }
            }
        }
    }

    /// The client's TCP stream ended, without a close_notify (after one nothing is received any more).
    pub(super) fn on_downstream_end(&mut self, cx: &mut Context<'_>) {
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
            Phase::Relaying if self.aged => self.upstream.finish(),
            Phase::Relaying if self.upstream.receive == Receive::Ended => {}
            Phase::Relaying if active(Mutant::TruncationPassedAsEnd) => self.upstream.finish(),
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying => self.linger(Cause::Truncated, cx),
            Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => {}
        }
    }

    pub(super) fn on_upstream_end(&mut self, cx: &mut Context<'_>) {
        if self.upstream.write == Write::Failed {
            return self.linger(Cause::UpstreamReset, cx);
        }
        if !active(Mutant::CloseNotifyMissing) {
            self.tls.close_notify(&mut self.downstream.outbox.sink(cx.pool));
        }
        self.downstream.finish();
    }

    pub(super) fn on_receive_failed(&mut self, side: Side, _error: IoError, cx: &mut Context<'_>) {
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
    pub(super) fn on_downstream_lost(&mut self, cx: &mut Context<'_>) {
        self.downstream.receive = match self.downstream.receive {
            Receive::Armed => Receive::Armed,
            Receive::Idle | Receive::Ended => Receive::Ended,
        };
        self.downstream.write = Write::Failed;
        self.downstream.outbox.clear(cx.pool);
        match &self.phase {
            Phase::Lingering(_) | Phase::Closing(_) | Phase::Done => {}
            // All was said; the client did not wait for our end.
            Phase::Relaying if self.answered() && self.sent_everything() => {
                self.close(self.ended(), cx);
            }
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying => self.linger(Cause::PeerReset, cx),
            Phase::ProxyHeader | Phase::Handshaking | Phase::AwaitingCrypto(_) => self.close(Cause::PeerReset, cx),
        }
    }

    pub(super) fn on_sent(
        &mut self,
        side: Side,
        buffer: SendBuffer,
        result: Result<usize, IoError>,
        cx: &mut Context<'_>,
    ) {
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

    pub(super) fn on_connected(&mut self, result: Result<(), IoError>, cx: &mut Context<'_>) {
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
            (Phase::Connecting, _) => {
                self.upstream.leave();
                let cause = if result.is_err_and(IoError::is_exhaustion) {
                    cx.balancer.abandoned(server);
                    Cause::Exhausted
                } else {
                    cx.balancer.connect_failed(server, self.now);
                    Cause::UpstreamUnreachable
                };
                if active(Mutant::NextServerNotTried) {
                    return self.linger(cause, cx);
                }
                self.choose_server(cause, cx);
            }
            (_, Ok(()) | Err(_)) => {
                self.upstream.leave();
                cx.balancer.abandoned(server);
            }
        }
    }

    pub(super) fn on_crypto_done(&mut self, id: OpId, result: CryptoResult, cx: &mut Context<'_>) {
        if self.phase != Phase::AwaitingCrypto(id) && !active(Mutant::StaleCryptoResult) {
            return;
        }
        self.phase = Phase::Handshaking;
        self.tls.crypto_done(result);
        self.take_in(&mut [], cx);
    }
}
