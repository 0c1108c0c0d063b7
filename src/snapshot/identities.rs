//! Identities as configured, made into identities: certificates and keys from files and tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringlock_hsm::custody::{Custody, OpenedKey};
use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace, TokenSettings};
use ringlock_hsm::remote::{Group, GroupSpec, RemoteKey, SignerSpec, TokenSpec};
use ringlock_hsm::uri::TokenMatch;
use rustls::pki_types::CertificateDer;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::read;
use crate::config::{
    self, CertificateSource, Config, InTokens, Isolation, KeySource, Problem, TokenConfig, TokenId, Warning, WhenDown,
};
use crate::crypto::key::{Key, SuspendingKey};
use crate::crypto::remote::RemoteSigningKey;
use crate::identity::{ChainError, Identity, chain_from_pem, chain_of};
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;

/// What is expected of a key or certificate, and what to do when it is not so.
type Advice = (&'static str, &'static str);

const CHAIN: Advice = (
    "a PEM chain with the leaf first",
    "check the path, and that the file holds the chain",
);
const KEY: Advice = (
    "a PEM private key without pass phrase: RSA of 2,048 to 8,192 bits, ECDSA P-256, P-384 or P-521, or Ed25519",
    "check the path; openssl pkey -in FILE -out PLAIN converts",
);
const PAIR: Advice = (
    "the leaf's key",
    "check that the chain has the leaf first, and that both were renewed together",
);

/// Name of the signer of keys in files, as a token.
const FILES: &str = "files";

/// What a key in a file may take, waiting included: its signer shares the processors with the workers.
const FILES_TIMEOUT: Duration = Duration::from_secs(2);

/// Signatures of keys in files that a worker may wait for.
const FILES_QUEUE: usize = 1024;

/// Loads identities, one after the other.
pub(super) struct Identities<'a> {
    config: &'a Config,
    custody: &'a mut Custody,
    groups: Vec<Arc<Group>>,
    absences: Vec<Warning>,
}

