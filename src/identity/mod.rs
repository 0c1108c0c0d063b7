//! Identities: a certificate chain with its key, and the choice of one for a client.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod chain;
pub mod client_auth;
pub mod expiry;
pub mod facts;
pub mod ocsp;
pub mod preflight;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::prelude::{FromDer, X509Certificate};

use self::facts::Facts;
use self::ocsp::Question;
use crate::config::NamePattern;
use crate::crypto::sha256;
use crate::tls::resumption;

/// A certificate chain whose key is known to fit.
#[derive(Debug)]
pub struct Identity {
    /// As in the configuration.
    pub name: Arc<str>,
    /// The names of the leaf certificate.
    pub names: Vec<NamePattern>,
    /// What is known of the chain.
    pub facts: Facts,
    /// SHA-256 of the files that it was made of: with the same ones it need not be made again. None when its key is elsewhere.
    pub content: Option<[u8; 32]>,
    /// Of public key and names: what a session is bound to in which this was shown. A renewal that keeps both keeps sessions.
    digest: resumption::Digest,
    /// With the staple that clients get.
    certified: ArcSwap<CertifiedKey>,
    /// No client gets it now.
    withheld: AtomicBool,
}

/// Why certificates and a key make no identity: what was found in place of one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// There is none, or one is malformed.
    #[error("{0}")]
    Certificate(String),
    /// The key belongs to another certificate.
    #[error("a key that does not belong to any of the certificates")]
    Mismatch,
}

impl Identity {
    /// Builds an identity of certificates in any order, which came from `source`, and whatever signs for one of them,
    /// which is in `key_source`.
    ///
    /// # Errors
    /// There is no usable chain, or the key belongs to none of the certificates.
    pub fn new(
        name: &str,
        source: &str,
        key_source: &str,
        certificates: &[CertificateDer<'_>],
        key: Arc<dyn SigningKey>,
    ) -> Result<Identity, ChainError> {
        let public_key = key.public_key().ok_or(ChainError::Mismatch)?;
        let arranged = chain::arrange(certificates, &public_key)?;
        let facts = Facts::of(&arranged, source, key_source).map_err(ChainError::Certificate)?;
        let chain = arranged.chain;
        let leaf = &chain[0];
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| ChainError::Certificate(format!("a malformed first certificate ({error})")))?;
        let names = leaf_names(leaf)?;
        let digest = digest(parsed.public_key().raw, &names);
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
                return Err(ChainError::Mismatch);
            }
            Err(error) => return Err(ChainError::Certificate(error.to_string())),
        }
        Ok(Identity {
            name: name.into(),
            names,
            facts,
            content: None,
            digest,
            certified: ArcSwap::from_pointee(certified),
            withheld: AtomicBool::new(false),
        })
    }

    /// Whether its key has a scheme for TLS 1.3, in which RSA signs by PSS only (RFC 8446, 4.2.3).
    #[must_use]
    pub fn signs_for_tls13(&self) -> bool {
        use SignatureScheme as S;
        let schemes = [
            S::ECDSA_NISTP256_SHA256,
            S::ECDSA_NISTP384_SHA384,
            S::ECDSA_NISTP521_SHA512,
            S::ED25519,
            S::RSA_PSS_SHA256,
            S::RSA_PSS_SHA384,
            S::RSA_PSS_SHA512,
        ];
        self.certified.load().key.choose_scheme(&schemes).is_some()
    }

    /// What can be asked about the leaf; nothing when the chain does not have its issuer.
    #[must_use]
    pub fn question(&self) -> Option<Question> {
        Question::about(&self.certified.load().cert)
    }

    /// The OCSP response that clients get with it.
    #[must_use]
    pub fn staple(&self) -> Option<Vec<u8>> {
        self.certified.load().ocsp.clone()
    }

    /// From now on clients get this OCSP response with it, or none, and are not given the identity at all while it is `withheld`.
    pub fn set_staple(&self, response: Option<Vec<u8>>, withheld: bool) {
        let known = self.certified.load();
        if known.ocsp != response {
            let mut certified = CertifiedKey::clone(&known);
            certified.ocsp = response;
            self.certified.store(Arc::new(certified));
        }
        self.withheld.store(withheld, Ordering::Relaxed);
    }

    fn fits(&self, hello: &ClientHello<'_>) -> bool {
        let key = &self.certified.load().key;
        !self.withheld.load(Ordering::Relaxed) && key.choose_scheme(hello.signature_schemes()).is_some()
    }
}

/// The DNS names a verifier would accept this leaf for.
fn leaf_names(leaf: &CertificateDer<'_>) -> Result<Vec<NamePattern>, ChainError> {
    let end_entity = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| ChainError::Certificate(format!("a first certificate that cannot be used ({error})")))?;
    Ok(end_entity.valid_dns_names().map(NamePattern::in_certificate).collect())
}

