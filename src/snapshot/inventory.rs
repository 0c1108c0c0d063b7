//! The certificates of a configuration as they can be read, for whoever wants to see them and not use them: one that cannot be read hides no
//! other. No key in a token is opened and no PIN used.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ringlock_hsm::custody::Custody;
use ringlock_hsm::pkcs11::{Access, Pkcs11Module};
use ringlock_hsm::protocol::Fault;
use ringlock_hsm::token::Session;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identities::Identities;
use super::{Snapshot, client_auth, read};
use crate::config::{self, CertificateSource, Config, IdentityId, InTokens, KeySource, Problem};
use crate::identity::client_auth::ClientAuth;
use crate::identity::facts::Facts;
use crate::identity::{chain_from_pem, chain_of};
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;

/// A certificate that is used, or was to be.
#[derive(Debug)]
pub struct Entry {
    /// Of the identity.
    pub name: String,
    /// Which `[[identity]]` it comes from.
    pub of: IdentityId,
    /// What is known of it; nothing when it cannot be read.
    pub facts: Option<Facts>,
    /// Why `run` would refuse it.
    pub problem: Option<Problem>,
}

/// What a listener's clients are verified with; nothing when they are not asked for certificates.
pub type Clients = Result<Option<ClientAuth>, Problem>;

/// Reads the certificates of every identity, and what each listener's clients are verified with.
#[must_use]
pub fn read_all(config: &Config) -> (Vec<Entry>, Vec<Clients>) {
    // Keys of this process need no signer, and others are not opened.
    let no_signer = |_: &_, _| Err(std::io::Error::other("no signer is started to read certificates"));
    let mut custody = Custody::new(1, Box::new(no_signer));
    let mut loader = Identities::new(config, &mut custody);
    let mut modules = BTreeMap::new();
    let mut entries = Vec::new();
    for (position, settings) in config.identities.iter().enumerate() {
        let loaded = match settings.key {
            KeySource::File(_) => loader.load(settings).map(Some),
            KeySource::Signer(_) | KeySource::Tokens(_) => Ok(None),
        };
        let (facts, problem) = match loaded {
            Ok(Some(identity)) => (Ok(identity.facts.clone()), None),
            Ok(None) => (facts_without_key(config, settings, &mut modules), None),
            Err(problem) => (facts_without_key(config, settings, &mut modules), Some(problem)),
        };
        let place = |found: String| {
            let key = format!("identity \"{}\": certificate", settings.name);
            let found = format!("{found} in {}", settings.certificate);
            let remedy = "`ringlock check --config FILE` says more";
            config.places.problem(key, found, "a certificate chain", remedy)
        };
        let (facts, problem) = match facts {
            Ok(facts) => (Some(facts), problem),
            Err(found) => (None, problem.or_else(|| Some(place(found)))),
        };
        entries.push(Entry {
            name: settings.name.clone(),
            of: IdentityId(position),
            facts,
            problem,
        });
    }
    let clients = config
        .listeners
        .iter()
        .map(|listener| client_auth::load(listener, &config.places));
    (entries, clients.collect())
}

impl Snapshot {
    /// The certificates in force.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        (0..)
            .map(IdentityId)
            .zip(&self.identities)
            .map(|(of, identity)| Entry {
                name: identity.name.to_string(),
                of,
                facts: Some(identity.facts.clone()),
                problem: None,
            })
            .collect()
    }
}

type Modules = BTreeMap<PathBuf, Result<Pkcs11Module, Fault>>;

/// What is known of a chain whose key is elsewhere, or cannot be used.
fn facts_without_key(config: &Config, settings: &config::Identity, modules: &mut Modules) -> Result<Facts, String> {
    let found = match &settings.certificate {
        CertificateSource::File(path) => {
            let bytes = read(path, CERTIFICATE_FILE_BYTES_MAX)?;
            chain_from_pem(&bytes).map_err(|error| error.to_string())?
        }
        CertificateSource::Tokens(object) => {
            let found = shown_by_tokens(config, object, modules).map_err(|fault| fault.to_string())?;
            found.into_iter().map(CertificateDer::from).collect()
        }
    };
    let public_key = presumed_leaf(&found).ok_or("no certificate that can be read")?;
    let found: Vec<Vec<u8>> = found.iter().map(|certificate| certificate.to_vec()).collect();
    let chain = chain_of(&found, &public_key).map_err(|error| error.to_string())?;
    Facts::of(&chain, &settings.certificate.to_string())
}

/// The public key of the certificate that is probably the leaf: the first that is of no CA, otherwise the first.
fn presumed_leaf(certificates: &[CertificateDer<'_>]) -> Option<Vec<u8>> {
    let parsed = || {
        certificates
            .iter()
            .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
    };
    let leaf = parsed()
        .find(|certificate| !certificate.is_ca())
        .or_else(|| parsed().next())?;
    Some(leaf.public_key().raw.to_vec())
}

/// The certificates that the first of the tokens shows to everybody.
fn shown_by_tokens(config: &Config, object: &InTokens, modules: &mut Modules) -> Result<Vec<Vec<u8>>, Fault> {
    let mut first = None;
    for token in object.tokens.iter().map(|token| &config.tokens[token.0]) {
        let module = modules
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
