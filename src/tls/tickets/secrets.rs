//! The control side of tickets: from secrets and the time to the window of epochs that workers seal and open with.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hkdf::Hkdf;
use sha2::Sha256;

use super::ratchet::{Ratchet, SECRET_BYTES, Secret, expand};
use super::{Epoch, SecretId, Tickets, Window};
use crate::crypto::memory::SecretMemory;
use crate::limits::TICKET_SECRETS_MAX;
use crate::mutants::{Mutant, active};

/// The secret that tickets are sealed with, those that it has replaced and whose tickets are still opened, and those that will
/// replace it.
pub struct Secrets {
    tickets: Arc<Tickets>,
    /// The newest first.
    chains: Vec<Chain>,
    /// That memory cannot be locked has been told.
    warned: bool,
}

/// The epochs of one secret.
struct Chain {
    id: SecretId,
    /// In seconds.
    rotation: u64,
    /// At the epoch before the present one.
    ratchet: Ratchet,
    /// The first epoch in which tickets are sealed with it.
    since: u32,
    /// Once it has been replaced: the last epoch in which its tickets are opened.
    last: Option<u32>,
}

impl Secrets {
    /// Publishes to `tickets`. Nothing is sealed before [`Secrets::replace`].
    #[must_use]
    pub fn new(tickets: Arc<Tickets>) -> Secrets {
        Secrets {
            tickets,
            chains: Vec::new(),
            warned: false,
        }
    }

    /// Tickets of `secret` are opened from `now` (seconds since 1970) on, and sealed from the next of its epochs of `rotation` (whole
    /// seconds) on: by then other hosts should have it, too. The first secret is used at once. What is sealed with the secret before
    /// it is opened until its time is over. Returns whether it is another than before.
    ///
    /// # Errors
    /// There is no memory.
    pub fn replace(&mut self, secret: &[u8], rotation: Duration, now: u64) -> io::Result<bool> {
        let rotation = rotation.as_secs().max(1);
        let root = root(secret, rotation);
        let mut id = SecretId::default();
        expand(&*root, &[b"ringlock ticket secret: id"], &mut id);
        let known = self.chains.iter().position(|chain| chain.id == id);
        if known == Some(0) {
            self.advance(now)?;
            return Ok(false);
        }
        let chain = match known {
            Some(position) => self.chains.remove(position),
            None => Chain {
                id,
                rotation,
                since: if self.chains.is_empty() {
                    0
                } else {
                    number(now, rotation) + 1
                },
                ratchet: Ratchet::new(&root, memory(Ratchet::BYTES, &mut self.warned)?),
                last: None,
            },
        };
        if let Some(replaced) = self.chains.first_mut() {
            // The last tickets are sealed with it right before.
            let begins = now.max(u64::from(chain.since) * rotation);
            let last = replaced
                .epoch(now)
                .max(number(begins.saturating_sub(1), replaced.rotation));
            replaced.last = Some(last.saturating_add(1));
        }
        self.chains.insert(0, Chain { last: None, ..chain });
        self.chains.truncate(TICKET_SECRETS_MAX);
        self.publish(now)?;
        Ok(true)
    }

    /// Opens and closes epochs as `now` (seconds since 1970) demands. Returns in how many seconds to call again.
    ///
    /// # Errors
    /// There is no memory. The epochs are those of before then.
    pub fn advance(&mut self, now: u64) -> io::Result<u64> {
        if self.chains.iter().any(|chain| chain.is_behind(now)) {
            self.publish(now)?;
        }
        let next = self.chains.iter().map(|chain| chain.rotation - now % chain.rotation);
        Ok(next.min().unwrap_or(u64::MAX))
    }

    fn publish(&mut self, now: u64) -> io::Result<()> {
        let mut chains: Vec<&Chain> = self.chains.iter().filter(|chain| !chain.is_over(now)).collect();
        // Tickets are sealed with the first. None has begun when more came in one epoch than are kept.
        let begun = chains.iter().position(|chain| chain.since <= chain.epoch(now));
        chains.rotate_left(begun.unwrap_or_default());
        let epochs: Vec<(Epoch, &Ratchet)> = chains.iter().flat_map(|chain| chain.window(now)).collect();
        let mut secrets = memory(epochs.len().max(1) * SECRET_BYTES, &mut self.warned)?;
        for (place, (epoch, ratchet)) in secrets.chunks_exact_mut(SECRET_BYTES).zip(&epochs) {
            ratchet.write_secret(epoch.number, place);
        }
        let epochs = epochs.into_iter().map(|(epoch, _)| epoch).collect();
        self.tickets.publish(Window { epochs, secrets });
        self.chains.retain(|chain| !chain.is_over(now));
        for chain in &mut self.chains {
            chain.ratchet.advance(chain.epoch(now).saturating_sub(1));
        }
        Ok(())
    }
}

/// Locked, where that is allowed.
fn memory(bytes: usize, warned: &mut bool) -> io::Result<SecretMemory> {
    SecretMemory::new(bytes).or_else(|error| {
        if !std::mem::replace(warned, true) {
            tracing::warn!(
                "memory for the secrets of tickets cannot be locked ({error}): raise RLIMIT_MEMLOCK (LimitMEMLOCK=)"
            );
        }
        SecretMemory::unlocked(bytes)
    })
}

impl Chain {
    /// The present epoch. A clock that is set back does not open epochs again that have been closed.
    fn epoch(&self, now: u64) -> u32 {
        number(now, self.rotation).max(self.ratchet.epoch().saturating_add(1))
    }

    fn is_over(&self, now: u64) -> bool {
        self.last.is_some_and(|last| self.epoch(now) > last)
    }

    /// What is published of it no longer fits the time.
    fn is_behind(&self, now: u64) -> bool {
        self.is_over(now) || self.epoch(now).saturating_sub(1) != self.ratchet.epoch()
    }

    /// The present epoch, the one before and the next. Hosts whose clocks differ by less than an epoch agree on two of them.
    fn window(&self, now: u64) -> impl Iterator<Item = (Epoch, &Ratchet)> {
        let present = self.epoch(now);
        let closed = active(Mutant::OldEpochStaysOpen).then(|| present.saturating_sub(2));
        let numbers = [Some(present), present.checked_sub(1), present.checked_add(1), closed];
        let left = numbers
            .into_iter()
            .flatten()
            .filter(|&number| number >= self.ratchet.epoch());
        left.map(|number| {
            let epoch = Epoch {
                secret: self.id,
                number,
                accepted_until: (u64::from(number) + 2) * self.rotation,
            };
            (epoch, &self.ratchet)
        })
    }
}

/// The epoch by the clock.
fn number(now: u64, rotation: u64) -> u32 {
    u32::try_from(now / rotation).unwrap_or(u32::MAX)
}

/// The root of a secret's tree. Another rotation numbers epochs in another way, so it has another tree.
fn root(secret: &[u8], rotation: u64) -> Secret {
    let mut extracted = Secret::default();
    let (mut output, _) = Hkdf::<Sha256>::extract(Some(b"ringlock ticket secret"), secret);
    extracted.swap_with_slice(&mut output);
    let mut root = Secret::default();
    let info: [&[u8]; 2] = [b"ringlock ticket secret: epochs of", &rotation.to_be_bytes()];
    expand(&*extracted, &info, &mut *root);
    root
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} in use)", self.chains.len())
    }
}
