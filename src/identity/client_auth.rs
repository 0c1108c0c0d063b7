//! Who clients must be: the CAs whose certificates are asked for, what these have revoked, and which names are let in.

mod names;
mod refusal;
mod revocation;
mod subject;
mod verifier;

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::refusal::{refusal, span};
pub use self::revocation::RevocationList;
pub use self::subject::ClientSubject;
use self::verifier::Verifier;
use crate::config::{ClientName, CrlCheck, NameKind};
use crate::crypto::sha256;
use crate::limits::CLIENT_CA_NAMES_BYTES_MAX;
use crate::tls::resumption;

/// The verification of client certificates of one listener.
#[derive(Debug)]
pub struct ClientAuth {
    trust: Arc<Trust>,
    authorities: Vec<Authority>,
    revocation: resumption::Digest,
    closes_revoked: bool,
}

/// What certificates of clients are verified against.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// Of the certificates of the roots: sorted, none twice.
    root_digests: Vec<[u8; 32]>,
    required: bool,
    verify_depth: usize,
    allow: Option<Vec<ClientName>>,
    deny: Vec<ClientName>,
    /// What `allow` and `deny` are about: each kind once.
    kinds: Vec<NameKind>,
    /// The newest first: the first that has a say about a certificate is asked.
    lists: Vec<RevocationList>,
    crl_check: CrlCheck,
    accepts_expired_lists: bool,
}

/// What is asked of clients besides a certificate of a trusted CA.
#[derive(Debug)]
pub struct Rules {
    /// Clients may not do without a certificate.
    pub required: bool,
    /// Most certificates between the client's own and a trust anchor.
    pub verify_depth: usize,
    /// Names of which a certificate has to have one.
    pub allow: Option<Vec<ClientName>>,
    /// Certificates that are refused whatever else is said of them.
    pub deny: Vec<ClientName>,
    /// What CAs have revoked. If there is any, each CA whose certificates are looked up has to have one.
    pub lists: Vec<RevocationList>,
    /// Which certificates are looked up.
    pub crl_check: CrlCheck,
    /// Lists count, too, when they are not in force any more.
    pub accepts_expired_lists: bool,
    /// Connections whose client is revoked or denied after it was let in are closed.
    pub closes_revoked: bool,
}

impl Default for Rules {
    /// Everybody with a certificate of a trusted CA.
    fn default() -> Rules {
        Rules {
            required: true,
            verify_depth: 6,
            allow: None,
            deny: Vec::new(),
            lists: Vec::new(),
            crl_check: CrlCheck::Chain,
            accepts_expired_lists: false,
            closes_revoked: false,
        }
    }
}

/// A trust anchor, for people.
#[derive(Debug)]
pub struct Authority {
    /// Subject of the certificate.
    pub subject: String,
    /// Last second of its validity, seconds since 1970. It is trusted all the same after that.
    pub not_after: i64,
    /// Bits of its key, if that is too short: nobody with a certificate that it has signed is let in.
    pub weak_key: Option<usize>,
    /// There are lists for whole chains, and none is of this CA: nobody with a certificate that it has signed is let in.
    pub lacks_list: bool,
}

