//! Sessions that clients resume by an id: of TLS 1.2, and of TLS 1.3 where there are no tickets. One cache belongs to one listener
//! and serves all workers; whose session is whose is decided by its callers, who choose the ids.
//!
//! **Eviction** is segmented LRU. A session begins in *probation*; one that was resumed from is *protected* and has four fifths of
//! the memory for itself. What never comes back pushes out only its like: a flood of new sessions cannot displace those of clients
//! that return. Sessions of TLS 1.3 are used once and never get that far: for them it is first in, first out, over the whole memory.
//! Caches that weigh how often a key is asked for do worse here: keys are new each time, so they keep dead sessions and turn
//! away those that clients are about to return with.
//!
//! **Floods of ids.** Ids are stored only if they come from random bytes that rustls made, so the shards fill evenly. Ids that come from the
//! network are only looked up. The tables within the shards hash with a random key of their own: no choice of ids makes a lookup slow.
//! Nothing depends on the order of the tables: what leaves next is decided by lists.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use zeroize::Zeroizing;

use crate::limits::{SESSION_BYTES_MAX, SESSION_PROTECTED_PERCENT, SESSION_SHARD_BYTES};

/// Sessions by id, bounded in bytes. Values are wiped when they leave it.
pub struct SessionCache {
    /// Never empty.
    shards: Box<[Mutex<Shard>]>,
    /// Bytes of one shard.
    shard_capacity: usize,
}

/// What a [`SessionCache`] holds, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Sessions.
    pub entries: usize,
    /// Memory they take: ids, values, lists, tables, and what the allocator adds. At most `capacity`.
    pub bytes: usize,
    /// The bound of `bytes`.
    pub capacity: usize,
    /// Sessions that had to leave for others, since the beginning.
    pub evicted: u64,
}

impl SessionCache {
    /// An empty cache that takes at most `bytes` of memory when it is full.
    #[must_use]
    pub fn new(bytes: usize) -> SessionCache {
        let shards = (bytes / SESSION_SHARD_BYTES).max(1);
        SessionCache {
            shards: (0..shards).map(|_| Mutex::new(Shard::new())).collect(),
            shard_capacity: bytes / shards,
        }
    }

    /// Keeps `value` under `id`, in place of what was there. A value whose capacity is its length is not copied.
    ///
    /// False, and nothing has changed, when the id is not one of ours (32 bytes), when the value has more than
    /// [`SESSION_BYTES_MAX`] bytes, or when the whole cache is too small for it.
    pub fn put(&self, id: &[u8], value: Zeroizing<Vec<u8>>) -> bool {
        let Ok(id) = <&Id>::try_from(id) else { return false };
        if value.len() > SESSION_BYTES_MAX || entry_bytes(value.len()) > self.shard_capacity {
            return false;
        }
        let value = exact(value);
        let left = self.shard(id).put(*id, value, self.shard_capacity);
        // The lock is free again: wiping takes longer than all that was done under it.
        drop(left);
        true
    }

    /// A copy of the value, which stays and is protected from now on. For TLS 1.2, which may resume from a session again.
    #[must_use]
    pub fn get(&self, id: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let id = <&Id>::try_from(id).ok()?;
        let protected = self.shard_capacity / 100 * SESSION_PROTECTED_PERCENT;
        self.shard(id).get(id, protected)
    }

    /// The value, which is gone from the cache: of several callers one gets it. For TLS 1.3, which resumes from a session once.
    #[must_use]
    pub fn take(&self, id: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let id = <&Id>::try_from(id).ok()?;
        let mut value = self.shard(id).remove(id)?;
        Some(Zeroizing::new(mem::take(&mut *value).into_vec()))
    }

    /// What is held. Locks one shard after the other, so the sums may be of slightly different moments.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let empty = Usage {
            entries: 0,
            bytes: 0,
            capacity: self.shards.len() * self.shard_capacity,
            evicted: 0,
        };
        self.shards.iter().map(lock).fold(empty, |usage, shard| Usage {
            entries: usage.entries + shard.probation.entries.len() + shard.protected.entries.len(),
            bytes: usage.bytes + shard.bytes(),
            evicted: usage.evicted + shard.evicted,
            ..usage
        })
    }

    fn shard(&self, id: &Id) -> MutexGuard<'_, Shard> {
        let (start, _) = id.split_first_chunk().expect("an id has more than 8 bytes");
        let position = u64::from_le_bytes(*start) % self.shards.len() as u64;
        lock(&self.shards[usize::try_from(position).expect("a position is less than a length")])
    }
}

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCache")
            .field("shards", &self.shards.len())
            .field("shard_capacity", &self.shard_capacity)
            .finish_non_exhaustive()
    }
}

