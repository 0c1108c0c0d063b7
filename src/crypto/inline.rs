//! The engine that answers at once, on the worker's own core, with aws-lc.

use aws_lc_rs::kem::{EncapsulationKey, ML_KEM_768};
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret};
use rustls::{Error, NamedGroup, PeerMisbehaved};

use super::{CryptoOp, CryptoResult, pool, provider};
use crate::error::KeyFailure;

/// Bytes of an ML-KEM-768 encapsulation key, which stands before the X25519 share of X25519MLKEM768.
pub const MLKEM_KEY_BYTES: usize = 1184;

const INVALID_SHARE: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

/// Computes one operation.
#[must_use]
pub fn run(op: &CryptoOp) -> CryptoResult {
    match op {
        CryptoOp::KeyExchange { group, peer_share } => CryptoResult::KeyExchange(exchange(*group, peer_share)),
        CryptoOp::Sign { key, scheme, message } => CryptoResult::Signature(key.sign(*scheme, message)),
        // Asked for by a call that could not be left.
        CryptoOp::SignElsewhere { .. } => CryptoResult::Signature(Err(KeyFailure::Full.into())),
        CryptoOp::Verify(verification) => CryptoResult::Verified(verification.verify()),
    }
}

/// With a key pair that was made ahead, if there is one.
fn exchange(group: NamedGroup, peer_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
    if group == NamedGroup::X25519MLKEM768 {
        if let Some((encapsulation_key, share)) = peer_share.split_at_checked(MLKEM_KEY_BYTES)
            && let Some(started) = pool::take_started(NamedGroup::X25519)
        {
            let public: [u8; 32] = started.pub_key().try_into().map_err(|_| INVALID_SHARE)?;
            let shared = started.complete(share)?;
            return hybrid(encapsulation_key, &public, shared.secret_bytes());
        }
    } else if let Some(started) = pool::take_started(group) {
        return complete(group, started, peer_share);
    }
    match provider::library_group(group) {
        Some(library) => library.start_and_complete(peer_share),
        None => Err(rustls::PeerIncompatible::NoKxGroupsInCommon.into()),
    }
}

fn complete(
    group: NamedGroup,
    started: Box<dyn ActiveKeyExchange>,
    peer_share: &[u8],
) -> Result<CompletedKeyExchange, Error> {
    Ok(CompletedKeyExchange {
        group,
        pub_key: started.pub_key().to_vec(),
        secret: started.complete(peer_share)?,
    })
}

/// draft-ietf-tls-ecdhe-mlkem: ML-KEM first, in the share and in the secret.
///
/// # Errors
/// The peer's key is none.
pub fn hybrid(encapsulation_key: &[u8], public: &[u8; 32], shared: &[u8]) -> Result<CompletedKeyExchange, Error> {
    let key = EncapsulationKey::new(&ML_KEM_768, encapsulation_key).map_err(|_| INVALID_SHARE)?;
    let (ciphertext, secret) = key.encapsulate().map_err(|_| INVALID_SHARE)?;
    let mut both = Vec::with_capacity(secret.as_ref().len() + shared.len());
    both.extend_from_slice(secret.as_ref());
    both.extend_from_slice(shared);
    Ok(CompletedKeyExchange {
        group: NamedGroup::X25519MLKEM768,
        pub_key: [ciphertext.as_ref(), public].concat(),
        // Takes the bytes over and wipes them.
        secret: SharedSecret::from(both),
    })
}
