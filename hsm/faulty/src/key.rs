//! Key pairs and what they sign with.

use aws_lc_rs::digest::{Algorithm, Digest, SHA256, SHA384, SHA512};
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use cryptoki_sys::*;
use der::asn1::{AnyRef, OctetStringRef, UintRef};
use der::{Decode as _, Encode as _};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

/// The mechanisms of the module, with the shortest and longest keys in bits.
pub(crate) const MECHANISMS: [(CK_MECHANISM_TYPE, u64, u64); 4] = [
    (CKM_RSA_PKCS, 2048, 8192),
    (CKM_RSA_PKCS_PSS, 2048, 8192),
    (CKM_ECDSA, 256, 521),
    (CKM_EDDSA, 255, 255),
];

/// A mechanism with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    Ecdsa,
    Eddsa,
    RsaPkcs,
    RsaPss(Hash),
}

/// A hash function that RSA signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Mechanism {
    /// As a call names it. The salt is as long as the hash, for aws-lc-rs knows no other.
    pub(crate) fn new(mechanism: CK_MECHANISM_TYPE, pss: Option<CK_RSA_PKCS_PSS_PARAMS>) -> Result<Mechanism, CK_RV> {
        match (mechanism, pss) {
            (CKM_ECDSA, None) => Ok(Mechanism::Ecdsa),
            (CKM_EDDSA, None) => Ok(Mechanism::Eddsa),
            (CKM_RSA_PKCS, None) => Ok(Mechanism::RsaPkcs),
            (CKM_RSA_PKCS_PSS, Some(pss)) => {
                let hash = match (pss.hashAlg, pss.mgf) {
                    (CKM_SHA256, CKG_MGF1_SHA256) => Hash::Sha256,
                    (CKM_SHA384, CKG_MGF1_SHA384) => Hash::Sha384,
                    (CKM_SHA512, CKG_MGF1_SHA512) => Hash::Sha512,
                    _ => return Err(CKR_MECHANISM_PARAM_INVALID),
                };
                if pss.sLen != hash.algorithm().output_len as CK_ULONG {
                    return Err(CKR_MECHANISM_PARAM_INVALID);
                }
                Ok(Mechanism::RsaPss(hash))
            }
            (CKM_ECDSA | CKM_EDDSA | CKM_RSA_PKCS | CKM_RSA_PKCS_PSS, _) => Err(CKR_MECHANISM_PARAM_INVALID),
            _ => Err(CKR_MECHANISM_INVALID),
        }
    }
}

impl Hash {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Hash::Sha256 => &SHA256,
            Hash::Sha384 => &SHA384,
            Hash::Sha512 => &SHA512,
        }
    }

    /// What stands before the hash in a DigestInfo (RFC 8017, 9.2, note 1).
    fn digest_info_prefix(self) -> [u8; 19] {
        let (oid, length) = match self {
            Hash::Sha256 => (1, 32),
            Hash::Sha384 => (2, 48),
            Hash::Sha512 => (3, 64),
        };
        [
            0x30,
            17 + length,
            0x30,
            0x0d,
            0x06,
            0x09,
            0x60,
            0x86,
            0x48,
            0x01,
            0x65,
            0x03,
            0x04,
            0x02,
            oid,
            0x05,
            0x00,
            0x04,
            length,
        ]
    }

    fn pss(self) -> &'static dyn RsaEncoding {
        match self {
            Hash::Sha256 => &RSA_PSS_SHA256,
            Hash::Sha384 => &RSA_PSS_SHA384,
            Hash::Sha512 => &RSA_PSS_SHA512,
        }
    }

    fn pkcs1(self) -> &'static dyn RsaEncoding {
        match self {
            Hash::Sha256 => &RSA_PKCS1_SHA256,
            Hash::Sha384 => &RSA_PKCS1_SHA384,
            Hash::Sha512 => &RSA_PKCS1_SHA512,
        }
    }
}

const HASHES: [Hash; 3] = [Hash::Sha256, Hash::Sha384, Hash::Sha512];

/// A curve of ECDSA: how aws-lc signs on it, with which hash, its object identifier in DER, the length of a signature.
pub(crate) struct Curve {
    signing: &'static EcdsaSigningAlgorithm,
    hash: &'static Algorithm,
    oid: &'static [u8],
    signature_bytes: usize,
}

const CURVES: [Curve; 3] = [
    Curve {
        signing: &ECDSA_P256_SHA256_FIXED_SIGNING,
        hash: &SHA256,
        oid: &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        signature_bytes: 64,
    },
    Curve {
        signing: &ECDSA_P384_SHA384_FIXED_SIGNING,
        hash: &SHA384,
        oid: &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        signature_bytes: 96,
    },
    Curve {
        signing: &ECDSA_P521_SHA512_FIXED_SIGNING,
        hash: &SHA512,
        oid: &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
        signature_bytes: 132,
    },
];

const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
const ED25519_SIGNATURE_BYTES: usize = 64;

