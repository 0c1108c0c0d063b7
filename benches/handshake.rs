//! The server's side of a TLS handshake in memory, full or resumed: Ringlock's adapter, and rustls' buffered connection twice, set up
//! alike and as it comes. Counted is the CPU time of the server's calls, from accept to the end of the handshake and the freeing of the
//! connection; the client's is not. And Ringlock with each of its engines, by how many handshakes wait at the same time.

mod support;

use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, SupportedProtocolVersion};

use ringlock::crypto::pool::Ahead;
use support::cpu::{Place, pin, timed};
use support::engines::{InUse, library};
use support::tls::{FLIGHTS_MAX, Key, Ringlock, Rustls, Server, Site, client, deliver, flight};

/// Handshakes that go on side by side, so that a reading of the clock is shared by them.
const SIDE_BY_SIDE: u64 = 32;

/// Every key and every group.
const CASES: [(&str, Key, &SupportedProtocolVersion, NamedGroup); 11] = [
    ("tls13 p256 x25519", Key::P256, &TLS13, NamedGroup::X25519),
    ("tls13 p256 secp256r1", Key::P256, &TLS13, NamedGroup::secp256r1),
    ("tls13 p256 secp384r1", Key::P256, &TLS13, NamedGroup::secp384r1),
    (
        "tls13 p256 x25519mlkem768",
        Key::P256,
        &TLS13,
        NamedGroup::X25519MLKEM768,
    ),
    ("tls13 p384 x25519", Key::P384, &TLS13, NamedGroup::X25519),
    ("tls13 ed25519 x25519", Key::Ed25519, &TLS13, NamedGroup::X25519),
    ("tls13 rsa2048 x25519", Key::Rsa2048, &TLS13, NamedGroup::X25519),
    ("tls13 rsa3072 x25519", Key::Rsa3072, &TLS13, NamedGroup::X25519),
    ("tls13 rsa4096 x25519", Key::Rsa4096, &TLS13, NamedGroup::X25519),
    ("tls12 p256 x25519", Key::P256, &TLS12, NamedGroup::X25519),
    ("tls12 rsa2048 x25519", Key::Rsa2048, &TLS12, NamedGroup::X25519),
];

/// With each engine. RSA has nothing that could be made ahead but the key pair of the exchange.
const WITH_ENGINES: [(&str, Key, NamedGroup); 3] = [
    ("p256 x25519", Key::P256, NamedGroup::X25519),
    ("p256 x25519mlkem768", Key::P256, NamedGroup::X25519MLKEM768),
    ("rsa2048 x25519", Key::Rsa2048, NamedGroup::X25519),
];
/// Handshakes that wait at the same time: each number of lanes of a call, and as many as fill several.
const WAITING: [u64; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 32];

/// By tickets.
const RESUMED: [(&str, Key, &SupportedProtocolVersion, NamedGroup); 2] = [
    ("tls13 p256 x25519 resumed", Key::P256, &TLS13, NamedGroup::X25519),
    ("tls12 p256 x25519 resumed", Key::P256, &TLS12, NamedGroup::X25519),
];

fn full(c: &mut Criterion) {
    pin(Place::Measured);
    for (name, key, version, group) in CASES {
        let site = Site::new(key);
        let clients = [site.client(version, group)];
        let mut group = c.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat);
        let mut ringlock = site.ringlock();
        group.bench_function(BenchmarkId::from_parameter("ringlock"), |b| {
            b.iter_custom(|count| by_itself::<Ringlock>(&mut ringlock, &clients, HandshakeKind::Full, count));
        });
        for (name, mut config) in [
            ("rustls set up alike", site.rustls_tuned()),
            ("rustls as it comes", site.rustls_stock()),
        ] {
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|count| by_itself::<Rustls>(&mut config, &clients, HandshakeKind::Full, count));
            });
        }
        group.finish();
    }
}

fn engines(c: &mut Criterion) {
    pin(Place::Measured);
    for (name, key, group) in WITH_ENGINES {
        let site = Site::new(key);
        let clients = [site.client(&TLS13, group)];
        let mut shared = site.ringlock();
        let mut bench = |engine: &str, in_use: &InUse| {
            let mut group = c.benchmark_group(format!("tls13 {name}, {engine}"));
            group.sampling_mode(SamplingMode::Flat);
            for waiting in WAITING {
                group.bench_function(BenchmarkId::new("waiting", waiting), |b| {
                    b.iter_custom(|count| {
                        handshakes::<Ringlock>(
                            &mut shared,
                            &clients,
                            HandshakeKind::Full,
                            Count { all: count, waiting },
                            || in_use.refill(),
                            |shared, servers, flights, answers| in_use.serve(shared, servers, flights, answers),
                        )
                    });
                });
            }
            group.finish();
        };
        bench("one by one", &InUse::inline(Ahead::NOTHING));
        bench("one by one, key pairs made ahead", &InUse::inline(Ahead::ALL));
        if let Some(library) = library("handshakes in batches") {
            bench("in batches", &InUse::batched(library, Ahead::NOTHING));
        }
        if let Some(library) = library("handshakes in batches, with all made ahead") {
            bench("in batches, all made ahead", &InUse::batched(library, Ahead::ALL));
        }
    }
}

