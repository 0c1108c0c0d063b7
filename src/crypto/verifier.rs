//! Verification of other people's signatures, as rustls and webpki ask for it: of the kinds that batches know, each is an operation
//! that an engine answers. All others are aws-lc's own affair.

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
    /// What decides which signatures are right.
    fn library(self) -> &'static dyn SignatureVerificationAlgorithm {
        match self {
            Kind::P256 => webpki::aws_lc_rs::ECDSA_P256_SHA256,
            Kind::P384 => webpki::aws_lc_rs::ECDSA_P384_SHA384,
        }
    }
}

/// A signature that somebody claims to have made. Nothing in it is validated.
#[derive(Clone, Debug)]
pub struct Verification {
    kind: Kind,
    /// Key, message and signature, one after the other.
    bytes: Box<[u8]>,
    key_end: usize,
    message_end: usize,
}

impl Verification {
    /// `key` is the point as the certificate has it, `message` what is said to be signed, before any hash.
    #[must_use]
    pub fn new(kind: Kind, key: &[u8], message: &[u8], signature: &[u8]) -> Verification {
        Verification {
            kind,
            bytes: [key, message, signature].concat().into(),
            key_end: key.len(),
            message_end: key.len() + message.len(),
        }
    }

    /// Of the key and the signature.
    #[must_use]
    pub fn kind(&self) -> Kind {
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
        let library = self.kind.library();
        library
            .verify_signature(self.key(), self.message(), self.signature())
            .is_ok()
    }
}

/// What rustls and webpki hold in place of an algorithm of aws-lc.
#[derive(Debug)]
struct Suspending(Kind);

static SUSPENDING: [Suspending; 2] = [Suspending(Kind::P256), Suspending(Kind::P384)];

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
        self.0.library().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.library().signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.library().fips()
    }
}

/// aws-lc's algorithms in aws-lc's order, those of [`Kind`] as operations.
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
    let algorithms: Vec<&dyn SignatureVerificationAlgorithm> = theirs
        .iter()
        .map(|&theirs| {
            let ours = SUSPENDING.iter().find(|ours| is_same(*ours, theirs));
            ours.map_or(theirs, |ours| ours as _)
        })
        .collect();
    Box::leak(algorithms.into())
}

fn is_same(one: &dyn SignatureVerificationAlgorithm, other: &dyn SignatureVerificationAlgorithm) -> bool {
    one.public_key_alg_id() == other.public_key_alg_id() && one.signature_alg_id() == other.signature_alg_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ours(algorithm: &dyn SignatureVerificationAlgorithm) -> bool {
        format!("{algorithm:?}").starts_with("Suspending")
    }

    #[test]
    fn nothing_is_added_lost_or_moved() {
        let (ours, theirs) = (
            algorithms(),
            aws_lc_rs::default_provider().signature_verification_algorithms,
        );
        let same = |ours: Algorithms, theirs: Algorithms| {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(&ours, &theirs)| is_same(ours, theirs))
        };
        assert!(same(ours.all, theirs.all));
        assert_eq!(ours.mapping.len(), theirs.mapping.len());
        for ((scheme, ours), (theirs_scheme, theirs)) in ours.mapping.iter().zip(theirs.mapping) {
            assert_eq!(scheme, theirs_scheme);
            assert!(same(ours, theirs), "{scheme:?}");
        }
        assert_eq!(ours.all.iter().filter(|&&algorithm| is_ours(algorithm)).count(), 2);
    }

    /// In TLS 1.3 the scheme names the curve: the first algorithm of its list is taken.
    #[test]
    fn the_schemes_of_both_curves_lead_to_ours() {
        let mapping = algorithms().mapping;
        let leads: Vec<SignatureScheme> = mapping
            .iter()
            .filter(|(_, algorithms)| is_ours(algorithms[0]))
            .map(|(scheme, _)| *scheme)
            .collect();
        assert_eq!(
            leads,
            [
                SignatureScheme::ECDSA_NISTP384_SHA384,
                SignatureScheme::ECDSA_NISTP256_SHA256
            ]
        );
    }
}