/// A key pair.
pub(crate) enum Key {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair, &'static Curve),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Key, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
        let der = key.secret_der();
        for curve in &CURVES {
            if let Ok(key) = EcdsaKeyPair::from_private_key_der(curve.signing, der) {
                return Ok(Key::Ecdsa(key, curve));
            }
        }
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Key::Ed25519(key));
        }
        let rsa = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der));
        rsa.map(Key::Rsa)
            .map_err(|error| format!("a key of no kind that is known here: {error}"))
    }

    pub(crate) fn key_type(&self) -> CK_KEY_TYPE {
        match self {
            Key::Rsa(_) => CKK_RSA,
            Key::Ecdsa(..) => CKK_EC,
            Key::Ed25519(_) => CKK_EC_EDWARDS,
        }
    }

    /// The public key, encoded in the way of its kind.
    pub(crate) fn public(&self) -> &[u8] {
        match self {
            Key::Rsa(key) => key.public_key().as_ref(),
            Key::Ecdsa(key, _) => key.public_key().as_ref(),
            Key::Ed25519(key) => key.public_key().as_ref(),
        }
    }

    /// What both halves tell of the public key.
    pub(crate) fn public_attributes(&self) -> Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)> {
        match self {
            Key::Rsa(key) => {
                let (modulus, exponent) = rsa_numbers(self.public()).expect("aws-lc encodes an RSAPublicKey");
                let bits = key.public_modulus_len() as CK_ULONG * 8;
                vec![
                    (CKA_MODULUS, modulus),
                    (CKA_PUBLIC_EXPONENT, exponent),
                    (CKA_MODULUS_BITS, bits.to_ne_bytes().to_vec()),
                ]
            }
            Key::Ecdsa(_, curve) => vec![(CKA_EC_PARAMS, curve.oid.to_vec())],
            Key::Ed25519(_) => vec![(CKA_EC_PARAMS, ED25519_OID.to_vec())],
        }
    }

    /// CKA_EC_POINT, which only a public key has.
    pub(crate) fn point(&self) -> Option<Vec<u8>> {
        let point = match self {
            Key::Rsa(_) => return None,
            Key::Ecdsa(..) | Key::Ed25519(_) => OctetStringRef::new(self.public()).and_then(|point| point.to_der()),
        };
        Some(point.expect("a point is short"))
    }

    /// How long a signature is, if this key signs with this mechanism.
    pub(crate) fn signature_bytes(&self, mechanism: Mechanism) -> Result<usize, CK_RV> {
        match (self, mechanism) {
            (Key::Rsa(key), Mechanism::RsaPkcs | Mechanism::RsaPss(_)) => Ok(key.public_modulus_len()),
            (Key::Ecdsa(_, curve), Mechanism::Ecdsa) => Ok(curve.signature_bytes),
            (Key::Ed25519(_), Mechanism::Eddsa) => Ok(ED25519_SIGNATURE_BYTES),
            (Key::Rsa(_) | Key::Ecdsa(..) | Key::Ed25519(_), _) => Err(CKR_KEY_TYPE_INCONSISTENT),
        }
    }

    /// Signs what the mechanism takes: a hash, a DigestInfo, or with EdDSA the message.
    pub(crate) fn sign(&self, mechanism: Mechanism, data: &[u8]) -> Result<Vec<u8>, CK_RV> {
        let digest = |hash, bytes| Digest::import_less_safe(bytes, hash).map_err(|_| CKR_DATA_LEN_RANGE);
        match (self, mechanism) {
            (Key::Rsa(key), Mechanism::RsaPss(hash)) => rsa(key, hash.pss(), &digest(hash.algorithm(), data)?),
            (Key::Rsa(key), Mechanism::RsaPkcs) => {
                let parted = |hash: Hash| Some((hash, data.strip_prefix(&hash.digest_info_prefix()[..])?));
                let (hash, bytes) = HASHES.into_iter().find_map(parted).ok_or(CKR_DATA_INVALID)?;
                rsa(key, hash.pkcs1(), &digest(hash.algorithm(), bytes)?)
            }
            (Key::Ecdsa(key, curve), Mechanism::Ecdsa) => {
                let signature = key
                    .sign_digest(&digest(curve.hash, data)?)
                    .map_err(|_| CKR_FUNCTION_FAILED)?;
                Ok(signature.as_ref().to_vec())
            }
            (Key::Ed25519(key), Mechanism::Eddsa) => Ok(key.sign(data).as_ref().to_vec()),
            (Key::Rsa(_) | Key::Ecdsa(..) | Key::Ed25519(_), _) => Err(CKR_KEY_TYPE_INCONSISTENT),
        }
    }
}

fn rsa(key: &RsaKeyPair, encoding: &'static dyn RsaEncoding, digest: &Digest) -> Result<Vec<u8>, CK_RV> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign_digest(encoding, digest, &mut signature)
        .map_err(|_| CKR_FUNCTION_FAILED)?;
    Ok(signature)
}

/// Modulus and exponent of an RSAPublicKey.
fn rsa_numbers(public: &[u8]) -> der::Result<(Vec<u8>, Vec<u8>)> {
    AnyRef::from_der(public)?.sequence(|reader| {
        let (modulus, exponent) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
        Ok::<_, der::Error>((modulus.as_bytes().to_vec(), exponent.as_bytes().to_vec()))
    })
}
