//! What the engine computes in batches is what it computes one by one, whoever shares a batch with whom.

use crate::support::multibuffer;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use ringlock::crypto::batch::{Engine, LANES};
use ringlock::crypto::key::Key;
use ringlock::crypto::multibuffer::Multibuffer;
use ringlock::crypto::{CryptoOp, CryptoResult};
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::{ActiveKeyExchange, SupportedKxGroup};
use rustls::{NamedGroup, PeerMisbehaved, SignatureScheme};

static ENGINES: LazyLock<Vec<Engine>> = LazyLock::new(|| {
    let mut engines = vec![Engine::inline(false)];
    if let Some(path) = multibuffer::library() {
        engines.push(Engine::with_library(Multibuffer::load(Some(&path)).unwrap()));
    }
    engines
});

/// Answers, and how many operations each call had, by that number.
fn answers(engine: &Engine, ops: &[CryptoOp]) -> (Vec<CryptoResult>, BTreeMap<usize, usize>) {
    let mut calls = BTreeMap::new();
    let answers = multibuffer::answered(engine, ops, |lanes| *calls.entry(lanes).or_default() += 1);
    assert_eq!(answers.len(), ops.len());
    let counted: usize = calls.iter().map(|(lanes, calls)| lanes * calls).sum();
    // What a batch refuses is computed and counted once more.
    assert!(counted >= ops.len(), "{calls:?}");
    (answers, calls)
}

const GROUPS: [&dyn SupportedKxGroup; 4] = [
    kx_group::X25519,
    kx_group::SECP256R1,
    kx_group::X25519MLKEM768,
    kx_group::SECP384R1,
];

fn client(group: &dyn SupportedKxGroup) -> (Box<dyn ActiveKeyExchange>, CryptoOp) {
    let client = group.start().unwrap();
    let op = CryptoOp::KeyExchange {
        group: group.name(),
        peer_share: client.pub_key().into(),
    };
    (client, op)
}

/// Operations that can share a call do so from the measured break-even on. What that is, is the machine's affair: for RSA-3072 it
/// may be never.
#[track_caller]
fn assert_worth_it(engine: &Engine, ops: &[CryptoOp], batched: bool, calls: &BTreeMap<usize, usize>) {
    let break_even = engine.break_even(&ops[0]);
    assert!(break_even.is_none() || batched, "{ops:?}");
    let together = break_even.is_some_and(|break_even| ops.len() >= break_even);
    assert_eq!(
        *calls == BTreeMap::from([(ops.len(), 1)]),
        together || ops.len() == 1,
        "{break_even:?}: {calls:?}"
    );
}

#[track_caller]
fn assert_agreed(client: Box<dyn ActiveKeyExchange>, answer: CryptoResult) {
    let CryptoResult::KeyExchange(Ok(server)) = answer else {
        panic!("{:?}: {answer:?}", client.group())
    };
    assert_eq!(server.group, client.group());
    let secret = client.complete(&server.pub_key).unwrap();
    assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
}

#[test]
fn clients_of_each_group_agree_with_every_number_of_lanes() {
    for engine in &*ENGINES {
        for group in GROUPS {
            for lanes in 1..=LANES {
                let (clients, ops): (Vec<_>, Vec<_>) = (0..lanes).map(|_| client(group)).unzip();
                let (answers, calls) = answers(engine, &ops);
                for (client, answer) in clients.into_iter().zip(answers) {
                    assert_agreed(client, answer);
                }
                let batched = engine.library().is_some() && group.name() != NamedGroup::secp384r1;
                assert_worth_it(engine, &ops, batched, &calls);
                let (clients, ops): (Vec<_>, Vec<_>) = (0..lanes).map(|_| client(group)).unzip();
                let answers = engine.answer_together(&ops);
                assert_eq!(answers.is_some(), batched, "{:?}", group.name());
                for (client, answer) in clients.into_iter().zip(answers.into_iter().flatten()) {
                    assert_agreed(client, answer);
                }
            }
        }
    }
}

