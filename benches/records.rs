//! Records after the handshake, in memory: sealing and opening through Ringlock's adapter and through rustls' buffered connection, by
//! size (TLS 1.3, AES-128-GCM) and by version and suite. Counted is the server's CPU time.

mod support;

use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, NamedGroup, SupportedProtocolVersion};

use support::cpu::{Place, pin, timed};
use support::records::{Records, establish, incoming};
use support::tls::{Key, Ringlock, Rustls, Site};

/// AES-128-GCM in TLS 1.3 is what the sizes are measured with.
const SUITES: [(&SupportedProtocolVersion, CipherSuite); 5] = [
    (&TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384),
    (&TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
];

fn sizes(c: &mut Criterion) {
    pin(Place::Measured);
    let site = Site::new(Key::P256);
    let config = site.client(&TLS13, NamedGroup::X25519);
    for (name, bytes) in [("1 KiB", 1024), ("64 KiB", 64 * 1024), ("256 KiB", 256 * 1024)] {
        both_ways(c, &site, &config, name, bytes);
    }
}

fn suites(c: &mut Criterion) {
    pin(Place::Measured);
    let site = Site::new(Key::P256);
    for (version, suite) in SUITES {
        let config = site.client_with_suite(version, NamedGroup::X25519, suite);
        let name = suite.as_str().expect("a suite of ours has a name");
        both_ways(c, &site, &config, &format!("{name} 16 KiB"), 16 * 1024);
    }
}

fn both_ways(c: &mut Criterion, site: &Site, config: &Arc<ClientConfig>, name: &str, bytes: usize) {
    let plain = vec![0x5a; bytes];
    for direction in [Direction::Seal, Direction::Open] {
        let way = format!("{direction:?}").to_lowercase();
        let mut group = c.benchmark_group(format!("{way} {name}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.sampling_mode(SamplingMode::Flat);
        records::<Ringlock>(&mut group, "ringlock", direction, site.ringlock(), config, &plain);
        records::<Rustls>(&mut group, "rustls", direction, site.rustls_tuned(), config, &plain);
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = sizes, suites
}
criterion_main!(benches);
