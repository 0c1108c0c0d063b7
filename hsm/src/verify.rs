//! Whether a signature that was made elsewhere is right. Nothing that a token says is believed.

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::SignatureVerificationAlgorithm;
use spki::der::{Decode, Encode};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

/// A public key, to verify with.
#[derive(Clone, Copy, Debug)]
pub struct PublicKey<'a> {
    algorithm: AlgorithmIdentifierRef<'a>,
    bits: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// From a SubjectPublicKeyInfo in DER; nothing when it is none.
    #[must_use]
    pub fn from_der(public: &'a [u8]) -> Option<PublicKey<'a>> {
        let info = SubjectPublicKeyInfoRef::from_der(public).ok()?;
        Some(PublicKey {
            algorithm: info.algorithm,
            bits: info.subject_public_key.raw_bytes(),
        })
    }

    /// The key itself, as certificates have it.
    #[must_use]
    pub fn bits(&self) -> &'a [u8] {
        self.bits
    }

    /// What verifies its signatures of this scheme; nothing when it can make none.
    #[must_use]
    pub fn algorithm(&self, scheme: SignatureScheme) -> Option<&'static dyn SignatureVerificationAlgorithm> {
        let table = aws_lc_rs::default_provider().signature_verification_algorithms.mapping;
        let (_, algorithms) = table.iter().find(|(candidate, _)| *candidate == scheme)?;
        let own = self.algorithm.to_der().ok()?;
        // Of the sequence, its contents: an identifier of less than 128 bytes has a header of two.
        let own = own.get(2..)?;
        let fits = |algorithm: &&&'static dyn SignatureVerificationAlgorithm| {
            let id = algorithm.public_key_alg_id();
            id.as_ref() == own
        };
        algorithms.iter().find(fits).copied()
    }

    /// Whether this is its signature of the message.
    #[must_use]
    pub fn verify(&self, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
        self.algorithm(scheme)
            .is_some_and(|algorithm| algorithm.verify_signature(self.bits, message, signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PublicKeyData, SigningKey};
    use rustls::SignatureScheme as S;

    use super::*;

    #[test]
    fn signatures_of_each_kind_of_key_are_verified() {
        let kinds = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, S::ECDSA_NISTP256_SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, S::ECDSA_NISTP384_SHA384),
            (&rcgen::PKCS_ED25519, S::ED25519),
            (&rcgen::PKCS_RSA_SHA256, S::RSA_PKCS1_SHA256),
        ];
        for (kind, scheme) in kinds {
            let pair = KeyPair::generate_for(kind).unwrap();
            let public = pair.subject_public_key_info();
            let key = PublicKey::from_der(&public).unwrap();
            let mut signature = pair.sign(b"a message").unwrap();
            assert!(key.verify(scheme, b"a message", &signature), "{scheme:?}");
            assert!(!key.verify(scheme, b"another message", &signature), "{scheme:?}");
            assert!(!key.verify(S::ECDSA_NISTP521_SHA512, b"a message", &signature));
            *signature.last_mut().unwrap() ^= 1;
            assert!(!key.verify(scheme, b"a message", &signature), "{scheme:?}");
        }
    }

    #[test]
    fn what_is_no_public_key_verifies_nothing() {
        for bytes in [&b""[..], b"\x30", &[0x30, 3, 2, 1, 0]] {
            assert!(PublicKey::from_der(bytes).is_none());
        }
    }
}
