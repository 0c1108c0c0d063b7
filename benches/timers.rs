//! The timer wheel: arming, asking for the next, and expiring, by how many timers are armed. A timer is cancelled by leaving it to fire and
//! be recognized as old: what that costs is in "expire". Beside it a binary heap, which arms and expires only. Counted is CPU time for one timer.

mod support;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::net::timer::{Entry, TimerWheel};

use support::cpu::{Place, pin, repeated, timed};

const ARMED: [u32; 3] = [10, 10_000, 100_000];
/// Deadlines are spread over this: idle timeouts are as long, and nearly the whole wheel.
const SPREAD_MS: u64 = 30_000;
/// Timers between two readings of the clock.
const BATCH: u64 = 1024;

fn timers(c: &mut Criterion) {
    pin(Place::Measured);
    for armed in ARMED {
        let mut group = c.benchmark_group(format!("{armed} timers"));
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(BenchmarkId::from_parameter("next"), |b| {
            let wheel: Wheel = filled(armed);
            b.iter_custom(|count| repeated(count, &|| _ = black_box(wheel.wheel.next())));
        });
        bench::<Wheel>(&mut group, "wheel", armed);
        bench::<Heap>(&mut group, "heap", armed);
        group.finish();
    }
}

fn bench<T: Timers>(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    armed: u32,
) {
    group.bench_function(BenchmarkId::new("arm", name), |b| {
        b.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            let mut left = count;
            while left > 0 {
                let mut timers: T = filled(armed);
                let some = left.min(BATCH);
                let deadlines: Vec<Instant> = (0..some).map(|number| deadline(timers.now(), number)).collect();
                timed(&mut spent, || {
                    for (number, deadline) in deadlines.into_iter().enumerate() {
                        timers.arm(deadline, armed + number as u32);
                    }
                });
                left -= some;
            }
            spent
        });
    });
    // Time goes on, and what has fired is armed again: as many are armed all the time.
    group.bench_function(BenchmarkId::new("expire and arm", name), |b| {
        let mut timers: T = filled(armed);
        b.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            let mut due = Vec::new();
            let mut fired = 0;
            while fired < count {
                timed(&mut spent, || {
                    while due.len() < (BATCH as usize).min(armed as usize) {
                        timers.pass(Duration::from_millis(8));
                        timers.expire(&mut due);
                    }
                });
                let deadlines: Vec<Instant> = (0..due.len() as u64)
                    .map(|number| deadline(timers.now(), fired + number))
                    .collect();
                fired += due.len() as u64;
                timed(&mut spent, || {
                    for (slot, deadline) in due.drain(..).zip(deadlines) {
                        timers.arm(deadline, slot);
                    }
                });
            }
            spent.mul_f64(count as f64 / fired as f64)
        });
    });
}

/// Spread, and in no order.
fn deadline(now: Instant, number: u64) -> Instant {
    let spread = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    now + Duration::from_millis(spread % SPREAD_MS)
}

fn filled<T: Timers>(armed: u32) -> T {
    let mut timers = T::new(Instant::now());
    for slot in 0..armed {
        timers.arm(deadline(timers.now(), u64::from(slot)), slot);
    }
    timers
}

trait Timers {
    fn new(now: Instant) -> Self;
    fn now(&self) -> Instant;
    fn pass(&mut self, time: Duration);
    fn arm(&mut self, deadline: Instant, slot: u32);
    fn expire(&mut self, due: &mut Vec<u32>);
}

struct Wheel {
    wheel: TimerWheel,
    now: Instant,
    due: Vec<Entry>,
}

impl Timers for Wheel {
    fn new(now: Instant) -> Wheel {
        Wheel {
            wheel: TimerWheel::new(now),
            now,
            due: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn arm(&mut self, deadline: Instant, slot: u32) {
        self.wheel.arm(deadline, Entry { slot, generation: 1 });
    }

    fn expire(&mut self, due: &mut Vec<u32>) {
        self.wheel.expire(self.now, &mut self.due);
        due.extend(self.due.drain(..).map(|entry| entry.slot));
    }
}

struct Heap {
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    now: Instant,
}

impl Timers for Heap {
    fn new(now: Instant) -> Heap {
        Heap {
            heap: BinaryHeap::new(),
            now,
        }
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn arm(&mut self, deadline: Instant, slot: u32) {
        self.heap.push(Reverse((deadline, slot)));
    }

    fn expire(&mut self, due: &mut Vec<u32>) {
        while let Some(&Reverse((deadline, slot))) = self.heap.peek()
            && deadline <= self.now
        {
            self.heap.pop();
            due.push(slot);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = timers
}
criterion_main!(benches);
