//! Secrets of epochs, derived from one secret so that it is easy to go on and impossible to go back.
//!
//! Epochs are the leaves of a binary tree, numbered from the left. The two children of a node are derived from it by HKDF
//! (RFC 5869). What is kept is the present leaf, and beside the way from the root to it every right sibling: from those all
//! later leaves can be derived, and no earlier one. A leaf that lies a million epochs ahead takes 32 steps like any other.

use std::ops::Range;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::memory::SecretMemory;

/// A secret of the tree, or derived from one.
pub(super) type Secret = Zeroizing<[u8; SECRET_BYTES]>;

pub(super) const SECRET_BYTES: usize = 32;

/// Epochs have as many bits.
const LEVELS: usize = u32::BITS as usize;

const LEFT: &[u8] = b"ringlock ticket epochs: left";
const RIGHT: &[u8] = b"ringlock ticket epochs: right";

/// See the module.
pub(super) struct Ratchet {
    epoch: u32,
    /// By level, from that of the leaves upwards: the right sibling beside the way, where the way goes left; zeros where it
    /// goes right. Behind them the leaf.
    secrets: SecretMemory,
}

impl Ratchet {
    /// What it keeps has so many bytes.
    pub(super) const BYTES: usize = (LEVELS + 1) * SECRET_BYTES;

    /// The tree below `root`, at the earliest epoch. `memory` has [`Ratchet::BYTES`].
    pub(super) fn new(root: &Secret, memory: SecretMemory) -> Ratchet {
        let mut ratchet = Ratchet {
            epoch: 0,
            secrets: memory,
        };
        ratchet.place(LEVELS).copy_from_slice(&**root);
        ratchet.descend(LEVELS);
        ratchet
    }

    /// The earliest epoch whose secret can still be derived.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Goes on to `epoch`, and forgets all before it. It never goes back.
    pub(super) fn advance(&mut self, epoch: u32) {
        let Some(level) = self.towards(epoch) else {
            return;
        };
        self.secrets.copy_within(range(level), range(LEVELS).start);
        for below in 0..=level {
            self.place(below).zeroize();
        }
        self.epoch = epoch;
        self.descend(level);
    }

    /// Writes the secret of an epoch to `to`; not when it lies before the present one. It is nowhere else then, not for a moment:
    /// whatever is moved stays behind where it was.
    pub(super) fn write_secret(&self, epoch: u32, to: &mut [u8]) -> bool {
        let Some(level) = self.towards(epoch) else {
            let is_present = epoch == self.epoch;
            if is_present {
                to.copy_from_slice(&self.secrets[range(LEVELS)]);
            }
            return is_present;
        };
        to.copy_from_slice(&self.secrets[range(level)]);
        for below in (0..level).rev() {
            step(to, if goes_right(epoch, below) { RIGHT } else { LEFT });
        }
        true
    }

    /// The level of the node above a later epoch, of those that are kept.
    fn towards(&self, epoch: u32) -> Option<usize> {
        // The highest bit in which they differ: there the way to the later one goes right, and the present one left.
        (epoch > self.epoch).then(|| (self.epoch ^ epoch).ilog2() as usize)
    }

    /// From a node above the present epoch, which has this level and is in the place of the leaf: fills in what is kept below it.
    fn descend(&mut self, level: usize) {
        for below in (0..level).rev() {
            if goes_right(self.epoch, below) {
                step(self.place(LEVELS), RIGHT);
            } else {
                self.secrets.copy_within(range(LEVELS), range(below).start);
                step(self.place(below), RIGHT);
                step(self.place(LEVELS), LEFT);
            }
        }
    }

    fn place(&mut self, place: usize) -> &mut [u8] {
        &mut self.secrets[range(place)]
    }
}

fn range(place: usize) -> Range<usize> {
    place * SECRET_BYTES..(place + 1) * SECRET_BYTES
}

/// The way to this leaf goes right, from the level above to this one.
fn goes_right(epoch: u32, level: usize) -> bool {
    epoch >> level & 1 == 1
}

/// Puts a child in the place of a node.
fn step(node: &mut [u8], side: &[u8]) {
    let mut child = Secret::default();
    expand(node, &[side], &mut *child);
    node.copy_from_slice(&*child);
}

