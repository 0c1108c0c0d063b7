//! The engine that answers at once, on the worker's own core, with aws-lc.

use super::{CryptoOp, CryptoResult, provider};

/// Computes one operation.
#[must_use]
pub fn run(op: &CryptoOp) -> CryptoResult {
    match op {
        CryptoOp::KeyExchange { group, peer_share } => {
            CryptoResult::KeyExchange(match provider::library_group(*group) {
                Some(library) => library.start_and_complete(peer_share),
                None => Err(rustls::PeerIncompatible::NoKxGroupsInCommon.into()),
            })
        }
        CryptoOp::Sign { key, scheme, message } => CryptoResult::Signature(key.sign(*scheme, message)),
    }
}
