//! Whether the library computes what aws-lc computes: every operation that is used, on known answers and on random inputs,
//! and in both directions where there are two. Whatever makes it differ, a defect, a processor or a changed file, the batch is
//! not used then.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, Ed25519KeyPair, KeyPair,
};
use zeroize::Zeroizing;

use super::curve::{P256, P384, Point, Scalar};
use super::rsa::{Block, Hash, RsaKey};
use super::{
    BatchedCurve, EcdhJob, EcdsaJob, Ed25519Job, Ed25519Key, LANES, Lanes, Multibuffer, RsaJob, Secret32, Signature,
    VerifyJob, X25519Job,
};

type Check = fn(&Multibuffer) -> Option<()>;

/// Each operation with the name that an operator reads.
const CHECKS: [(&str, Check); 16] = [
    ("X25519 public keys", x25519_public_key),
    ("X25519 agreement", x25519),
    ("P-256 public keys", |batch| public_key(batch, &P256_ANSWERS)),
    ("P-256 agreement", |batch| ecdh(batch, &P256_ANSWERS)),
    ("P-256 ECDSA signing", |batch| sign(batch, &P256_ANSWERS)),
    ("P-256 ECDSA set-up and completion", |batch| {
        setup_and_complete(batch, &P256_ANSWERS)
    }),
    ("P-256 ECDSA verification", |batch| verify(batch, &P256_ANSWERS)),
    ("P-384 public keys", |batch| public_key(batch, &P384_ANSWERS)),
    ("P-384 agreement", |batch| ecdh(batch, &P384_ANSWERS)),
    ("P-384 ECDSA signing", |batch| sign(batch, &P384_ANSWERS)),
    ("P-384 ECDSA set-up and completion", |batch| {
        setup_and_complete(batch, &P384_ANSWERS)
    }),
    ("P-384 ECDSA verification", |batch| verify(batch, &P384_ANSWERS)),
    ("Ed25519 signing", ed25519),
    ("RSA-2048", |batch| rsa(batch, include_bytes!("self_check_rsa2048.der"))),
    ("RSA-3072", |batch| rsa(batch, include_bytes!("self_check_rsa3072.der"))),
    ("RSA-4096", |batch| rsa(batch, include_bytes!("self_check_rsa4096.der"))),
];

/// The first operation that is wrong.
pub(super) fn run(batch: &Multibuffer) -> Result<(), &'static str> {
    for (operation, check) in CHECKS {
        check(batch).ok_or(operation)?;
    }
    Ok(())
}

/// RFC 7748, 6.1: two private keys, their public keys, and what they share.
const X25519_PRIVATE: [[u8; 32]; 2] = [
    hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
    hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
];
const X25519_PUBLIC: [[u8; 32]; 2] = [
    hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
    hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
];
const X25519_SHARED: [u8; 32] = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");

fn x25519_public_key(batch: &Multibuffer) -> Option<()> {
    let keys = X25519Keys::new()?;
    let public = batch.x25519_public_key(&keys.private.each_ref());
    is(public == keys.public.map(Some))
}

fn x25519(batch: &Multibuffer) -> Option<()> {
    let keys = X25519Keys::new()?;
    // Each with the next one's public key: both directions of each pair of neighbours, the second among them 6.1's.
    let mut peers: [[u8; 32]; LANES] = std::array::from_fn(|lane| keys.public[(lane + 1) % LANES]);
    peers[1] = keys.public[0];
    let mut expected = [[0; 32]; LANES];
    for (lane, shared) in expected.iter_mut().enumerate() {
        agree(&agreement::X25519, keys.private[lane].bytes(), &peers[lane], shared)?;
    }
    is(expected[0] == X25519_SHARED && expected[1] == X25519_SHARED)?;
    // The highest bit is to be ignored (RFC 7748, 5), and a point of low order to be refused.
    peers[2][31] |= 0x80;
    peers[7] = [0; 32];
    let jobs: [_; LANES] = std::array::from_fn(|lane| X25519Job {
        private: &keys.private[lane],
        peer: &peers[lane],
    });
    let shared = batch.x25519(&jobs);
    is(shared[7].is_none())?;
    is((0..7).all(|lane| shared[lane].as_ref().map(|shared| shared.bytes()) == Some(&expected[lane])))
}

struct X25519Keys {
    private: [Secret32; LANES],
    public: [[u8; 32]; LANES],
}