impl ClientAuth {
    /// Trusts every certificate of the file.
    ///
    /// # Errors
    /// What was found in place of usable certificates.
    pub fn from_pem(pem: &[u8], rules: Rules) -> Result<ClientAuth, String> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("text that is no valid PEM ({error})"))?;
        if certificates.is_empty() {
            return Err("no certificate".into());
        }
        let Rules {
            required,
            verify_depth,
            allow,
            deny,
            mut lists,
            crl_check,
            accepts_expired_lists,
            closes_revoked,
        } = rules;
        lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
        for position in 1..lists.len() {
            let (newer, list) = lists.split_at_mut(position);
            list[0].is_replaced = newer.iter().any(|newer| newer.is_like(&list[0]));
        }
        let mut roots = RootCertStore::empty();
        let mut root_digests = Vec::with_capacity(certificates.len());
        let mut authorities = Vec::with_capacity(certificates.len());
        for (number, certificate) in (1..).zip(certificates) {
            let unusable =
                |error: &dyn std::fmt::Display| format!("certificate {number}, which cannot be used ({error}),");
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unusable(&error))?;
            root_digests.push(sha256::digest(&[&certificate]));
            let weak_key = verifier::weak_key(&certificate);
            let (subject, not_after) = (parsed.subject().to_string(), parsed.validity().not_after.timestamp());
            roots.add(certificate).map_err(|error| unusable(&error))?;
            let subject_der = roots.roots.last().map(|root| &root.subject);
            let is_its = |list: &RevocationList| subject_der.is_some_and(|subject| **subject == *list.list.issuer());
            authorities.push(Authority {
                subject,
                not_after,
                weak_key,
                lacks_list: crl_check == CrlCheck::Chain && !lists.is_empty() && !lists.iter().any(is_its),
            });
        }
        root_digests.sort_unstable();
        root_digests.dedup();
        let mut kinds = Vec::new();
        for rule in allow.iter().flatten().chain(&deny) {
            if !kinds.contains(&rule.kind()) {
                kinds.push(rule.kind());
            }
        }
        Ok(ClientAuth {
            revocation: revocation(&lists, &deny),
            closes_revoked,
            trust: Arc::new(Trust {
                roots,
                root_digests,
                required,
                verify_depth,
                allow,
                deny,
                kinds,
                lists,
                crl_check,
                accepts_expired_lists,
            }),
            authorities,
        })
    }

    /// In the order of the file.
    #[must_use]
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// The newest first.
    #[must_use]
    pub fn lists(&self) -> &[RevocationList] {
        &self.trust.lists
    }

    /// Names everything that decides who is let in, but for what is revoked or denied: mode, trust anchors, `verify_depth`, `allow`,
    /// `crl_check` and `crl_expired`. SHA-256 of their one encoding, in which whatever varies in length has its length in front.
    #[must_use]
    pub fn policy(&self) -> [u8; 32] {
        let mut encoded = Vec::new();
        let trust = &*self.trust;
        let length = |length: usize| u64::try_from(length).expect("lengths fit 64 bits").to_be_bytes();
        encoded.extend_from_slice(b"ringlock client_auth 2\0");
        let is_leaf_only = trust.crl_check == CrlCheck::Leaf;
        encoded.extend_from_slice(&[trust.required, is_leaf_only, trust.accepts_expired_lists].map(u8::from));
        encoded.extend_from_slice(&length(trust.verify_depth));
        encoded.extend_from_slice(&length(trust.root_digests.len()));
        for root in &trust.root_digests {
            encoded.extend_from_slice(root);
        }
        encoded.extend_from_slice(&[u8::from(trust.allow.is_some())]);
        let names = forms(trust.allow.iter().flatten());
        encoded.extend_from_slice(&length(names.len()));
        for name in names {
            encoded.extend_from_slice(&length(name.len()));
            encoded.extend_from_slice(name.as_bytes());
        }
        sha256::digest(&[&encoded])
    }

    /// Names what is revoked and denied: lists and entries, whatever their order. Zeros when there are none.
    #[must_use]
    pub fn revocation(&self) -> resumption::Digest {
        self.revocation
    }

    /// Connections whose client is revoked or denied after it was let in are closed.
    #[must_use]
    pub fn closes_revoked(&self) -> bool {
        self.closes_revoked
    }

    /// How a client that has shown this chain, the leaf first, is revoked or denied: to be read behind "client certificate". Nothing
    /// when it is not, whether or not it would be let in.
    #[must_use]
    pub fn revokes(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        self.trust.revokes(chain)
    }

    /// What rustls asks.
    #[must_use]
    pub fn verifier(&self, provider: &Arc<CryptoProvider>) -> Arc<dyn ClientCertVerifier> {
        let hints = self.trust.roots.subjects();
        let names: usize = hints.iter().map(|name| name.as_ref().len()).sum();
        Arc::new(Verifier {
            trust: Arc::clone(&self.trust),
            algorithms: provider.signature_verification_algorithms,
            hints: if names > CLIENT_CA_NAMES_BYTES_MAX {
                Vec::new()
            } else {
                hints
            },
        })
    }
}

/// See [`ClientAuth::revocation`].
fn revocation(lists: &[RevocationList], deny: &[ClientName]) -> resumption::Digest {
    if lists.is_empty() && deny.is_empty() {
        return resumption::Digest::default();
    }
    let mut digests: Vec<[u8; 32]> = lists.iter().map(|list| list.digest).collect();
    digests.extend(
        forms(deny)
            .iter()
            .map(|form| sha256::digest(&[b"deny ", form.as_bytes()])),
    );
    digests.sort_unstable();
    digests.dedup();
    resumption::digest(&[&digests.concat()])
}

