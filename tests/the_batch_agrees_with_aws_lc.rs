//! Every operation of the batch gives what aws-lc gives, with one lane used and with eight, and a lane that is refused leaves the
//! others alone.

use crate::support::multibuffer;

use std::collections::HashSet;
use std::sync::LazyLock;

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::digest::{self, SHA256, SHA384, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use ringlock::crypto::multibuffer::{
    BatchedCurve, Block, EcdhJob, EcdsaJob, Ed25519Job, Ed25519Key, Hash, LANES, Multibuffer, P256, P384, Point,
    RsaJob, RsaKey, Scalar, Secret32, Signature, VerifyJob, X25519Job,
};

static BATCH: LazyLock<Option<Multibuffer>> = LazyLock::new(|| {
    let path = multibuffer::library()?;
    Some(Multibuffer::load(Some(&path)).unwrap_or_else(|error| panic!("{error}")))
});

/// The engine, where there is one.
macro_rules! batch {
    () => {
        match &*BATCH {
            Some(batch) => batch,
            None => return,
        }
    };
}

/// What aws-lc calls a curve's algorithms.
struct Library {
    agreement: &'static agreement::Algorithm,
    hash: &'static digest::Algorithm,
    signing: &'static signature::EcdsaSigningAlgorithm,
    verification: &'static signature::EcdsaVerificationAlgorithm,
}

const P256_LIBRARY: Library = Library {
    agreement: &agreement::ECDH_P256,
    hash: &SHA256,
    signing: &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
    verification: &signature::ECDSA_P256_SHA256_ASN1,
};
const P384_LIBRARY: Library = Library {
    agreement: &agreement::ECDH_P384,
    hash: &SHA384,
    signing: &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
    verification: &signature::ECDSA_P384_SHA384_ASN1,
};

fn agreed(algorithm: &'static agreement::Algorithm, private: &PrivateKey, peer: &[u8]) -> Vec<u8> {
    let peer = UnparsedPublicKey::new(algorithm, peer);
    agreement::agree(private, peer, (), |secret| Ok(secret.to_vec())).unwrap()
}

/// Results for the first lanes, nothing for the others.
fn used<T>(results: &[Option<T>; LANES]) -> usize {
    let used = results.iter().take_while(|result| result.is_some()).count();
    assert!(results[used..].iter().all(Option::is_none));
    used
}

#[test]
fn x25519_with_every_number_of_lanes() {
    let batch = batch!();
    for lanes in 1..=LANES {
        let ours: Vec<Secret32> = (0..lanes).map(|_| Secret32::random()).collect();
        let public = batch.x25519_public_key(&ours.iter().collect::<Vec<_>>());
        assert_eq!(used(&public), lanes);
        let theirs: Vec<_> = (0..lanes)
            .map(|_| PrivateKey::generate(&agreement::X25519).unwrap())
            .collect();
        let peers: Vec<[u8; 32]> = theirs
            .iter()
            .map(|key| key.compute_public_key().unwrap().as_ref().try_into().unwrap())
            .collect();
        let jobs: Vec<_> = ours
            .iter()
            .zip(&peers)
            .map(|(private, peer)| X25519Job { private, peer })
            .collect();
        let shared = batch.x25519(&jobs);
        assert_eq!(used(&shared), lanes);
        for lane in 0..lanes {
            let expected = agreed(&agreement::X25519, &theirs[lane], &public[lane].unwrap());
            assert_eq!(shared[lane].as_ref().unwrap().bytes()[..], expected, "{lanes}: {lane}");
        }
    }
}

/// The points of low order, and their other encodings; any private key makes zero of them.
const LOW_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    little_endian(1, 0, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    // p - 1, p and p + 1.
    little_endian(0xec, 0xff, 0x7f),
    little_endian(0xed, 0xff, 0x7f),
    little_endian(0xee, 0xff, 0x7f),
];

const fn little_endian(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

#[test]
fn a_peer_of_low_order_is_refused_and_the_other_lanes_are_not() {
    let batch = batch!();
    let private = Secret32::random();
    let key = PrivateKey::from_private_key(&agreement::X25519, private.bytes()).unwrap();
    // Not reduced, and with the bit that is to be ignored: odd, and good.
    let good = [9, 200, 31, 77].map(|first| little_endian(first, 0x5a, 0xc3));
    for (number, low) in LOW_ORDER.iter().enumerate() {
        let bad = number % LANES;
        let peers: [[u8; 32]; LANES] = std::array::from_fn(|lane| if lane == bad { *low } else { good[lane % 4] });
        let jobs = peers.each_ref().map(|peer| X25519Job {
            private: &private,
            peer,
        });
        let shared = batch.x25519(&jobs);
        for (lane, shared) in shared.iter().enumerate() {
            match shared {
                None => assert_eq!(lane, bad, "point {number}"),
                Some(shared) => {
                    assert_ne!(lane, bad, "point {number}");
                    assert_eq!(shared.bytes()[..], agreed(&agreement::X25519, &key, &peers[lane]));
                }
            }
        }
    }
}

/// Long runs of equal bits are where carries are forgotten. A share that is refused is computed elsewhere.
#[test]
fn x25519_of_shares_with_long_runs_of_bits() {
    let batch = batch!();
    let private = Secret32::random();
    let key = PrivateKey::from_private_key(&agreement::X25519, private.bytes()).unwrap();
    let mut computed = 0;
    for (start, fill) in (0..32).flat_map(|start| [(start, 0), (start, 0xff)]) {
        let peers: [[u8; 32]; LANES] = std::array::from_fn(|lane| {
            let mut peer = *Secret32::random().bytes();
            match lane {
                ..4 => peer[start..].fill(fill),
                4.. => peer[..start].fill(fill),
            }
            // With the bit that is to be ignored, and without.
            peer[31] &= if lane % 2 == 0 { 0x7f } else { 0xff };
            peer
        });
        let jobs = peers.each_ref().map(|peer| X25519Job {
            private: &private,
            peer,
        });
        for (shared, peer) in batch.x25519(&jobs).iter().zip(&peers) {
            if let Some(shared) = shared {
                assert_eq!(shared.bytes()[..], agreed(&agreement::X25519, &key, peer), "{peer:?}");
                computed += 1;
            }
        }
    }
    // Refused are zero, and what is close to the prime.
    assert!(computed > 64 * LANES * 3 / 4, "{computed}");
}

fn keys_with_long_runs_of_bits<C: BatchedCurve>(library: &Library) {
    let batch = batch!();
    for (start, fill) in (0..C::BYTES.as_ref().len()).flat_map(|start| [(start, 0), (start, 0xff)]) {
        let drawn = (0..LANES).filter_map(|lane| {
            let mut bytes = C::BYTES;
            aws_lc_rs::rand::fill(bytes.as_mut()).unwrap();
            match lane {
                ..4 => bytes.as_mut()[start..].fill(fill),
                4.. => bytes.as_mut()[..start].fill(fill),
            }
            Some((bytes, Scalar::<C>::from_be_bytes(bytes.as_ref())?))
        });
        // Those that are below the order.
        let keys: Vec<_> = drawn.collect();
        let public = batch.public_key(&keys.iter().map(|(_, key)| key).collect::<Vec<_>>());
        assert_eq!(used(&public), keys.len());
        for ((bytes, _), public) in keys.iter().zip(public) {
            let expected = PrivateKey::from_private_key(library.agreement, bytes.as_ref()).unwrap();
            let mut encoded = [0; 97];
            let encoded = public.unwrap().write_uncompressed(&mut encoded).to_vec();
            assert_eq!(encoded, expected.compute_public_key().unwrap().as_ref(), "{bytes:?}");
        }
    }
}

#[test]
fn p256_keys_with_long_runs_of_bits() {
    keys_with_long_runs_of_bits::<P256>(&P256_LIBRARY);
}

#[test]
fn p384_keys_with_long_runs_of_bits() {
    keys_with_long_runs_of_bits::<P384>(&P384_LIBRARY);
}

fn scalar<C: BatchedCurve>(key: &EcdsaKeyPair) -> Scalar<C> {
    let private = key.private_key();
    let bytes = aws_lc_rs::encoding::AsBigEndian::<aws_lc_rs::encoding::EcPrivateKeyBin>::as_be_bytes(&private);
    Scalar::from_be_bytes(bytes.unwrap().as_ref()).unwrap()
}

fn curve_agrees<C: BatchedCurve>(library: &Library) {
    let batch = batch!();
    for lanes in 1..=LANES {
        let ours: Vec<Scalar<C>> = (0..lanes).map(|_| Scalar::random()).collect();
        let public = batch.public_key(&ours.iter().collect::<Vec<_>>());
        assert_eq!(used(&public), lanes);
        let theirs: Vec<_> = (0..lanes)
            .map(|_| PrivateKey::generate(library.agreement).unwrap())
            .collect();
        let peers: Vec<Point<C>> = theirs
            .iter()
            .map(|key| Point::from_uncompressed(key.compute_public_key().unwrap().as_ref()).unwrap())
            .collect();
        let jobs: Vec<_> = ours
            .iter()
            .zip(&peers)
            .map(|(private, peer)| EcdhJob { private, peer })
            .collect();
        let shared = batch.ecdh(&jobs);
        assert_eq!(used(&shared), lanes);
        for lane in 0..lanes {
            let mut encoded = [0; 97];
            let encoded = public[lane].unwrap().write_uncompressed(&mut encoded);
            let expected = agreed(library.agreement, &theirs[lane], encoded);
            let shared = shared[lane].as_ref().unwrap().bytes().as_ref();
            assert_eq!(shared, expected, "{lanes}: {lane}");
        }
    }
}

#[test]
fn p256_keys_and_agreements_with_every_number_of_lanes() {
    curve_agrees::<P256>(&P256_LIBRARY);
}

#[test]
fn p384_keys_and_agreements_with_every_number_of_lanes() {
    curve_agrees::<P384>(&P384_LIBRARY);
}

fn messages() -> [Vec<u8>; LANES] {
    std::array::from_fn(|lane| format!("what lane {lane} signs").into_bytes())
}

fn signatures_agree<C: BatchedCurve>(library: &Library) {
    let batch = batch!();
    let keys: Vec<EcdsaKeyPair> = (0..LANES)
        .map(|_| EcdsaKeyPair::generate(library.signing).unwrap())
        .collect();
    let scalars: Vec<Scalar<C>> = keys.iter().map(scalar).collect();
    let messages = messages();
    let digests = messages.each_ref().map(|message| digest(library.hash, message));
    for lanes in 1..=LANES {
        let jobs: Vec<_> = scalars
            .iter()
            .zip(&digests)
            .take(lanes)
            .map(|(key, digest)| EcdsaJob {
                key,
                digest: digest.as_ref(),
            })
            .collect();
        let at_once = batch.ecdsa_sign(&jobs);
        let setups = batch.ecdsa_setup::<C>();
        assert_eq!(used(&setups), LANES);
        let completed = batch.ecdsa_complete(setups.into_iter().flatten().zip(jobs));
        for signatures in [at_once, completed] {
            assert_eq!(used(&signatures), lanes);
            for lane in 0..lanes {
                let der = signatures[lane].unwrap().to_der();
                signature::UnparsedPublicKey::new(library.verification, keys[lane].public_key())
                    .verify(&messages[lane], &der)
                    .unwrap();
            }
        }
    }
}

#[test]
fn aws_lc_verifies_p256_signatures_of_every_number_of_lanes() {
    signatures_agree::<P256>(&P256_LIBRARY);
}

#[test]
fn aws_lc_verifies_p384_signatures_of_every_number_of_lanes() {
    signatures_agree::<P384>(&P384_LIBRARY);
}

fn verifies<C: BatchedCurve>(library: &Library) {
    let batch = batch!();
    let keys: Vec<EcdsaKeyPair> = (0..LANES)
        .map(|_| EcdsaKeyPair::generate(library.signing).unwrap())
        .collect();
    let points: Vec<Point<C>> = keys
        .iter()
        .map(|key| Point::from_uncompressed(key.public_key().as_ref()).unwrap())
        .collect();
    let messages = messages();
    let digests = messages.each_ref().map(|message| digest(library.hash, message));
    let signatures: Vec<Signature<C>> = keys
        .iter()
        .zip(&messages)
        .map(|(key, message)| {
            let der = key.sign(&SystemRandom::new(), message).unwrap();
            Signature::from_der(der.as_ref()).unwrap()
        })
        .collect();
    let job = |lane: usize| VerifyJob {
        key: &points[lane],
        digest: digests[lane].as_ref(),
        signature: &signatures[lane],
    };
    for lanes in 1..=LANES {
        let jobs: Vec<_> = (0..lanes).map(job).collect();
        assert_eq!(used(&batch.ecdsa_verify(&jobs)), lanes);
        // One bad lane after the other, and one thing wrong after the other.
        for bad in 0..lanes {
            let mut r_changed = signatures[bad];
            r_changed.r.as_mut()[9] ^= 4;
            let mut s_changed = signatures[bad];
            s_changed.s.as_mut()[9] ^= 4;
            let mut too_large = signatures[bad];
            too_large.s.as_mut().fill(0xff);
            let mut zero = signatures[bad];
            zero.r.as_mut().fill(0);
            let other = digest(library.hash, b"another message");
            let good = job(bad);
            let wrong = [
                VerifyJob {
                    signature: &r_changed,
                    ..good
                },
                VerifyJob {
                    signature: &s_changed,
                    ..good
                },
                VerifyJob {
                    signature: &too_large,
                    ..good
                },
                VerifyJob {
                    signature: &zero,
                    ..good
                },
                VerifyJob {
                    digest: other.as_ref(),
                    ..good
                },
                VerifyJob {
                    key: &points[(bad + 1) % LANES],
                    ..good
                },
            ];
            for (number, wrong) in wrong.into_iter().enumerate() {
                let jobs: Vec<_> = (0..lanes)
                    .map(|lane| if lane == bad { wrong } else { job(lane) })
                    .collect();
                let right = batch.ecdsa_verify(&jobs);
                for (lane, right) in right.iter().enumerate() {
                    let expected = lane < lanes && lane != bad;
                    assert_eq!(right.is_some(), expected, "{number}: {bad} of {lanes}, {lane}");
                }
            }
        }
    }
}

#[test]
fn p256_signatures_of_aws_lc_are_verified_and_changed_ones_refused() {
    verifies::<P256>(&P256_LIBRARY);
}

#[test]
fn p384_signatures_of_aws_lc_are_verified_and_changed_ones_refused() {
    verifies::<P384>(&P384_LIBRARY);
}

/// The order of P-256: as a digest it is zero, which the library does not sign; with all bits set it has to be reduced.
#[test]
fn a_digest_above_the_order_is_signed_and_one_that_is_zero_is_refused_alone() {
    let batch = batch!();
    let order = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let key = EcdsaKeyPair::generate(P256_LIBRARY.signing).unwrap();
    let (scalar, point) = (
        scalar::<P256>(&key),
        Point::from_uncompressed(key.public_key().as_ref()).unwrap(),
    );
    for bad in 0..LANES {
        let digests: [[u8; 32]; LANES] = std::array::from_fn(|lane| match lane {
            _ if lane == bad => order,
            0..4 => [0xff; 32],
            _ => [7; 32],
        });
        let jobs = digests.each_ref().map(|digest| EcdsaJob { key: &scalar, digest });
        let completed = batch.ecdsa_complete(batch.ecdsa_setup().into_iter().flatten().zip(jobs));
        for signatures in [batch.ecdsa_sign(&jobs), completed] {
            for lane in 0..LANES {
                assert_eq!(signatures[lane].is_none(), lane == bad, "{bad}: {lane}");
                if let Some(signature) = &signatures[lane] {
                    let job = VerifyJob {
                        key: &point,
                        digest: &digests[lane],
                        signature,
                    };
                    assert!(batch.ecdsa_verify(&[job])[0].is_some());
                }
            }
        }
    }
}

/// Two signatures with one nonce give the key away, and the nonce shows in `r`.
#[test]
fn no_nonce_is_drawn_twice() {
    let batch = batch!();
    let key = Scalar::<P256>::random();
    let job = EcdsaJob {
        key: &key,
        digest: &[1; 32],
    };
    let mut seen = HashSet::new();
    for _ in 0..500 {
        let completed = batch.ecdsa_complete(batch.ecdsa_setup().into_iter().flatten().zip([job; LANES]));
        for signature in completed.into_iter().chain(batch.ecdsa_sign(&[job; LANES])) {
            assert!(seen.insert(signature.unwrap().r));
        }
    }
    assert_eq!(seen.len(), 500 * 2 * LANES);
}

#[test]
fn ed25519_with_every_number_of_lanes() {
    let batch = batch!();
    let seeds: [[u8; 32]; LANES] = std::array::from_fn(|lane| [u8::try_from(lane).unwrap() * 3 + 1; 32]);
    let keys = seeds.each_ref().map(Ed25519Key::from_seed);
    let lengths = [0, 1, 31, 64, 111, 128, 200, 1000];
    let messages = lengths.map(|length| vec![0x3c; length]);
    for lanes in 1..=LANES {
        let jobs: Vec<_> = keys
            .iter()
            .zip(&messages)
            .rev()
            .take(lanes)
            .map(|(key, message)| Ed25519Job { key, message })
            .collect();
        let signatures = batch.ed25519_sign(&jobs);
        assert_eq!(used(&signatures), lanes);
        for lane in 0..lanes {
            let pair = Ed25519KeyPair::from_seed_unchecked(&seeds[LANES - 1 - lane]).unwrap();
            let expected = pair.sign(&messages[LANES - 1 - lane]);
            assert_eq!(signatures[lane].unwrap(), expected.as_ref(), "{lanes}: {lane}");
        }
    }
}

fn pkcs8(pair: &RsaKeyPair) -> Vec<u8> {
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    der.as_ref().to_vec()
}

fn rsa_agrees(size: KeySize, lanes: impl IntoIterator<Item = usize>) {
    let batch = batch!();
    // Two keys, so that lanes are seen to use their own.
    let pairs = [size, size].map(|size| RsaKeyPair::generate(size).unwrap());
    let keys = pairs.each_ref().map(|pair| RsaKey::from_der(&pkcs8(pair)).unwrap());
    let mut scratch = batch.rsa_scratch();
    for lanes in lanes {
        let messages = messages();
        let blocks: Vec<Block> = (0..lanes)
            .map(|lane| match lane % 3 {
                0 => Block::pkcs1(keys[0].bits(), Hash::Sha384, &messages[lane]),
                1 => Block::pss(keys[0].bits(), Hash::Sha384, &messages[lane]),
                _ => Block::pss(keys[0].bits(), Hash::Sha512, &messages[lane]),
            })
            .collect();
        let mut signatures = vec![vec![0; keys[0].bits() / 8]; lanes];
        let mut jobs: Vec<_> = signatures
            .iter_mut()
            .zip(&blocks)
            .enumerate()
            .map(|(lane, (out, block))| RsaJob {
                key: &keys[lane % 2],
                block: block.as_bytes(),
                out,
            })
            .collect();
        assert_eq!(used(&batch.rsa_private(&mut jobs, &mut scratch)), lanes);
        for lane in 0..lanes {
            let scheme = match lane % 3 {
                0 => &signature::RSA_PKCS1_2048_8192_SHA384,
                1 => &signature::RSA_PSS_2048_8192_SHA384,
                _ => &signature::RSA_PSS_2048_8192_SHA512,
            };
            signature::UnparsedPublicKey::new(scheme, pairs[lane % 2].public_key())
                .verify(&messages[lane], &signatures[lane])
                .unwrap_or_else(|_| panic!("{lanes}: {lane}"));
        }
    }
}

#[test]
fn rsa_2048_with_every_number_of_lanes() {
    rsa_agrees(KeySize::Rsa2048, 1..=LANES);
}

#[test]
fn rsa_3072() {
    rsa_agrees(KeySize::Rsa3072, [1, 8]);
}

#[test]
fn rsa_4096() {
    rsa_agrees(KeySize::Rsa4096, [3, 8]);
}

/// A key with one bit changed in `dp` or `dq` stands for a fault in the computation modulo one prime: such a result would give
/// the other prime to everyone.
#[test]
fn a_faulty_rsa_result_does_not_leave_and_the_other_lanes_do() {
    let batch = batch!();
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = pkcs8(&pair);
    let good = RsaKey::from_der(&der).unwrap();
    // The last three numbers are dp, dq and the inverse, of about 128 bytes each.
    for from_the_end in [20, 150, 290] {
        let mut changed = der.clone();
        let at = changed.len() - from_the_end;
        changed[at] ^= 0x10;
        let faulty = RsaKey::from_der(&changed).unwrap();
        for bad in [0, 3, 7] {
            let block = Block::pkcs1(2048, Hash::Sha256, b"message");
            let mut signatures = vec![vec![1; 256]; LANES];
            let mut jobs: Vec<_> = signatures
                .iter_mut()
                .enumerate()
                .map(|(lane, out)| RsaJob {
                    key: if lane == bad { &faulty } else { &good },
                    block: block.as_bytes(),
                    out,
                })
                .collect();
            let done = batch.rsa_private(&mut jobs, &mut batch.rsa_scratch());
            for lane in 0..LANES {
                assert_eq!(done[lane].is_none(), lane == bad);
                let verified =
                    signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, pair.public_key())
                        .verify(b"message", &signatures[lane]);
                assert_eq!(verified.is_err(), lane == bad);
            }
            assert_eq!(signatures[bad], [0; 256]);
        }
    }
}

#[test]
fn keys_that_the_batch_does_not_take_are_told() {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = pkcs8(&pair);
    assert_eq!(RsaKey::from_der(&der).unwrap().bits(), 2048);
    assert!(RsaKey::from_der(&[]).is_none());
    for length in 0..der.len() {
        assert!(RsaKey::from_der(&der[..length]).is_none(), "{length}");
    }
    let large = RsaKeyPair::generate(KeySize::Rsa8192).unwrap();
    assert!(RsaKey::from_der(&pkcs8(&large)).is_none());
    let curve = EcdsaKeyPair::generate(P256_LIBRARY.signing)
        .unwrap()
        .to_pkcs8v1()
        .unwrap();
    assert!(RsaKey::from_der(curve.as_ref()).is_none());
}

#[test]
fn threads_share_the_library() {
    let batch = batch!();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (one, other) = (Secret32::random(), Secret32::random());
                    let public = batch.x25519_public_key(&[&one, &other]);
                    let jobs = [(&one, 1), (&other, 0)].map(|(private, peer)| X25519Job {
                        private,
                        peer: public[peer].as_ref().unwrap(),
                    });
                    let shared = batch.x25519(&jobs);
                    assert_eq!(shared[0].as_ref().unwrap().bytes(), shared[1].as_ref().unwrap().bytes());
                }
            });
        }
    });
}
