//! What cryptography costs on this machine: each operation of a handshake alone, made ahead and in a batch, and what records cost.
//!
//! A figure is the shortest of many runs: what it takes when nothing disturbs it.

use std::time::{Duration, Instant};

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::digest::digest;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::tls13::OkmBlock;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm};
use rustls::{CipherSuite, NamedGroup, SignatureScheme, SupportedCipherSuite};

use super::batch::{Engine, LANES};
use super::inline::MLKEM_KEY_BYTES;
use super::key::{Key, LaneCurve};
use super::multibuffer::{EcdsaJob, Multibuffer, P256, P384, Scalar};
use super::verifier::Verification;
use super::{CryptoOp, CryptoResult, inline, provider};

/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(60);
/// A run shorter than this is repeated before the clock is read again, which itself takes some 30 ns.
const SAMPLE: Duration = Duration::from_micros(10);
/// The plain bytes of a full record.
pub const RECORD_BYTES: usize = 16 * 1024;

/// An operation of a handshake, with something to do it with.
#[derive(Clone, Debug)]
pub struct Example {
    /// As TLS calls it.
    pub name: &'static str,
    /// With a key that guards nothing, or with the share of a peer that does not exist.
    pub op: CryptoOp,
}

/// Every key exchange, every kind of signature, and what is verified in batches.
#[must_use]
pub fn examples() -> Vec<Example> {
    let exchange = |name, group| Example {
        name,
        op: exchange(group),
    };
    let sign = |name, key, scheme| Example {
        name,
        op: CryptoOp::Sign {
            key: Key::from_der(key).expect("a kind of key that we have").into(),
            scheme,
            // As long as what a server signs in TLS 1.3.
            message: [0; 130].into(),
        },
    };
    let generated = |algorithm| {
        let pair = rcgen::KeyPair::generate_for(algorithm).expect("aws-lc makes keys");
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()))
    };
    let rsa = |der: &[u8]| PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der.to_vec()));
    let pss = SignatureScheme::RSA_PSS_SHA256;
    vec![
        exchange("X25519", NamedGroup::X25519),
        exchange("P-256", NamedGroup::secp256r1),
        exchange("P-384", NamedGroup::secp384r1),
        exchange("X25519MLKEM768", NamedGroup::X25519MLKEM768),
        sign(
            "ECDSA P-256",
            generated(&rcgen::PKCS_ECDSA_P256_SHA256),
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ),
        sign(
            "ECDSA P-384",
            generated(&rcgen::PKCS_ECDSA_P384_SHA384),
            SignatureScheme::ECDSA_NISTP384_SHA384,
        ),
        sign("Ed25519", generated(&rcgen::PKCS_ED25519), SignatureScheme::ED25519),
        sign(
            "RSA-2048",
            rsa(include_bytes!("multibuffer/self_check_rsa2048.der")),
            pss,
        ),
        sign(
            "RSA-3072",
            rsa(include_bytes!("multibuffer/self_check_rsa3072.der")),
            pss,
        ),
        sign(
            "RSA-4096",
            rsa(include_bytes!("multibuffer/self_check_rsa4096.der")),
            pss,
        ),
        Example {
            name: "ECDSA P-256 verify",
            op: verify(webpki::aws_lc_rs::ECDSA_P256_SHA256, &ECDSA_P256_SHA256_ASN1_SIGNING),
        },
        Example {
            name: "ECDSA P-384 verify",
            op: verify(webpki::aws_lc_rs::ECDSA_P384_SHA384, &ECDSA_P384_SHA384_ASN1_SIGNING),
        },
    ]
}

fn verify(algorithm: &'static dyn SignatureVerificationAlgorithm, signing: &'static EcdsaSigningAlgorithm) -> CryptoOp {
    let pair = EcdsaKeyPair::generate(signing).expect("aws-lc makes keys");
    // As long as what is signed of a small certificate.
    let message = [0; 350];
    let signature = pair.sign(&SystemRandom::new(), &message);
    let signature = signature.expect("aws-lc's generator ends the process rather than fail");
    CryptoOp::Verify(Verification::new(
        algorithm,
        pair.public_key().as_ref(),
        &message,
        signature.as_ref(),
    ))
}

fn exchange(group: NamedGroup) -> CryptoOp {
    let client = provider::library_group(group).expect("a group of ours").start();
    CryptoOp::KeyExchange {
        group,
        peer_share: client.expect("aws-lc makes keys").pub_key().into(),
    }
}

