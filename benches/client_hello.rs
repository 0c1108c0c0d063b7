//! The ClientHello: gathered and read as a connection does it before rustls sees it; whole, in pieces, and of other clients. Beside it
//! rustls' `Acceptor`, which reads all of it for itself and keeps copies. Counted is CPU time.

mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ringlock::tls::client_hello::{ClientHello, Gathered, Gathering};
use rustls::server::Acceptor;

use support::cpu::{Place, pin, repeated};
use support::hellos::hellos;

/// Bytes of a piece, where a ClientHello comes in pieces.
const PIECE: usize = 100;

fn client_hello(c: &mut Criterion) {
    pin(Place::Measured);
    for (name, bytes) in hellos() {
        let mut group = c.benchmark_group(format!("{name}, {} B", bytes.len()));
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut bench = |who: &str, run: &dyn Fn()| {
            group.bench_function(BenchmarkId::from_parameter(who), |b| {
                b.iter_custom(|count| repeated(count, run));
            });
        };
        bench("ringlock", &|| read(&bytes, bytes.len()));
        bench("ringlock, in pieces of 100 B", &|| read(&bytes, PIECE));
        bench("rustls", &|| {
            let mut acceptor = Acceptor::default();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                acceptor.read_tls(&mut rest).expect("memory can be read");
            }
            let accepted = acceptor.accept();
            assert!(matches!(accepted, Ok(Some(_))), "rustls refuses it");
        });
        group.finish();
    }
}

fn read(bytes: &[u8], piece: usize) {
    let mut gathering = Gathering::default();
    for end in (piece..bytes.len()).step_by(piece) {
        assert!(matches!(gathering.gather(&bytes[..end]), Gathered::NeedMore));
    }
    let Gathered::Complete(body) = gathering.gather(bytes) else {
        panic!("it is complete");
    };
    let hello = ClientHello::parse(&body).expect("it is one");
    // What a connection asks of it in any case.
    black_box((hello.best_version(), hello.server_name(), hello.groups().next()));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = client_hello
}
criterion_main!(benches);
