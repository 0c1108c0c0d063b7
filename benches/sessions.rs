//! The cache of sessions: storing, resuming again and once, looking for what is not there, storing when it is full; alone and beside
//! another thread that does the same. Beside it rustls' own cache, which is one lock and counts sessions, not bytes. Counted is the CPU time of one thread;
//! what is stored is made before. And how many clients can resume while a flood of new sessions comes in, which is printed.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use ringlock::tls::session_cache::SessionCache;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use zeroize::Zeroizing;

use support::cpu::{Place, pin, timed};

/// A session without client certificates, and one with a chain of two with ECDSA keys.
const SIZES: [usize; 2] = [250, 1500];
const CAPACITY: usize = 16 * 1024 * 1024;
/// Sessions between two readings of the clock. Of every size so many have room.
const BATCH: u64 = 1024;

fn sessions(c: &mut Criterion) {
    pin(Place::Measured);
    for bytes in SIZES {
        let full = filled(bytes);
        for threads in [1, 2] {
            let mut group = c.benchmark_group(format!("{bytes} B, {threads} threads"));
            group.sampling_mode(SamplingMode::Flat);
            for act in [Act::Put, Act::PutWhenFull, Act::Get, Act::GetNothing, Act::Take] {
                let caches: [(&str, Arc<dyn Sessions>); 2] = [
                    ("ringlock", Arc::new(SessionCache::new(CAPACITY))),
                    ("rustls", ServerSessionMemoryCache::new(full)),
                ];
                for (name, cache) in caches {
                    let full = if let Act::PutWhenFull = act { 2 * full as u64 } else { 0 };
                    fill(&*cache, bytes, 0..full);
                    // No number comes twice, or what is put would replace what is there.
                    let next = AtomicU64::new(full);
                    group.bench_function(BenchmarkId::new(format!("{act:?}"), name), |b| {
                        b.iter_custom(|count| measure(&*cache, act, bytes, threads, &next, count));
                    });
                }
            }
            group.finish();
        }
    }
}

/// As many sessions as a full cache has.
fn filled(bytes: usize) -> usize {
    let cache = SessionCache::new(CAPACITY);
    let mut numbers = 0..;
    while cache.usage().evicted == 0 {
        fill(&cache, bytes, numbers.by_ref().take(512));
    }
    cache.usage().entries
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Put,
    PutWhenFull,
    Get,
    GetNothing,
    Take,
}

/// CPU time of this thread for `count` of them, while as many other threads as there are besides this one do the same.
fn measure(cache: &dyn Sessions, act: Act, bytes: usize, threads: u64, next: &AtomicU64, count: u64) -> Duration {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                pin(Place::Other);
                while !done.load(Ordering::Relaxed) {
                    batch(cache, act, bytes, next, BATCH);
                }
            });
        }
        let mut spent = Duration::ZERO;
        let mut left = count;
        while left > 0 {
            let some = left.min(BATCH);
            spent += batch(cache, act, bytes, next, some);
            left -= some;
        }
        done.store(true, Ordering::Relaxed);
        spent
    })
}

/// CPU time of one batch. It leaves the cache as it was, except when the cache is to be full.
fn batch(cache: &dyn Sessions, act: Act, bytes: usize, next: &AtomicU64, count: u64) -> Duration {
    let first = next.fetch_add(count, Ordering::Relaxed);
    let ids: Vec<Id> = (first..first + count).map(id).collect();
    let mut spent = Duration::ZERO;
    let put = |spent: &mut Duration| {
        let values: Vec<_> = ids.iter().map(|&id| (id, session(bytes))).collect();
        timed(spent, || {
            for (id, value) in values {
                cache.store(id, value);
            }
        });
    };
    let mut not_measured = Duration::ZERO;
    match act {
        Act::Put | Act::PutWhenFull => put(&mut spent),
        Act::Get => {
            put(&mut not_measured);
            timed(&mut spent, || {
                for id in &ids {
                    assert!(cache.again(id), "it has just been put");
                }
            });
        }
        Act::GetNothing => timed(&mut spent, || {
            for id in &ids {
                assert!(!cache.again(id), "nothing was put");
            }
        }),
        Act::Take => {
            put(&mut not_measured);
            timed(&mut spent, || {
                for id in &ids {
                    assert!(cache.once(id), "it has just been put");
                }
            });
        }
    }
    match act {
        Act::Put | Act::Get => {
            for id in &ids {
                assert!(cache.once(id), "it is still there");
            }
        }
        Act::PutWhenFull | Act::GetNothing | Act::Take => (),
    }
    spent
}

