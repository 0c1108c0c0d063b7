//! The bound of a session cache is in bytes, and means what the process takes for it.

use ringlock::tls::session_cache::SessionCache;
use zeroize::Zeroizing;

const CAPACITY: usize = 16 * 1024 * 1024;

/// In a process of its own: what other tests allocate would count too.
#[test]
fn a_full_cache_takes_what_it_says() {
    // Without a client's certificate and with one, and both with chains, in turn; each has the cache turn over.
    for sizes in [&[200, 250][..], &[1200, 2300], &[300, 900, 2700, 8000]] {
        let before = resident();
        let cache = SessionCache::new(CAPACITY);
        let mut number = 0_u64;
        while number == 0 || cache.usage().evicted < cache.usage().entries as u64 {
            for &bytes in sizes {
                number += 1;
                assert!(cache.put(&id(number), Zeroizing::new(vec![7; bytes])));
                if number.is_multiple_of(3) {
                    assert!(cache.get(&id(number)).is_some());
                }
            }
        }
        let usage = cache.usage();
        assert!(usage.bytes <= CAPACITY);
        assert!(usage.bytes > CAPACITY / 100 * 95, "it is full: {usage:?}");
        let taken = resident() - before;
        // The allocator cannot use every gap that values of different lengths leave.
        assert!(
            taken < CAPACITY + CAPACITY / 8,
            "{} sessions, counted as {} KiB, take {} KiB",
            usage.entries,
            usage.bytes / 1024,
            taken / 1024
        );
        assert!(
            taken > CAPACITY / 2,
            "what is counted is there: {} of {} KiB",
            taken / 1024,
            usage.bytes / 1024
        );
        // What is freed goes back to the kernel only in part: the next sizes would be measured too low.
        std::mem::forget(cache);
    }
}

/// Bytes of this process that are in memory, files that are mapped (its own code) left out.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("Linux tells it in KiB").parse::<usize>().expect("a number") * 1024
}

/// Different for each number, and spread as random ones would be.
fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes());
    id
}
