//! The PKCS#11 module, with real tokens of SoftHSM.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[path = "support/softhsm.rs"]
mod softhsm;

use std::path::Path;
use std::process::Command;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use ringlock_hsm::pkcs11::{Access, NewKey, Pkcs11Module, Pkcs11Session};
use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace};
use ringlock_hsm::scheme::{Curve, KeyKind};
use ringlock_hsm::token::{FoundKey, Module, Session};
use ringlock_hsm::uri::{ObjectMatch, PinSource, TokenMatch};
use rustls::SignatureScheme as S;
use softhsm::{SoftHsm, module_path, with_softhsm};

const MESSAGE: &[u8] = b"what a handshake has said so far";

const PSS_AND_PKCS1: [S; 6] = [
    S::RSA_PSS_SHA256,
    S::RSA_PSS_SHA384,
    S::RSA_PSS_SHA512,
    S::RSA_PKCS1_SHA256,
    S::RSA_PKCS1_SHA384,
    S::RSA_PKCS1_SHA512,
];

fn by_label(label: &str) -> ObjectMatch {
    ObjectMatch {
        label: Some(label.to_owned()),
        id: None,
    }
}

fn by_id(id: &[u8]) -> ObjectMatch {
    ObjectMatch {
        label: None,
        id: Some(id.to_owned()),
    }
}

fn find(session: &mut Pkcs11Session, object: ObjectMatch) -> Result<FoundKey, Fault> {
    session.find(&KeyPlace::Object(object))
}

