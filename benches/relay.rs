//! Whole turns of a session after the handshake, in memory: receive, open or seal, relay, send (TLS 1.3, AES-128-GCM). Counted is the
//! server's CPU time.

mod support;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use rustls::NamedGroup;
use rustls::version::TLS13;

use support::cpu::{Place, pin};
use support::tls::{Key, Site, client};
use support::worker::Worker;

fn relay(c: &mut Criterion) {
    pin(Place::Measured);
    let site = Site::new(Key::P256);
    let config = site.client(&TLS13, NamedGroup::X25519);
    for (name, bytes) in [("1 KiB", 1024), ("64 KiB", 64 * 1024), ("256 KiB", 256 * 1024)] {
        let plain = vec![0x5a; bytes];
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = relay
}
criterion_main!(benches);