fn fill(cache: &dyn Sessions, bytes: usize, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        cache.store(id(number), session(bytes));
    }
}

/// A cache of sessions as rustls uses one.
trait Sessions: Send + Sync {
    fn store(&self, id: Id, session: Vec<u8>);
    fn again(&self, id: &Id) -> bool;
    fn once(&self, id: &Id) -> bool;
}

impl Sessions for SessionCache {
    fn store(&self, id: Id, session: Vec<u8>) {
        assert!(self.put(&id, Zeroizing::new(session)), "it is small");
    }

    fn again(&self, id: &Id) -> bool {
        self.get(id).is_some()
    }

    fn once(&self, id: &Id) -> bool {
        self.take(id).is_some()
    }
}

impl Sessions for ServerSessionMemoryCache {
    fn store(&self, id: Id, session: Vec<u8>) {
        assert!(self.put(id.to_vec(), session), "it takes anything");
    }

    fn again(&self, id: &Id) -> bool {
        self.get(id).is_some()
    }

    fn once(&self, id: &Id) -> bool {
        self.take(id).is_some()
    }
}

type Id = [u8; 32];

/// Different for each number, and spread as random ones would be.
fn id(number: u64) -> Id {
    let mut id = [0; 32];
    let mut state = number;
    for chunk in id.chunks_exact_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    id
}

fn session(bytes: usize) -> Vec<u8> {
    vec![0x5a; bytes]
}

/// Clients that return at random moments, beside a flood of ten new sessions for each time that one does. Those of TLS 1.2 come with the
/// same id as long as it is good, those of TLS 1.3 with a new one each time.
fn flood(_: &mut Criterion) {
    const BYTES: usize = 1000;
    const FLOOD: u64 = 10;
    const ROUNDS: usize = 6;
    const CAPACITY: usize = 1024 * 1024;
    eprintln!("\nclients that return and find their session, in percent, beside {FLOOD} new sessions each time");
    eprintln!("(a full cache at first; each round they return twice on average)");
    for once in [false, true] {
        for percent in [5, 25, 50, 75] {
            let cache = SessionCache::new(CAPACITY);
            let mut new = (0_u64..).map(id);
            let mut put = || {
                let id = new.next().expect("numbers do not end");
                cache.store(id, session(BYTES));
                id
            };
            for _ in 0..2 * CAPACITY / BYTES {
                put();
            }
            let clients = cache.usage().entries * percent / 100;
            let mut owned: Vec<Id> = (0..clients).map(|_| put()).collect();
            let mut chance = (0_u64..).map(|number| u64::from_le_bytes(*id(number).last_chunk().expect("32 bytes")));
            let mut found = Vec::new();
            for _ in 0..ROUNDS {
                let mut hits = 0;
                for _ in 0..2 * clients {
                    let random = chance.next().expect("numbers do not end");
                    let client = usize::try_from(random % clients as u64).expect("less than a length");
                    let hit = if once {
                        cache.once(&owned[client])
                    } else {
                        cache.again(&owned[client])
                    };
                    hits += usize::from(hit);
                    if once || !hit {
                        owned[client] = put();
                    }
                    for _ in 0..FLOOD {
                        put();
                    }
                }
                found.push(format!("{:3}", 100 * hits / (2 * clients)));
            }
            let how = if once { "used once" } else { "used again" };
            eprintln!(
                "{how}, clients {percent:2} % of what fits: by round {}",
                found.join(" ")
            );
        }
    }
}

criterion_group!(benches, flood, sessions);
criterion_main!(benches);
