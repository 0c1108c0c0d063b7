//! SHA-256, and HMAC with it, for transcripts and key schedules. aws-lc computes as fast and starts slower: its HMAC hashes the key anew
//! in each call, and its contexts are allocated. A handshake derives some twenty secrets of a few bytes each.

use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::hmac::{Hmac as HmacProvider, Key, Tag};
use rustls::crypto::tls12::PrfUsingHmac;
use rustls::crypto::tls13::HkdfUsingHmac;
use sha2::{Digest, Sha256 as State};

/// The hash.
pub static SHA256: Sha256 = Sha256;
/// What TLS 1.3 derives secrets with.
pub static HKDF: HkdfUsingHmac<'static> = HkdfUsingHmac(&HmacSha256);
/// What TLS 1.2 derives secrets with.
pub static PRF: PrfUsingHmac<'static> = PrfUsingHmac(&HmacSha256);

const OUTPUT_BYTES: usize = 32;

/// The hash of all parts, one behind the other.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> [u8; OUTPUT_BYTES] {
    let mut state = State::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().into()
}

/// See [`SHA256`].
#[derive(Debug)]
pub struct Sha256;

struct Hashing(State);

struct HmacSha256;

/// The state behind the key's block, for both hashes.
struct Keyed(Hmac<State>);

impl Hash for Sha256 {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Hashing(State::new()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        Output::new(&State::digest(data))
    }

    fn output_len(&self) -> usize {
        OUTPUT_BYTES
    }

    fn algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }
}

impl Context for Hashing {
    fn fork_finish(&self) -> Output {
        Output::new(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Hashing(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        Output::new(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

impl HmacProvider for HmacSha256 {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(Keyed(Hmac::new_from_slice(key).expect("HMAC takes keys of any length")))
    }

    fn hash_output_len(&self) -> usize {
        OUTPUT_BYTES
    }
}

impl Key for Keyed {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut hmac = self.0.clone();
        hmac.update(first);
        for bytes in middle {
            hmac.update(bytes);
        }
        hmac.update(last);
        Tag::new(&hmac.finalize().into_bytes())
    }

    fn tag_len(&self) -> usize {
        OUTPUT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::SupportedCipherSuite;
    use rustls::crypto::aws_lc_rs::cipher_suite;
    use rustls::crypto::tls12::Prf;
    use rustls::crypto::tls13::Hkdf;

    use super::*;

    fn theirs() -> (
        &'static dyn Hash,
        &'static dyn Hkdf,
        &'static dyn rustls::crypto::tls12::Prf,
    ) {
        let SupportedCipherSuite::Tls13(tls13) = cipher_suite::TLS13_AES_128_GCM_SHA256 else {
            panic!()
        };
        let SupportedCipherSuite::Tls12(tls12) = cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 else {
            panic!()
        };
        (tls13.common.hash_provider, tls13.hkdf_provider, tls12.prf_provider)
    }

    fn equal(ours: impl AsRef<[u8]>, theirs: impl AsRef<[u8]>) {
        assert_eq!(ours.as_ref(), theirs.as_ref());
    }

    proptest! {
        #[test]
        fn hashes_are_those_of_aws_lc(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6)) {
            let (hash, ..) = theirs();
            let (mut ours, mut theirs) = (SHA256.start(), hash.start());
            for piece in &pieces {
                ours.update(piece);
                theirs.update(piece);
                equal(ours.fork_finish(), theirs.fork_finish());
                equal(SHA256.hash(piece), hash.hash(piece));
            }
            equal(ours.fork().finish(), theirs.finish());
        }

        #[test]
        fn secrets_are_those_of_aws_lc(
            salt in prop::option::of(any::<[u8; 32]>()),
            secret in prop::collection::vec(any::<u8>(), 1..100),
            info: Vec<u8>,
            length in 1..200_usize,
        ) {
            let (_, hkdf, prf) = theirs();
            let salt = salt.as_ref().map(<[u8; 32]>::as_slice);
            let (ours, theirs) = (HKDF.extract_from_secret(salt, &secret), hkdf.extract_from_secret(salt, &secret));
            let info = [&info[..], b"tls13"];
            equal(ours.expand_block(&info), theirs.expand_block(&info));
            let (mut our, mut their) = (vec![0; length], vec![0; length]);
            assert!(ours.expand_slice(&info, &mut our).is_ok() && theirs.expand_slice(&info, &mut their).is_ok());
            equal(&our, &their);
            let key = ours.expand_block(&[b"key"]);
            equal(HKDF.hmac_sign(&key, &secret), hkdf.hmac_sign(&key, &secret));
            PRF.for_secret(&mut our, &secret, b"label", info[0]);
            prf.for_secret(&mut their, &secret, b"label", info[0]);
            equal(our, their);
        }
    }
}