impl X25519Keys {
    /// RFC 7748's two and random ones, with the public keys that aws-lc computes.
    fn new() -> Option<X25519Keys> {
        let private = std::array::from_fn(|lane| match X25519_PRIVATE.get(lane) {
            Some(&known) => Secret32::new(known),
            None => Secret32::random(),
        });
        let mut public = [[0; 32]; LANES];
        for (public, private) in public.iter_mut().zip(&private) {
            let key = PrivateKey::from_private_key(&agreement::X25519, private.bytes()).ok()?;
            public.copy_from_slice(key.compute_public_key().ok()?.as_ref());
        }
        is(public[..2] == X25519_PUBLIC)?;
        Some(X25519Keys { private, public })
    }
}

/// What a curve is checked against: published answers, and aws-lc's algorithms.
struct Answers<C: BatchedCurve> {
    /// RFC 5903, 8.1 and 8.2: two private keys, and what they share.
    private: [C::Bytes; 2],
    shared: C::Bytes,
    /// RFC 6979, A.2.5 and A.2.6: a private key, the nonce for the message "sample", and the signature.
    signer: C::Bytes,
    nonce: C::Bytes,
    signature: Signature<C>,
    agreement: &'static agreement::Algorithm,
    hash: Hash,
    signing: &'static EcdsaSigningAlgorithm,
    verification: &'static EcdsaVerificationAlgorithm,
}

const P256_ANSWERS: Answers<P256> = Answers {
    private: [
        hex("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433"),
        hex("c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53"),
    ],
    shared: hex("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de"),
    signer: hex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"),
    nonce: hex("a6e3c57dd01abe90086538398355dd4c3b17aa873382b0f24d6129493d8aad60"),
    signature: Signature {
        r: hex("efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"),
        s: hex("f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"),
    },
    agreement: &agreement::ECDH_P256,
    hash: Hash::Sha256,
    signing: &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
    verification: &signature::ECDSA_P256_SHA256_FIXED,
};

const P384_ANSWERS: Answers<P384> = Answers {
    private: [
        hex("099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194"),
        hex("41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942e0308312916b8ed2960e4bd55a7448fc"),
    ],
    shared: hex("11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a270f59746"),
    signer: hex("6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d896d5724e4c70a825f872c9ea60d2edf5"),
    nonce: hex("94ed910d1a099dad3254e9242ae85abde4ba15168eaf0ca87a555fd56d10fbca2907e3e83ba95368623b8c4686915cf9"),
    signature: Signature {
        r: hex("94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46"),
        s: hex("99ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8"),
    },
    agreement: &agreement::ECDH_P384,
    hash: Hash::Sha384,
    signing: &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
    verification: &signature::ECDSA_P384_SHA384_FIXED,
};

/// One key in both libraries.
struct CurveKey<C: BatchedCurve> {
    bytes: Zeroizing<C::Bytes>,
    scalar: Scalar<C>,
    /// What aws-lc computes from it, uncompressed.
    encoded: Vec<u8>,
    point: Point<C>,
}

impl<C: BatchedCurve> CurveKey<C> {
    fn new(answers: &Answers<C>, bytes: C::Bytes) -> Option<CurveKey<C>> {
        let key = PrivateKey::from_private_key(answers.agreement, bytes.as_ref()).ok()?;
        let encoded = key.compute_public_key().ok()?.as_ref().to_vec();
        Some(CurveKey {
            bytes: Zeroizing::new(bytes),
            scalar: Scalar::from_be_bytes(bytes.as_ref())?,
            point: Point::from_uncompressed(&encoded)?,
            encoded,
        })
    }

    /// The published ones first, random ones after.
    fn all(answers: &Answers<C>, known: &[C::Bytes]) -> Option<[CurveKey<C>; LANES]> {
        let mut keys = Vec::with_capacity(LANES);
        for &bytes in known {
            keys.push(Self::new(answers, bytes)?);
        }
        while keys.len() < LANES {
            let mut bytes = C::BYTES;
            aws_lc_rs::rand::fill(bytes.as_mut()).ok()?;
            // What is not below the order is no key.
            keys.extend(Self::new(answers, bytes));
        }
        keys.try_into().ok()
    }

    fn signer(&self, answers: &Answers<C>) -> Option<EcdsaKeyPair> {
        let private: &C::Bytes = &self.bytes;
        EcdsaKeyPair::from_private_key_and_public_key(answers.signing, private.as_ref(), &self.encoded).ok()
    }
}

fn public_key<C: BatchedCurve>(batch: &Multibuffer, answers: &Answers<C>) -> Option<()> {
    let keys = CurveKey::all(answers, &answers.private)?;
    let public = batch.public_key(&keys.each_ref().map(|key| &key.scalar));
    is(public == keys.each_ref().map(|key| Some(key.point)))
}

