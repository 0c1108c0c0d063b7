//! Signatures of TLS as PKCS#11 makes them, and public keys as PKCS#11 describes them.

use std::borrow::Cow;
use std::fmt;

use aws_lc_rs::digest::{self, Algorithm};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use der::asn1::{AnyRef, BitStringRef, Null, ObjectIdentifier, OctetStringRef, PrintableStringRef, UintRef};
use der::{Decode, Encode};
use rustls::SignatureScheme;
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// What tokens called Ed25519 before RFC 8410 had a name for it.
const ED25519_GNU: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11591.15.1");

/// A key's algorithm, with its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA
    Rsa {
        /// Of the modulus.
        bits: usize,
    },
    /// ECDSA
    Ec(Curve),
    /// Ed25519
    Ed25519,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyKind::Rsa { bits } => write!(f, "RSA-{bits}"),
            KeyKind::Ec(curve) => f.write_str(curve.name()),
            KeyKind::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

impl KeyKind {
    /// Of a SubjectPublicKeyInfo in DER; nothing when it is none, or of another algorithm.
    #[must_use]
    pub fn of(public: &[u8]) -> Option<KeyKind> {
        let info = SubjectPublicKeyInfoRef::from_der(public).ok()?;
        match info.algorithm.oid {
            RSA => {
                let key = Vec::<UintRef<'_>>::from_der(info.subject_public_key.as_bytes()?).ok()?;
                let [modulus, _exponent] = key.as_slice() else {
                    return None;
                };
                let modulus = modulus.as_bytes();
                let unused = modulus.first()?.leading_zeros() as usize;
                Some(KeyKind::Rsa {
                    bits: modulus.len() * 8 - unused,
                })
            }
            EC => {
                let id = info.algorithm.parameters_oid().ok()?;
                Curve::ALL.into_iter().find(|curve| curve.id() == id).map(KeyKind::Ec)
            }
            ED25519_ID => Some(KeyKind::Ed25519),
            _ => None,
        }
    }

    /// What such a key can sign with, best first, given the token's mechanisms. Empty for an RSA key that is too short for TLS, or
    /// too long.
    pub fn methods(self, mechanisms: &[MechanismType]) -> impl Iterator<Item = (SignatureScheme, Method)> {
        METHODS
            .into_iter()
            .filter(move |(_, method)| method.is_for(self) && mechanisms.contains(&method.mechanism().mechanism_type()))
    }
}

/// A curve of ECDSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1
    P256,
    /// secp384r1
    P384,
    /// secp521r1
    P521,
}

impl Curve {
    const ALL: [Curve; 3] = [Curve::P256, Curve::P384, Curve::P521];

    fn name(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }

    fn id(self) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(match self {
            Curve::P256 => "1.2.840.10045.3.1.7",
            Curve::P384 => "1.3.132.0.34",
            Curve::P521 => "1.3.132.0.35",
        })
    }

    /// CKA_EC_PARAMS of a key on this curve.
    #[must_use]
    pub fn parameters(self) -> Vec<u8> {
        self.id().to_der().expect("an object identifier has an encoding")
    }

    /// By CKA_EC_PARAMS.
    fn of(parameters: &[u8]) -> Option<Curve> {
        let id = ObjectIdentifier::from_der(parameters).ok()?;
        Curve::ALL.into_iter().find(|curve| curve.id() == id)
    }

    /// Of a coordinate, and of either half of a signature.
    fn field_bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }

    fn hash(self) -> Hash {
        match self {
            Curve::P256 => Hash::Sha256,
            Curve::P384 => Hash::Sha384,
            Curve::P521 => Hash::Sha512,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1,
            Curve::P521 => &ECDSA_P521_SHA512_ASN1,
        }
    }
}

/// CKA_EC_PARAMS of an Ed25519 key to be made: the name, which tokens knew before they knew the identifier.
#[must_use]
pub fn ed25519_parameters() -> Vec<u8> {
    let name = PrintableStringRef::new("edwards25519").expect("letters and digits are printable");
    name.to_der().expect("a short string has an encoding")
}

/// How a token makes a signature: by which mechanism, of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// CKM_ECDSA on the hash that belongs to the curve.
    Ecdsa(Curve),
    /// CKM_RSA_PKCS_PSS on the hash, with a salt as long as it.
    Pss(Hash),
    /// CKM_RSA_PKCS on the hash in a DigestInfo.
    Pkcs1(Hash),
    /// CKM_EDDSA on the message.
    Eddsa,
}

