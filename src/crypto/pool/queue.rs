//! Queues in memory for secrets.

use std::io;
use std::marker::PhantomData;

use zeroize::Zeroize;

use crate::crypto::memory::SecretMemory;
use crate::mutants::{Mutant, active};

/// What can be kept as bytes. It has no copy elsewhere, and goes into memory and out of it once.
pub trait Kept: Sized {
    /// How many.
    const BYTES: usize;

    /// Moves it to `bytes`, of this length.
    fn put(self, bytes: &mut [u8]);

    /// Moves it out of `bytes`, which are then wiped.
    fn take(bytes: &[u8]) -> Self;
}

/// A bounded queue. Its counters lie in the same memory, so that a child of this process finds it empty, or not at all.
pub(super) struct Queue<T> {
    memory: SecretMemory,
    capacity: usize,
    kept: PhantomData<T>,
}

const COUNTERS_BYTES: usize = 16;

impl<T: Kept> Queue<T> {
    /// One with room for so many.
    ///
    /// # Errors
    /// As [`SecretMemory::new`].
    pub(super) fn new(capacity: usize) -> io::Result<Queue<T>> {
        Ok(Queue {
            memory: SecretMemory::new(COUNTERS_BYTES + capacity * T::BYTES)?,
            capacity,
            kept: PhantomData,
        })
    }

    /// How many there are.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.counter(8)
    }

    /// How many more there is room for.
    #[must_use]
    pub(super) fn room(&self) -> usize {
        self.capacity - self.len()
    }

    /// Appends one; without room it is dropped, and thereby wiped.
    pub(super) fn push(&mut self, item: T) {
        if self.room() > 0 {
            let at = (self.counter(0) + self.len()) % self.capacity;
            item.put(self.entry(at));
            self.set_counter(8, self.len() + 1);
        }
    }

    /// Takes the oldest out and wipes its place.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.len() == 0 {
            return None;
        }
        let at = self.counter(0);
        let entry = self.entry(at);
        let item = T::take(entry);
        if active(Mutant::NonceUsedTwice) {
            return Some(item);
        }
        entry.zeroize();
        self.set_counter(0, (at + 1) % self.capacity);
        self.set_counter(8, self.len() - 1);
        Some(item)
    }

    /// Wipes all of it.
    pub(super) fn clear(&mut self) {
        self.memory.zeroize();
    }

    fn entry(&mut self, at: usize) -> &mut [u8] {
        let start = COUNTERS_BYTES + at * T::BYTES;
        &mut self.memory[start..start + T::BYTES]
    }

    fn counter(&self, at: usize) -> usize {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.memory[at..at + 8]);
        usize::from_ne_bytes(bytes)
    }

    fn set_counter(&mut self, at: usize, value: usize) {
        self.memory[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
}

/// Moves numbers to the front of `bytes`, and gives what is behind them.
pub(super) fn put_limbs<'b>(limbs: &[u64], bytes: &'b mut [u8]) -> &'b mut [u8] {
    let (front, rest) = bytes.split_at_mut(8 * limbs.len());
    for (bytes, limb) in front.chunks_exact_mut(8).zip(limbs) {
        bytes.copy_from_slice(&limb.to_ne_bytes());
    }
    rest
}

/// Reads numbers from the front of `bytes`, and gives what is behind them.
pub(super) fn take_limbs<'b>(limbs: &mut [u64], bytes: &'b [u8]) -> &'b [u8] {
    let (front, rest) = bytes.split_at(8 * limbs.len());
    for (limb, bytes) in limbs.iter_mut().zip(front.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        *limb = u64::from_ne_bytes(word);
    }
    rest
}

#[cfg(test)]
mod tests;
