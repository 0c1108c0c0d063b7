//! One timer wheel per worker. Deadlines move often and fire rarely, so an entry only says "look at this slot then": who
//! fires early is looked at and put in again. That keeps one entry a slot and makes cancelling free.

use std::time::{Duration, Instant};

/// Resolution: no deadline of ours needs better.
const TICK: Duration = Duration::from_millis(TICK_MS);
const TICK_MS: u64 = 8;
/// Ticks ahead that the wheel can hold, 32 s. Later deadlines are put at its end and again from there.
const TICKS: usize = 4096;

/// A slot to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The worker's slot.
    pub slot: u32,
    /// Its generation when the entry was made.
    pub generation: u32,
}

/// The wheel.
pub struct TimerWheel {
    start: Instant,
    /// Every tick before this one has fired.
    next_tick: u64,
    buckets: Vec<Vec<Entry>>,
    /// Bit set exactly when the bucket is not empty.
    occupied: [u64; TICKS / 64],
    len: usize,
}

impl TimerWheel {
    /// An empty wheel.
    #[must_use]
    pub fn new(now: Instant) -> TimerWheel {
        TimerWheel {
            start: now,
            next_tick: 0,
            buckets: vec![Vec::new(); TICKS],
            occupied: [0; TICKS / 64],
            len: 0,
        }
    }

    /// Asks for a look at `entry` at `deadline` or a little later, but at the latest when the wheel has turned once.
    /// Returns when that will be.
    pub fn arm(&mut self, deadline: Instant, entry: Entry) -> Instant {
        let ticks = deadline
            .saturating_duration_since(self.start)
            .as_nanos()
            .div_ceil(TICK.as_nanos());
        let latest = self.next_tick + TICKS as u64 - 1;
        let tick = u64::try_from(ticks).unwrap_or(u64::MAX).clamp(self.next_tick, latest);
        let bucket = (tick % TICKS as u64) as usize;
        self.buckets[bucket].push(entry);
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
        self.instant(tick)
    }

    /// When the next entry is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let first = (self.next_tick % TICKS as u64) as usize;
        let mut word = first / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (first % 64));
        for _ in 0..=TICKS / 64 {
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + TICKS - first) % TICKS;
                return Some(self.instant(self.next_tick + ahead as u64));
            }
            word = (word + 1) % (TICKS / 64);
            bits = self.occupied[word];
        }
        unreachable!("a wheel with entries has an occupied bucket");
    }

    /// Moves every entry that is due at `now` to `due`.
    pub fn expire(&mut self, now: Instant, due: &mut Vec<Entry>) {
        let now_tick = (now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u64;
        while self.next_tick <= now_tick {
            let Some(next) = self.next() else {
                self.next_tick = now_tick + 1;
                return;
            };
            if next > now {
                self.next_tick = now_tick + 1;
                return;
            }
            let tick = (next.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u64;
            let bucket = (tick % TICKS as u64) as usize;
            self.len -= self.buckets[bucket].len();
            due.append(&mut self.buckets[bucket]);
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            self.next_tick = tick + 1;
        }
    }

    fn instant(&self, tick: u64) -> Instant {
        self.start + Duration::from_millis(tick.saturating_mul(TICK_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u32) -> Entry {
        Entry { slot, generation: 1 }
    }

    #[test]
    fn entries_fire_in_their_tick_and_not_before() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let mut due = Vec::new();
        assert_eq!(wheel.next(), None);
        wheel.arm(start + Duration::from_millis(100), entry(1));
        wheel.arm(start + Duration::from_millis(20), entry(2));
        assert_eq!(wheel.next(), Some(start + Duration::from_millis(24)));
        wheel.expire(start + Duration::from_millis(19), &mut due);
        assert!(due.is_empty());
        wheel.expire(start + Duration::from_millis(24), &mut due);
        assert_eq!(due, [entry(2)]);
        wheel.expire(start + Duration::from_secs(3600), &mut due);
        assert_eq!(due, [entry(2), entry(1)]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_comes_back_early_rather_than_never() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let look = wheel.arm(start + Duration::from_secs(600), entry(1));
        assert!(look < start + Duration::from_secs(40) && look > start + Duration::from_secs(30));
        let mut due = Vec::new();
        wheel.expire(look, &mut due);
        assert_eq!(due, [entry(1)]);
    }

    #[test]
    fn random_deadlines_all_fire_once_and_in_time() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let mut seed = 1u64;
        let mut expected = Vec::new();
        let mut due = Vec::new();
        let mut now = start;
        for slot in 0..5000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = wheel.arm(now + Duration::from_millis(seed >> 50), entry(slot));
            expected.push((at, slot));
            if slot % 7 == 0 {
                now += Duration::from_millis(3);
                wheel.expire(now, &mut due);
            }
        }
        while let Some(next) = wheel.next() {
            now = now.max(next);
            wheel.expire(now, &mut due);
        }
        assert_eq!(due.len(), expected.len());
        let mut slots: Vec<u32> = due.iter().map(|entry| entry.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..5000).collect::<Vec<u32>>());
    }
}
