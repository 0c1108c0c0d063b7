//! A session between a client in memory and a kernel that takes and brings everything at once.

use std::time::{Duration, Instant};

use ringlock::buffers::{SendBuffer, SendPool};
use ringlock::crypto::inline;
use ringlock::limits::RECEIVE_BYTES_MAX;
use ringlock::metrics::WorkerMetrics;
use ringlock::proxy::session::{Context, Input, Output, Session, Side};
use ringlock::proxy::upstream::{Balancer, GroupDescription};
use ringlock::snapshot::Snapshot;
use ringlock::tls::handshake::Connection;
use rustls::ClientConnection;

use super::cpu::timed;
use super::records::incoming;
use super::tls::{FLIGHTS_MAX, deliver, flight};

/// A session that is relaying, and what its worker would lend it. The kernel takes and brings everything at once.
pub(crate) struct Worker<'a> {
    snapshot: &'a Snapshot,
    balancer: Balancer,
    pool: SendPool,
    metrics: WorkerMetrics,
    session: Session<Connection>,
    now: Instant,
    sends: Vec<(Side, SendBuffer)>,
    /// What was sent, by side: downstream, upstream.
    sent: [usize; 2],
}

impl<'a> Worker<'a> {
    /// Does the handshake with this client.
    pub(crate) fn start(snapshot: &'a Snapshot, client: &mut ClientConnection) -> Worker<'a> {
        let groups = snapshot.upstreams.iter().map(|upstream| GroupDescription {
            balance: upstream.settings.balance,
            servers: upstream.servers.len(),
        });
        let now = Instant::now();
        let mut worker = Worker {
            snapshot,
            balancer: Balancer::new(&groups.collect::<Vec<_>>(), 0),
            pool: SendPool::default(),
            metrics: WorkerMetrics::default(),
            session: Session::new(now, snapshot, 0, None),
            now,
            sends: Vec::new(),
            sent: [0; 2],
        };
        let mut bytes = Vec::new();
        for _ in 0..FLIGHTS_MAX {
            flight(client, &mut bytes);
            if !bytes.is_empty() {
                worker.receive(Side::Downstream, &mut bytes, false);
            }
            for (side, buffer) in std::mem::take(&mut worker.sends) {
                assert_eq!(side, Side::Downstream, "nothing has come for the upstream");
                deliver(client, buffer.pending());
                worker.confirm(side, buffer);
            }
        }
        assert!(!client.is_handshaking(), "a handshake has fewer flights");
        worker
    }

    /// CPU time for so many messages from the server to the client.
    pub(crate) fn download(&mut self, plain: &[u8], count: u64) -> Duration {
        let mut received = plain.to_vec();
        let before = self.sent[0];
        let mut spent = Duration::ZERO;
        timed(&mut spent, || {
            for _ in 0..count {
                self.turn(Side::Upstream, &mut received);
            }
        });
        assert!(
            self.sent[0] - before > plain.len() * count as usize,
            "all of it went out, sealed"
        );
        spent
    }

    /// The same from this client to the server.
    pub(crate) fn upload(&mut self, client: &mut ClientConnection, plain: &[u8], count: u64) -> Duration {
        let before = self.sent[1];
        let spent = incoming(client, plain, count, |message| self.turn(Side::Downstream, message));
        assert_eq!(
            self.sent[1] - before,
            plain.len() * count as usize,
            "all of it went out"
        );
        spent
    }

    /// Bytes come as the kernel brings them, and what the session then sends is taken.
    pub(crate) fn turn(&mut self, side: Side, bytes: &mut [u8]) {
        let pieces = bytes.len().div_ceil(RECEIVE_BYTES_MAX);
        for (piece, bytes) in (1..).zip(bytes.chunks_mut(RECEIVE_BYTES_MAX)) {
            self.receive(side, bytes, piece < pieces);
        }
        while let Some((side, buffer)) = self.sends.pop() {
            self.confirm(side, buffer);
        }
    }

    fn receive(&mut self, side: Side, bytes: &mut [u8], more: bool) {
        self.handle(Input::Received { side, bytes, more });
    }

    fn confirm(&mut self, side: Side, buffer: SendBuffer) {
        let sent = buffer.len();
        self.sent[usize::from(side == Side::Upstream)] += sent;
        let result = Ok(sent);
        self.handle(Input::Sent { side, buffer, result });
    }

    fn handle(&mut self, input: Input<'_>) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let mut cx = Context {
                snapshot: self.snapshot,
                balancer: &mut self.balancer,
                pool: &mut self.pool,
                metrics: &self.metrics,
            };
            self.session.handle(self.now, input, &mut cx);
            while let Some(output) = self.session.poll_output(&mut cx) {
                match output {
                    Output::Receive(_) => {}
                    Output::Send(side, buffer) => self.sends.push((side, buffer)),
                    Output::Connect(_) => next = Some(Input::Connected(Ok(()))),
                    Output::Crypto(id, op) => next = Some(Input::CryptoDone(id, inline::run(&op))),
                    Output::ShutdownWrite(_) | Output::Cancel(_) | Output::Close { .. } | Output::Done(_) => {
                        panic!("the session goes on: {output:?}")
                    }
                }
            }
            std::hint::black_box(self.session.poll_timeout(self.snapshot));
        }
    }
}