fn ecdh<C: BatchedCurve>(batch: &Multibuffer, answers: &Answers<C>) -> Option<()> {
    let keys = CurveKey::all(answers, &answers.private)?;
    // Neighbours with each other: each pair in both directions.
    let jobs: [_; LANES] = std::array::from_fn(|lane| EcdhJob {
        private: &keys[lane].scalar,
        peer: &keys[lane ^ 1].point,
    });
    let shared = batch.ecdh(&jobs);
    for lane in 0..LANES {
        let (mut expected, private): (_, &C::Bytes) = (C::BYTES, &keys[lane].bytes);
        agree(
            answers.agreement,
            private.as_ref(),
            &keys[lane ^ 1].encoded,
            expected.as_mut(),
        )?;
        is(lane >= 2 || expected == answers.shared)?;
        is(shared[lane].as_ref()?.bytes() == &expected)?;
    }
    Some(())
}

/// The published message first.
fn messages() -> [Vec<u8>; LANES] {
    std::array::from_fn(|lane| match lane {
        0 => b"sample".to_vec(),
        _ => format!("message {lane}").into_bytes(),
    })
}

/// Signing jobs of eight keys, their answers judged by aws-lc; the first has the published nonce and answer.
fn signatures<C: BatchedCurve>(
    answers: &Answers<C>,
    signed: impl Fn([EcdsaJob<C>; LANES], Lanes<Scalar<C>>) -> Lanes<Signature<C>>,
) -> Option<()> {
    let keys = CurveKey::all(answers, &[answers.signer])?;
    let messages = messages();
    let digests = messages
        .each_ref()
        .map(|message| digest::digest(answers.hash.algorithm(), message));
    let jobs = std::array::from_fn(|lane| EcdsaJob {
        key: &keys[lane].scalar,
        digest: digests[lane].as_ref(),
    });
    let nonces = std::array::from_fn(|lane| match lane {
        0 => Scalar::from_be_bytes(answers.nonce.as_ref()),
        _ => Some(Scalar::random()),
    });
    let signatures = signed(jobs, nonces);
    is(signatures[0] == Some(answers.signature))?;
    for ((signature, key), message) in signatures.iter().zip(&keys).zip(&messages) {
        let fixed = fixed(signature.as_ref()?);
        signature::UnparsedPublicKey::new(answers.verification, &key.encoded)
            .verify(message, &fixed)
            .ok()?;
    }
    Some(())
}

fn sign<C: BatchedCurve>(batch: &Multibuffer, answers: &Answers<C>) -> Option<()> {
    signatures(answers, |jobs, nonces| batch.ecdsa_sign_with(&jobs, &nonces))
}

fn setup_and_complete<C: BatchedCurve>(batch: &Multibuffer, answers: &Answers<C>) -> Option<()> {
    signatures(answers, |jobs, nonces| {
        let setups = batch.ecdsa_setup_with(&nonces);
        batch.ecdsa_complete(setups.into_iter().flatten().zip(jobs))
    })
}

fn verify<C: BatchedCurve>(batch: &Multibuffer, answers: &Answers<C>) -> Option<()> {
    let keys = CurveKey::all(answers, &[answers.signer])?;
    let messages = messages();
    let mut digests = [[0; digest::MAX_OUTPUT_LEN]; LANES];
    let size = answers.hash.algorithm().output_len();
    let mut signatures = [answers.signature; LANES];
    for lane in 0..LANES {
        digests[lane][..size].copy_from_slice(digest::digest(answers.hash.algorithm(), &messages[lane]).as_ref());
        if lane > 0 {
            let signature = keys[lane].signer(answers)?;
            let signature = signature.sign(&SystemRandom::new(), &messages[lane]).ok()?;
            let (r, s) = signature.as_ref().split_at_checked(C::BYTES.as_ref().len())?;
            signatures[lane].r.as_mut().copy_from_slice(r);
            signatures[lane].s.as_mut().copy_from_slice(s);
        }
    }
    // Each thing that can be wrong, among signatures that are right.
    digests[1][0] ^= 1;
    signatures[3].r.as_mut()[5] ^= 1;
    signatures[4].s.as_mut()[5] ^= 1;
    signatures[7].s = C::BYTES;
    let jobs: [_; LANES] = std::array::from_fn(|lane| VerifyJob {
        key: if lane == 6 { &keys[5].point } else { &keys[lane].point },
        digest: &digests[lane][..size],
        signature: &signatures[lane],
    });
    let right = batch.ecdsa_verify(&jobs).map(|right| right.is_some());
    is(right == [true, false, true, false, false, true, false, false])
}

