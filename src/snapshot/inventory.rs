//! The certificates of a configuration as they can be read, for whoever wants to see them and not use them: one that cannot be read hides no
//! other. No key in a token is opened and no PIN used.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use ringlock_hsm::custody::Custody;
use ringlock_hsm::pkcs11::{Access, Pkcs11Module};
use ringlock_hsm::protocol::Fault;
use ringlock_hsm::token::Session;
use ringlock_hsm::{formats, pin};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::admissions::{self, Settings};
use super::identities::{Identities, pairs};
use super::staples::{self, StapleSource};
use super::{Snapshot, client_auth, read};
use crate::config::{self, CertificateSource, Config, IdentityId, InTokens, KeySource, NamePattern, Problem};
use crate::identity::chain;
use crate::identity::client_auth::ClientAuth;
use crate::identity::facts::Facts;
use crate::identity::ocsp::Question;
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;
use crate::timestamp::Timestamp;

/// A certificate that is used, or was to be.
#[derive(Debug)]
pub struct Entry {
    /// Of the identity.
    pub name: String,
    /// Which `[[identity]]` it comes from.
    pub of: IdentityId,
    /// Where its key is.
    pub key_source: String,
    /// Where it is.
    pub source: String,
    /// What is known of it; nothing when it cannot be read.
    pub facts: Option<Facts>,
    /// Why `run` would refuse it.
    pub problem: Option<Problem>,
}

/// What the clients of a listener, or of some of its names, are verified with.
#[derive(Debug)]
pub struct Clients<C> {
    /// The listener.
    pub listener: String,
    /// Those names; none when it is the listener's own.
    pub names: Vec<NamePattern>,
    /// The file with the CAs.
    pub source: String,
    /// What is in the files, or why `run` would refuse it.
    pub loaded: Result<C, Problem>,
}

impl Clients<ClientAuth> {
    /// The same for whoever only looks.
    #[must_use]
    pub fn as_ref(&self) -> Clients<&ClientAuth> {
        Clients {
            listener: self.listener.clone(),
            names: self.names.clone(),
            source: self.source.clone(),
            loaded: self.loaded.as_ref().map_err(Problem::clone),
        }
    }
}

/// What a configuration uses.
#[derive(Debug)]
pub struct Contents {
    /// Of every identity.
    pub entries: Vec<Entry>,
    /// Where the OCSP staples of identities come from, by their names. Those that are not to get any are not in it.
    pub staples: HashMap<String, StapleSource>,
    /// Of every listener that asks clients for certificates.
    pub clients: Vec<Clients<ClientAuth>>,
}

/// Reads the certificates of every identity, their staples, and what clients are verified with.
#[must_use]
pub fn read_all(config: &Config) -> Contents {
    // Keys of this process need no signer, and others are not opened.
    let no_signer = |_: &_, _| Err(std::io::Error::other("no signer is started to read certificates"));
    let mut custody = Custody::new(1, Box::new(no_signer));
    let mut reader = Reader {
        config,
        loader: Identities::new(config, &mut custody, None),
        modules: BTreeMap::new(),
        staples: HashMap::new(),
    };
    let entries = (0..).map(IdentityId).zip(&config.identities);
    let entries = entries.flat_map(|(of, settings)| reader.read(of, settings)).collect();
    let clients = config.listeners.iter().flat_map(|listener| {
        admissions::settings(listener).into_iter().filter_map(|settings| {
            let Settings {
                table,
                names,
                client_auth,
            } = settings;
            Some(Clients {
                listener: listener.name.clone(),
                names: names.to_vec(),
                source: client_auth?.ca.display().to_string(),
                loaded: client_auth::load(client_auth, &table, &config.places).transpose()?,
            })
        })
    });
    Contents {
        entries,
        staples: reader.staples,
        clients: clients.collect(),
    }
}

impl Snapshot {
    /// What clients are verified with.
    #[must_use]
    pub fn clients(&self) -> Vec<Clients<&ClientAuth>> {
        let listeners = self.listeners.iter().flat_map(|listener| {
            let settings = admissions::settings(listener.settings());
            listener
                .admissions
                .iter()
                .zip(settings)
                .filter_map(|(admission, settings)| {
                    Some(Clients {
                        listener: listener.name.to_string(),
                        names: settings.names.to_vec(),
                        source: settings.client_auth?.ca.display().to_string(),
                        loaded: Ok(admission.client_auth.as_deref()?),
                    })
                })
        });
        listeners.collect()
    }

    /// The certificates in force.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let ids = (0..self.config.identities.len()).map(IdentityId);
        let with_id = |of: IdentityId| {
            let identities = &self.identities[self.ranges[of.0].clone()];
            identities.iter().map(move |identity| (of, identity))
        };
        ids.flat_map(with_id)
            .map(|(of, identity)| Entry {
                name: identity.name.to_string(),
                of,
                source: identity.facts.source.clone(),
                key_source: identity.facts.key_source.clone(),
                facts: Some(identity.facts.clone()),
                problem: None,
            })
            .collect()
    }
}

struct Reader<'a> {
    config: &'a Config,
    loader: Identities<'a>,
    /// By path.
    modules: BTreeMap<PathBuf, Result<Pkcs11Module, Fault>>,
    staples: HashMap<String, StapleSource>,
}

