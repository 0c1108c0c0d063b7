//! The client's bytes, from the PROXY header to the records of application data.

use super::{Context, Phase, Session};
use crate::address::Endpoints;
use crate::config::{ConnectOn, SendProxy};
use crate::crypto::OpId;
use crate::error::{Cause, HandshakeFailure};
use crate::identity::client_auth::ClientSubject;
use crate::limits::{HANDSHAKE_BYTES_MAX, PROXY_HEADER_BYTES_MAX};
use crate::metrics;
use crate::mutants::{Mutant, active};
use crate::proxy::leg::{Receive, Write};
use crate::proxy::proxy_protocol::{self, ClientInfo, Parsed, TlsInfo};
use crate::snapshot::Listener;
use crate::tls::records::missing;
use crate::tls::{Opened, Outboxes, Step, Tls, handshake};

impl<T: Tls> Session<T> {
    /// Takes bytes from the client, behind those that wait in the inbox.
    pub(super) fn take_in(&mut self, mut bytes: &mut [u8], cx: &mut Context<'_>) {
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

    pub(super) fn carries_data(&self) -> bool {
        matches!(
            self.phase,
            Phase::AwaitingFirstByte | Phase::Connecting | Phase::Relaying
        )
    }

    /// Uses up as many bytes as the phase can, through as many phases as they carry it; returns how many.
    pub(super) fn consume(&mut self, bytes: &mut [u8], cx: &mut Context<'_>) -> usize {
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
    pub(super) fn open(&mut self, start: usize, bytes: &[u8], cx: &mut Context<'_>) -> usize {
        let before = self.upstream.outbox.queued();
        let mut outboxes = Outboxes {
            plain: &mut self.upstream.outbox,
            sealed: &mut self.downstream.outbox,
            pool: cx.pool,
        };
        let (used, opened) = self.tls.open(self.now, &bytes[start..], &mut outboxes);
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

    pub(super) fn on_close_notify(&mut self, cx: &mut Context<'_>) {
        if !active(Mutant::WriteAfterShutdown) {
            self.downstream.receive = Receive::Ended;
        }
        self.upstream.finish();
        if self.phase == Phase::AwaitingFirstByte && self.received == 0 {
            self.tls.close_notify(&mut self.downstream.outbox.sink(cx.pool));
            self.linger(Cause::Finished, cx);
        }
    }

    pub(super) fn fail_handshake(&mut self, failure: HandshakeFailure, cx: &mut Context<'_>) {
        cx.metrics.handshake_failures[failure.index()].add(1);
        if let HandshakeFailure::ClientCertificate(reason, _) = &failure {
            cx.metrics.clients_refused[*reason as usize].add(1);
        }
        self.linger(Cause::Handshake(failure), cx);
    }

    pub(super) fn on_established(&mut self, cx: &mut Context<'_>) {
        if let Some(kind) = self.tls.negotiated() {
            cx.metrics.handshakes(kind).add(1);
        }
        cx.metrics.count_resumptions(self.tls.resumptions());
        let listener: &Listener = &cx.snapshot.listeners[self.listener];
        self.upstream_id = listener.route(self.tls.server_name());
        let upstream = &cx.snapshot.upstreams[self.upstream_id.0].settings;
        self.active_at = self.now;
        let chain = self.tls.take_client_certificates();
        let certificate = chain.first();
        self.client = certificate.and_then(ClientSubject::of).map(Box::new);
        self.queue_proxy_header(upstream.send_proxy, certificate.map(AsRef::as_ref), cx);
        if listener.admission(self.tls.server_name()).closes_revoked() {
            self.client_chain = chain;
        }
        match upstream.connect_on {
            ConnectOn::Handshake => self.connect_upstream(cx),
            ConnectOn::FirstByte => self.phase = Phase::AwaitingFirstByte,
        }
    }

    fn queue_proxy_header(&mut self, version: SendProxy, certificate: Option<&[u8]>, cx: &mut Context<'_>) {
        let Some(Endpoints { peer, local }) = self.endpoints else {
            return;
        };
        let mut header = Vec::new();
        match version {
            SendProxy::Off => return,
            SendProxy::V1 => proxy_protocol::write_v1(peer, local, &mut header),
            SendProxy::V2 { certificates } => {
                let negotiated = self.tls.negotiated();
                let resumed = negotiated.is_some_and(|kind| kind.resumption != 0);
                let client = certificate.map(|certificate| ClientInfo {
                    shown_now: !resumed,
                    common_name: self.client.as_ref().and_then(|client| client.common_name()),
                    certificate: certificates.then_some(certificate),
                });
                let suite = negotiated.map(|kind| handshake::SUITES[usize::from(kind.suite)]);
                let tls = TlsInfo {
                    alpn: self.tls.alpn(),
                    authority: self.tls.server_name(),
                    version: negotiated.map_or("TLSv1.3", |kind| match metrics::VERSIONS[usize::from(kind.version)] {
                        "1.2" => "TLSv1.2",
                        _ => "TLSv1.3",
                    }),
                    cipher: suite.and_then(proxy_protocol::openssl_cipher_name).unwrap_or(""),
                    client,
                };
                if !proxy_protocol::write_v2(peer, local, &tls, &mut header) {
                    cx.metrics.proxy_certificates_left_out.add(1);
                }
            }
        }
        self.upstream.outbox.sink(cx.pool).write(&header);
    }
}
