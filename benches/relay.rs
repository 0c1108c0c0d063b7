//! Records after the handshake, in memory: sealing and opening through Ringlock's adapter and through rustls' buffered
//! connection (TLS 1.3, AES-128-GCM), and whole turns of a session: receive, relay, send. Counted is the server's CPU time.
//!
//! What rustls seals is handed to a writer that drops it, as `writev` would take it from where it lies; what it opens is
//! read into a buffer, from which it would be sent.

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ringlock::buffers::{SendBuffer, SendPool};
use ringlock::crypto::inline;
use ringlock::limits::RECEIVE_BYTES_MAX;
use ringlock::metrics::WorkerMetrics;
use ringlock::proxy::session::{Context, Input, Output, Session, Side};
use ringlock::proxy::upstream::{Balancer, GroupDescription};
use ringlock::snapshot::Snapshot;
use ringlock::tls::handshake::Connection;
use ringlock::tls::{Opened, Outboxes, Tls};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ServerConfig};

use cpu::{Place, pin, timed};
use tls::{FLIGHTS_MAX, Key, Ringlock, Rustls, Server, Shared, Site, client, deliver, flight};

/// Bytes between two readings of the clock: many small messages, and still within the processor's cache, where the kernel leaves
/// what it has just received.
const BATCH_BYTES: usize = 256 * 1024;

fn relay(c: &mut Criterion) {
    pin(Place::Measured);
    let site = Site::new(Key::P256);
    let config = site.client(&TLS13, NamedGroup::X25519);
    for (name, bytes) in [("1 KiB", 1024), ("64 KiB", 64 * 1024), ("256 KiB", 256 * 1024)] {
        let plain = vec![0x5a; bytes];
        for direction in [Direction::Seal, Direction::Open] {
            let mut group = c.benchmark_group(format!("{direction:?} {name}").to_lowercase());
            group.throughput(Throughput::Bytes(bytes as u64));
            group.sampling_mode(SamplingMode::Flat);
            records::<Ringlock>(&mut group, "ringlock", direction, site.ringlock(), &config, &plain);
            records::<Rustls>(&mut group, "rustls", direction, site.rustls_tuned(), &config, &plain);
            group.finish();
        }
        let mut group = c.benchmark_group(format!("session {name}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.sampling_mode(SamplingMode::Flat);
        let mut client = client(&config);
        let mut worker = Worker::start(&site.snapshot, &mut client);
        group.bench_function(BenchmarkId::from_parameter("download"), |b| {
            b.iter_custom(|count| worker.download(&plain, count));
        });
        group.bench_function(BenchmarkId::from_parameter("upload"), |b| {
            b.iter_custom(|count| worker.upload(&mut client, &plain, count));
        });
        group.finish();
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Seal,
    Open,
}

fn records<S: Records>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    direction: Direction,
    mut shared: S::Shared,
    config: &Arc<ClientConfig>,
    plain: &[u8],
) {
    let (mut client, mut server) = establish::<S>(&mut shared, config);
    group.bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|count| match direction {
            Direction::Seal => {
                let mut spent = Duration::ZERO;
                timed(&mut spent, || {
                    for _ in 0..count {
                        let sealed = server.seal(&mut shared, plain);
                        assert!(sealed > plain.len(), "sealing adds to what is sealed");
                    }
                });
                spent
            }
            Direction::Open => incoming(&mut client, plain, count, |message| {
                let opened = server.open(&mut shared, message);
                assert_eq!(opened, plain.len(), "all that was sealed is opened");
            }),
        });
    });
}

/// Has the client seal `plain` this many times, some of them ahead, and counts what `take` needs for them.
fn incoming(client: &mut ClientConnection, plain: &[u8], count: u64, mut take: impl FnMut(&mut [u8])) -> Duration {
    let ahead = (BATCH_BYTES / plain.len()).max(1);
    let mut messages = vec![Vec::new(); ahead];
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(ahead).min(ahead);
        for message in &mut messages[..some] {
            client.writer().write_all(plain).expect("no limit is set");
            flight(client, message);
        }
        timed(&mut spent, || {
            messages[..some].iter_mut().for_each(|message| take(message))
        });
        left -= some as u64;
    }
    spent
}

fn establish<S: Server>(shared: &mut S::Shared, config: &Arc<ClientConfig>) -> (ClientConnection, S) {
    let mut client = client(config);
    let mut server = S::accept(shared);
    let mut bytes = Vec::new();
    for _ in 0..FLIGHTS_MAX {
        flight(&mut client, &mut bytes);
        if server.is_established() {
            break;
        }
        let mut answer = Vec::new();
        server.receive(shared, &mut bytes, &mut answer);
        deliver(&mut client, &answer);
    }
    assert!(
        server.is_established() && !client.is_handshaking(),
        "a handshake has fewer flights"
    );
    (client, server)
}

/// A server whose records are measured; both return how many bytes came out.
trait Records: Server {
    fn seal(&mut self, shared: &mut Self::Shared, plain: &[u8]) -> usize;
    fn open(&mut self, shared: &mut Self::Shared, sealed: &mut [u8]) -> usize;
}

impl Records for Ringlock {
    fn seal(&mut self, shared: &mut Shared, plain: &[u8]) -> usize {
        self.tls
            .seal(plain, &mut self.sealed.sink(&mut shared.pool))
            .expect("keys that last");
        let buffer = self.sealed.take().expect("something was sealed");
        let sent = buffer.len();
        self.sealed.returned(buffer, sent, &mut shared.pool);
        sent
    }

    fn open(&mut self, shared: &mut Shared, sealed: &mut [u8]) -> usize {
        let mut outboxes = Outboxes {
            plain: &mut self.plain,
            sealed: &mut self.sealed,
            pool: &mut shared.pool,
        };
        let (used, opened) = self.tls.open(shared.now, sealed, &mut outboxes);
        assert_eq!(
            (used, opened),
            (sealed.len(), Opened::Open),
            "whole records are used up"
        );
        let buffer = self.plain.take().expect("something was opened");
        let sent = buffer.len();
        self.plain.returned(buffer, sent, &mut shared.pool);
        sent
    }
}

impl Records for Rustls {
    fn seal(&mut self, _: &mut Arc<ServerConfig>, plain: &[u8]) -> usize {
        self.0.writer().write_all(plain).expect("no limit is set");
        let mut sent = 0;
        while self.0.wants_write() {
            sent += self.0.write_tls(&mut std::io::sink()).expect("a sink takes everything");
        }
        sent
    }

    fn open(&mut self, _: &mut Arc<ServerConfig>, sealed: &mut [u8]) -> usize {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; RECEIVE_BYTES_MAX]);
        }
        let mut opened = 0;
        let mut rest = &*sealed;
        while !rest.is_empty() {
            self.0.read_tls(&mut rest).expect("memory can be read");
            let state = self.0.process_new_packets().expect("the client speaks TLS");
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let read = BUFFER.with_borrow_mut(|buffer| self.0.reader().read(buffer));
                let read = read.expect("there is something to read");
                opened += read;
                left -= read;
            }
        }
        opened
    }
}

/// A session that is relaying, and what its worker would lend it. The kernel takes and brings everything at once.
struct Worker<'a> {
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
    fn start(snapshot: &'a Snapshot, client: &mut ClientConnection) -> Worker<'a> {
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

    fn download(&mut self, plain: &[u8], count: u64) -> Duration {
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

    fn upload(&mut self, client: &mut ClientConnection, plain: &[u8], count: u64) -> Duration {
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
    fn turn(&mut self, side: Side, bytes: &mut [u8]) {
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = relay
}
criterion_main!(benches);