/// As rustls makes them, for both versions, and as digests are.
type Id = [u8; 32];

/// A boxed slice, unlike a vector, cannot leave an old copy behind by growing.
type Value = Zeroizing<Box<[u8]>>;

fn exact(mut value: Zeroizing<Vec<u8>>) -> Value {
    if value.len() == value.capacity() {
        Zeroizing::new(mem::take(&mut *value).into_boxed_slice())
    } else {
        // `into_boxed_slice` would leave the longer original to the allocator as it is; here it is wiped.
        Zeroizing::new(Box::from(value.as_slice()))
    }
}

/// Memory that a session takes whose value has so many bytes.
const fn entry_bytes(value: usize) -> usize {
    /// An entry in one of the tables: two addresses and a byte of control, of which 16 are there for every 7 at worst.
    const SLOT: usize = (2 * size_of::<usize>() + 1) * 16 / 7;
    /// An entry of a list: what it holds and its neighbours. It has had a slot in both tables, which do not shrink.
    const NODE: usize = allocated(size_of::<(Id, Value, [usize; 2])>()) + 2 * SLOT;
    NODE + allocated(value)
}

/// What glibc takes for so many bytes: a word before them, whole multiples of 16, 32 at least.
const fn allocated(bytes: usize) -> usize {
    let whole = (bytes + size_of::<usize>()).next_multiple_of(16);
    if whole < 32 { 32 } else { whole }
}

// Nothing done under the lock panics. If it did all the same, sessions may be lost or counted wrongly; that is no reason to fail handshakes.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session is in one of the two segments.
struct Shard {
    /// Not resumed from since they came, or since they lost their place among the protected.
    probation: Segment,
    protected: Segment,
    evicted: u64,
}

impl Shard {
    fn new() -> Shard {
        Shard {
            probation: Segment::new(),
            protected: Segment::new(),
            evicted: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.probation.bytes + self.protected.bytes
    }

    /// Returns what has to leave.
    fn put(&mut self, id: Id, value: Value, capacity: usize) -> Vec<Value> {
        let mut left: Vec<Value> = self.remove(&id).into_iter().collect();
        while self.bytes() + entry_bytes(value.len()) > capacity {
            let oldest = self.probation.pop_oldest().or_else(|| self.protected.pop_oldest());
            let (_, oldest) = oldest.expect("an empty shard has room for any value that is let in");
            left.push(oldest);
            self.evicted += 1;
        }
        self.probation.put(id, value);
        debug_assert!(self.bytes() <= capacity, "what was too much has left");
        left
    }

    fn get(&mut self, id: &Id, protected_max: usize) -> Option<Zeroizing<Vec<u8>>> {
        if let Some(value) = self.protected.entries.get(id) {
            return Some(Zeroizing::new(value.to_vec()));
        }
        let value = self.probation.remove(id)?;
        let copy = Zeroizing::new(value.to_vec());
        self.protected.put(*id, value);
        while self.protected.bytes > protected_max {
            let (id, value) = self.protected.pop_oldest().expect("what takes memory is there");
            self.probation.put(id, value);
        }
        Some(copy)
    }

    fn remove(&mut self, id: &Id) -> Option<Value> {
        self.protected.remove(id).or_else(|| self.probation.remove(id))
    }
}

/// Sessions by when they were put there or last resumed from.
struct Segment {
    entries: LruCache<Id, Value>,
    /// The sum of their [`entry_bytes`].
    bytes: usize,
}

impl Segment {
    fn new() -> Segment {
        Segment {
            entries: LruCache::unbounded(),
            bytes: 0,
        }
    }

    fn put(&mut self, id: Id, value: Value) {
        self.bytes += entry_bytes(value.len());
        let replaced = self.entries.put(id, value);
        debug_assert!(replaced.is_none(), "what is put was in neither segment");
    }