/// Eight of one kind and eight of another would be two batches; mixed they are two smaller ones, or none.
#[test]
fn groups_mixed_in_one_turn_do_not_get_each_others_answers() {
    for engine in &*ENGINES {
        for start in 0..GROUPS.len() {
            let (clients, ops): (Vec<_>, Vec<_>) =
                (0..LANES).map(|lane| client(GROUPS[(start + lane / 3) % 4])).unzip();
            for (client, answer) in clients.into_iter().zip(answers(engine, &ops).0) {
                assert_agreed(client, answer);
            }
        }
    }
}

#[test]
fn a_bad_share_is_refused_and_its_neighbours_are_not() {
    let exchange = |group: NamedGroup, peer_share: Vec<u8>| CryptoOp::KeyExchange {
        group,
        peer_share: peer_share.into(),
    };
    let hybrid = |encapsulation_key: &[u8], share: [u8; 32]| {
        exchange(NamedGroup::X25519MLKEM768, [encapsulation_key, &share].concat())
    };
    let good = kx_group::X25519MLKEM768.start().unwrap();
    let mut off_curve = kx_group::SECP256R1.start().unwrap().pub_key().to_vec();
    off_curve[64] ^= 1;
    let bad = [
        exchange(NamedGroup::X25519, vec![0; 32]),
        // p - 1, of order 4.
        exchange(NamedGroup::X25519, [vec![0xec], vec![0xff; 30], vec![0x7f]].concat()),
        exchange(NamedGroup::X25519, vec![9; 31]),
        exchange(NamedGroup::X25519, vec![]),
        exchange(NamedGroup::secp256r1, off_curve),
        exchange(NamedGroup::secp256r1, vec![0]),
        exchange(NamedGroup::secp256r1, vec![]),
        hybrid(&good.pub_key()[..1184], [0; 32]),
        // No encapsulation key: coefficients that are not reduced.
        hybrid(&[0xff; 1184], [9; 32]),
        hybrid(&good.pub_key()[..1183], [9; 32]),
    ];
    for engine in &*ENGINES {
        for (number, bad) in bad.iter().enumerate() {
            let CryptoOp::KeyExchange { group, .. } = bad else {
                unreachable!()
            };
            let group = GROUPS.into_iter().find(|known| known.name() == *group).unwrap();
            let lane = number % LANES;
            let (mut clients, mut ops): (Vec<_>, Vec<_>) = (0..LANES).map(|_| client(group)).unzip();
            ops[lane] = bad.clone();
            let mut answers = answers(engine, &ops).0;
            clients.remove(lane);
            let refused = answers.remove(lane);
            let CryptoResult::KeyExchange(Err(error)) = refused else {
                panic!("share {number}")
            };
            assert_eq!(error, PeerMisbehaved::InvalidKeyShare.into(), "share {number}");
            for (client, answer) in clients.into_iter().zip(answers) {
                assert_agreed(client, answer);
            }
        }
    }
}

#[test]
fn two_handshakes_never_get_the_same_key() {
    for engine in &*ENGINES {
        let (_, op) = client(kx_group::X25519);
        let ops = vec![op; LANES];
        let mut seen = std::collections::HashSet::new();
        for answer in (0..8).flat_map(|_| answers(engine, &ops).0) {
            let CryptoResult::KeyExchange(Ok(server)) = answer else {
                panic!("{answer:?}")
            };
            assert!(seen.insert(server.pub_key));
        }
    }
}

struct Signer {
    key: Arc<Key>,
    public: Vec<u8>,
    batched: bool,
    schemes: &'static [(SignatureScheme, &'static dyn VerificationAlgorithm)],
}

impl Signer {
    fn new(
        pair: &KeyPair,
        batched: bool,
        schemes: &'static [(SignatureScheme, &'static dyn VerificationAlgorithm)],
    ) -> Signer {
        Signer {
            key: Arc::new(Key::from_pem(pair.serialize_pem().as_bytes()).unwrap()),
            public: pair.public_key_raw().to_vec(),
            batched,
            schemes,
        }
    }
}

