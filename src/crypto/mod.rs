//! Cryptographic operations: what a session may ask for, and the engines that answer.

pub mod cpu;
pub mod inline;
pub mod multibuffer;
pub mod provider;

use rustls::NamedGroup;
use rustls::crypto::CompletedKeyExchange;

/// Numbers the operations of one session, so that a late answer is known as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(pub u32);

/// An operation that a session emits and whose result it receives later. The session cannot tell which engine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CryptoOp {
    /// An ephemeral key pair of `group`, and its agreement with the peer's share.
    KeyExchange {
        /// A group of ours.
        group: NamedGroup,
        /// As the peer sent it; not validated.
        peer_share: Box<[u8]>,
    },
}

/// The answer to a [`CryptoOp`].
pub enum CryptoResult {
    /// Of [`CryptoOp::KeyExchange`].
    KeyExchange(Result<CompletedKeyExchange, rustls::Error>),
}

impl std::fmt::Debug for CryptoResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CryptoResult::KeyExchange(Ok(done)) => write!(f, "KeyExchange({:?})", done.group),
            CryptoResult::KeyExchange(Err(error)) => write!(f, "KeyExchange({error})"),
        }
    }
}