    fn remove(&mut self, id: &Id) -> Option<Value> {
        let value = self.entries.pop(id)?;
        self.bytes -= entry_bytes(value.len());
        Some(value)
    }

    fn pop_oldest(&mut self) -> Option<(Id, Value)> {
        let (id, value) = self.entries.pop_lru()?;
        self.bytes -= entry_bytes(value.len());
        Some((id, value))
    }
}

const _: () = assert!(
    entry_bytes(SESSION_BYTES_MAX) <= SESSION_SHARD_BYTES / 100 * (100 - SESSION_PROTECTED_PERCENT),
    "the largest session fits beside the protected ones"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::sha256;

    use std::collections::BTreeMap;
    use std::sync::Barrier;
    use std::thread;

    use proptest::prelude::*;
    use zeroize::ZeroizeOnDrop;

    /// Ids as rustls would make them, the same for the same number.
    fn id(number: u64) -> Id {
        sha256::digest(&[&number.to_le_bytes()])
    }

    fn value(byte: u8, bytes: usize) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(vec![byte; bytes])
    }

    fn copy_of(value: &Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(value.to_vec())
    }

    /// Counts everything anew and compares it with what is kept of it.
    fn check(cache: &SessionCache) {
        let mut entries = 0;
        let mut bytes = 0;
        for shard in &cache.shards {
            let shard = lock(shard);
            for segment in [&shard.probation, &shard.protected] {
                let counted: usize = segment.entries.iter().map(|(_, value)| entry_bytes(value.len())).sum();
                assert_eq!(segment.bytes, counted);
                entries += segment.entries.len();
                bytes += counted;
            }
            assert!(shard.bytes() <= cache.shard_capacity);
            assert!(shard.protected.bytes <= cache.shard_capacity / 100 * SESSION_PROTECTED_PERCENT);
        }
        let usage = cache.usage();
        assert_eq!((usage.entries, usage.bytes), (entries, bytes));
        assert!(usage.bytes <= usage.capacity);
    }

    #[test]
    fn what_is_put_can_be_resumed_from_again_or_once() {
        let cache = SessionCache::new(SESSION_SHARD_BYTES);
        assert!(cache.put(&id(1), value(1, 300)));
        for _ in 0..3 {
            assert_eq!(cache.get(&id(1)), Some(value(1, 300)));
        }
        assert_eq!(cache.take(&id(1)), Some(value(1, 300)));
        assert_eq!(cache.take(&id(1)), None);
        assert_eq!(cache.get(&id(1)), None);

        assert!(cache.put(&id(2), value(2, 300)));
        assert!(cache.put(&id(2), value(3, 200)), "in its place");
        assert_eq!(cache.usage().entries, 1);
        assert_eq!(cache.get(&id(2)), Some(value(3, 200)));
        assert!(cache.put(&id(2), value(4, 100)), "in its place among the protected");
        assert_eq!(cache.usage().entries, 1);
        assert_eq!(cache.take(&id(2)), Some(value(4, 100)));
        assert_eq!(cache.take(&id(2)), None);
        let usage = cache.usage();
        assert_eq!((usage.entries, usage.bytes, usage.evicted), (0, 0, 0));
        check(&cache);
    }

    #[test]
    fn an_id_of_another_length_is_not_there() {
        let cache = SessionCache::new(SESSION_SHARD_BYTES);
        assert!(cache.put(&id(1), value(1, 300)));
        for length in (0..=64).chain([255, 65_535]).filter(|&length| length != 32) {
            let mut other = id(1).to_vec();
            other.resize(length, 0);
            assert!(!cache.put(&other, value(2, 300)), "{length} bytes");
            assert_eq!(cache.get(&other), None, "{length} bytes");
            assert_eq!(cache.take(&other), None, "{length} bytes");
        }
        assert_eq!(cache.get(&id(1)), Some(value(1, 300)));
        assert_eq!(cache.usage().entries, 1);
    }

