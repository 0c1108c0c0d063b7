//! Without a cue this is a token like any other: what cryptoki finds in it signs, and what it signs is right.
#![allow(clippy::unwrap_used, reason = "an error here is a failed test")]

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA384, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData};
use ringlock_faulty::Folder;

const MESSAGE: &[u8] = b"what is signed";

fn open(folder: &Folder) -> (Pkcs11, Session) {
    let pkcs11 = Pkcs11::new(folder.module()).unwrap();
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    let slot = pkcs11.get_slots_with_token().unwrap()[0];
    let session = pkcs11.open_ro_session(slot).unwrap();
    (pkcs11, session)
}

/// Signs with the private key in `folder`'s only token and verifies with the key that went in.
fn signs(key: &KeyPair, mechanism: &Mechanism, data: &[u8], verify: &'static dyn VerificationAlgorithm) {
    let folder = Folder::new();
    folder.token("t", Some("1234"));
    folder.key("t", "k", &key.serialize_pem());
    let (_pkcs11, session) = open(&folder);
    let private = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Label(b"k".to_vec()),
    ];
    assert!(
        session.find_objects(&private).unwrap().is_empty(),
        "private before a login"
    );
    session
        .login(UserType::User, Some(&AuthPin::new("1234".into())))
        .unwrap();
    let found = session.find_objects(&private).unwrap();
    assert_eq!(found.len(), 1);
    let signature = session.sign(mechanism, found[0], data).unwrap();
    let public = UnparsedPublicKey::new(verify, key.der_bytes());
    public.verify(MESSAGE, &signature).unwrap();
    assert_eq!(folder.calls("t", "C_Sign"), 1);
}

#[test]
fn p256_signs() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    signs(
        &key,
        &Mechanism::Ecdsa,
        digest(&SHA256, MESSAGE).as_ref(),
        &ECDSA_P256_SHA256_FIXED,
    );
}

#[test]
fn p384_signs() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    signs(
        &key,
        &Mechanism::Ecdsa,
        digest(&SHA384, MESSAGE).as_ref(),
        &ECDSA_P384_SHA384_FIXED,
    );
}

#[test]
fn ed25519_signs() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
    signs(&key, &mechanism, MESSAGE, &ED25519);
}

#[test]
fn rsa_signs_with_pss() {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let pss = PkcsPssParams {
        hash_alg: MechanismType::SHA256,
        mgf: PkcsMgfType::MGF1_SHA256,
        s_len: 32.into(),
    };
    let hash = digest(&SHA256, MESSAGE);
    signs(
        &key,
        &Mechanism::RsaPkcsPss(pss),
        hash.as_ref(),
        &RSA_PSS_2048_8192_SHA256,
    );
}

#[test]
fn rsa_signs_with_pkcs1() {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let mut info = b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30".to_vec();
    info.extend_from_slice(digest(&SHA384, MESSAGE).as_ref());
    signs(&key, &Mechanism::RsaPkcs, &info, &RSA_PKCS1_2048_8192_SHA384);
}

#[test]
fn public_halves_and_certificates_are_there_without_a_login() {
    let folder = Folder::new();
    folder.token("t", Some("1234"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    folder.key("t", "k", &key.serialize_pem());
    folder.certificates("t", "k", &certificate.pem());
    let (_pkcs11, session) = open(&folder);
    let found = session.find_objects(&[Attribute::Label(b"k".to_vec())]).unwrap();
    assert_eq!(found.len(), 2, "the public key and the certificate");
    let wanted = [
        AttributeType::Class,
        AttributeType::Id,
        AttributeType::EcPoint,
        AttributeType::Value,
    ];
    let told: Vec<_> = found
        .iter()
        .map(|&object| session.get_attributes(object, &wanted).unwrap())
        .collect();
    let point = [&[4, 65], key.der_bytes()].concat();
    assert_eq!(told[0][0], Attribute::Class(ObjectClass::PUBLIC_KEY));
    assert_eq!(
        told[0][2],
        Attribute::EcPoint(point),
        "a point is wrapped in an OCTET STRING"
    );
    assert_eq!(told[1][0], Attribute::Class(ObjectClass::CERTIFICATE));
    assert_eq!(told[1][2], Attribute::Value(certificate.der().to_vec()));
    assert_eq!(told[0][1], told[1][1], "one CKA_ID for all that belongs to a key");
}

#[test]
fn a_private_key_keeps_its_secret() {
    let folder = Folder::new();
    folder.token("t", None);
    folder.key("t", "k", &KeyPair::generate().unwrap().serialize_pem());
    let (_pkcs11, session) = open(&folder);
    let found = session
        .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])
        .unwrap();
    assert_eq!(found.len(), 1, "a token without a PIN wants no login");
    let told = session
        .get_attributes(found[0], &[AttributeType::Value, AttributeType::Label])
        .unwrap();
    assert_eq!(told, [Attribute::Label(b"k".to_vec())]);
}