/// RFC 8032, 7.1, TEST 2.
const ED25519_SEED: [u8; 32] = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
const ED25519_MESSAGE: [u8; 1] = [0x72];
const ED25519_SIGNATURE: [u8; 64] = hex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
);

fn ed25519(batch: &Multibuffer) -> Option<()> {
    let seeds: [Secret32; LANES] = std::array::from_fn(|lane| match lane {
        0 => Secret32::new(ED25519_SEED),
        _ => Secret32::random(),
    });
    let keys = seeds.each_ref().map(|seed| Ed25519Key::from_seed(seed.bytes()));
    let mut messages = messages();
    messages[0] = ED25519_MESSAGE.to_vec();
    // Longer than a block of SHA-512, and nothing at all.
    messages[6] = vec![6; 300];
    messages[7].clear();
    let jobs: [_; LANES] = std::array::from_fn(|lane| Ed25519Job {
        key: &keys[lane],
        message: &messages[lane],
    });
    let signatures = batch.ed25519_sign(&jobs);
    is(signatures[0] == Some(ED25519_SIGNATURE))?;
    for lane in 0..LANES {
        let pair = Ed25519KeyPair::from_seed_unchecked(seeds[lane].bytes()).ok()?;
        is(pair.sign(&messages[lane]).as_ref() == signatures[lane]?)?;
    }
    Some(())
}

/// `der` is a key that was made for this and guards nothing.
fn rsa(batch: &Multibuffer, der: &[u8]) -> Option<()> {
    let key = RsaKey::from_der(der)?;
    let pair = rsa::KeyPair::from_der(der).ok()?;
    let public = pair.public_key();
    let messages = messages();
    let size = key.bits() / 8;
    let mut signatures = vec![[0; 512]; LANES];
    // One half with the padding that is the same every time, the other with the one that is random.
    let blocks: [_; LANES] = std::array::from_fn(|lane| match lane {
        ..4 => Block::pkcs1(key.bits(), Hash::Sha256, &messages[lane]),
        4.. => Block::pss(key.bits(), Hash::Sha256, &messages[lane]),
    });
    let mut jobs: Vec<_> = signatures
        .iter_mut()
        .zip(&blocks)
        .map(|(out, block)| RsaJob {
            key: &key,
            block: block.as_bytes(),
            out: &mut out[..size],
        })
        .collect();
    let done = batch.rsa_private(&mut jobs, &mut batch.rsa_scratch());
    is(done == [Some(()); LANES])?;
    let mut expected = vec![0; size];
    pair.sign(
        &signature::RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        &messages[0],
        &mut expected,
    )
    .ok()?;
    is(signatures[0][..size] == expected)?;
    for lane in 0..LANES {
        let scheme = match lane {
            ..4 => &signature::RSA_PKCS1_2048_8192_SHA256,
            4.. => &signature::RSA_PSS_2048_8192_SHA256,
        };
        signature::UnparsedPublicKey::new(scheme, public)
            .verify(&messages[lane], &signatures[lane][..size])
            .ok()?;
    }
    Some(())
}

/// What aws-lc says that the two share.
fn agree(algorithm: &'static agreement::Algorithm, private: &[u8], peer: &[u8], shared: &mut [u8]) -> Option<()> {
    let private = PrivateKey::from_private_key(algorithm, private).ok()?;
    let peer = UnparsedPublicKey::new(algorithm, peer);
    agreement::agree(&private, peer, (), |secret| {
        shared.copy_from_slice(secret);
        Ok(())
    })
    .ok()
}

fn fixed<C: BatchedCurve>(signature: &Signature<C>) -> Vec<u8> {
    [signature.r.as_ref(), signature.s.as_ref()].concat()
}

fn is(right: bool) -> Option<()> {
    right.then_some(())
}

/// Bytes written as hexadecimal digits.
pub(super) const fn hex<const N: usize>(text: &str) -> [u8; N] {
    let text = text.as_bytes();
    assert!(text.len() == 2 * N, "two digits for each byte");
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = digit(text[2 * at]) << 4 | digit(text[2 * at + 1]);
        at += 1;
    }
    bytes
}

const fn digit(text: u8) -> u8 {
    match text {
        b'0'..=b'9' => text - b'0',
        b'a'..=b'f' => text - b'a' + 10,
        _ => panic!("hexadecimal digits are 0 to 9 and a to f"),
    }
}
