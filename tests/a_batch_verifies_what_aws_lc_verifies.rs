//! A batch accepts a signature exactly when aws-lc does, whatever is wrong with it and whoever shares a call with whom.

use crate::support::multibuffer;

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1_SIGNING, ECDSA_P384_SHA3_384_ASN1_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};
use ringlock::crypto::batch::{Engine, LANES};
use ringlock::crypto::multibuffer::Multibuffer;
use ringlock::crypto::verifier::{Kind, Verification};
use ringlock::crypto::{CryptoOp, CryptoResult};
use rustls::pki_types::SignatureVerificationAlgorithm;

static ENGINES: LazyLock<Vec<Engine>> = LazyLock::new(|| {
    let mut engines = vec![Engine::inline(false)];
    if let Some(path) = multibuffer::library() {
        engines.push(Engine::with_library(Multibuffer::load(Some(&path)).unwrap()));
    }
    engines
});

/// A curve with its hash, and the number of bytes of its coordinates.
struct Curve {
    kind: Kind,
    signing: &'static EcdsaSigningAlgorithm,
    /// As long, but another hash or another curve.
    similar: &'static EcdsaSigningAlgorithm,
    library: &'static dyn SignatureVerificationAlgorithm,
    bytes: usize,
    order: &'static str,
}

