//! A key of this process as rustls sees it: every signature is an operation that an engine answers.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384};
use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use ringlock_hsm::{KeyError, KeyRef};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use zeroize::{Zeroize, Zeroizing};

use super::multibuffer::{BatchedCurve, P256, P384, RsaKey, Scalar};
use super::{CryptoOp, pool, suspend};

/// A key, and its form for batches if it has one.
pub struct Key {
    key: KeyRef,
    lanes: Option<LaneKey>,
}

/// A key as libcrypto_mb takes it. Wiped when dropped.
pub enum LaneKey {
    /// ECDSA on P-256.
    P256(Scalar<P256>),
    /// ECDSA on P-384.
    P384(Scalar<P384>),
    /// RSA.
    Rsa(RsaKey),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

impl Key {
    /// A key from the bytes of a PEM file.
    ///
    /// # Errors
    /// As [`KeyRef::from_pem`].
    pub fn from_pem(pem: &[u8]) -> Result<Key, KeyError> {
        let key = KeyRef::from_pem(pem)?;
        let lanes = PrivateKeyDer::from_pem_slice(pem).ok().and_then(|mut der| {
            let lanes = LaneKey::from_der(der.secret_der());
            der.zeroize();
            lanes
        });
        Ok(Key { key, lanes })
    }

    /// Takes over a key.
    ///
    /// # Errors
    /// As [`KeyRef::from_der`].
    pub fn from_der(der: PrivateKeyDer<'static>) -> Result<Key, KeyError> {
        let lanes = LaneKey::from_der(der.secret_der());
        let key = KeyRef::from_der(der)?;
        Ok(Key { key, lanes })
    }

    /// Its form for batches.
    #[must_use]
    pub fn lanes(&self) -> Option<&LaneKey> {
        self.lanes.as_ref()
    }

    /// Signs at once.
    ///
    /// # Errors
    /// The key has not this scheme, or cannot be used.
    pub fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        match self.key.choose_scheme(&[scheme]) {
            Some(signer) => signer.sign(message),
            None => Err(rustls::PeerIncompatible::NoSignatureSchemesInCommon.into()),
        }
    }
}

impl LaneKey {
    fn from_der(der: &[u8]) -> Option<LaneKey> {
        if let Some(bytes) = scalar(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Scalar::from_be_bytes(&bytes).map(LaneKey::P256);
        }
        if let Some(bytes) = scalar(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Scalar::from_be_bytes(&bytes).map(LaneKey::P384);
        }
        RsaKey::from_der(der).map(LaneKey::Rsa)
    }
}

fn scalar(algorithm: &'static EcdsaSigningAlgorithm, der: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let pair = EcdsaKeyPair::from_private_key_der(algorithm, der).ok()?;
    let bytes: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().ok()?;
    Some(Zeroizing::new(bytes.as_ref().to_vec()))
}

/// A curve whose keys have a form for batches.
pub trait LaneCurve: BatchedCurve {
    /// What its keys sign with in TLS 1.3.
    const SCHEME: SignatureScheme;
    /// The hash of that.
    const DIGEST: &'static Algorithm;

    /// The key, if it is one of this curve.
    fn scalar(key: &LaneKey) -> Option<&Scalar<Self>>;
}

impl LaneCurve for P256 {
    const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    const DIGEST: &'static Algorithm = &SHA256;

    fn scalar(key: &LaneKey) -> Option<&Scalar<P256>> {
        match key {
            LaneKey::P256(scalar) => Some(scalar),
            LaneKey::P384(_) | LaneKey::Rsa(_) => None,
        }
    }
}

impl LaneCurve for P384 {
    const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP384_SHA384;
    const DIGEST: &'static Algorithm = &SHA384;

    fn scalar(key: &LaneKey) -> Option<&Scalar<P384>> {
        match key {
            LaneKey::P384(scalar) => Some(scalar),
            LaneKey::P256(_) | LaneKey::Rsa(_) => None,
        }
    }
}

/// What rustls holds.
#[derive(Debug)]
pub struct SuspendingKey(pub Arc<Key>);

#[derive(Debug)]
struct SuspendingSigner {
    key: Arc<Key>,
    scheme: SignatureScheme,
}

impl SigningKey for SuspendingKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.0.key.choose_scheme(offered)?.scheme();
        Some(Box::new(SuspendingSigner {
            key: Arc::clone(&self.0),
            scheme,
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.key.algorithm()
    }
}

impl Signer for SuspendingSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        if let Some(signature) = pool::sign(&self.key, self.scheme, message) {
            return Ok(signature);
        }
        let op = CryptoOp::Sign {
            key: Arc::clone(&self.key),
            scheme: self.scheme,
            message: message.into(),
        };
        suspend::signature(op)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
