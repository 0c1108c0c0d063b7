//! Cryptographic operations: what a session may ask for, and the engines that answer.

pub mod batch;
pub mod cpu;
pub mod inline;
pub mod key;
pub mod measure;
pub mod memory;
pub mod multibuffer;
pub mod pool;
pub mod provider;
pub mod remote;
pub mod requests;
pub mod sha256;
pub mod suspend;
pub mod verifier;

use std::sync::Arc;

use key::Key;
use ringlock_hsm::remote::RemoteKey;
use rustls::crypto::CompletedKeyExchange;
use rustls::{NamedGroup, SignatureScheme};
use verifier::Verification;

/// Fills `bytes` with random ones.
///
/// # Panics
/// Never: aws-lc's generator ends the process rather than fail.
pub fn random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("aws-lc's generator ends the process rather than fail");
}

/// Numbers the operations of one session, so that a late answer is known as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(pub u32);

/// An operation that a session emits and whose result it receives later. The session cannot tell which engine answers.
#[derive(Clone, Debug)]
pub enum CryptoOp {
    /// An ephemeral key pair of `group`, and its agreement with the peer's share.
    KeyExchange {
        /// A group of ours.
        group: NamedGroup,
        /// As the peer sent it; not validated.
        peer_share: Box<[u8]>,
    },
    /// A signature.
    Sign {
        /// Whose.
        key: Arc<Key>,
        /// One that the key has.
        scheme: SignatureScheme,
        /// What is signed, before any hash.
        message: Box<[u8]>,
    },
    /// A signature by a key that is not here.
    SignElsewhere {
        /// Whose.
        key: Arc<RemoteKey>,
        /// One that the key has.
        scheme: SignatureScheme,
        /// What is signed, before any hash.
        message: Box<[u8]>,
    },
    /// Whether a signature is right.
    Verify(Verification),
}

/// The answer to a [`CryptoOp`].
pub enum CryptoResult {
    /// Of [`CryptoOp::KeyExchange`].
    KeyExchange(Result<CompletedKeyExchange, rustls::Error>),
    /// Of [`CryptoOp::Sign`] and [`CryptoOp::SignElsewhere`].
    Signature(Result<Vec<u8>, rustls::Error>),
    /// Of [`CryptoOp::Verify`]: the signature is right.
    Verified(bool),
    /// Nobody waits for the operation any more: the connection is over.
    Abandoned,
}

impl std::fmt::Debug for CryptoResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CryptoResult::KeyExchange(Ok(done)) => write!(f, "KeyExchange({:?})", done.group),
            CryptoResult::KeyExchange(Err(error)) => write!(f, "KeyExchange({error})"),
            CryptoResult::Signature(Ok(signature)) => write!(f, "Signature({} bytes)", signature.len()),
            CryptoResult::Signature(Err(error)) => write!(f, "Signature({error})"),
            CryptoResult::Verified(right) => write!(f, "Verified({right})"),
            CryptoResult::Abandoned => f.write_str("Abandoned"),
        }
    }
}