static CURVES: [Curve; 2] = [
    Curve {
        kind: Kind::P256,
        signing: &ECDSA_P256_SHA256_ASN1_SIGNING,
        similar: &ECDSA_P256K1_SHA256_ASN1_SIGNING,
        library: webpki::aws_lc_rs::ECDSA_P256_SHA256,
        bytes: 32,
        order: "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    },
    Curve {
        kind: Kind::P384,
        signing: &ECDSA_P384_SHA384_ASN1_SIGNING,
        similar: &ECDSA_P384_SHA3_384_ASN1_SIGNING,
        library: webpki::aws_lc_rs::ECDSA_P384_SHA384,
        bytes: 48,
        order: "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    },
];

/// Key, message and signature.
#[derive(Clone)]
struct Signed {
    key: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    fn new(algorithm: &'static EcdsaSigningAlgorithm, message: &[u8]) -> Signed {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        Signed {
            key: pair.public_key().as_ref().to_vec(),
            message: message.to_vec(),
            signature: pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
        }
    }

    fn op(&self, curve: &Curve) -> CryptoOp {
        CryptoOp::Verify(Verification::new(
            curve.library,
            &self.key,
            &self.message,
            &self.signature,
        ))
    }

    fn is_right(&self, curve: &Curve) -> bool {
        let Signed {
            key,
            message,
            signature,
        } = self;
        curve.library.verify_signature(key, message, signature).is_ok()
    }

    /// r and s, without leading zeros.
    fn numbers(&self) -> [Vec<u8>; 2] {
        let r_end = 4 + usize::from(self.signature[3]);
        let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|&byte| byte == 0).collect();
        [number(&self.signature[4..r_end]), number(&self.signature[r_end + 2..])]
    }

    fn with_numbers(&self, [r, s]: [&[u8]; 2]) -> Signed {
        let content = [integer(r), integer(s)].concat();
        self.with_signature(element(0x30, &content))
    }

    fn with_signature(&self, signature: Vec<u8>) -> Signed {
        Signed {
            signature,
            ..self.clone()
        }
    }

    fn with_key(&self, key: Vec<u8>) -> Signed {
        Signed { key, ..self.clone() }
    }
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

fn integer(number: &[u8]) -> Vec<u8> {
    let positive = number.first().is_none_or(|&first| first >= 0x80);
    element(2, &[&[0][..usize::from(positive)], number].concat())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Big-endian numbers of any length, by plain addition and subtraction.
fn add(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut sum = Vec::new();
    let mut carry = 0;
    for at in 0..a.len().max(b.len()) + 1 {
        let digit = |number: &[u8]| number.len().checked_sub(at + 1).map_or(0, |at| u16::from(number[at]));
        carry += digit(a) + digit(b);
        sum.push((carry & 0xff) as u8);
        carry >>= 8;
    }
    sum.into_iter().rev().skip_while(|&byte| byte == 0).collect()
}

fn subtract(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut difference = Vec::new();
    let mut borrow = 0;
    for at in 0..a.len() {
        let digit = |number: &[u8]| number.len().checked_sub(at + 1).map_or(0, |at| i16::from(number[at]));
        let digit = digit(a) - digit(b) - borrow;
        borrow = i16::from(digit < 0);
        difference.push((digit & 0xff) as u8);
    }
    assert_eq!(borrow, 0);
    difference.into_iter().rev().skip_while(|&byte| byte == 0).collect()
}

/// The compressed form of the same key.
fn compressed(key: &[u8]) -> Vec<u8> {
    let half = key.len() / 2;
    [&[2 + (key[key.len() - 1] & 1)], &key[1..=half]].concat()
}

/// Everything that can be wrong or odd with a signature or a key. Some of it aws-lc accepts.
fn oddities(curve: &'static Curve) -> Vec<(&'static str, Signed)> {
    let good = Signed::new(curve.signing, b"what was signed");
    let [r, s] = good.numbers();
    let order = hex(curve.order);
    let der = &good.signature;
    let other = CURVES.iter().find(|other| other.kind != curve.kind).unwrap();
    let mut off_curve = good.key.clone();
    off_curve[curve.bytes * 2] ^= 1;
    let mut flipped = der.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let longer = |at: usize, bytes: &[u8]| [&der[..at], bytes, &der[at..]].concat();
    let mut long_form = vec![0x30, 0x81];
    long_form.extend(&der[1..]);
    let mut padded = der.clone();
    padded.splice(2..4, [2, der[3] + 1, 0]);
    padded[1] += 1;
    vec![
        ("a changed signature", good.with_signature(flipped)),
        (
            "another message",
            Signed {
                message: b"what was not signed".to_vec(),
                ..good.clone()
            },
        ),
        ("another key", good.with_key(Signed::new(curve.signing, b"").key)),
        // aws-lc accepts both of n - s and s, and so does everybody but Bitcoin.
        ("the other s", good.with_numbers([&r, &subtract(&order, &s)])),
        ("r and s exchanged", good.with_numbers([&s, &r])),
        ("r of zero", good.with_numbers([&[], &s])),
        ("s of zero", good.with_numbers([&r, &[]])),
        ("both zero", good.with_numbers([&[], &[]])),
        ("r of the order", good.with_numbers([&order, &s])),
        ("s of the order", good.with_numbers([&r, &order])),
        ("r and the order", good.with_numbers([&add(&r, &order), &s])),
        ("s and the order", good.with_numbers([&r, &add(&s, &order)])),
        (
            "s of nothing but ones",
            good.with_numbers([&r, &vec![0xff; curve.bytes]]),
        ),
        ("a long r", good.with_numbers([&[&[1], &r[..]].concat(), &s])),
        ("nothing", good.with_signature(Vec::new())),
        ("an empty sequence", good.with_signature(vec![0x30, 0])),
        ("a byte too many", good.with_signature(longer(der.len(), &[0]))),
        ("a byte too few", good.with_signature(der[..der.len() - 1].to_vec())),
        ("a length in its long form", good.with_signature(long_form)),
        ("a number with a zero too many", good.with_signature(padded)),
        ("r and s without DER", good.with_signature([&r[..], &s].concat())),
        ("a compressed key", good.with_key(compressed(&good.key))),
        (
            "a hybrid key",
            good.with_key([&[6 + (good.key[2 * curve.bytes] & 1)], &good.key[1..]].concat()),
        ),
        ("a key off the curve", good.with_key(off_curve)),
        ("infinity", good.with_key(vec![0])),
        ("no key", good.with_key(Vec::new())),
        ("a key cut off", good.with_key(good.key[..curve.bytes].to_vec())),
        (
            "a key of the other curve",
            good.with_key(Signed::new(other.signing, b"").key),
        ),
        ("the other curve", Signed::new(other.signing, b"what was signed")),
        ("a similar algorithm", Signed::new(curve.similar, b"what was signed")),
        ("an empty message", Signed::new(curve.signing, b"")),
        ("a long message", Signed::new(curve.signing, &[7; 70_000])),
    ]
}

fn is_right(answer: &CryptoResult) -> bool {
    let CryptoResult::Verified(right) = answer else {
        panic!("{answer:?}")
    };
    *right
}

#[test]
fn right_ones_are_accepted_with_every_number_of_lanes() {
    for engine in &*ENGINES {
        for curve in &CURVES {
            for lanes in 1..=LANES {
                let message = |lane: usize| format!("what lane {lane} of {lanes} has signed");
                let ops: Vec<_> = (0..lanes)
                    .map(|lane| Signed::new(curve.signing, message(lane).as_bytes()).op(curve))
                    .collect();
                let mut calls = Vec::new();
                let answers = multibuffer::answered(engine, &ops, |lanes| calls.push(lanes));
                assert!(answers.iter().all(is_right), "{:?}, {lanes}", curve.kind);
                let together = engine.break_even(&ops[0]).is_some_and(|count| lanes >= count);
                assert_eq!(calls == [lanes], together || lanes == 1, "{calls:?}");
                let answers = engine.answer_together(&ops);
                assert_eq!(answers.is_some(), engine.library().is_some());
                assert!(answers.iter().flatten().all(is_right));
            }
        }
    }
}

#[test]
fn an_odd_one_among_right_ones_is_what_aws_lc_says() {
    let mut accepted = Vec::new();
    for curve in &CURVES {
        for (number, (name, odd)) in oddities(curve).into_iter().enumerate() {
            let expected = odd.is_right(curve);
            if expected {
                accepted.push(name);
            }
            for engine in &*ENGINES {
                let lane = number % LANES;
                let mut ops: Vec<_> = (0..LANES)
                    .map(|lane| Signed::new(curve.signing, &[lane as u8]).op(curve))
                    .collect();
                ops[lane] = odd.op(curve);
                let answers: Vec<_> = multibuffer::answered(engine, &ops, |_| {})
                    .iter()
                    .map(is_right)
                    .collect();
                for (at, right) in answers.into_iter().enumerate() {
                    assert_eq!(right, at != lane || expected, "{name}, {:?}, lane {at}", curve.kind);
                }
                // A batch that is not asked twice never accepts more.
                if let Some(answers) = engine.answer_together(&ops) {
                    assert!(expected && answers.iter().all(is_right), "{name}, {:?}", curve.kind);
                }
            }
        }
    }
    let good = ["the other s", "a compressed key", "an empty message", "a long message"];
    assert_eq!(accepted, [good, good].concat());
}

/// All eight wrong: nothing to accept, nothing that shares their fate.
#[test]
fn a_call_of_wrong_ones_accepts_none() {
    for engine in &*ENGINES {
        for curve in &CURVES {
            let ops: Vec<_> = (0..LANES)
                .map(|lane| {
                    let mut signed = Signed::new(curve.signing, b"what was signed");
                    signed.message.push(lane as u8);
                    signed.op(curve)
                })
                .collect();
            let answers = multibuffer::answered(engine, &ops, |_| {});
            assert!(!answers.iter().any(is_right), "{:?}", curve.kind);
        }
    }
}

/// Curves mixed in one turn do not get each other's answers.
#[test]
fn curves_are_not_mixed_up() {
    for engine in &*ENGINES {
        let signed: Vec<_> = (0..LANES)
            .map(|lane| {
                let curve = &CURVES[lane % 2];
                let mut signed = Signed::new(curve.signing, b"what was signed");
                if lane % 3 == 0 {
                    signed.message.push(0);
                }
                (curve, signed)
            })
            .collect();
        let ops: Vec<_> = signed.iter().map(|(curve, signed)| signed.op(curve)).collect();
        let answers = multibuffer::answered(engine, &ops, |_| {});
        for (lane, answer) in answers.iter().enumerate() {
            assert_eq!(is_right(answer), lane % 3 != 0, "lane {lane}");
        }
    }
}