/// Entries as they are written in one form: sorted, none twice.
fn forms<'n>(names: impl IntoIterator<Item = &'n ClientName>) -> Vec<String> {
    let mut forms: Vec<String> = names.into_iter().map(ToString::to_string).collect();
    forms.sort_unstable();
    forms.dedup();
    forms
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn rules(required: bool) -> Rules {
        Rules {
            required,
            ..Rules::default()
        }
    }

    fn authority(name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn what_is_no_authority_is_told() {
        let error = |pem: &str| ClientAuth::from_pem(pem.as_bytes(), rules(true)).unwrap_err();
        assert_eq!(error(""), "no certificate");
        assert_eq!(error("hello"), "no certificate");
        let cut = "-----BEGIN CERTIFICATE-----\nMII";
        assert!(error(cut).contains("no valid PEM"), "{}", error(cut));
        let garbage = format!(
            "{}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
            authority("one")
        );
        assert!(error(&garbage).starts_with("certificate 2, "), "{}", error(&garbage));
    }

    fn name(text: &str) -> ClientName {
        ClientName::parse(text).unwrap()
    }

    /// Whatever decides who is let in makes another policy; order, repetition and what is revoked do not.
    #[test]
    fn policies_differ_when_what_they_say_does() {
        let (one, two) = (authority("one"), authority("two"));
        let policy = |pem: &str, rules: Rules| ClientAuth::from_pem(pem.as_bytes(), rules).unwrap().policy();
        let allowing = |names: &[&str]| Rules {
            allow: Some(names.iter().copied().map(name).collect()),
            ..rules(true)
        };
        let both = format!("{one}{two}");
        let different = [
            policy(&one, rules(true)),
            policy(&two, rules(true)),
            policy(&both, rules(true)),
            policy(&one, rules(false)),
            policy(
                &one,
                Rules {
                    verify_depth: 5,
                    ..rules(true)
                },
            ),
            policy(
                &one,
                Rules {
                    crl_check: CrlCheck::Leaf,
                    ..rules(true)
                },
            ),
            policy(
                &one,
                Rules {
                    accepts_expired_lists: true,
                    ..rules(true)
                },
            ),
            policy(&one, allowing(&["cn:a"])),
            policy(&one, allowing(&["dns:a"])),
            policy(&one, allowing(&["dns:a", "cn:a"])),
            policy(&one, allowing(&["dns:*.a"])),
            policy(&one, allowing(&["cn:ab", "cn:c"])),
            policy(&one, allowing(&["cn:a", "cn:bc"])),
        ];
        for (position, policy) in different.iter().enumerate() {
            assert!(!different[..position].contains(policy), "{position}");
        }
        assert_eq!(
            policy(&format!("{two}{one}{two}"), rules(true)),
            policy(&both, rules(true))
        );
        assert_eq!(
            policy(&one, allowing(&["dns:A", "cn:a"])),
            policy(&one, allowing(&["cn:a", "dns:a"]))
        );
        let list = RevocationList::all_in(&revocation::tests::der(), "a.crl").unwrap();
        let lists = Rules {
            lists: list,
            ..rules(true)
        };
        assert_eq!(policy(&one, lists), policy(&one, rules(true)));
        let deny = vec![name("serial:1b")];
        assert_eq!(policy(&one, Rules { deny, ..rules(true) }), policy(&one, rules(true)));
    }

    #[test]
    fn revocation_differs_with_the_lists() {
        let pem = authority("one");
        let of = |lists: &[&[u8]]| {
            let read = |list: &&[u8]| RevocationList::all_in(list, "a.crl").unwrap();
            let lists = lists.iter().flat_map(read).collect();
            let rules = Rules { lists, ..rules(true) };
            ClientAuth::from_pem(pem.as_bytes(), rules).unwrap()
        };
        let denying = |names: &[&str]| {
            let deny = names.iter().copied().map(name).collect();
            ClientAuth::from_pem(pem.as_bytes(), Rules { deny, ..rules(true) })
                .unwrap()
                .revocation()
        };
        assert_eq!(denying(&[]), [0; 16]);
        let different = [
            denying(&["serial:1b"]),
            denying(&["serial:1c"]),
            denying(&["serial:1b", "cn:a"]),
        ];
        for (position, digest) in different.iter().enumerate() {
            assert!(
                *digest != [0; 16] && !different[..position].contains(digest),
                "{position}"
            );
        }
        assert_eq!(denying(&["cn:a", "serial:001B"]), different[2]);
        let (one, two) = (&*revocation::tests::der(), &*revocation::tests::der());
        assert_eq!(of(&[]).revocation(), [0; 16]);
        assert!(!of(&[]).authorities()[0].lacks_list);
        assert!(of(&[one]).authorities()[0].lacks_list, "it is of another CA");
        assert_ne!(of(&[one]).revocation(), [0; 16]);
        assert_ne!(of(&[one]).revocation(), of(&[two]).revocation());
        assert_ne!(of(&[one]).revocation(), of(&[one, two]).revocation());
        assert_eq!(of(&[one, two, one]).revocation(), of(&[two, one]).revocation());
        assert_eq!(
            of(&[one, two]).lists().iter().filter(|list| list.is_replaced).count(),
            1
        );
    }

    /// A list of names has 16 bits for its length; clients take less.
    #[test]
    fn names_are_sent_as_long_as_there_are_few() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = |count: usize| {
            let pem: String = (0..count)
                .map(|n| authority(&format!("{n}{}", "x".repeat(1000))))
                .collect();
            let auth = ClientAuth::from_pem(pem.as_bytes(), rules(false)).unwrap();
            assert_eq!(auth.authorities().len(), count);
            auth.verifier(&provider)
        };
        assert_eq!(verifier(2).root_hint_subjects().len(), 2);
        let many = verifier(80);
        assert!(many.root_hint_subjects().is_empty());
        assert!(many.offer_client_auth() && !many.client_auth_mandatory());
    }
}