/// An opinion on signatures that shares nothing with how they were made.
fn verifies(public: &[u8], scheme: S, message: &[u8], made: &[u8]) -> bool {
    let table: [(S, &dyn VerificationAlgorithm); 9] = [
        (S::ECDSA_NISTP256_SHA256, &signature::ECDSA_P256_SHA256_ASN1),
        (S::ECDSA_NISTP384_SHA384, &signature::ECDSA_P384_SHA384_ASN1),
        (S::ED25519, &signature::ED25519),
        (S::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
        (S::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384),
        (S::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512),
        (S::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (S::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (S::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512),
    ];
    let (_, algorithm) = table.iter().find(|(of, _)| *of == scheme).unwrap();
    UnparsedPublicKey::new(*algorithm, public).verify(message, made).is_ok()
}

/// Signs with each scheme that the key offers, which are those expected, and verifies.
fn signs(session: &mut Pkcs11Session, key: &FoundKey, expected: &[S]) {
    let schemes: Vec<S> = key.schemes.iter().map(|(scheme, _)| *scheme).collect();
    assert_eq!(schemes, expected);
    for scheme in schemes {
        let made = session.sign(key, scheme, MESSAGE).unwrap();
        assert!(verifies(&key.public, scheme, MESSAGE, &made), "{scheme:?}");
        assert!(!verifies(&key.public, scheme, b"another message", &made), "{scheme:?}");
    }
}

/// As openssl writes it: SoftHSM does not read the newer format that has the public key, too.
fn key_pair(arguments: &[&str]) -> KeyPair {
    let output = Command::new("openssl").arg("genpkey").args(arguments).output().unwrap();
    KeyPair::from_pem(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn open(soft: &SoftHsm, module: &Pkcs11Module, access: Access) -> Pkcs11Session {
    module.session(&soft.settings("edge"), access).unwrap()
}

#[test]
fn keys_made_in_the_token_sign_with_every_scheme() {
    with_softhsm("keys_made_in_the_token_sign_with_every_scheme", |soft| {
        soft.make("edge");
        let module = soft.load();
        let mut session = open(soft, &module, Access::Write);
        let kinds: [(NewKey, KeyKind, &[S]); 5] = [
            (
                NewKey::Ec(Curve::P256),
                KeyKind::Ec(Curve::P256),
                &[S::ECDSA_NISTP256_SHA256],
            ),
            (
                NewKey::Ec(Curve::P384),
                KeyKind::Ec(Curve::P384),
                &[S::ECDSA_NISTP384_SHA384],
            ),
            (NewKey::Ed25519, KeyKind::Ed25519, &[S::ED25519]),
            (NewKey::Rsa(2048), KeyKind::Rsa { bits: 2048 }, &PSS_AND_PKCS1),
            (NewKey::Rsa(3072), KeyKind::Rsa { bits: 3072 }, &PSS_AND_PKCS1),
        ];
        for (number, (new, kind, schemes)) in (1_u8..).zip(kinds) {
            let label = kind.to_string();
            session.generate(new, &label, &[number]).unwrap();
            let key = find(&mut session, by_label(&label)).unwrap();
            assert_eq!(KeyKind::of(&key.public), Some(kind));
            signs(&mut session, &key, schemes);
            assert_eq!(find(&mut session, by_id(&[number])).unwrap(), key);
            // A label or an identifier is taken once.
            let again = session.generate(new, &label, &[200]).unwrap_err();
            assert_eq!(again.kind, FaultKind::Object);
            let again = session.generate(new, "another", &[number]).unwrap_err();
            assert!(again.found.contains(&format!("id {number:02x}")), "{again}");
        }
        let objects = session.objects().unwrap();
        let of = |class| objects.iter().filter(move |object| object.class == class);
        assert_eq!((of("private key").count(), of("public key").count()), (5, 5));
        for key in of("private key") {
            assert_eq!(
                (key.sign, key.sensitive, key.extractable),
                (Some(true), Some(true), Some(false))
            );
            assert_eq!(key.key, key.label);
        }
    });
}

#[test]
fn keys_put_into_the_token_sign_with_every_scheme() {
    with_softhsm("keys_put_into_the_token_sign_with_every_scheme", |soft| {
        soft.make("edge");
        let kinds: [(&[&str], &[S]); 5] = [
            (P256, &[S::ECDSA_NISTP256_SHA256]),
            (
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
                &[S::ECDSA_NISTP384_SHA384],
            ),
            (&["-algorithm", "ED25519"], &[S::ED25519]),
            (
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
                &PSS_AND_PKCS1,
            ),
            (
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
                &PSS_AND_PKCS1,
            ),
        ];
        let pairs = kinds.map(|(algorithm, schemes)| (key_pair(algorithm), schemes));
        for (number, (pair, _)) in pairs.iter().enumerate() {
            soft.import(
                "edge",
                &pair.serialize_pem(),
                &format!("key {number}"),
                &format!("a{number}"),
            );
        }
        let module = soft.load();
        let mut session = open(soft, &module, Access::Read);
        for (number, (pair, schemes)) in pairs.iter().enumerate() {
            let key = find(&mut session, by_label(&format!("key {number}"))).unwrap();
            assert_eq!(key.public, pair.subject_public_key_info());
            signs(&mut session, &key, schemes);
        }
    });
}

#[test]
fn many_sessions_sign_at_once_after_one_login() {
    with_softhsm("many_sessions_sign_at_once_after_one_login", |soft| {
        soft.make("edge");
        let module = soft.load();
        let mut first = open(soft, &module, Access::Write);
        first.generate(NewKey::Ec(Curve::P256), "site", &[1]).unwrap();
        let key = find(&mut first, by_label("site")).unwrap();
        // The first login is enough: nobody reads the PIN again.
        std::fs::remove_file(soft.path("pin")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut session = module.open(&soft.settings("edge")).unwrap();
                    for _ in 0..50 {
                        let made = session.sign(&key, S::ECDSA_NISTP256_SHA256, MESSAGE).unwrap();
                        assert!(verifies(&key.public, S::ECDSA_NISTP256_SHA256, MESSAGE, &made));
                    }
                    session.touch().unwrap();
                });
            }
        });
        let tokens = module.tokens().unwrap();
        assert_eq!(tokens.len(), 1);
        assert_eq!((tokens[0].label.as_str(), tokens[0].pin_trouble), ("edge", None));
        for mechanism in ["CKM_ECDSA", "CKM_EDDSA", "CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS"] {
            assert!(tokens[0].mechanisms.contains(&mechanism), "{mechanism}");
        }
    });
}

#[test]
fn the_public_key_may_be_told_by_a_certificate() {
    with_softhsm("the_public_key_may_be_told_by_a_certificate", |soft| {
        soft.make("edge");
        let pair = key_pair(P256);
        soft.import("edge", &pair.serialize_pem(), "site", "a1");
        soft.tool("edge", &["--delete-object", "--type", "pubkey", "--id", "a1"]);
        {
            let module = soft.load();
            let mut session = open(soft, &module, Access::Read);
            let fault = find(&mut session, by_label("site")).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Object);
            assert!(fault.found.contains("no CKO_PUBLIC_KEY"), "{fault}");
            let fault = session.certificates(&by_id(&[0xa1])).unwrap_err();
            assert!(
                fault.found.starts_with("no certificate with id a1 in token `edge`"),
                "{fault}"
            );
        }
        let certificate = CertificateParams::new(["site.test".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&pair).unwrap().der().to_vec();
        let path = soft.path("certificate.der");
        std::fs::write(&path, &certificate).unwrap();
        let path = path.to_str().unwrap();
        soft.tool(
            "edge",
            &[
                "--write-object",
                path,
                "--type",
                "cert",
                "--id",
                "a1",
                "--label",
                "chain",
            ],
        );
        let module = soft.load();
        let mut session = open(soft, &module, Access::Read);
        let key = find(&mut session, by_label("site")).unwrap();
        assert_eq!(key.public, pair.subject_public_key_info());
        signs(&mut session, &key, &[S::ECDSA_NISTP256_SHA256]);
        assert_eq!(session.certificates(&by_label("chain")).unwrap(), [certificate]);
    });
}

#[test]
fn a_key_that_is_not_the_only_one_is_refused() {
    with_softhsm("a_key_that_is_not_the_only_one_is_refused", |soft| {
        soft.make("edge");
        let (one, other) = (key_pair(P256), key_pair(P256));
        soft.import("edge", &one.serialize_pem(), "site", "a1");
        soft.import("edge", &one.serialize_pem(), "site", "a2");
        let module = soft.load();
        let mut session = open(soft, &module, Access::Read);
        let key = find(&mut session, by_label("site")).expect("the same key twice is one");
        assert_eq!(key.public, one.subject_public_key_info());
        soft.import("edge", &other.serialize_pem(), "site", "a3");
        let fault = find(&mut session, by_label("site")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Object);
        for id in ["a1", "a2", "a3"] {
            assert!(
                fault.found.contains(&format!("one with label `site` and id {id}")),
                "{fault}"
            );
        }
        assert!(find(&mut session, by_id(&[0xa3])).is_ok());
        let fault = find(&mut session, by_label("sight")).unwrap_err();
        assert!(fault.found.starts_with("no private key with label `sight`"), "{fault}");
        assert!(
            fault.found.contains("it holds one with label `site` and id a1"),
            "{fault}"
        );
    });
}

#[test]
fn a_token_that_is_not_there_or_not_the_only_one_is_named() {
    with_softhsm("a_token_that_is_not_there_or_not_the_only_one_is_named", |soft| {
        let module = soft.load();
        let fault = module.open(&soft.settings("edge")).err().unwrap();
        assert_eq!(fault.kind, FaultKind::Token);
        assert!(
            fault.found.starts_with("no token with label `edge`: none is there"),
            "{fault}"
        );
        soft.make("edge");
        soft.make("twin");
        soft.make("twin");
        module.reset().unwrap();
        let fault = module.open(&soft.settings("core")).err().unwrap();
        assert!(
            fault.found.starts_with("no token with label `core`; there are "),
            "{fault}"
        );
        for label in ["edge", "twin"] {
            assert!(fault.found.contains(&format!("token `{label}`")), "{fault}");
        }
        let fault = module.open(&soft.settings("twin")).err().unwrap();
        assert_eq!(fault.kind, FaultKind::Token);
        assert!(fault.found.starts_with("several tokens with label `twin`: "), "{fault}");
        let mut settings = soft.settings("twin");
        let twin = module
            .tokens()
            .unwrap()
            .into_iter()
            .find(|token| token.label == "twin")
            .unwrap();
        settings.find = TokenMatch {
            serial: Some(twin.serial.clone()),
            slot_id: Some(twin.slot_id),
            manufacturer: Some(twin.manufacturer),
            model: Some(twin.model),
            ..settings.find
        };
        let session = module.open(&settings).unwrap();
        assert_eq!(session.token(), format!("token `twin` (serial number {})", twin.serial));
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    with_softhsm("a_wrong_pin_is_tried_once", |soft| {
        soft.make("edge");
        let module = soft.load();
        let mut settings = soft.settings("edge");
        std::fs::write(soft.path("wrong"), "4321").unwrap();
        settings.pin = Some(PinSource::File(soft.path("wrong")));
        let fault = module.open(&settings).err().unwrap();
        assert_eq!(
            (fault.kind, fault.ckr.as_deref()),
            (FaultKind::Pin, Some("CKR_PIN_INCORRECT"))
        );
        assert!(!fault.found.contains("4321"));
        assert_eq!(module.tokens().unwrap()[0].pin_trouble, Some("wrong at the last login"));
        settings.login = false;
        let fault = module.open(&settings).err().unwrap();
        assert_eq!((fault.kind, fault.ckr), (FaultKind::Pin, None));
        for (pin, expected) in [
            (None, "pin_source"),
            (Some(PinSource::File(soft.path("nothing"))), "nothing"),
        ] {
            let mut settings = soft.settings("edge");
            settings.pin = pin;
            let fault = module.open(&settings).err().unwrap();
            assert_eq!(fault.kind, FaultKind::Pin);
            assert!(fault.found.contains(expected), "{fault}");
        }
        // The right one, and then nobody is asked for it.
        let _first = module.open(&soft.settings("edge")).unwrap();
        assert!(module.open(&settings).is_ok());
    });
}

#[test]
fn a_token_that_is_made_anew_is_seen_after_a_reset() {
    with_softhsm("a_token_that_is_made_anew_is_seen_after_a_reset", |soft| {
        soft.make("edge");
        let pair = key_pair(P256);
        soft.import("edge", &pair.serialize_pem(), "site", "a1");
        let module = soft.load();
        let mut stale = open(soft, &module, Access::Read);
        let stale_key = find(&mut stale, by_label("site")).unwrap();
        soft.remove("edge");
        soft.make("edge");
        soft.import("edge", &pair.serialize_pem(), "site", "a2");
        module.reset().unwrap();
        let mut session = open(soft, &module, Access::Read);
        // What is left over from before does no harm: it fails here, and its end does not end another session with its number.
        for fault in [
            stale.sign(&stale_key, S::ECDSA_NISTP256_SHA256, MESSAGE).unwrap_err(),
            stale.touch().unwrap_err(),
        ] {
            assert!(fault.loses_sessions(), "{fault}");
        }
        drop(stale);
        let fault = session.sign(&stale_key, S::ECDSA_NISTP256_SHA256, MESSAGE).unwrap_err();
        assert_eq!(fault.ckr.as_deref(), Some("CKR_KEY_HANDLE_INVALID"));
        let key = find(&mut session, by_id(&[0xa2])).unwrap();
        signs(&mut session, &key, &[S::ECDSA_NISTP256_SHA256]);
    });
}

#[test]
fn what_is_no_module_is_refused() {
    with_softhsm("what_is_no_module_is_refused", |soft| {
        let text = soft.path("pin");
        // A library, but not of this kind.
        let other = std::fs::read_to_string("/proc/self/maps").unwrap();
        let other = other
            .lines()
            .find_map(|line| line.split_whitespace().find(|word| word.contains("/libc.so")));
        for (path, expected) in [
            (
                soft.path("nothing").as_path(),
                "nothing: cannot open shared object file",
            ),
            (text.as_path(), "pin: file too short"),
            (
                Path::new(other.expect("the C library is loaded")),
                "it has no C_GetFunctionList",
            ),
        ] {
            let fault = Pkcs11Module::load(path).err().unwrap();
            assert_eq!(fault.kind, FaultKind::Module);
            assert!(fault.found.contains(expected), "{fault}");
        }
        let module = Pkcs11Module::load(&module_path()).unwrap();
        assert!(module.description().contains("SoftHSM"), "{}", module.description());
    });
}