impl<'a> Identities<'a> {
    pub(super) fn new(config: &'a Config, custody: &'a mut Custody) -> Identities<'a> {
        Identities {
            config,
            custody,
            groups: Vec::new(),
            absences: Vec::new(),
        }
    }

    /// The groups of tokens that are used, and what is to be told of tokens.
    pub(super) fn into_parts(self) -> (Vec<Arc<Group>>, Vec<Warning>) {
        (self.groups, self.absences)
    }

    pub(super) fn load(&mut self, settings: &config::Identity) -> Result<Arc<Identity>, Problem> {
        let (key, public): (Arc<dyn SigningKey>, Option<Vec<u8>>) = match &settings.key {
            KeySource::File(path) => (Arc::new(SuspendingKey(Arc::new(self.local(settings, path)?))), None),
            KeySource::Signer(path) => {
                let group = self.group(&files(self.config.global.user.as_ref()));
                let (key, public) = self.remote(settings, group, &KeyPlace::File(path.clone()))?;
                (Arc::new(RemoteSigningKey(key)), Some(public))
            }
            KeySource::Tokens(object) => {
                let group = self.group(&self.group_spec(&object.tokens));
                let (key, public) = self.remote(settings, group, &KeyPlace::Object(object.object.clone()))?;
                (Arc::new(RemoteSigningKey(key)), Some(public))
            }
        };
        let chain = match &settings.certificate {
            CertificateSource::File(path) => {
                let bytes =
                    read(path, CERTIFICATE_FILE_BYTES_MAX).map_err(|what| self.of_certificate(settings, &what))?;
                chain_from_pem(&bytes)
            }
            CertificateSource::Tokens(object) => {
                let public = public.or_else(|| Some(key.public_key()?.as_ref().to_vec()));
                self.chain_in_token(settings, object, &public.unwrap_or_default())?
            }
        };
        let identity = chain.and_then(|chain| Identity::new(&settings.name, chain, key));
        identity.map(Arc::new).map_err(|error| match &error {
            ChainError::Certificate(what) => self.of_certificate(settings, what),
            ChainError::Mismatch => self.problem(settings, "key", &error.to_string(), &settings.key.to_string(), PAIR),
        })
    }

    fn local(&self, settings: &config::Identity, path: &Path) -> Result<Key, Problem> {
        let problem = |what: &str| self.problem(settings, "key", what, &path.display().to_string(), KEY);
        let pem = Zeroizing::new(read(path, CERTIFICATE_FILE_BYTES_MAX).map_err(|what| problem(&what))?);
        Key::from_pem(&pem).map_err(|error| problem(&error.to_string()))
    }

    fn group(&mut self, spec: &GroupSpec) -> Arc<Group> {
        if let Some(known) = self.groups.iter().find(|group| group.spec == *spec) {
            return Arc::clone(known);
        }
        let group = self.custody.group(spec);
        self.groups.push(Arc::clone(&group));
        group
    }

    fn group_spec(&self, tokens: &[TokenId]) -> GroupSpec {
        let tokens: Vec<&TokenConfig> = tokens.iter().map(|token| &self.config.tokens[token.0]).collect();
        let first = tokens[0];
        GroupSpec {
            name: first.group.clone().unwrap_or_else(|| first.name.clone()),
            queue: tokens.iter().map(|token| token.queue).max().unwrap_or(first.queue),
            waits: tokens.iter().any(|token| token.when_down == WhenDown::Wait),
            timeout: tokens.iter().map(|token| token.timeout).max().unwrap_or(first.timeout),
            tokens: tokens
                .into_iter()
                .map(|token| token_spec(token, self.config.global.user.as_ref()))
                .collect(),
        }
    }

    /// The key, from every token of its group that has it, and its public key.
    fn remote(
        &mut self,
        settings: &config::Identity,
        group: Arc<Group>,
        place: &KeyPlace,
    ) -> Result<(Arc<RemoteKey>, Vec<u8>), Problem> {
        let mut first: Option<OpenedKey> = None;
        let mut handles = Vec::new();
        let mut faults = Vec::new();
        for token in &group.tokens {
            let opened = self.custody.open(token, place).and_then(|opened| match &first {
                Some(first) if first.public != opened.public => {
                    let found = format!("another key in {} than in {}", opened.token, first.token);
                    Err(Fault::new(FaultKind::Object, found))
                }
                Some(_) | None => Ok(opened),
            });
            match opened {
                Ok(opened) => {
                    handles.push(Some(Arc::clone(&opened.handle)));
                    first.get_or_insert(opened);
                }
                Err(fault) => {
                    // What it signs when it is back is verified, like everything.
                    let comes_back = fault.kind.may_pass().then(|| self.custody.announce(token, place));
                    handles.push(comes_back);
                    faults.push((&token.spec.name, fault));
                }
            }
        }
        let Some(OpenedKey { public, schemes, .. }) = first else {
            let (_, fault) = faults
                .into_iter()
                .next()
                .expect("a group has a token, and none has the key");
            return Err(self.of_fault(settings, "key", &fault, &settings.key.to_string()));
        };
        for (token, fault) in faults {
            let until = if fault.kind.may_pass() { " until it is back" } else { "" };
            let what = format!(
                "{} in the token {token}, which is not used for it{until}: {fault}",
                settings.key
            );
            let key = format!("identity \"{}\": key", settings.name);
            self.absences
                .push(self.config.places.warning(key, what, remedy(fault.kind)));
        }
        match RemoteKey::new(group, handles, public.clone(), &schemes) {
            Some(key) => Ok((Arc::new(key), public)),
            None => {
                let fault = Fault::new(FaultKind::Object, "a public key of a kind that cannot be used");
                Err(self.of_fault(settings, "key", &fault, &settings.key.to_string()))
            }
        }
    }

    fn chain_in_token(
        &mut self,
        settings: &config::Identity,
        object: &InTokens,
        public: &[u8],
    ) -> Result<Result<Vec<CertificateDer<'static>>, ChainError>, Problem> {
        let group = self.group(&self.group_spec(&object.tokens));
        let mut fault = None;
        for token in &group.tokens {
            match self.custody.certificates(token, &object.object) {
                Ok(found) => return Ok(chain_of(&found, public)),
                Err(other) => fault = fault.or(Some(other)),
            }
        }
        let fault = fault.expect("a group has a token, and none has the certificate");
        Err(self.of_fault(settings, "certificate", &fault, &object.uri))
    }

    fn of_fault(&self, settings: &config::Identity, key: &str, fault: &Fault, place: &str) -> Problem {
        let expected = match key {
            "key" => "a private key in a token that signs for the certificate",
            _ => "certificates in a token",
        };
        self.problem(settings, key, &fault.found, place, (expected, remedy(fault.kind)))
    }

    fn of_certificate(&self, settings: &config::Identity, what: &str) -> Problem {
        self.problem(settings, "certificate", what, &settings.certificate.to_string(), CHAIN)
    }

    fn problem(&self, settings: &config::Identity, key: &str, found: &str, place: &str, advice: Advice) -> Problem {
        let (expected, remedy) = advice;
        let key = format!("identity \"{}\": {key}", settings.name);
        let found = format!("{found} in {place}");
        self.config.places.problem(key, found, expected, remedy)
    }
}

