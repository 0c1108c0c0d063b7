//! The rustls provider of this machine: aws-lc, in the order that is fastest here, with key exchange groups that take a result
//! computed elsewhere.
//!
//! rustls calls `start_and_complete` synchronously. Which group it will choose and what the peer's share is can be read from
//! the ClientHello beforehand, so the session emits that key exchange as a [`CryptoOp`](super::CryptoOp) first, and the
//! call made later finds the answer here. A call that finds none (TLS 1.2, after a HelloRetryRequest) computes inline: whether an answer was
//! prepared is never a matter of correctness.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::hash::HashAlgorithm;
use rustls::crypto::{ActiveKeyExchange, CipherSuiteCommon, CompletedKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::{
    CipherSuite, Error, NamedGroup, ProtocolVersion, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};

use super::cpu::Cpu;
use super::{pool, sha256, verifier};

/// A group of aws-lc whose `start_and_complete` first looks for a prepared answer.
#[derive(Debug)]
struct PreparedGroup(&'static dyn SupportedKxGroup);

static X25519_MLKEM768: PreparedGroup = PreparedGroup(kx_group::X25519MLKEM768);
static X25519: PreparedGroup = PreparedGroup(kx_group::X25519);
static SECP256R1: PreparedGroup = PreparedGroup(kx_group::SECP256R1);
static SECP384R1: PreparedGroup = PreparedGroup(kx_group::SECP384R1);

/// Every group, in the order of "auto".
static GROUPS: [&PreparedGroup; 4] = [&X25519_MLKEM768, &X25519, &SECP256R1, &SECP384R1];

struct Prepared {
    group: NamedGroup,
    peer_share: Box<[u8]>,
    answer: Result<CompletedKeyExchange, Error>,
}

thread_local! {
    static PREPARED: RefCell<Option<Prepared>> = const { RefCell::new(None) };
}

/// Runs `call`, in which a key exchange of `group` with `peer_share` finds `answer`.
pub fn with_prepared<R>(
    group: NamedGroup,
    peer_share: Box<[u8]>,
    answer: Result<CompletedKeyExchange, Error>,
    call: impl FnOnce() -> R,
) -> R {
    PREPARED.set(Some(Prepared {
        group,
        peer_share,
        answer,
    }));
    let result = call();
    PREPARED.set(None);
    result
}

impl SupportedKxGroup for PreparedGroup {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        pool::take_started(self.0.name()).map_or_else(|| self.0.start(), Ok)
    }

    fn start_and_complete(&self, peer_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let prepared =
            PREPARED.with_borrow_mut(|slot| slot.take_if(|p| p.group == self.0.name() && *p.peer_share == *peer_share));
        match prepared {
            Some(prepared) => prepared.answer,
            None => self.0.start_and_complete(peer_share),
        }
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.0.usable_for_version(version)
    }
}

/// The group as aws-lc has it.
#[must_use]
pub fn library_group(name: NamedGroup) -> Option<&'static dyn SupportedKxGroup> {
    GROUPS.iter().find(|group| group.name() == name).map(|group| group.0)
}

/// The groups of "auto".
#[must_use]
pub fn auto_groups() -> Vec<NamedGroup> {
    GROUPS.iter().map(|group| group.name()).collect()
}