/// HKDF-Expand with SHA-256, into `output`.
pub(super) fn expand(secret: &[u8], info: &[&[u8]], output: &mut [u8]) {
    Hkdf::<Sha256>::from_prk(secret)
        .expect("a secret is as long as a hash")
        .expand_multi_info(info, output)
        .expect("a few hashes' length can be derived");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: [u8; SECRET_BYTES] = [7; SECRET_BYTES];

    fn ratchet() -> Ratchet {
        Ratchet::new(&Zeroizing::new(ROOT), SecretMemory::new(Ratchet::BYTES).unwrap())
    }

    /// The leaf as its definition says, from the root.
    fn leaf(epoch: u32) -> Secret {
        path(epoch).pop().unwrap()
    }

    /// All nodes from the root to a leaf, both included.
    fn path(epoch: u32) -> Vec<Secret> {
        let mut nodes = vec![Zeroizing::new(ROOT)];
        for level in (0..LEVELS).rev() {
            let side = if goes_right(epoch, level) { RIGHT } else { LEFT };
            let mut node = nodes.last().unwrap().clone();
            step(&mut *node, side);
            nodes.push(node);
        }
        nodes
    }

    fn secret(ratchet: &Ratchet, epoch: u32) -> Option<Secret> {
        let mut secret = Secret::default();
        ratchet.write_secret(epoch, &mut *secret).then_some(secret)
    }

    fn keeps(ratchet: &Ratchet, secret: &Secret) -> bool {
        ratchet.secrets.chunks(SECRET_BYTES).any(|kept| kept == &secret[..])
    }

    /// Near each other, at both ends, and anywhere.
    fn epochs() -> impl Strategy<Value = Vec<u32>> {
        let epoch = prop_oneof![0..40_u32, 490_000..490_040_u32, u32::MAX - 40..=u32::MAX, any::<u32>()];
        prop::collection::vec(epoch, 1..12)
    }

    proptest! {
        #[test]
        fn whichever_way_it_went_a_later_epoch_has_its_secret_and_an_earlier_one_has_none(steps in epochs(), asked in epochs()) {
            let mut ratchet = ratchet();
            for step in steps {
                let before = ratchet.epoch();
                ratchet.advance(step);
                prop_assert_eq!(ratchet.epoch(), before.max(step));
                for &epoch in &asked {
                    let secret = secret(&ratchet, epoch);
                    prop_assert_eq!(secret, (epoch >= ratchet.epoch()).then(|| leaf(epoch)), "{}", epoch);
                }
            }
        }

        /// Whatever leads to an earlier epoch is on the way from the root to it.
        #[test]
        fn nothing_is_kept_that_leads_to_an_earlier_epoch(steps in epochs(), asked in epochs()) {
            let mut ratchet = ratchet();
            for step in steps {
                ratchet.advance(step);
                let near = (1..4).filter_map(|back| ratchet.epoch().checked_sub(back));
                for epoch in asked.iter().copied().filter(|&epoch| epoch < ratchet.epoch()).chain(near) {
                    for node in path(epoch) {
                        prop_assert!(!keeps(&ratchet, &node), "from {} back to {epoch}", ratchet.epoch());
                    }
                }
            }
        }
    }

    #[test]
    fn every_epoch_has_a_secret_of_its_own() {
        let secrets: Vec<Secret> = (0..200).map(|epoch| secret(&ratchet(), epoch).unwrap()).collect();
        for (epoch, secret) in secrets.iter().enumerate() {
            assert!(!secrets[..epoch].contains(secret), "{epoch}");
        }
    }

    #[test]
    fn the_last_epoch_can_be_reached_and_is_the_last() {
        let mut ratchet = ratchet();
        ratchet.advance(u32::MAX);
        assert_eq!(secret(&ratchet, u32::MAX), Some(leaf(u32::MAX)));
        assert_eq!(secret(&ratchet, u32::MAX - 1), None);
        let siblings = &ratchet.secrets[..LEVELS * SECRET_BYTES];
        assert!(siblings.iter().all(|&byte| byte == 0), "there is nothing later");
    }
}