    #[test]
    fn what_is_too_large_is_not_let_in_and_displaces_nothing() {
        let cache = SessionCache::new(SESSION_SHARD_BYTES);
        assert!(cache.put(&id(1), value(1, SESSION_BYTES_MAX)));
        assert!(!cache.put(&id(1), value(2, SESSION_BYTES_MAX + 1)));
        assert!(!cache.put(&id(2), value(2, SESSION_BYTES_MAX + 1)));
        assert_eq!(cache.get(&id(1)), Some(value(1, SESSION_BYTES_MAX)));
        assert_eq!(cache.usage().evicted, 0);

        let small = SessionCache::new(entry_bytes(300));
        assert!(!small.put(&id(1), value(1, 400)));
        assert!(small.put(&id(1), value(1, 300)));
        assert!(small.put(&id(2), value(2, 300)));
        assert_eq!(small.get(&id(2)), Some(value(2, 300)));
        let usage = small.usage();
        assert_eq!((usage.entries, usage.evicted), (1, 1));

        for bytes in [0, 1, entry_bytes(1) - 1] {
            let none = SessionCache::new(bytes);
            assert!(!none.put(&id(1), value(1, 1)), "{bytes} bytes");
            assert_eq!(none.usage().capacity, bytes);
        }
    }

    #[test]
    fn the_oldest_leave_first_and_only_as_many_as_have_to() {
        let cache = SessionCache::new(10 * entry_bytes(300));
        for number in 0..15 {
            assert!(cache.put(&id(number), value(7, 300)));
        }
        let there: Vec<_> = (0..15).filter(|&number| cache.take(&id(number)).is_some()).collect();
        assert_eq!(there, (5..15).collect::<Vec<_>>());
        assert_eq!(cache.usage().evicted, 5);
    }

    #[test]
    fn clients_that_return_keep_their_sessions_in_a_flood() {
        const RETURNING: u64 = 1000;
        let cache = SessionCache::new(4 * SESSION_SHARD_BYTES);
        let fits = (cache.usage().capacity / entry_bytes(1000)) as u64;
        assert!(RETURNING < fits / 2);
        for number in 0..RETURNING {
            assert!(cache.put(&id(number), value(1, 1000)));
            assert!(cache.get(&id(number)).is_some());
        }
        for number in RETURNING..RETURNING + 3 * fits {
            assert!(cache.put(&id(number), value(2, 1000)));
        }
        assert!((0..RETURNING).all(|number| cache.get(&id(number)).is_some()));
        check(&cache);
    }

    #[test]
    fn what_is_used_once_has_the_whole_cache_after_a_flood() {
        let cache = SessionCache::new(4 * SESSION_SHARD_BYTES);
        let fits = (cache.usage().capacity / entry_bytes(1000)) as u64;
        for number in 0..3 * fits {
            assert!(cache.put(&id(number), value(2, 1000)));
        }
        // Shards do not fill at quite the same time.
        let mine = 3 * fits..3 * fits + fits * 4 / 5;
        for number in mine.clone() {
            assert!(cache.put(&id(number), value(1, 1000)));
        }
        assert!(mine.into_iter().all(|number| cache.take(&id(number)).is_some()));
    }

    #[test]
    fn the_shards_fill_evenly() {
        let cache = SessionCache::new(64 * SESSION_SHARD_BYTES);
        assert_eq!(cache.shards.len(), 64);
        for number in 0..64 * 100 {
            assert!(cache.put(&id(number), value(1, 16)));
        }
        let entries = |shard| lock(shard).probation.entries.len();
        assert!(
            cache
                .shards
                .iter()
                .map(entries)
                .all(|entries| (40..200).contains(&entries))
        );
    }

    #[test]
    fn of_two_takers_one_gets_it() {
        const SESSIONS: u64 = 5000;
        let cache = SessionCache::new(16 * SESSION_SHARD_BYTES);
        for number in 0..SESSIONS {
            assert!(cache.put(&id(number), value(1, 300)));
        }
        let start = Barrier::new(2);
        let take = || {
            start.wait();
            let took = |number: &u64| cache.take(&id(*number)).is_some();
            (0..SESSIONS).filter(took).collect::<Vec<_>>()
        };
        let (mut first, second) = thread::scope(|scope| {
            let other = scope.spawn(take);
            (take(), other.join().expect("the other taker ends"))
        });
        first.extend(second);
        first.sort_unstable();
        assert_eq!(first, (0..SESSIONS).collect::<Vec<_>>());
        check(&cache);
    }