const RSA: &[(SignatureScheme, &dyn VerificationAlgorithm)] = &[
    (SignatureScheme::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
    (SignatureScheme::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384),
    (SignatureScheme::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512),
    (
        SignatureScheme::RSA_PKCS1_SHA256,
        &signature::RSA_PKCS1_2048_8192_SHA256,
    ),
    (
        SignatureScheme::RSA_PKCS1_SHA384,
        &signature::RSA_PKCS1_2048_8192_SHA384,
    ),
    (
        SignatureScheme::RSA_PKCS1_SHA512,
        &signature::RSA_PKCS1_2048_8192_SHA512,
    ),
];

static SIGNERS: LazyLock<Vec<Signer>> = LazyLock::new(|| {
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).unwrap();
    vec![
        Signer::new(
            &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
            true,
            &[(
                SignatureScheme::ECDSA_NISTP256_SHA256,
                &signature::ECDSA_P256_SHA256_ASN1,
            )],
        ),
        Signer::new(
            &KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
            true,
            &[(
                SignatureScheme::ECDSA_NISTP384_SHA384,
                &signature::ECDSA_P384_SHA384_ASN1,
            )],
        ),
        Signer::new(
            &KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            false,
            &[(SignatureScheme::ED25519, &signature::ED25519)],
        ),
        Signer::new(&rsa(RsaKeySize::_2048), true, RSA),
        Signer::new(&rsa(RsaKeySize::_3072), true, RSA),
        Signer::new(&rsa(RsaKeySize::_4096), true, RSA),
    ]
});

fn message(lane: usize) -> Box<[u8]> {
    format!("what lane {lane} signs, as long as a CertificateVerify is")
        .into_bytes()
        .into()
}

fn sign(signer: &Signer, lane: usize) -> CryptoOp {
    CryptoOp::Sign {
        key: Arc::clone(&signer.key),
        scheme: signer.schemes[lane % signer.schemes.len()].0,
        message: message(lane),
    }
}

#[track_caller]
fn assert_signed(signer: &Signer, lane: usize, answer: &CryptoResult) {
    let CryptoResult::Signature(Ok(signature)) = answer else {
        panic!("{answer:?}")
    };
    let (scheme, algorithm) = signer.schemes[lane % signer.schemes.len()];
    UnparsedPublicKey::new(algorithm, &signer.public)
        .verify(&message(lane), signature)
        .unwrap_or_else(|_| panic!("{scheme:?} in lane {lane}"));
}

#[test]
fn signatures_of_each_key_and_scheme_verify_with_every_number_of_lanes() {
    for engine in &*ENGINES {
        for signer in &*SIGNERS {
            for lanes in 1..=LANES {
                let ops: Vec<_> = (0..lanes).map(|lane| sign(signer, lane)).collect();
                let (answers, calls) = answers(engine, &ops);
                for (lane, answer) in answers.iter().enumerate() {
                    assert_signed(signer, lane, answer);
                }
                let batched = engine.library().is_some() && signer.batched;
                assert_worth_it(engine, &ops, batched, &calls);
                let answers = engine.answer_together(&ops);
                assert_eq!(answers.is_some(), batched, "{:?}", signer.key);
                for (lane, answer) in answers.into_iter().flatten().enumerate() {
                    assert_signed(signer, lane, &answer);
                }
            }
        }
    }
}

#[test]
fn keys_mixed_in_one_turn_do_not_get_each_others_signatures() {
    for engine in &*ENGINES {
        for start in 0..SIGNERS.len() {
            let signer = |lane: usize| &SIGNERS[(start + lane / 3) % SIGNERS.len()];
            let ops: Vec<_> = (0..LANES).map(|lane| sign(signer(lane), lane)).collect();
            for (lane, answer) in answers(engine, &ops).0.iter().enumerate() {
                assert_signed(signer(lane), lane, answer);
            }
        }
    }
}

#[test]
fn a_scheme_that_a_key_has_not_is_refused_and_its_neighbours_are_not() {
    for engine in &*ENGINES {
        let signer = &SIGNERS[0];
        let mut ops: Vec<_> = (0..LANES).map(|lane| sign(signer, lane)).collect();
        ops[3] = CryptoOp::Sign {
            key: Arc::clone(&signer.key),
            scheme: SignatureScheme::ECDSA_NISTP384_SHA384,
            message: message(3),
        };
        for (lane, answer) in answers(engine, &ops).0.iter().enumerate() {
            if lane == 3 {
                assert!(matches!(answer, CryptoResult::Signature(Err(_))), "{answer:?}");
            } else {
                assert_signed(signer, lane, answer);
            }
        }
    }
}
