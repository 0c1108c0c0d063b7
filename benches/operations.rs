//! The operations of handshakes: key exchanges, signatures and verifications, alone with AWS-LC, with what can be made ahead made ahead, and
//! by how many share a call of libcrypto_mb. Counted is CPU time for one operation; that of making ahead is not in it.

mod support;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::crypto::batch::LANES;
use ringlock::crypto::measure::examples;
use ringlock::crypto::pool::{self, Ahead};
use ringlock::crypto::{CryptoOp, CryptoResult, inline};

use support::cpu::{Place, pin, timed};
use support::engines::{InUse, library};

/// Operations between two readings of the clock; fewer than are made ahead of any kind.
const BATCH: u64 = 8;

fn operations(c: &mut Criterion) {
    pin(Place::Measured);
    let alone = InUse::inline(Ahead::NOTHING);
    let examples = examples();
    for example in &examples {
        let mut group = c.benchmark_group(example.name);
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(BenchmarkId::from_parameter("alone"), |b| {
            b.iter_custom(|count| repeated(&alone, count, || check(&inline::run(&example.op))));
        });
        group.finish();
    }
    drop(alone);

    let Some(library) = library("calls with several lanes, and what is made ahead with the library") else {
        return;
    };
    let batched = InUse::batched(library, Ahead::ALL);
    for example in &examples {
        let mut group = c.benchmark_group(example.name);
        group.sampling_mode(SamplingMode::Flat);
        if answer_ahead(&example.op) {
            group.bench_function(BenchmarkId::from_parameter("made ahead"), |b| {
                b.iter_custom(|count| repeated(&batched, count, || assert!(answer_ahead(&example.op))));
            });
        }
        for lanes in 1..=LANES {
            let ops = vec![example.op.clone(); lanes];
            if batched.engine.answer_together(&ops).is_none() {
                eprintln!("{}: no lanes, it is computed one by one", example.name);
                break;
            }
            group.bench_function(BenchmarkId::new("lanes", lanes), |b| {
                b.iter_custom(|count| {
                    let calls = count.div_ceil(lanes as u64);
                    let spent = repeated(&batched, calls, || {
                        let answers = batched.engine.answer_together(&ops);
                        answers.iter().flatten().for_each(check);
                    });
                    spent.mul_f64(count as f64 / (calls * lanes as u64) as f64)
                });
            });
        }
        group.finish();
    }
}

/// Computes one with what there is made ahead; false when nothing of it can be.
fn answer_ahead(op: &CryptoOp) -> bool {
    match op {
        CryptoOp::Sign { key, scheme, message } => pool::sign(key, *scheme, message).is_some(),
        CryptoOp::KeyExchange { .. } => {
            check(&inline::run(op));
            true
        }
        CryptoOp::SignElsewhere { .. } | CryptoOp::Verify(_) => false,
    }
}

fn repeated(engine: &InUse, count: u64, run: impl Fn()) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let some = left.min(BATCH);
        engine.refill();
        timed(&mut spent, || (0..some).for_each(|_| run()));
        left -= some;
    }
    spent
}

fn check(answer: &CryptoResult) {
    let right = matches!(
        answer,
        CryptoResult::KeyExchange(Ok(_)) | CryptoResult::Signature(Ok(_)) | CryptoResult::Verified(true)
    );
    assert!(right, "{answer:?}");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = operations
}
criterion_main!(benches);