fn digest(public_key: &[u8], names: &[NamePattern]) -> resumption::Digest {
    let mut names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    names.sort_unstable();
    let key = sha256::digest(&[public_key]);
    resumption::digest(&[&key, names.join("\n").as_bytes()])
}

/// Names mapped to values in order: exact names first, then a wildcard of one label.
#[derive(Debug)]
pub struct NameMap<T> {
    exact: HashMap<Box<str>, Vec<T>>,
    wildcard: HashMap<Box<str>, Vec<T>>,
}

impl<T> Default for NameMap<T> {
    fn default() -> Self {
        NameMap {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        }
    }
}

impl<T> NameMap<T> {
    /// Adds a value behind those that the pattern has.
    pub fn insert(&mut self, pattern: &NamePattern, value: T) {
        let (map, name) = match pattern {
            NamePattern::Exact(name) => (&mut self.exact, name),
            NamePattern::Wildcard(parent) => (&mut self.wildcard, parent),
        };
        map.entry(name.as_str().into()).or_default().push(value);
    }

    /// The values of the best pattern that this lower-case name matches: the exact name, else the wildcard.
    #[must_use]
    pub fn find(&self, name: &str) -> &[T] {
        if let Some(values) = self.exact.get(name) {
            return values;
        }
        let wildcard = name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        wildcard.map_or(&[], Vec::as_slice)
    }
}

/// Chooses an identity by name and by what the client can verify: several identities may have one name (ECDSA and RSA).
#[derive(Debug)]
pub struct Selector {
    /// The first identity of the configuration, and behind it those with the same names, for clients that cannot verify its kind of
    /// key.
    defaults: Vec<Arc<Identity>>,
    names: NameMap<Arc<Identity>>,
    strict: bool,
}

impl Selector {
    /// The first identity is the default, unless `strict`.
    #[must_use]
    pub fn new(identities: &[Arc<Identity>], strict: bool) -> Selector {
        // For one name an ECDSA certificate goes first: its signature costs a twentieth of RSA's.
        let is_like_first = |other: &&Arc<Identity>| other.names == identities[0].names;
        let defaults = identities.iter().filter(is_like_first).cloned().collect();
        let is_rsa =
            |identity: &&Arc<Identity>| identity.certified.load().key.algorithm() == rustls::SignatureAlgorithm::RSA;
        let (rsa, others): (Vec<_>, Vec<_>) = identities.iter().partition(is_rsa);
        let mut names = NameMap::default();
        for identity in others.into_iter().chain(rsa) {
            for pattern in &identity.names {
                names.insert(pattern, Arc::clone(identity));
            }
        }
        Selector {
            defaults,
            names,
            strict,
        }
    }

    /// Some identity has this lower-case name, or names do not matter.
    #[must_use]
    pub fn knows(&self, name: Option<&str>) -> bool {
        !self.strict || name.is_some_and(|name| !self.names.find(name).is_empty())
    }
}

impl ResolvesServerCert for Selector {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().map(str::to_ascii_lowercase);
        let candidates = named.as_deref().map_or(&[][..], |name| self.names.find(name));
        let chosen = if candidates.is_empty() && !self.strict {
            self.default_for(&hello)
        } else {
            candidates.iter().find(|identity| identity.fits(&hello))
        };
        chosen.map(|identity| {
            resumption::note_identity(identity.digest);
            identity.certified.load_full()
        })
    }
}

impl Selector {
    /// The default identity; when the client cannot verify its kind of key, one with the same names that it can.
    fn default_for(&self, hello: &ClientHello<'_>) -> Option<&Arc<Identity>> {
        self.defaults.iter().find(|identity| identity.fits(hello))
    }
}

#[cfg(test)]
mod tests {
    use ringlock_hsm::formats;

    use super::*;
    use crate::crypto::key::{Key, SuspendingKey};

    #[test]
    fn an_exact_name_beats_a_wildcard_and_a_wildcard_is_one_label() {
        let mut map = NameMap::default();
        map.insert(&NamePattern::Wildcard("example.com".into()), 1);
        map.insert(&NamePattern::Exact("api.example.com".into()), 2);
        assert_eq!(map.find("api.example.com"), [2]);
        assert_eq!(map.find("www.example.com"), [1]);
        assert_eq!(map.find("a.b.example.com"), [0; 0]);
        assert_eq!(map.find("example.com"), [0; 0]);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let make = || rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let identity = |chain: &[u8], key: &rcgen::KeyPair| {
            let key = Key::from_pem(key.serialize_pem().as_bytes()).unwrap();
            let chain = formats::certificates(chain, None).unwrap();
            Identity::new("a", "a.pem", "a.key", &chain, Arc::new(SuspendingKey(Arc::new(key))))
        };
        let good = identity(one.cert.pem().as_bytes(), &one.signing_key).unwrap();
        assert_eq!(good.names, [NamePattern::Exact("a.example".into())]);
        let bad = identity(one.cert.pem().as_bytes(), &other.signing_key);
        assert_eq!(bad.unwrap_err(), ChainError::Mismatch);
    }
}