/// The suites of "auto", fastest first. With AES and SHA instructions AES-128-GCM-SHA256 is: AWS-LC has no hardware path for
/// SHA-384, which the client's usual first choice needs and which was 32 % of a handshake. Without them ChaCha20 is.
#[must_use]
pub fn auto_suites(cpu: Cpu) -> Vec<CipherSuite> {
    use CipherSuite as S;
    let aes128 = [
        S::TLS13_AES_128_GCM_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    let aes256 = [
        S::TLS13_AES_256_GCM_SHA384,
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    let chacha = CHACHA_SUITES;
    match cpu {
        Cpu { aes: true, sha: true } => [aes128, aes256, chacha].concat(),
        Cpu { aes: true, sha: false } => [aes128, chacha, aes256].concat(),
        Cpu { aes: false, sha: _ } => [chacha, aes128, aes256].concat(),
    }
}

const CHACHA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The same suites with those of ChaCha20 in front, for clients that say they have no AES hardware.
#[must_use]
pub fn chacha_first(suites: &[CipherSuite]) -> Vec<CipherSuite> {
    let (mut chacha, rest): (Vec<_>, Vec<_>) = suites.iter().partition(|suite| CHACHA_SUITES.contains(suite));
    chacha.extend(rest);
    chacha
}

/// A provider with exactly these suites and groups, in this order. Names that aws-lc lacks are left out; the configuration
/// has none.
#[must_use]
pub fn provider(suites: &[CipherSuite], groups: &[NamedGroup]) -> Arc<CryptoProvider> {
    let suite = |name: &CipherSuite| {
        cipher_suite_table()
            .iter()
            .copied()
            .find(|suite: &SupportedCipherSuite| suite.suite() == *name)
    };
    let group = |name: &NamedGroup| {
        GROUPS
            .iter()
            .find(|group| group.name() == *name)
            .map(|&group| group as &'static dyn SupportedKxGroup)
    };
    Arc::new(CryptoProvider {
        cipher_suites: suites.iter().filter_map(suite).collect(),
        kx_groups: groups.iter().filter_map(group).collect(),
        signature_verification_algorithms: verifier::algorithms(),
        ..aws_lc_rs::default_provider()
    })
}

/// aws-lc's suites. Where the processor has SHA instructions those of SHA-256 use them by [`sha256`].
fn cipher_suite_table() -> &'static [SupportedCipherSuite] {
    static TABLE: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        let sha = Cpu::detect().sha;
        let adapted = |&suite: &SupportedCipherSuite| if sha { with_our_sha256(suite) } else { suite };
        aws_lc_rs::ALL_CIPHER_SUITES.iter().map(adapted).collect()
    });
    &TABLE
}

/// Made once for the life of the process.
fn with_our_sha256(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: &sha256::SHA256,
        confidentiality_limit: common.confidentiality_limit,
    };
    let uses_sha256 = |common: &CipherSuiteCommon| common.hash_provider.algorithm() == HashAlgorithm::SHA256;
    match suite {
        SupportedCipherSuite::Tls13(theirs) if uses_sha256(&theirs.common) => {
            let ours = Tls13CipherSuite {
                common: common(&theirs.common),
                hkdf_provider: &sha256::HKDF,
                ..*theirs
            };
            SupportedCipherSuite::Tls13(Box::leak(Box::new(ours)))
        }
        SupportedCipherSuite::Tls12(theirs) if uses_sha256(&theirs.common) => {
            let ours = Tls12CipherSuite {
                common: common(&theirs.common),
                prf_provider: &sha256::PRF,
                ..*theirs
            };
            SupportedCipherSuite::Tls12(Box::leak(Box::new(ours)))
        }
        other @ (SupportedCipherSuite::Tls13(_) | SupportedCipherSuite::Tls12(_)) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_puts_what_is_fast_first() {
        let all = Cpu { aes: true, sha: true };
        assert_eq!(auto_suites(all)[0], CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(
            auto_suites(Cpu { aes: false, sha: true })[0],
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        );
        assert_eq!(auto_suites(all).len(), 9);
        assert_eq!(
            chacha_first(&auto_suites(all))[0],
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        );
        assert_eq!(
            chacha_first(&auto_suites(all))[3],
            CipherSuite::TLS13_AES_128_GCM_SHA256
        );
    }

    #[test]
    fn a_provider_has_all_suites_and_groups_of_auto() {
        let provider = provider(&auto_suites(Cpu::detect()), &auto_groups());
        assert_eq!(provider.cipher_suites.len(), 9);
        assert_eq!(provider.kx_groups.len(), 4);
    }

    #[test]
    fn a_prepared_answer_is_found_once_and_only_for_its_share() {
        let client = X25519.start().unwrap();
        let share: Box<[u8]> = client.pub_key().into();
        let answer = library_group(NamedGroup::X25519)
            .unwrap()
            .start_and_complete(&share)
            .unwrap();
        let answer_share = answer.pub_key.clone();
        with_prepared(NamedGroup::X25519, share.clone(), Ok(answer), || {
            let other = X25519.start().unwrap();
            assert_ne!(
                X25519.start_and_complete(other.pub_key()).unwrap().pub_key,
                answer_share
            );
            assert_eq!(X25519.start_and_complete(&share).unwrap().pub_key, answer_share);
            assert_ne!(
                X25519.start_and_complete(&share).unwrap().pub_key,
                answer_share,
                "taken once"
            );
        });
        assert_ne!(
            X25519.start_and_complete(&share).unwrap().pub_key,
            answer_share,
            "gone after the call"
        );
    }
}