/// Best first for each kind of key: SHA-256 is the fastest, and every client knows it.
const METHODS: [(SignatureScheme, Method); 10] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, Method::Ecdsa(Curve::P256)),
    (SignatureScheme::ECDSA_NISTP384_SHA384, Method::Ecdsa(Curve::P384)),
    (SignatureScheme::ECDSA_NISTP521_SHA512, Method::Ecdsa(Curve::P521)),
    (SignatureScheme::ED25519, Method::Eddsa),
    (SignatureScheme::RSA_PSS_SHA256, Method::Pss(Hash::Sha256)),
    (SignatureScheme::RSA_PSS_SHA384, Method::Pss(Hash::Sha384)),
    (SignatureScheme::RSA_PSS_SHA512, Method::Pss(Hash::Sha512)),
    (SignatureScheme::RSA_PKCS1_SHA256, Method::Pkcs1(Hash::Sha256)),
    (SignatureScheme::RSA_PKCS1_SHA384, Method::Pkcs1(Hash::Sha384)),
    (SignatureScheme::RSA_PKCS1_SHA512, Method::Pkcs1(Hash::Sha512)),
];

impl Method {
    /// Of a scheme; nothing when Ringlock does not sign with it.
    #[must_use]
    pub fn of(scheme: SignatureScheme) -> Option<Method> {
        let (_, method) = METHODS.into_iter().find(|(candidate, _)| *candidate == scheme)?;
        Some(method)
    }

    fn is_for(self, key: KeyKind) -> bool {
        match (self, key) {
            (Method::Ecdsa(own), KeyKind::Ec(curve)) => own == curve,
            (Method::Eddsa, KeyKind::Ed25519) => true,
            // What verifies RSA signatures in TLS knows no other lengths.
            (Method::Pss(_) | Method::Pkcs1(_), KeyKind::Rsa { bits }) => (2048..=8192).contains(&bits),
            (Method::Ecdsa(_) | Method::Eddsa | Method::Pss(_) | Method::Pkcs1(_), _) => false,
        }
    }

    /// The mechanism's name in PKCS#11.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Ecdsa(_) => "CKM_ECDSA",
            Method::Pss(_) => "CKM_RSA_PKCS_PSS",
            Method::Pkcs1(_) => "CKM_RSA_PKCS",
            Method::Eddsa => "CKM_EDDSA",
        }
    }

    /// The mechanism, with its parameters.
    #[must_use]
    pub fn mechanism(self) -> Mechanism<'static> {
        match self {
            Method::Ecdsa(_) => Mechanism::Ecdsa,
            Method::Pss(hash) => Mechanism::RsaPkcsPss(hash.pss()),
            Method::Pkcs1(_) => Mechanism::RsaPkcs,
            Method::Eddsa => Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)),
        }
    }

    /// What the mechanism is given of a message.
    #[must_use]
    pub fn input(self, message: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Method::Ecdsa(curve) => Cow::Owned(curve.hash().of(message)),
            Method::Pss(hash) => Cow::Owned(hash.of(message)),
            Method::Pkcs1(hash) => {
                let mut info = hash.digest_info().to_vec();
                info.extend(hash.of(message));
                Cow::Owned(info)
            }
            Method::Eddsa => Cow::Borrowed(message),
        }
    }

    /// What TLS wants of what the mechanism made; nothing when it cannot be a signature.
    #[must_use]
    pub fn output(self, made: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Method::Ecdsa(curve) => {
                if made.len() != 2 * curve.field_bytes() {
                    return None;
                }
                let (r, s) = made.split_at(curve.field_bytes());
                [UintRef::new(r).ok()?, UintRef::new(s).ok()?].to_der().ok()
            }
            Method::Pss(_) | Method::Pkcs1(_) => Some(made),
            Method::Eddsa => (made.len() == 64).then_some(made),
        }
    }
}

/// A hash, made in software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

impl Hash {
    /// Its implementation.
    #[must_use]
    pub fn algorithm(self) -> &'static Algorithm {
        match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha384 => &digest::SHA384,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    fn of(self, message: &[u8]) -> Vec<u8> {
        digest::digest(self.algorithm(), message).as_ref().to_vec()
    }

    fn pss(self) -> PkcsPssParams {
        let (hash_alg, mgf, salt_bytes) = match self {
            Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32),
            Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48),
            Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64),
        };
        PkcsPssParams {
            hash_alg,
            mgf,
            s_len: salt_bytes.into(),
        }
    }

    /// What stands before the hash in a `DigestInfo` (RFC 8017, section 9.2, note 1).
    #[must_use]
    pub fn digest_info(self) -> [u8; 19] {
        let (number, size) = match self {
            Hash::Sha256 => (1, 32),
            Hash::Sha384 => (2, 48),
            Hash::Sha512 => (3, 64),
        };
        #[rustfmt::skip]
        let info = [
            0x30, 17 + size, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, number, 5, 0, 4, size,
        ];
        info
    }
}

