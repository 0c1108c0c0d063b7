//! Verification of other people's signatures, as rustls and webpki ask for it: an operation that an engine answers. That some can
//! share a call is one reason. The other is that none is computed where it is asked for, on the small stack of a call that can be
//! left: ML-DSA-87 alone takes 77 KiB.

use std::sync::LazyLock;

use rustls::SignatureScheme;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::{CryptoOp, CryptoResult, suspend};

/// Kinds of signatures that can be verified in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// ECDSA on P-384 with SHA-384.
    P384,
}

impl Kind {
    fn of(algorithm: &dyn SignatureVerificationAlgorithm) -> Option<Kind> {
        if is_same(algorithm, webpki::aws_lc_rs::ECDSA_P256_SHA256) {
            Some(Kind::P256)
        } else if is_same(algorithm, webpki::aws_lc_rs::ECDSA_P384_SHA384) {
            Some(Kind::P384)
        } else {
            None
        }
    }
}

/// A signature that somebody claims to have made. Nothing in it is validated.
#[derive(Clone, Debug)]
pub struct Verification {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    kind: Option<Kind>,
    /// Key, message and signature, one after the other.
    bytes: Box<[u8]>,
    key_end: usize,
    message_end: usize,
}

impl Verification {
    /// `algorithm` is one of aws-lc's, which decides; `key` is as the certificate has it, `message` what is said to be signed,
    /// before any hash.
    #[must_use]
    pub fn new(
        algorithm: &'static dyn SignatureVerificationAlgorithm,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Verification {
        Verification {
            algorithm,
            kind: Kind::of(algorithm),
            bytes: [key, message, signature].concat().into(),
            key_end: key.len(),
            message_end: key.len() + message.len(),
        }
    }

    /// Nothing for those that are always verified one by one.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Whose signature it is said to be.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[..self.key_end]
    }

    /// What is said to be signed.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.bytes[self.key_end..self.message_end]
    }

    /// What is said to be the signature.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.bytes[self.message_end..]
    }

    /// Whether it is right, by aws-lc.
    #[must_use]
    pub fn verify(&self) -> bool {
        self.algorithm
            .verify_signature(self.key(), self.message(), self.signature())
            .is_ok()
    }
}

/// What rustls and webpki hold in place of this algorithm of aws-lc.
#[derive(Debug)]
struct Suspending(&'static dyn SignatureVerificationAlgorithm);

impl SignatureVerificationAlgorithm for Suspending {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        match suspend::ask(CryptoOp::Verify(Verification::new(self.0, key, message, signature))) {
            CryptoResult::Verified(true) => Ok(()),
            CryptoResult::Verified(false) | CryptoResult::Abandoned => Err(InvalidSignature),
            CryptoResult::KeyExchange(_) | CryptoResult::Signature(_) => {
                unreachable!("the answer is of the operation's kind")
            }
        }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

/// aws-lc's algorithms in aws-lc's order, as operations.
#[must_use]
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    static TABLE: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
        let theirs = aws_lc_rs::default_provider().signature_verification_algorithms;
        let mapping: Vec<(SignatureScheme, Algorithms)> = theirs
            .mapping
            .iter()
            .map(|&(scheme, algorithms)| (scheme, suspending(algorithms)))
            .collect();
        WebPkiSupportedAlgorithms {
            all: suspending(theirs.all),
            mapping: Box::leak(mapping.into()),
        }
    });
    *TABLE
}

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// Made once for the life of the process.
fn suspending(theirs: Algorithms) -> Algorithms {
    let ours = theirs
        .iter()
        .map(|&theirs| Box::leak(Box::new(Suspending(theirs))) as &dyn SignatureVerificationAlgorithm);
    Box::leak(ours.collect())
}

fn is_same(one: &dyn SignatureVerificationAlgorithm, other: &dyn SignatureVerificationAlgorithm) -> bool {
    one.public_key_alg_id() == other.public_key_alg_id() && one.signature_alg_id() == other.signature_alg_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_added_lost_or_moved() {
        let (ours, theirs) = (
            algorithms(),
            aws_lc_rs::default_provider().signature_verification_algorithms,
        );
        let same = |ours: Algorithms, theirs: Algorithms| {
            let is_ours = |ours: &dyn SignatureVerificationAlgorithm| format!("{ours:?}").starts_with("Suspending");
            let mut pairs = ours.iter().zip(theirs);
            ours.len() == theirs.len() && pairs.all(|(&ours, &theirs)| is_ours(ours) && is_same(ours, theirs))
        };
        assert!(same(ours.all, theirs.all));
        assert_eq!(ours.mapping.len(), theirs.mapping.len());
        for ((scheme, ours), (theirs_scheme, theirs)) in ours.mapping.iter().zip(theirs.mapping) {
            assert_eq!(scheme, theirs_scheme);
            assert!(same(ours, theirs), "{scheme:?}");
        }
    }

    /// In TLS 1.3 the scheme names the curve: the first algorithm of its list is taken.
    #[test]
    fn the_schemes_of_both_curves_lead_to_batches() {
        let kinds: Vec<_> = algorithms()
            .mapping
            .iter()
            .filter_map(|(scheme, algorithms)| Some((*scheme, Kind::of(algorithms[0])?)))
            .collect();
        assert_eq!(
            kinds,
            [
                (SignatureScheme::ECDSA_NISTP384_SHA384, Kind::P384),
                (SignatureScheme::ECDSA_NISTP256_SHA256, Kind::P256)
            ]
        );
        let batched = algorithms().all.iter().filter_map(|&algorithm| Kind::of(algorithm));
        assert_eq!(batched.count(), 2);
    }
}