/// The shortest of several runs, two at least and as many as fit into `time`.
pub fn shortest(time: Duration, mut run: impl FnMut()) -> Duration {
    let mut sample = |runs: u32| {
        let start = Instant::now();
        (0..runs).for_each(|_| run());
        start.elapsed() / runs
    };
    let start = Instant::now();
    // The first brings code and data to where they are fast.
    let mut least = sample(1).min(sample(1));
    let runs = SAMPLE.as_nanos() / least.as_nanos().max(1);
    let runs = u32::try_from(runs).unwrap_or(u32::MAX).clamp(1, 1000);
    while start.elapsed() < time {
        least = least.min(sample(runs));
    }
    least
}

/// What an operation of a handshake costs.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// As TLS calls it.
    pub name: &'static str,
    /// `key exchange`, `signature` or `verification`.
    pub kind: &'static str,
    /// By itself: with aws-lc, all of it.
    pub alone: Duration,
    /// What is left to do when what does not depend on the peer was made ahead: a key pair, or the half of an ECDSA signature
    /// that holds the nonce. Nothing for what has no such half, or where it takes a library that is not there.
    pub left: Option<Duration>,
    /// Of what can share a call here.
    pub batch: Option<BatchCost>,
}

/// What operations cost that share a call.
#[derive(Clone, Copy, Debug)]
pub struct BatchCost {
    /// All of a full batch. It costs as much for a single one, but for ML-KEM, which is computed one by one.
    pub call: Duration,
    /// From so many on the engine makes a call; nothing when it never does.
    pub break_even: Option<usize>,
}

/// Measures every operation of a handshake.
#[must_use]
pub fn operations(engine: &Engine) -> Vec<Operation> {
    let operation = |Example { name, op }: Example| {
        let batch: Vec<CryptoOp> = std::iter::repeat_n(&op, LANES).cloned().collect();
        Operation {
            name,
            kind: match op {
                CryptoOp::KeyExchange { .. } => "key exchange",
                CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } => "signature",
                CryptoOp::Verify(_) => "verification",
            },
            alone: shortest(TIME, || drop(succeeded(inline::run(&op)))),
            left: left(engine.library(), &op),
            batch: engine.answer_together(&batch).map(|answers| {
                answers.into_iter().for_each(|answer| drop(succeeded(answer)));
                BatchCost {
                    call: shortest(TIME, || drop(engine.answer_together(&batch))),
                    break_even: engine.break_even(&op),
                }
            }),
        }
    };
    examples().into_iter().map(operation).collect()
}

/// The answer to an example, which nothing is wrong with.
fn succeeded(answer: CryptoResult) -> CryptoResult {
    let right = matches!(
        answer,
        CryptoResult::KeyExchange(Ok(_)) | CryptoResult::Signature(Ok(_)) | CryptoResult::Verified(true)
    );
    assert!(right, "{answer:?}");
    answer
}

fn left(library: Option<&Multibuffer>, op: &CryptoOp) -> Option<Duration> {
    use NamedGroup as G;
    match op {
        CryptoOp::KeyExchange { group, peer_share } => {
            let halved = [
                (G::X25519, &agreement::X25519, 0),
                (G::X25519MLKEM768, &agreement::X25519, MLKEM_KEY_BYTES),
                (G::secp256r1, &agreement::ECDH_P256, 0),
                (G::secp384r1, &agreement::ECDH_P384, 0),
            ];
            let (_, algorithm, key_bytes) = halved.into_iter().find(|(halved, _, _)| halved == group)?;
            Some(agree(algorithm, peer_share.split_at(key_bytes)))
        }
        CryptoOp::Sign { scheme, message, .. } => {
            type Complete = fn(&Multibuffer, &[u8]) -> Duration;
            let halved: [(_, Complete); 2] = [(P256::SCHEME, complete::<P256>), (P384::SCHEME, complete::<P384>)];
            let complete = halved.into_iter().find(|(halved, _)| halved == scheme)?.1;
            Some(complete(library?, message))
        }
        CryptoOp::SignElsewhere { .. } | CryptoOp::Verify(_) => None,
    }
}