/// Why attributes are no public key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// CKA_EC_PARAMS is something else.
    #[error("a curve (CKA_EC_PARAMS) other than P-256, P-384, P-521 and Ed25519")]
    Curve,
    /// CKA_EC_POINT is no point of the curve.
    #[error("a CKA_EC_POINT that is no point of {0}")]
    Point(&'static str),
    /// CKA_MODULUS and CKA_PUBLIC_EXPONENT are none of RSA.
    #[error("a CKA_MODULUS and a CKA_PUBLIC_EXPONENT that are no RSA key of 2048 to 8192 bits")]
    Rsa,
}

/// The SubjectPublicKeyInfo, in DER, of CKA_MODULUS and CKA_PUBLIC_EXPONENT.
///
/// # Errors
/// They are no RSA key, or one that is too short or too long.
pub fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, PublicKeyError> {
    // Longer than any key: refused before it is copied about.
    if modulus.len() > 2048 || exponent.len() > 2048 {
        return Err(PublicKeyError::Rsa);
    }
    let key = || [UintRef::new(modulus)?, UintRef::new(exponent)?].to_der();
    let key = key().map_err(|_: der::Error| PublicKeyError::Rsa)?;
    let public = subject_public_key_info(RSA, Some(Null.into()), &key);
    let usable = matches!(KeyKind::of(&public), Some(KeyKind::Rsa { bits }) if (2048..=8192).contains(&bits))
        && ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public).is_ok();
    if usable { Ok(public) } else { Err(PublicKeyError::Rsa) }
}

/// The SubjectPublicKeyInfo, in DER, of CKA_EC_PARAMS and CKA_EC_POINT: of ECDSA and Ed25519, the point in DER or as it is.
///
/// # Errors
/// Another curve, or no point of it.
pub fn ec_public_key(parameters: &[u8], point: &[u8]) -> Result<Vec<u8>, PublicKeyError> {
    if is_ed25519(parameters) {
        return ed25519_public_key(point).ok_or(PublicKeyError::Point("Ed25519"));
    }
    let curve = Curve::of(parameters).ok_or(PublicKeyError::Curve)?;
    let no_point = PublicKeyError::Point(curve.name());
    let point = unwrap_point(point, 1 + 2 * curve.field_bytes()).ok_or(no_point)?;
    let id = curve.id();
    let public = subject_public_key_info(EC, Some((&id).into()), point);
    match ParsedPublicKey::new(curve.verification(), &public) {
        Ok(_) => Ok(public),
        Err(_) => Err(no_point),
    }
}

fn is_ed25519(parameters: &[u8]) -> bool {
    let by_id = ObjectIdentifier::from_der(parameters).is_ok_and(|id| id == ED25519_ID || id == ED25519_GNU);
    let by_name = PrintableStringRef::from_der(parameters).is_ok_and(|name| name.as_str() == "edwards25519");
    by_id || by_name
}

fn ed25519_public_key(point: &[u8]) -> Option<Vec<u8>> {
    let public = subject_public_key_info(ED25519_ID, None, unwrap_point(point, 32)?);
    ParsedPublicKey::new(&ED25519, &public).ok()?;
    Some(public)
}

/// A point of so many bytes: as it is, or in an OCTET STRING as PKCS#11 wants it, or in a BIT STRING as version 2.40 wanted it of
/// Edwards curves. The lengths tell them apart.
fn unwrap_point(point: &[u8], bytes: usize) -> Option<&[u8]> {
    let inner = if point.len() == bytes {
        point
    } else if let Ok(octets) = <&OctetStringRef>::from_der(point) {
        octets.as_bytes()
    } else {
        BitStringRef::from_der(point).ok()?.as_bytes()?
    };
    (inner.len() == bytes).then_some(inner)
}

