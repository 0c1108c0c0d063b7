//! Send buffers: lent to a session while bytes are pending, to the kernel while a send is in flight, otherwise in the pool.
//! An idle connection holds none.

use std::fmt;

use crate::limits::{POOL_CLASS_BYTES, POOL_CLASS_KEEP};
use crate::mutants::{Mutant, active};

/// Bytes on their way out: `start..end` is pending, what follows is free. 0 <= start <= end <= capacity.
pub struct SendBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl SendBuffer {
    fn new(capacity: usize) -> SendBuffer {
        SendBuffer {
            bytes: vec![0; capacity].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What has still to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Number of bytes still to be sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `n` pending bytes: the kernel has them.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "the kernel cannot take more than was pending");
        self.start += n;
    }

    fn room(&self) -> usize {
        self.bytes.len() - self.end
    }
}

impl fmt::Debug for SendBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendBuffer({} of {} bytes)", self.len(), self.bytes.len())
    }
}

/// The free buffers of one worker, by size class.
pub struct SendPool {
    free: [Vec<SendBuffer>; POOL_CLASS_BYTES.len()],
    lent_bytes: usize,
}

impl Default for SendPool {
    fn default() -> Self {
        SendPool {
            free: std::array::from_fn(|_| Vec::new()),
            lent_bytes: 0,
        }
    }
}

impl SendPool {
    /// Capacity of all buffers that are with sessions or the kernel.
    #[must_use]
    pub fn lent_bytes(&self) -> usize {
        self.lent_bytes
    }

    /// Lends a buffer with room for at least `bytes`.
    fn take(&mut self, bytes: usize) -> SendBuffer {
        let class = POOL_CLASS_BYTES.iter().position(|&capacity| capacity >= bytes);
        let buffer = match class {
            Some(class) => self.free[class]
                .pop()
                .unwrap_or_else(|| SendBuffer::new(POOL_CLASS_BYTES[class])),
            None => SendBuffer::new(bytes),
        };
        self.lent_bytes += buffer.bytes.len();
        buffer
    }

    /// Takes a buffer back. What was pending in it is gone.
    pub fn give(&mut self, mut buffer: SendBuffer) {
        self.lent_bytes -= buffer.bytes.len();
        buffer.start = 0;
        buffer.end = 0;
        if let Some(class) = POOL_CLASS_BYTES
            .iter()
            .position(|&capacity| capacity == buffer.bytes.len())
            && self.free[class].len() < POOL_CLASS_KEEP[class]
        {
            self.free[class].push(buffer);
        }
    }
}

/// Everything queued towards one side of a session, oldest first: the rest of a partial send, then what is being filled.
/// At most one buffer is with the kernel (invariant 1); its bytes count as queued until they are sent.
#[derive(Debug, Default)]
pub struct Outbox {
    rest: Option<SendBuffer>,
    filling: Option<SendBuffer>,
    /// Room that `filling` gets when it is taken or grows; 0 when nothing is expected.
    expected_bytes: usize,
    in_flight_bytes: usize,
}

impl Outbox {
    /// Bytes queued, those with the kernel included.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.in_flight_bytes + self.ready()
    }

    /// Bytes that could be handed to the kernel.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.rest.as_ref().map_or(0, SendBuffer::len) + self.filling.as_ref().map_or(0, SendBuffer::len)
    }

    /// A buffer is with the kernel.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight_bytes > 0
    }

    /// Takes the next buffer to send; `None` while one is in flight or nothing is pending.
    pub fn take(&mut self) -> Option<SendBuffer> {
        if self.in_flight() {
            return None;
        }
        let buffer = self.rest.take().or_else(|| self.filling.take())?;
        debug_assert!(!buffer.is_empty(), "an empty buffer is given back, not kept");
        self.in_flight_bytes = buffer.len();
        self.expected_bytes = 0;
        Some(buffer)
    }

    /// The kernel gives a buffer back, having sent `sent` bytes of it.
    pub fn returned(&mut self, mut buffer: SendBuffer, sent: usize, pool: &mut SendPool) {
        debug_assert!(
            self.in_flight_bytes == buffer.len(),
            "only the buffer that was taken comes back"
        );
        self.in_flight_bytes = 0;
        buffer.consume(if sent > 0 && active(Mutant::PartialSendForgotten) {
            buffer.len()
        } else {
            sent
        });
        if buffer.is_empty() {
            pool.give(buffer);
        } else {
            self.rest = Some(buffer);
        }
    }

    /// Forgets what is pending (the buffer in flight comes back by itself).
    pub fn clear(&mut self, pool: &mut SendPool) {
        for buffer in [self.rest.take(), self.filling.take()].into_iter().flatten() {
            pool.give(buffer);
        }
    }

    /// About `bytes` more will be appended before the next [`Outbox::take`]: they get a buffer that holds them all, instead
    /// of one that grows, which copies.
    pub fn expect(&mut self, bytes: usize) {
        let pending = self.filling.as_ref().map_or(0, SendBuffer::len);
        let largest = POOL_CLASS_BYTES[POOL_CLASS_BYTES.len() - 1];
        self.expected_bytes = (pending + bytes).min(largest);
    }

    /// A place to append bytes.
    pub fn sink<'a>(&'a mut self, pool: &'a mut SendPool) -> Sink<'a> {
        Sink {
            filling: &mut self.filling,
            expected_bytes: self.expected_bytes,
            pool,
        }
    }
}