fn remedy(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Module => {
            "check the module's path, and that its user may read it and what it needs; docs/hsm.md has the set-up of common ones"
        }
        FaultKind::Token => "`ringlock keys list --config FILE` shows what tokens there are; correct [keys.NAME]",
        FaultKind::Pin => {
            "correct the PIN in its file; it is tried once at each start and reload, and never twice by itself"
        }
        FaultKind::Object => "`ringlock keys list --config FILE` shows what the token holds; correct the URI",
        FaultKind::Mechanism => {
            "`ringlock keys test --config FILE` shows what the token can; use a key of another kind"
        }
        FaultKind::Device => "look at the token's own log, and try `ringlock keys test --config FILE`",
        FaultKind::Timeout => "check that the token answers (`ringlock keys test --config FILE`), or raise timeout",
        FaultKind::Signer => "the lines that the signer has written to standard error say more",
    }
}

/// A token as its signer is to use it, for a gateway that becomes this user.
#[must_use]
pub fn token_spec(token: &TokenConfig, user: Option<&String>) -> TokenSpec {
    TokenSpec {
        name: token.name.clone(),
        signer: SignerSpec {
            module: Some(token.module.clone()),
            isolation: token.isolation,
            // Whoever the gateway becomes, unless told otherwise.
            user: token.user.as_ref().or(user).cloned(),
            sandbox: token.sandbox,
        },
        settings: TokenSettings {
            find: token.find.clone(),
            pin: token.pin.clone(),
            sessions: token.sessions,
            timeout: token.timeout,
            keep_alive: token.keep_alive,
            login: true,
        },
    }
}

/// Keys in files, in a process of their own, for a gateway that becomes this user.
#[must_use]
pub fn files(user: Option<&String>) -> GroupSpec {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    GroupSpec {
        name: FILES.to_owned(),
        queue: FILES_QUEUE,
        waits: true,
        timeout: FILES_TIMEOUT,
        tokens: vec![TokenSpec {
            name: FILES.to_owned(),
            signer: SignerSpec {
                module: None,
                isolation: Isolation::Process,
                user: user.cloned(),
                sandbox: true,
            },
            settings: TokenSettings {
                find: TokenMatch::default(),
                pin: None,
                sessions: u32::try_from(processors).unwrap_or(1),
                timeout: FILES_TIMEOUT,
                keep_alive: None,
                login: true,
            },
        }],
    }
}