fn subject_public_key_info(oid: ObjectIdentifier, parameters: Option<AnyRef<'_>>, key: &[u8]) -> Vec<u8> {
    let info = SubjectPublicKeyInfoRef {
        algorithm: AlgorithmIdentifierRef { oid, parameters },
        subject_public_key: BitStringRef::from_bytes(key).expect("a public key is short"),
    };
    info.to_der().expect("a public key is short")
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{EcdsaKeyPair, UnparsedPublicKey};
    use proptest::prelude::*;
    use rcgen::{KeyPair, PublicKeyData, SigningKey};
    use rustls::SignatureScheme as S;

    use super::*;

    const EVERY: [MechanismType; 4] = [
        MechanismType::ECDSA,
        MechanismType::EDDSA,
        MechanismType::RSA_PKCS,
        MechanismType::RSA_PKCS_PSS,
    ];

    fn schemes(kind: KeyKind, mechanisms: &[MechanismType]) -> Vec<S> {
        kind.methods(mechanisms).map(|(scheme, _)| scheme).collect()
    }

    /// The public key's bits: RSAPublicKey, or a point.
    fn bits(public: &[u8]) -> Vec<u8> {
        let info = SubjectPublicKeyInfoRef::from_der(public).unwrap();
        info.subject_public_key.raw_bytes().to_vec()
    }

    #[test]
    fn rsa_keys_are_told_by_modulus_and_exponent() {
        for size in [rcgen::RsaKeySize::_2048, rcgen::RsaKeySize::_3072] {
            let public = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size)
                .unwrap()
                .subject_public_key_info();
            let bits = bits(&public);
            let key = Vec::<UintRef<'_>>::from_der(&bits).unwrap();
            let (modulus, exponent) = (key[0].as_bytes(), key[1].as_bytes());
            assert_eq!(rsa_public_key(modulus, exponent).unwrap(), public);
            // Some tokens write it as a signed number.
            assert_eq!(rsa_public_key(&[&[0], modulus].concat(), exponent).unwrap(), public);
            let expected = modulus.len() * 8;
            assert_eq!(KeyKind::of(&public), Some(KeyKind::Rsa { bits: expected }));
            assert_eq!(rsa_public_key(&modulus[..128], exponent), Err(PublicKeyError::Rsa));
            assert_eq!(rsa_public_key(modulus, &[]), Err(PublicKeyError::Rsa));
        }
    }

    #[test]
    fn points_are_read_as_they_are_and_in_der() {
        let kinds = [
            (
                &rcgen::PKCS_ECDSA_P256_SHA256,
                KeyKind::Ec(Curve::P256),
                Curve::P256.parameters(),
            ),
            (
                &rcgen::PKCS_ECDSA_P384_SHA384,
                KeyKind::Ec(Curve::P384),
                Curve::P384.parameters(),
            ),
            (
                &rcgen::PKCS_ECDSA_P521_SHA512,
                KeyKind::Ec(Curve::P521),
                Curve::P521.parameters(),
            ),
            (&rcgen::PKCS_ED25519, KeyKind::Ed25519, ed25519_parameters()),
            (&rcgen::PKCS_ED25519, KeyKind::Ed25519, ED25519_ID.to_der().unwrap()),
            (&rcgen::PKCS_ED25519, KeyKind::Ed25519, ED25519_GNU.to_der().unwrap()),
        ];
        for (algorithm, kind, parameters) in kinds {
            let public = KeyPair::generate_for(algorithm).unwrap().subject_public_key_info();
            assert_eq!(KeyKind::of(&public), Some(kind));
            let point = bits(&public);
            let octets = OctetStringRef::new(&point).unwrap().to_der().unwrap();
            let bit_string = BitStringRef::from_bytes(&point).unwrap().to_der().unwrap();
            for encoding in [&point, &octets, &bit_string] {
                assert_eq!(ec_public_key(&parameters, encoding).unwrap(), public, "{kind}");
            }
            assert!(ec_public_key(&parameters, &point[1..]).is_err());
        }
    }

    #[test]
    fn what_is_not_on_the_curve_is_refused() {
        let mut point = vec![4; 65];
        assert_eq!(
            ec_public_key(&Curve::P256.parameters(), &point),
            Err(PublicKeyError::Point("P-256"))
        );
        point[0] = 0;
        assert_eq!(
            ec_public_key(&Curve::P256.parameters(), &point),
            Err(PublicKeyError::Point("P-256"))
        );
        let secp256k1 = ObjectIdentifier::new_unwrap("1.3.132.0.10").to_der().unwrap();
        assert_eq!(ec_public_key(&secp256k1, &point), Err(PublicKeyError::Curve));
    }

    #[test]
    fn a_key_signs_with_what_it_and_the_token_can() {
        assert_eq!(schemes(KeyKind::Ec(Curve::P256), &EVERY), [S::ECDSA_NISTP256_SHA256]);
        assert_eq!(schemes(KeyKind::Ec(Curve::P384), &EVERY), [S::ECDSA_NISTP384_SHA384]);
        assert_eq!(schemes(KeyKind::Ed25519, &EVERY), [S::ED25519]);
        let rsa = KeyKind::Rsa { bits: 2048 };
        let pkcs1 = [S::RSA_PKCS1_SHA256, S::RSA_PKCS1_SHA384, S::RSA_PKCS1_SHA512];
        let pss = [S::RSA_PSS_SHA256, S::RSA_PSS_SHA384, S::RSA_PSS_SHA512];
        assert_eq!(schemes(rsa, &EVERY), [pss, pkcs1].concat());
        assert_eq!(schemes(rsa, &[MechanismType::RSA_PKCS]), pkcs1);
        assert!(schemes(KeyKind::Rsa { bits: 1024 }, &EVERY).is_empty());
        assert!(schemes(KeyKind::Ed25519, &[MechanismType::ECDSA]).is_empty());
        for (scheme, method) in METHODS {
            assert_eq!(Method::of(scheme), Some(method));
        }
        assert_eq!(Method::of(S::RSA_PKCS1_SHA1), None);
    }

    /// r and s next to each other, as tokens give them, are what aws-lc writes in DER.
    #[test]
    fn ecdsa_signatures_are_put_into_der() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING};
        let kinds = [
            (
                Curve::P256,
                &rcgen::PKCS_ECDSA_P256_SHA256,
                &ECDSA_P256_SHA256_FIXED_SIGNING,
            ),
            (
                Curve::P384,
                &rcgen::PKCS_ECDSA_P384_SHA384,
                &ECDSA_P384_SHA384_FIXED_SIGNING,
            ),
        ];
        for (curve, algorithm, signing) in kinds {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let fixed = EcdsaKeyPair::from_pkcs8(signing, pair.serialized_der()).unwrap();
            let public = pair.subject_public_key_info();
            // Often enough for an r that begins with a zero byte, or with a bit that DER would read as a sign.
            for message in 0..300_u16 {
                let message = message.to_le_bytes();
                let random = aws_lc_rs::rand::SystemRandom::new();
                let made = fixed.sign(&random, &message).unwrap().as_ref().to_vec();
                let signature = Method::Ecdsa(curve).output(made.clone()).unwrap();
                let key = UnparsedPublicKey::new(curve.verification(), &public);
                assert!(key.verify(&message, &signature).is_ok());
                assert_eq!(Method::Ecdsa(curve).output(made[1..].to_vec()), None);
            }
        }
    }

    /// What a token would pad and raise to the private exponent, compared with what aws-lc's own signature holds.
    #[test]
    fn digest_infos_are_those_of_the_standard() {
        let kinds = [
            (Hash::Sha256, &rcgen::PKCS_RSA_SHA256),
            (Hash::Sha384, &rcgen::PKCS_RSA_SHA384),
            (Hash::Sha512, &rcgen::PKCS_RSA_SHA512),
        ];
        for (hash, algorithm) in kinds {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let signature = pair.sign(b"a message").unwrap();
            let directory = tempfile::tempdir().unwrap();
            let (key, made) = (directory.path().join("key"), directory.path().join("signature"));
            std::fs::write(&key, pair.public_key_pem()).unwrap();
            std::fs::write(&made, signature).unwrap();
            let output = std::process::Command::new("openssl")
                .args(["pkeyutl", "-verifyrecover", "-pubin", "-inkey"])
                .arg(&key)
                .arg("-in")
                .arg(&made)
                .output()
                .expect("openssl is installed");
            assert_eq!(output.stdout, *Method::Pkcs1(hash).input(b"a message"));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_key_and_no_signature(
            one in proptest::collection::vec(any::<u8>(), 0..300),
            other in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 0_usize..200,
        ) {
            let _ = KeyKind::of(&one);
            let _ = rsa_public_key(&one, &other);
            prop_assert!(ec_public_key(&one, &other).is_err());
            for parameters in [Curve::P256.parameters(), Curve::P384.parameters(), Curve::P521.parameters()] {
                prop_assert!(ec_public_key(&parameters, &one).is_err());
                prop_assert!(ec_public_key(&parameters[..cut.min(parameters.len() - 1)], &one).is_err());
            }
            for (_, method) in METHODS {
                let _ = method.output(one.clone());
                let _ = method.input(&one);
            }
        }

        #[test]
        fn a_public_key_that_is_cut_or_changed_harms_nobody(at in 0_usize..91, with in any::<u8>()) {
            let public = KeyPair::generate().unwrap().subject_public_key_info();
            let _ = KeyKind::of(&public[..at]);
            let mut changed = public;
            changed[at] = with;
            let _ = KeyKind::of(&changed);
        }
    }
}