fn resumed(c: &mut Criterion) {
    pin(Place::Measured);
    for (name, key, version, group) in RESUMED {
        let site = Site::with_tickets(key);
        let mut bench = c.benchmark_group(name);
        bench.sampling_mode(SamplingMode::Flat);
        // Of the server that they are for, and no other.
        let clients = || site.resuming_clients(version, group, SIDE_BY_SIDE);
        bench_resumed::<Ringlock>(&mut bench, "ringlock", &mut site.ringlock(), &clients());
        for (name, mut config) in [
            ("rustls set up alike", site.rustls_with_tickets()),
            ("rustls as it comes", site.rustls_stock()),
        ] {
            bench_resumed::<Rustls>(&mut bench, name, &mut config, &clients());
        }
        bench.finish();
    }
}

fn bench_resumed<S: Server>(
    bench: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shared: &mut S::Shared,
    clients: &[Arc<ClientConfig>],
) {
    let mut known = false;
    bench.bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|count| {
            if !known {
                by_itself::<S>(shared, clients, HandshakeKind::Full, SIDE_BY_SIDE);
                known = true;
            }
            by_itself::<S>(shared, clients, HandshakeKind::Resumed, count)
        });
    });
}

/// The server's CPU time for this many handshakes of this kind, each of which computes for itself.
fn by_itself<S: Server>(
    shared: &mut S::Shared,
    configs: &[Arc<ClientConfig>],
    kind: HandshakeKind,
    count: u64,
) -> Duration {
    let count = Count {
        all: count,
        waiting: SIDE_BY_SIDE,
    };
    handshakes::<S>(
        shared,
        configs,
        kind,
        count,
        || {},
        |shared, servers, flights, answers| {
            for ((server, bytes), answer) in servers.iter_mut().zip(flights).zip(answers) {
                server.receive(shared, bytes, answer);
            }
        },
    )
}

/// How many handshakes.
#[derive(Clone, Copy)]
struct Count {
    all: u64,
    /// At the same time.
    waiting: u64,
}

/// The CPU time of this many handshakes: of `serve`, which has servers take a flight each, not of `prepare`.
fn handshakes<S: Server>(
    shared: &mut S::Shared,
    configs: &[Arc<ClientConfig>],
    kind: HandshakeKind,
    count: Count,
    prepare: impl Fn(),
    serve: impl Fn(&mut S::Shared, &mut [S], &mut [Vec<u8>], &mut [Vec<u8>]),
) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count.all;
    while left > 0 {
        let some = left.min(count.waiting);
        prepare();
        spent += side_by_side(shared, configs, kind, some, &serve);
        left -= some;
    }
    spent
}

/// Clients take the configurations in turn.
fn side_by_side<S: Server>(
    shared: &mut S::Shared,
    configs: &[Arc<ClientConfig>],
    kind: HandshakeKind,
    count: u64,
    serve: impl Fn(&mut S::Shared, &mut [S], &mut [Vec<u8>], &mut [Vec<u8>]),
) -> Duration {
    let mut spent = Duration::ZERO;
    let mut clients: Vec<ClientConnection> = configs.iter().cycle().take(count as usize).map(client).collect();
    let mut flights: Vec<Vec<u8>> = (0..count).map(|_| Vec::new()).collect();
    let mut answers: Vec<Vec<u8>> = (0..count).map(|_| Vec::with_capacity(16 * 1024)).collect();
    for (client, bytes) in clients.iter_mut().zip(&mut flights) {
        flight(client, bytes);
    }
    let mut servers: Vec<S> = Vec::with_capacity(clients.len());
    timed(&mut spent, || servers.extend((0..count).map(|_| S::accept(shared))));
    for _ in 0..FLIGHTS_MAX {
        timed(&mut spent, || serve(shared, &mut servers, &mut flights, &mut answers));
        for ((client, bytes), answer) in clients.iter_mut().zip(&mut flights).zip(&mut answers) {
            deliver(client, answer);
            answer.clear();
            flight(client, bytes);
        }
        if flights.iter().all(Vec::is_empty) {
            break;
        }
    }
    let established = clients.iter().all(|client| !client.is_handshaking()) && servers.iter().all(S::is_established);
    assert!(established, "a handshake did not end within {FLIGHTS_MAX} flights");
    let as_wanted = clients.iter().all(|client| client.handshake_kind() == Some(kind));
    assert!(as_wanted, "a handshake was not {kind:?}");
    timed(&mut spent, || drop(servers));
    spent
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = full, engines, resumed
}
criterion_main!(benches);
