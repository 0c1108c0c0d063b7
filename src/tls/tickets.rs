//! Session tickets: what they are sealed with, and what they look like.
//!
//! ```text
//! secret id (4) | epoch (4) | salt (16) | check (8) | AES-256-GCM(value) | tag (16)
//! ```
//! The key of each ticket, and its check, are derived from the secret of its epoch, the policy it is issued under and its salt. So a
//! ticket cannot be opened under another policy, and no key is used twice. Nothing of the policy can be read from a ticket.

mod ratchet;
mod secrets;

use std::fmt;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use self::ratchet::{SECRET_BYTES, expand};
pub use self::secrets::Secrets;
use crate::crypto::memory::SecretMemory;
use crate::crypto::random;
use crate::mutants::{Mutant, active};

/// Says which secret a ticket belongs to, and nothing of it.
type SecretId = [u8; 4];
/// What a ticket can be used under.
pub type PolicyDigest = [u8; 32];

const SALT_BYTES: usize = 16;
const CHECK_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const HEADER_BYTES: usize = size_of::<SecretId>() + size_of::<u32>() + SALT_BYTES + CHECK_BYTES;
const TAG_BYTES: usize = 16;

/// What workers seal and open tickets with: written by the control thread ([`Secrets`]), read without a lock.
pub struct Tickets(ArcSwap<Window>);

/// The epochs that are open.
struct Window {
    /// Tickets are sealed in the first.
    epochs: Vec<Epoch>,
    /// One for each of them.
    secrets: SecretMemory,
}

/// An epoch of a secret.
#[derive(Clone, Copy)]
struct Epoch {
    secret: SecretId,
    number: u32,
    /// No host whose clock is right opens its tickets from then on, in seconds since 1970.
    accepted_until: u64,
}

/// A sealed ticket.
#[derive(Debug)]
pub struct Sealed {
    /// What the client keeps.
    pub ticket: Vec<u8>,
    /// In seconds since 1970.
    pub accepted_until: u64,
}

/// Why a ticket cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// It belongs to no secret of ours: somebody else's, or from before a restart.
    UnknownSecret,
    /// Its epoch is closed, or not open yet.
    Epoch,
    /// It was issued under another policy.
    Policy,
    /// It is cut off, or changed.
    Corrupt,
}

/// What is in use, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Epoch that tickets are sealed in.
    pub epoch: u32,
    /// Secrets whose tickets are opened.
    pub secrets: usize,
}

impl Tickets {
    /// Without a secret: seals and opens none.
    ///
    /// # Panics
    /// When the process has no page of memory left.
    #[must_use]
    pub fn new() -> Tickets {
        let secrets = SecretMemory::unlocked(SECRET_BYTES).expect("there is a page of memory");
        let epochs = Vec::new();
        Tickets(ArcSwap::from_pointee(Window { epochs, secrets }))
    }

    /// What is in use.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        let window = self.0.load();
        let mut secrets: Vec<SecretId> = window.epochs.iter().map(|epoch| epoch.secret).collect();
        secrets.dedup();
        InUse {
            epoch: window.epochs.first().map_or(0, |epoch| epoch.number),
            secrets: secrets.len(),
        }
    }

    /// A ticket with this value for this policy; none while there is no secret.
    #[must_use]
    pub fn seal(&self, policy: &PolicyDigest, value: &[u8]) -> Option<Sealed> {
        let window = self.0.load();
        let epoch = window.epochs.first()?;
        let mut salt = [0; SALT_BYTES];
        random(&mut salt);
        let derived = derive(window.secret(0), policy, &salt);
        let (key, check) = derived.split_at(KEY_BYTES);
        let mut ticket = Vec::with_capacity(HEADER_BYTES + value.len() + TAG_BYTES);
        ticket.extend_from_slice(&epoch.secret);
        ticket.extend_from_slice(&epoch.number.to_be_bytes());
        ticket.extend_from_slice(&salt);
        ticket.extend_from_slice(check);
        ticket.extend_from_slice(value);
        let (header, sealed) = ticket.split_at_mut(HEADER_BYTES);
        let tag = aead(key)
            .seal_in_place_separate_tag(nonce(), Aad::from(header), sealed)
            .expect("a value is shorter than AES-GCM's limit");
        ticket.extend_from_slice(tag.as_ref());
        Some(Sealed {
            ticket,
            accepted_until: epoch.accepted_until,
        })
    }

    /// The value of a ticket that was issued under this policy.
    ///
    /// # Errors
    /// It was not, or not by us, or not lately.
    pub fn open(&self, policy: &PolicyDigest, ticket: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (header, sealed) = ticket.split_at_checked(HEADER_BYTES).ok_or(Unopened::Corrupt)?;
        let (id, rest) = header.split_at(size_of::<SecretId>());
        let (number, rest) = rest.split_at(size_of::<u32>());
        let (salt, check) = rest.split_at(SALT_BYTES);
        let window = self.0.load();
        if !window.epochs.iter().any(|epoch| epoch.secret == id) {
            return Err(Unopened::UnknownSecret);
        }
        let is_meant = |epoch: &Epoch| epoch.secret == id && epoch.number.to_be_bytes() == number;
        let position = window.epochs.iter().position(is_meant).ok_or(Unopened::Epoch)?;
        let derived = derive(window.secret(position), policy, salt);
        let (key, expected) = derived.split_at(KEY_BYTES);
        verify_slices_are_equal(expected, check).map_err(|_| Unopened::Policy)?;
        let mut value = sealed.to_vec();
        let length = aead(key)
            .open_in_place(nonce(), Aad::from(header), &mut value)
            .map_err(|_| Unopened::Corrupt)?
            .len();
        value.truncate(length);
        Ok(value)
    }

    /// A ticket that can be opened was sealed in the epoch that tickets are sealed in now.
    pub(super) fn is_recent(&self, ticket: &[u8]) -> bool {
        let window = self.0.load();
        window.epochs.first().is_some_and(|epoch| {
            let number = ticket.strip_prefix(&epoch.secret);
            number.is_some_and(|rest| rest.starts_with(&epoch.number.to_be_bytes()))
        })
    }

    fn publish(&self, window: Window) {
        self.0.store(window.into());
    }
}

impl Default for Tickets {
    fn default() -> Tickets {
        Tickets::new()
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({:?})", self.in_use())
    }
}

impl Window {
    fn secret(&self, position: usize) -> &[u8] {
        &self.secrets[position * SECRET_BYTES..][..SECRET_BYTES]
    }
}

/// The key of a ticket, and its check.
fn derive(secret: &[u8], policy: &PolicyDigest, salt: &[u8]) -> Zeroizing<[u8; KEY_BYTES + CHECK_BYTES]> {
    let mut derived = Zeroizing::new([0; KEY_BYTES + CHECK_BYTES]);
    let policy: &[u8] = if active(Mutant::PolicyNotInTicketKey) {
        &[]
    } else {
        policy
    };
    expand(secret, &[b"ringlock ticket", policy, salt], &mut *derived);
    derived
}

fn aead(key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the length of the algorithm's"))
}

/// Each key seals one ticket.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests;