    #[test]
    fn threads_that_do_everything_at_once_keep_the_bound() {
        let cache = SessionCache::new(2 * SESSION_SHARD_BYTES);
        thread::scope(|scope| {
            for thread in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..3000 {
                        let number = (round * 7 + thread) % 1000;
                        match (round + thread) % 4 {
                            0 | 1 => assert!(cache.put(&id(number), value(1, 5000))),
                            2 => drop(cache.get(&id(number))),
                            _ => drop(cache.take(&id(number))),
                        }
                        let usage = cache.usage();
                        assert!(usage.bytes <= usage.capacity);
                    }
                });
            }
        });
        assert!(cache.usage().evicted > 0);
        check(&cache);
    }

    /// Freed memory cannot be looked at. But the type of what is stored wipes itself, whichever way it leaves; and no copy is left
    /// behind on the way in and out, because there is none.
    #[test]
    fn values_are_wiped_and_not_copied() {
        fn wipes_itself<T: ZeroizeOnDrop>(_: &T) {}
        let cache = SessionCache::new(SESSION_SHARD_BYTES);
        let whole = value(1, 300);
        let place = whole.as_ptr();
        assert!(cache.put(&id(1), whole));
        lock(&cache.shards[0]).probation.entries.iter().for_each(|(_, value)| {
            wipes_itself(value);
            assert_eq!(value.as_ptr(), place);
        });
        let taken = cache.take(&id(1)).expect("it was put");
        wipes_itself(&taken);
        assert_eq!(taken.as_ptr(), place);

        let mut longer = Zeroizing::new(Vec::with_capacity(1000));
        longer.extend_from_slice(&[1; 300]);
        assert!(cache.put(&id(1), longer));
        assert_eq!(cache.take(&id(1)).map(|taken| taken.capacity()), Some(300));
    }

    #[test]
    fn debug_shows_no_contents() {
        let cache = SessionCache::new(SESSION_SHARD_BYTES);
        let empty = format!("{cache:?}");
        assert!(cache.put(&id(1), value(0xab, 300)));
        assert_eq!(format!("{cache:?}"), empty);
    }

    #[derive(Clone, Copy, Debug)]
    enum Action {
        Put(u64, usize),
        Get(u64),
        Take(u64),
        Remove(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        let number = 0..40_u64;
        prop_oneof![
            4 => (number.clone(), 0..1500_usize).prop_map(|(number, bytes)| Action::Put(number, bytes)),
            3 => number.clone().prop_map(Action::Get),
            1 => number.clone().prop_map(Action::Take),
            1 => number.prop_map(Action::Remove),
        ]
    }

    proptest! {
        /// Whatever is done: the bound holds, what was put last is there, and what is there is what was put.
        #[test]
        fn any_sequence_keeps_the_bound(
            capacity in prop_oneof![0..30_000_usize, Just(2 * SESSION_SHARD_BYTES)],
            actions in prop::collection::vec(action(), 1..150),
        ) {
            let cache = SessionCache::new(capacity);
            let mut put: BTreeMap<u64, Zeroizing<Vec<u8>>> = BTreeMap::new();
            for (round, action) in (0_u8..=255).cycle().zip(actions) {
                match action {
                    Action::Put(number, bytes) => {
                        let fits = entry_bytes(bytes) <= cache.shard_capacity;
                        prop_assert_eq!(cache.put(&id(number), value(round, bytes)), fits);
                        if fits {
                            put.insert(number, value(round, bytes));
                            prop_assert_eq!(cache.get(&id(number)), put.get(&number).map(copy_of));
                        }
                    }
                    Action::Get(number) => {
                        let got = cache.get(&id(number));
                        prop_assert!(got.is_none() || got == put.get(&number).map(copy_of));
                        prop_assert_eq!(cache.get(&id(number)), got, "it stays, and does not come back");
                    }
                    Action::Take(number) => {
                        let taken = cache.take(&id(number));
                        prop_assert!(taken.is_none() || taken == put.get(&number).map(copy_of));
                        put.remove(&number);
                    }
                    Action::Remove(number) => {
                        drop(cache.take(&id(number)));
                        put.remove(&number);
                    }
                }
                check(&cache);
            }
            if cache.usage().evicted == 0 {
                prop_assert_eq!(cache.usage().entries, put.len(), "nothing left that did not have to");
            }
        }
    }
}