/// Also an encapsulation, if there is a key for it.
fn agree(algorithm: &'static agreement::Algorithm, (encapsulation_key, share): (&[u8], &[u8])) -> Duration {
    let private = PrivateKey::generate(algorithm).expect("aws-lc makes keys");
    shortest(TIME, || {
        let peer = UnparsedPublicKey::new(algorithm, share);
        agreement::agree(&private, peer, Unspecified, |shared| {
            if !encapsulation_key.is_empty() {
                let done = inline::hybrid(encapsulation_key, &[0; 32], shared);
                drop(done.map_err(|_| Unspecified)?);
            }
            Ok(())
        })
        .expect("the share is one of aws-lc's");
    })
}

/// One signature of a set-up. Eight at a time are made, outside of what is measured.
fn complete<C: LaneCurve>(library: &Multibuffer, message: &[u8]) -> Duration {
    let key = Scalar::<C>::random();
    let (start, mut least) = (Instant::now(), Duration::MAX);
    while start.elapsed() < TIME {
        let setups = library.ecdsa_setup::<C>();
        let sample = Instant::now();
        for setup in setups.into_iter().flatten() {
            let digest = digest(C::DIGEST, message);
            let job = EcdsaJob {
                key: &key,
                digest: digest.as_ref(),
            };
            let signed = library.ecdsa_complete([(setup, job)]);
            assert!(signed[0].is_some(), "the self-check has passed");
        }
        least = least.min(sample.elapsed() / u32::try_from(LANES).expect("it is eight"));
    }
    least
}

/// What a cipher suite costs.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// The one of TLS 1.3. Records of those of TLS 1.2 with the same cipher cost the same.
    pub name: CipherSuite,
    /// A full record sealed, of [`RECORD_BYTES`].
    pub seal: Duration,
    /// The same opened.
    pub open: Duration,
    /// A secret derived from another: HKDF-Expand-Label, as a handshake does some twenty times.
    pub derive: Duration,
}

/// Measures every cipher suite.
#[must_use]
pub fn suites() -> Vec<Suite> {
    let suites = [
        (TLS13_AES_128_GCM_SHA256, &AES_128_GCM),
        (TLS13_AES_256_GCM_SHA384, &AES_256_GCM),
        (TLS13_CHACHA20_POLY1305_SHA256, &CHACHA20_POLY1305),
    ];
    let suites = suites.into_iter().map(|(suite, algorithm)| {
        let (seal, open) = records(algorithm);
        Suite {
            name: suite.suite(),
            seal,
            open,
            derive: derive(suite),
        }
    });
    suites.collect()
}

/// A record sealed and opened, from one buffer to another as the relay does it.
fn records(algorithm: &'static aead::Algorithm) -> (Duration, Duration) {
    let key = UnboundKey::new(algorithm, &vec![7; algorithm.key_len()]).expect("it has the algorithm's length");
    let key = LessSafeKey::new(key);
    // The same nonce all the time: neither key nor record is anybody's.
    let nonce = || aead::Nonce::assume_unique_for_key([7; aead::NONCE_LEN]);
    let header = || Aad::from([23, 3, 3, 64, 17]);
    let plain = vec![7; RECORD_BYTES];
    let (mut sealed, mut rest) = (vec![0; RECORD_BYTES], vec![0; 1 + algorithm.tag_len()]);
    let seal = shortest(TIME, || {
        key.seal_out_of_place_scatter(nonce(), header(), &plain, &mut sealed, &[23], &mut rest)
            .expect("the lengths fit each other");
    });
    let (kind, tag) = rest.split_at(1);
    sealed.extend_from_slice(kind);
    let mut opened = vec![0; sealed.len()];
    let open = shortest(TIME, || {
        key.open_separate_gather(nonce(), header(), &sealed, tag, &mut opened)
            .expect("it has just been sealed");
    });
    assert!(opened[..RECORD_BYTES] == plain, "what comes out is what went in");
    (seal, open)
}

/// RFC 8446, section 7.1.
fn derive(suite: SupportedCipherSuite) -> Duration {
    const LABEL: &[u8] = b"tls13 s hs traffic";
    let suite = suite.tls13().expect("a suite of TLS 1.3");
    let transcript = vec![7; suite.common.hash_provider.output_len()];
    let size = u8::try_from(transcript.len()).expect("a hash is short");
    let label_size = u8::try_from(LABEL.len()).expect("it is short");
    let secret = OkmBlock::new(&transcript);
    shortest(TIME, || {
        let from = suite.hkdf_provider.expander_for_okm(&secret);
        let derived = from.expand_block(&[&[0, size], &[label_size], LABEL, &[size], &transcript]);
        std::hint::black_box(derived);
    })
}
