//! The server's side of a TLS handshake in memory, full or resumed: Ringlock's adapter, and rustls' buffered connection twice, set up
//! alike and as it comes. Counted is the CPU time of the server's calls, from accept to the end of the handshake and the freeing of the
//! connection; the client's is not.

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/tls.rs"]
mod tls;

use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, SupportedProtocolVersion};

use cpu::{Place, pin, timed};
use tls::{FLIGHTS_MAX, Key, Ringlock, Rustls, Server, Site, client, deliver, flight};

/// Handshakes that go on side by side, so that a reading of the clock is shared by them.
const SIDE_BY_SIDE: u64 = 32;

const CASES: [(&str, Key, &SupportedProtocolVersion, NamedGroup); 5] = [
    ("tls13 p256 x25519", Key::P256, &TLS13, NamedGroup::X25519),
    ("tls13 p256 secp256r1", Key::P256, &TLS13, NamedGroup::secp256r1),
    (
        "tls13 p256 x25519mlkem768",
        Key::P256,
        &TLS13,
        NamedGroup::X25519MLKEM768,
    ),
    ("tls13 rsa2048 x25519", Key::Rsa2048, &TLS13, NamedGroup::X25519),
    ("tls12 p256 x25519", Key::P256, &TLS12, NamedGroup::X25519),
];

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
            b.iter_custom(|count| handshakes::<Ringlock>(&mut ringlock, &clients, HandshakeKind::Full, count));
        });
        for (name, mut config) in [
            ("rustls set up alike", site.rustls_tuned()),
            ("rustls as it comes", site.rustls_stock()),
        ] {
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|count| handshakes::<Rustls>(&mut config, &clients, HandshakeKind::Full, count));
            });
        }
        group.finish();
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
                side_by_side::<S>(shared, clients, HandshakeKind::Full, SIDE_BY_SIDE);
                known = true;
            }
            handshakes::<S>(shared, clients, HandshakeKind::Resumed, count)
        });
    });
}

/// The server's CPU time for this many handshakes of this kind.
fn handshakes<S: Server>(
    shared: &mut S::Shared,
    configs: &[Arc<ClientConfig>],
    kind: HandshakeKind,
    count: u64,
) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let some = left.min(SIDE_BY_SIDE);
        spent += side_by_side::<S>(shared, configs, kind, some);
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
        timed(&mut spent, || {
            for ((server, bytes), answer) in servers.iter_mut().zip(&mut flights).zip(&mut answers) {
                server.receive(shared, bytes, answer);
            }
        });
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
    targets = full, resumed
}
criterion_main!(benches);