impl Reader<'_> {
    /// What an identity has: of a folder as many as there are.
    fn read(&mut self, of: IdentityId, settings: &config::Identity) -> Vec<Entry> {
        let CertificateSource::Folder(folder) = &settings.certificate else {
            return vec![self.read_one(of, settings)];
        };
        let unusable = |found: String| Entry {
            name: settings.name.clone(),
            of,
            source: settings.certificate.to_string(),
            key_source: settings.key.to_string(),
            facts: None,
            problem: Some(self.config.places.problem(
                format!("identity \"{}\": certificates", settings.name),
                found,
                "a folder with certificates and their keys",
                "`ringlock check --config FILE` says more",
            )),
        };
        let pairs = match pairs(settings, folder) {
            Ok(pairs) => pairs,
            Err(found) => return vec![unusable(format!("{found} in {}", folder.display()))],
        };
        let pairs: Vec<_> = pairs.into_iter().map(|pair| pair.map_err(unusable)).collect();
        pairs
            .into_iter()
            .map(|pair| pair.map_or_else(|broken| broken, |pair| self.read_one(of, &pair)))
            .collect()
    }

    fn read_one(&mut self, of: IdentityId, settings: &config::Identity) -> Entry {
        let problem = match settings.key {
            KeySource::File(_) => {
                let failures = self.loader.load(settings);
                failures.into_iter().next().map(|failure| failure.problem)
            }
            KeySource::Signer(_) | KeySource::Tokens(_) => None,
        };
        let known = match (&settings.key, &problem) {
            (KeySource::File(_), None) => {
                let identity = self.loader.last().expect("it was just loaded");
                Ok((identity.facts.clone(), identity.question()))
            }
            (KeySource::File(_) | KeySource::Signer(_) | KeySource::Tokens(_), _) => self.known_without_key(settings),
        };
        let places = &self.config.places;
        let place = |found: &String| {
            places.problem(
                format!("identity \"{}\": certificate", settings.name),
                format!("{found} in {}", settings.certificate),
                "a certificate chain",
                "`ringlock check --config FILE` says more",
            )
        };
        let problem = problem.or_else(|| known.as_ref().err().map(place));
        let staple = known.as_ref().ok().and_then(|(facts, question)| {
            staples::source(&settings.ocsp, facts, Timestamp::now().0, || question.clone())
        });
        let no_staple = match &staple {
            Some(StapleSource::File { path, found: Err(none) }) if none.is_mistake => {
                Some(none.problem(&settings.name, path, places))
            }
            Some(StapleSource::File { .. } | StapleSource::Responder | StapleSource::Nowhere) | None => None,
        };
        self.staples
            .extend(staple.map(|staple| (settings.name.clone(), staple)));
        Entry {
            name: settings.name.clone(),
            of,
            source: settings.certificate.to_string(),
            key_source: settings.key.to_string(),
            problem: problem.or(no_staple),
            facts: known.ok().map(|(facts, _)| facts),
        }
    }

    /// What is known of a chain whose key is elsewhere, or cannot be used, and what can be asked about it.
    fn known_without_key(&mut self, settings: &config::Identity) -> Result<(Facts, Option<Question>), String> {
        let found = match &settings.certificate {
            CertificateSource::File(path) | CertificateSource::Folder(path) => {
                let file = read(path, CERTIFICATE_FILE_BYTES_MAX)?;
                let passphrase = settings.passphrase.as_deref().map(pin::passphrase).transpose();
                let passphrase = passphrase.map_err(|fault| fault.found)?;
                let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_slice());
                formats::certificates(&file, passphrase).map_err(|error| error.to_string())?
            }
            CertificateSource::Tokens(object) => {
                let found = self.shown_by_tokens(object).map_err(|fault| fault.found)?;
                found.into_iter().map(CertificateDer::from).collect()
            }
        };
        let public_key = presumed_leaf(&found).ok_or("no certificate that can be read")?;
        let arranged = chain::arrange(&found, &public_key).map_err(|error| error.to_string())?;
        let facts = Facts::of(&arranged, &settings.certificate.to_string(), &settings.key.to_string())?;
        Ok((facts, Question::about(&arranged.chain)))
    }

    /// The certificates that the first of the tokens shows to everybody.
    fn shown_by_tokens(&mut self, object: &InTokens) -> Result<Vec<Vec<u8>>, Fault> {
        let mut first = None;
        for token in object.tokens.iter().map(|token| &self.config.tokens[token.0]) {
            let module = self
                .modules
                .entry(token.module.clone())
                .or_insert_with(|| Pkcs11Module::load(&token.module));
            let settings = super::token_spec(token, None).settings;
            let found = match module {
                Ok(module) => module
                    .session(&settings, Access::Public)
                    .and_then(|mut session| session.certificates(&object.object)),
                Err(fault) => Err(fault.clone()),
            };
            match found {
                Ok(found) => return Ok(found),
                Err(fault) => first = first.or(Some(fault)),
            }
        }
        Err(first.expect("an object is in at least one token"))
    }
}

/// The public key of the certificate that is probably the leaf: the first that is of no CA, otherwise the first.
fn presumed_leaf(certificates: &[CertificateDer<'_>]) -> Option<Vec<u8>> {
    let parsed = || {
        let certificates = certificates.iter();
        certificates.filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
    };
    let leaf = parsed()
        .find(|certificate| !certificate.is_ca())
        .or_else(|| parsed().next())?;
    Some(leaf.public_key().raw.to_vec())
}