/// Appends to an [`Outbox`].
pub struct Sink<'a> {
    filling: &'a mut Option<SendBuffer>,
    expected_bytes: usize,
    pool: &'a mut SendPool,
}

impl Sink<'_> {
    /// At least `bytes` of writable space; what is written counts after [`Sink::commit`].
    pub fn space(&mut self, bytes: usize) -> &mut [u8] {
        let fits = self.filling.as_ref().is_some_and(|buffer| buffer.room() >= bytes);
        if !fits {
            self.grow(bytes);
        }
        let buffer = self.filling.as_mut().expect("grow leaves a buffer");
        &mut buffer.bytes[buffer.end..]
    }

    /// The first `bytes` of the space are now pending.
    pub fn commit(&mut self, bytes: usize) {
        let Some(buffer) = self.filling.as_mut() else {
            assert!(bytes == 0, "commit follows space");
            return;
        };
        assert!(bytes <= buffer.room(), "commit is bounded by space");
        buffer.end += bytes;
        if buffer.is_empty()
            && let Some(buffer) = self.filling.take()
        {
            self.pool.give(buffer);
        }
    }

    /// Appends a copy.
    pub fn write(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            self.commit(bytes.len());
        }
    }

    /// Moves what is pending to a buffer of a class that has room for `bytes` more.
    fn grow(&mut self, bytes: usize) {
        let old = self.filling.take();
        let pending = old.as_ref().map_or(0, SendBuffer::len);
        let mut buffer = self.pool.take((pending + bytes).max(self.expected_bytes));
        if let Some(old) = old {
            buffer.bytes[..pending].copy_from_slice(old.pending());
            buffer.end = pending;
            self.pool.give(old);
        }
        *self.filling = Some(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_they_went_in_over_partial_sends_and_growth() {
        let mut pool = SendPool::default();
        let mut outbox = Outbox::default();
        let input: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let mut output = Vec::new();
        let mut offered = 0;
        let mut step = 1;
        while output.len() < input.len() {
            let n = (step * 977 % 30_000).min(input.len() - offered);
            outbox.sink(&mut pool).write(&input[offered..offered + n]);
            offered += n;
            step += 1;
            if let Some(buffer) = outbox.take() {
                let sent = (buffer.len() / 2).max(1);
                output.extend_from_slice(&buffer.pending()[..sent]);
                outbox.returned(buffer, sent, &mut pool);
            }
            assert_eq!(outbox.queued(), offered - output.len());
        }
        assert_eq!(output, input);
        assert_eq!(pool.lent_bytes(), 0, "an empty outbox holds no buffer");
    }

    #[test]
    fn what_is_expected_gets_room_once_and_holds_nothing_until_it_comes() {
        let smallest = POOL_CLASS_BYTES[0];
        let largest = POOL_CLASS_BYTES[POOL_CLASS_BYTES.len() - 1];
        // A class that four writes fill and the first of them alone does not need.
        let class = POOL_CLASS_BYTES[1];
        let part = class / 4;
        let first = POOL_CLASS_BYTES.into_iter().find(|&capacity| capacity >= part).unwrap();
        let mut pool = SendPool::default();
        let mut outbox = Outbox::default();
        outbox.expect(4 * part + smallest);
        assert_eq!(pool.lent_bytes(), 0);
        outbox.sink(&mut pool).write(&vec![7; part]);
        let lent = pool.lent_bytes();
        assert!(lent > first, "the expectation chose the buffer, not the first write");
        for _ in 1..4 {
            outbox.sink(&mut pool).write(&vec![7; part]);
            assert_eq!(
                pool.lent_bytes(),
                lent,
                "the first write already has the buffer for all"
            );
        }
        let buffer = outbox.take().unwrap();
        outbox.returned(buffer, 4 * part, &mut pool);
        outbox.sink(&mut pool).write(&[7; 10]);
        assert_eq!(pool.lent_bytes(), smallest, "an expectation ends with the send");
        outbox.clear(&mut pool);
        outbox.expect(usize::MAX / 2);
        outbox.sink(&mut pool).write(&[7; 10]);
        assert_eq!(pool.lent_bytes(), largest, "no buffer is larger than the pool has");
    }

    #[test]
    fn an_empty_commit_gives_the_buffer_back() {
        let mut pool = SendPool::default();
        let mut outbox = Outbox::default();
        let mut sink = outbox.sink(&mut pool);
        assert!(sink.space(100).len() >= 100);
        sink.commit(0);
        assert_eq!(pool.lent_bytes(), 0);
        assert!(outbox.take().is_none());
    }
}
