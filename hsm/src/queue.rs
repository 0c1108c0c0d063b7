//! Requests that wait for a session, the most urgent one first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use rustls::SignatureScheme;

use crate::channel::Reply;
use crate::seat::Key;

/// A token of 64 sessions with 20 ms each is through with so many in 1.3 s. A slower one has no use for more: the clients who wait for
/// the last ones are gone by then.
pub(crate) const QUEUE_MAX: usize = 4096;

/// A signature that is wanted.
pub(crate) struct Job {
    pub(crate) key: Arc<Key>,
    pub(crate) scheme: SignatureScheme,
    pub(crate) message: Vec<u8>,
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: BinaryHeap<Waiting>,
    /// Requests that have ever been in it.
    came: u64,
}

impl Queue {
    /// Takes a request, or gives it back when too many wait.
    pub(crate) fn push(&mut self, job: Job) -> Result<(), Box<Job>> {
        if self.waiting.len() >= QUEUE_MAX {
            return Err(Box::new(job));
        }
        self.came += 1;
        let came = self.came;
        self.waiting.push(Waiting { came, job });
        Ok(())
    }

    /// The earliest deadline; of equal ones whoever came first.
    pub(crate) fn pop(&mut self) -> Option<Job> {
        self.waiting.pop().map(|waiting| waiting.job)
    }

    /// Takes out those at the front whose time is over, or whom nobody waits for any more.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Reply> {
        let mut expired = Vec::new();
        while let Some(waiting) = self.waiting.peek()
            && (waiting.job.deadline <= now || waiting.job.reply.is_moot())
        {
            expired.extend(self.pop().map(|job| job.reply));
        }
        expired
    }

    /// Takes out all.
    pub(crate) fn take_all(&mut self) -> Vec<Reply> {
        self.waiting.drain().map(|waiting| waiting.job.reply).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The greatest one is next.
struct Waiting {
    came: u64,
    job: Job,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        let (other_rank, rank) = ((other.job.deadline, other.came), (self.job.deadline, self.came));
        other_rank.cmp(&rank)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}
