//! Identities as configured, made into identities: certificates and keys from files and tokens.

mod files;
mod folder;
mod warnings;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringlock_hsm::custody::{Custody, OpenedKey};
use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace, TokenSettings};
use ringlock_hsm::remote::{Group, GroupSpec, RemoteKey, SignerSpec, TokenSpec};
use ringlock_hsm::uri::TokenMatch;
use ringlock_hsm::{KeyError, formats, pin};
use rustls::pki_types::CertificateDer;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use self::files::Examiner;
pub(super) use self::warnings::warnings;
use super::{Failure, Snapshot, read};
use crate::config::{
    self, CertificateSource, Config, InTokens, Isolation, KeySource, Problem, TokenConfig, TokenId, Warning, WhenDown,
};
use crate::crypto::key::{Key, SuspendingKey};
use crate::crypto::remote::RemoteSigningKey;
use crate::crypto::sha256;
use crate::identity::preflight::FileFacts;
use crate::identity::{ChainError, Identity, chain};
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;

/// What is expected of certificates and keys, and what to do when there is nothing more to say.
const CHAIN: &str = "a certificate chain in PEM, DER or PKCS#12";
const CHAIN_REMEDY: &str = "check the path and its permissions, and that the file holds the chain";
const KEY: &str =
    "a private key in PEM, DER or PKCS#12: RSA of 2,048 to 8,192 bits, ECDSA P-256, P-384 or P-521, or Ed25519";
const KEY_REMEDY: &str = "check the path, its permissions and passphrase_file; openssl pkcs8 -topk8 -in FILE -out NEW converts other formats";
const PAIR: &str = "the key of one of the certificates";
const PAIR_REMEDY: &str = "check that both were renewed together";
const FOLDER: &str = "a folder with certificates and their keys";
const FOLDER_REMEDY: &str = "check the path; docs/certificates.md says which files are looked for";
const ISOLATED: &str = "a file of certificates alone, as key_isolation is \"process\" and the gateway reads it";
const ISOLATED_REMEDY: &str = "write the key to a file of its own, or remove key_isolation";

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
    previous: Option<&'a Snapshot>,
    /// Files that have changed since then; when nobody knows, any may have.
    changed: Option<&'a BTreeSet<PathBuf>>,
    /// The identities of the previous snapshot by name, and what is known of their files.
    known: HashMap<&'a str, (&'a Arc<Identity>, &'a FileFacts)>,
    examiner: Examiner,
    loaded: Loaded,
}

/// What was loaded.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) identities: Vec<Arc<Identity>>,
    /// By [`config::IdentityId`]: which of them.
    pub(super) ranges: Vec<Range<usize>>,
    /// By position in `identities`.
    pub(super) files: Vec<FileFacts>,
    /// The groups of tokens that are used.
    pub(super) groups: Vec<Arc<Group>>,
    /// What is to be told of tokens.
    pub(super) absences: Vec<Warning>,
}

/// The identities of a folder, each as if it were configured by itself.
///
/// # Errors
/// What was found in place of a folder with certificates; for each file what was found in place of a pair.
pub fn pairs(settings: &config::Identity, folder: &Path) -> Result<Vec<Result<config::Identity, String>>, String> {
    let pairs = folder::pairs(folder)?.into_iter();
    Ok(pairs
        .map(|pair| {
            pair.map(|pair| of_pair(settings, pair))
                .map_err(|broken| broken.to_string())
        })
        .collect())
}

fn of_pair(settings: &config::Identity, pair: folder::Pair) -> config::Identity {
    config::Identity {
        name: format!("{}/{}", settings.name, pair.name),
        certificate: CertificateSource::File(pair.certificate),
        key: match settings.key {
            KeySource::Signer(_) => KeySource::Signer(pair.key),
            KeySource::File(_) | KeySource::Tokens(_) => KeySource::File(pair.key),
        },
        passphrase: settings.passphrase.clone(),
        ocsp: settings.ocsp.clone(),
    }
}

/// The files and folders that an identity is made from.
pub(super) fn files_of(settings: &config::Identity) -> Vec<&Path> {
    let certificate = match &settings.certificate {
        CertificateSource::File(path) | CertificateSource::Folder(path) => Some(path.as_path()),
        CertificateSource::Tokens(_) => None,
    };
    let key = match &settings.key {
        KeySource::File(path) | KeySource::Signer(path) => Some(path.as_path()),
        KeySource::Tokens(_) => None,
    };
    let passphrase = settings.passphrase.as_deref();
    certificate.into_iter().chain(key).chain(passphrase).collect()
}

impl<'a> Identities<'a> {
    pub(super) fn new(config: &'a Config, custody: &'a mut Custody, previous: Option<&'a Snapshot>) -> Identities<'a> {
        Identities {
            config,
            custody,
            known: previous.map(Snapshot::by_name).unwrap_or_default(),
            previous,
            changed: None,
            examiner: Examiner::new(config.global.user.as_deref()),
            loaded: Loaded::default(),
        }
    }

    pub(super) fn into_loaded(self) -> Loaded {
        self.loaded
    }

    /// The identity that was loaded last.
    pub(super) fn last(&self) -> Option<&Arc<Identity>> {
        self.loaded.identities.last()
    }

    /// For what these files have changed in the configuration of the previous snapshot.
    pub(super) fn renewing(
        config: &'a Config,
        custody: &'a mut Custody,
        previous: &'a Snapshot,
        changed: &'a BTreeSet<PathBuf>,
    ) -> Identities<'a> {
        Identities {
            changed: Some(changed),
            ..Identities::new(config, custody, Some(previous))
        }
    }

    /// Loads an identity, or those of its folder. What cannot be loaded stays as it was in the previous snapshot, if it was there.
    pub(super) fn load(&mut self, settings: &config::Identity) -> Vec<Failure> {
        let first = self.loaded.identities.len();
        let failures = match &settings.certificate {
            CertificateSource::Folder(folder) => self.load_folder(settings, folder),
            CertificateSource::File(_) | CertificateSource::Tokens(_) => {
                self.load_or_keep(&Wanted::configured(settings)).into_iter().collect()
            }
        };
        self.loaded.ranges.push(first..self.loaded.identities.len());
        failures
    }

    /// Takes over the next `[[identity]]` of the previous snapshot, which is of the same configuration.
    pub(super) fn take_over(&mut self) {
        let first = self.loaded.identities.len();
        if let Some(previous) = self.previous {
            let range = previous.ranges[self.loaded.ranges.len()].clone();
            self.loaded
                .identities
                .extend_from_slice(&previous.identities[range.clone()]);
            self.loaded.files.extend_from_slice(&previous.files[range]);
        }
        self.loaded.ranges.push(first..self.loaded.identities.len());
    }

    fn load_folder(&mut self, settings: &config::Identity, folder: &Path) -> Vec<Failure> {
        let problem = |this: &Self, found: String| {
            let key = format!("identity \"{}\": certificates", settings.name);
            this.config.places.problem(key, found, FOLDER, FOLDER_REMEDY)
        };
        let pairs = match folder::pairs(folder) {
            Ok(pairs) => pairs,
            Err(what) => {
                let inside = format!("{}/", settings.name);
                for (name, _) in self.previous.into_iter().flat_map(Snapshot::named) {
                    if name.starts_with(&inside) {
                        self.keep(name);
                    }
                }
                return vec![Failure {
                    problem: problem(self, format!("{what} in {}", folder.display())),
                    files: vec![folder.to_owned()],
                }];
            }
        };
        let mut failures = Vec::new();
        for pair in pairs {
            match pair {
                Ok(pair) => {
                    let pair = of_pair(settings, pair);
                    if self.is_unchanged(&pair) {
                        self.keep(&pair.name);
                        continue;
                    }
                    failures.extend(self.load_or_keep(&Wanted::of_folder(&pair, &settings.name)));
                }
                Err(broken) => {
                    self.keep(&format!("{}/{}", settings.name, broken.name));
                    failures.push(Failure {
                        problem: problem(self, broken.to_string()),
                        files: vec![broken.path],
                    });
                }
            }
        }
        failures
    }

    fn load_or_keep(&mut self, wanted: &Wanted<'_>) -> Option<Failure> {
        let problem = self.load_one(wanted).err()?;
        self.keep(&wanted.settings.name);
        let files = files_of(wanted.settings).into_iter().map(Path::to_owned).collect();
        Some(Failure { problem, files })
    }

    /// One of a folder, which was there and whose files have not changed since.
    fn is_unchanged(&self, pair: &config::Identity) -> bool {
        let same = |changed: &BTreeSet<PathBuf>| files_of(pair).into_iter().all(|file| !changed.contains(file));
        let is_of = |identity: &Identity| {
            identity.facts.source == pair.certificate.to_string() && identity.facts.key_source == pair.key.to_string()
        };
        let known = self.known.get(pair.name.as_str());
        self.changed.is_some_and(same) && known.is_some_and(|(identity, _)| is_of(identity))
    }

    /// The identity that had this name, if there was one.
    fn keep(&mut self, name: &str) {
        if let Some(&(identity, files)) = self.known.get(name) {
            self.loaded.identities.push(Arc::clone(identity));
            self.loaded.files.push(files.clone());
        }
    }

    fn load_one(&mut self, wanted: &Wanted<'_>) -> Result<(), Problem> {
        let settings = wanted.settings;
        let identity = match (&settings.certificate, &settings.key) {
            (CertificateSource::File(certificate), KeySource::File(key)) => self.in_files(wanted, certificate, key)?,
            (certificate, KeySource::File(key)) => {
                let passphrase = self.passphrase(wanted)?;
                let file =
                    read(key, CERTIFICATE_FILE_BYTES_MAX).map_err(|what| self.of_key(wanted, &what, KEY_REMEDY))?;
                let key = self.local(wanted, &file, passphrase.as_ref())?;
                let public = key.public_key().map(|public| public.to_vec()).unwrap_or_default();
                let certificates = self.certificates(wanted, certificate, &public)?;
                Arc::new(self.identity(wanted, &certificates, key)?)
            }
            (certificate, KeySource::Signer(path)) => {
                let group = self.group(&files(self.config.global.user.as_ref()));
                let place = KeyPlace::File {
                    path: path.clone(),
                    passphrase: settings.passphrase.clone(),
                };
                self.elsewhere(wanted, certificate, group, &place)?
            }
            (certificate, KeySource::Tokens(object)) => {
                let group = self.group(&self.group_spec(&object.tokens));
                let place = KeyPlace::Object(object.object.clone());
                self.elsewhere(wanted, certificate, group, &place)?
            }
        };
        let certificate = match &settings.certificate {
            CertificateSource::File(path) => Some(path.as_path()),
            CertificateSource::Folder(_) | CertificateSource::Tokens(_) => None,
        };
        let key = match &settings.key {
            KeySource::File(path) => Some(path.as_path()),
            // Read by somebody else, who has other rights.
            KeySource::Signer(_) | KeySource::Tokens(_) => None,
        };
        let secrets: Vec<&Path> = key
            .into_iter()
            .chain(settings.passphrase.as_deref().filter(|_| key.is_some()))
            .collect();
        self.loaded.files.push(self.examiner.examine(certificate, &secrets));
        self.loaded.identities.push(identity);
        Ok(())
    }

    /// Both in files that the gateway reads. When their content is what it was, the identity is, too.
    fn in_files(&mut self, wanted: &Wanted<'_>, certificate: &Path, key: &Path) -> Result<Arc<Identity>, Problem> {
        let passphrase = self.passphrase(wanted)?;
        let file = read(certificate, CERTIFICATE_FILE_BYTES_MAX)
            .map_err(|what| self.of_certificate(wanted, &what, CHAIN_REMEDY))?;
        let key_file = match certificate == key {
            true => file.clone(),
            false => read(key, CERTIFICATE_FILE_BYTES_MAX).map_err(|what| self.of_key(wanted, &what, KEY_REMEDY))?,
        };
        let content = sha256::digest(&[
            &sha256::digest(&[&file]),
            &sha256::digest(&[&key_file]),
            &sha256::digest(&[passphrase.as_ref().map_or(&[], |passphrase| passphrase.as_slice())]),
            certificate.as_os_str().as_encoded_bytes(),
            b"\0",
            key.as_os_str().as_encoded_bytes(),
        ]);
        if let Some((known, _)) = self.known.get(wanted.settings.name.as_str())
            && known.content == Some(content)
        {
            return Ok(Arc::clone(known));
        }
        let key = self.local(wanted, &key_file, passphrase.as_ref())?;
        let certificates = self.certificates_of(wanted, &file, passphrase.as_ref())?;
        let mut identity = self.identity(wanted, &certificates, key)?;
        identity.content = Some(content);
        Ok(Arc::new(identity))
    }

    /// With a key that others use for the gateway.
    fn elsewhere(
        &mut self,
        wanted: &Wanted<'_>,
        certificate: &CertificateSource,
        group: Arc<Group>,
        place: &KeyPlace,
    ) -> Result<Arc<Identity>, Problem> {
        let (key, public) = self.remote(wanted, group, place)?;
        let certificates = self.certificates(wanted, certificate, &public)?;
        let key = Arc::new(RemoteSigningKey(key));
        self.identity(wanted, &certificates, key).map(Arc::new)
    }

    fn identity(
        &self,
        wanted: &Wanted<'_>,
        certificates: &[CertificateDer<'_>],
        key: Arc<dyn SigningKey>,
    ) -> Result<Identity, Problem> {
        let settings = wanted.settings;
        let (source, key_source) = (settings.certificate.to_string(), settings.key.to_string());
        Identity::new(&settings.name, &source, &key_source, certificates, key).map_err(|error| match &error {
            ChainError::Certificate(what) => self.of_certificate(wanted, what, CHAIN_REMEDY),
            ChainError::Mismatch => {
                let found = format!("{error} in {}", settings.key);
                self.config.places.problem(wanted.key("key"), found, PAIR, PAIR_REMEDY)
            }
        })
    }

    fn passphrase(&self, wanted: &Wanted<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, Problem> {
        let read = wanted.settings.passphrase.as_deref().map(pin::passphrase).transpose();
        read.map_err(|fault| {
            let (key, expected) = (
                wanted.own_key("passphrase_file"),
                "a file whose first line is the pass phrase",
            );
            let remedy = "check the path, and write the pass phrase to it";
            self.config.places.problem(key, fault.found, expected, remedy)
        })
    }

    fn local(
        &self,
        wanted: &Wanted<'_>,
        file: &[u8],
        passphrase: Option<&Zeroizing<Vec<u8>>>,
    ) -> Result<Arc<dyn SigningKey>, Problem> {
        let key =
            formats::private_key(file, passphrase.map(|passphrase| passphrase.as_slice())).and_then(Key::from_der);
        let key = key.map_err(|error| self.of_key(wanted, &error.to_string(), error.remedy()))?;
        Ok(Arc::new(SuspendingKey(Arc::new(key))))
    }

    fn certificates(
        &mut self,
        wanted: &Wanted<'_>,
        source: &CertificateSource,
        public: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Problem> {
        match source {
            CertificateSource::File(path) | CertificateSource::Folder(path) => {
                let passphrase = self.passphrase(wanted)?;
                let file = read(path, CERTIFICATE_FILE_BYTES_MAX)
                    .map_err(|what| self.of_certificate(wanted, &what, CHAIN_REMEDY))?;
                if matches!(wanted.settings.key, KeySource::Signer(_)) && formats::has_private_key(&file) {
                    let found = format!("a private key in {}", path.display());
                    let key = wanted.key("certificate");
                    return Err(self.config.places.problem(key, found, ISOLATED, ISOLATED_REMEDY));
                }
                self.certificates_of(wanted, &file, passphrase.as_ref())
            }
            CertificateSource::Tokens(object) => self.in_token(wanted, object, public),
        }
    }

    fn certificates_of(
        &self,
        wanted: &Wanted<'_>,
        file: &[u8],
        passphrase: Option<&Zeroizing<Vec<u8>>>,
    ) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let passphrase = passphrase.map(|passphrase| passphrase.as_slice());
        formats::certificates(file, passphrase).map_err(|error| {
            let remedy = match error {
                KeyError::Unknown | KeyError::Missing | KeyError::Pem(_) => CHAIN_REMEDY,
                KeyError::Several(_)
                | KeyError::Encrypted
                | KeyError::Passphrase
                | KeyError::Foreign(_)
                | KeyError::Unsupported(_) => error.remedy(),
            };
            self.of_certificate(wanted, &error.to_string(), remedy)
        })
    }

    fn group(&mut self, spec: &GroupSpec) -> Arc<Group> {
        if let Some(known) = self.loaded.groups.iter().find(|group| group.spec == *spec) {
            return Arc::clone(known);
        }
        let group = self.custody.group(spec);
        self.loaded.groups.push(Arc::clone(&group));
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
        wanted: &Wanted<'_>,
        group: Arc<Group>,
        place: &KeyPlace,
    ) -> Result<(Arc<RemoteKey>, Vec<u8>), Problem> {
        let settings = wanted.settings;
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
            return Err(self.of_fault(wanted, "key", &fault, &settings.key.to_string()));
        };
        for (token, fault) in faults {
            let until = if fault.kind.may_pass() { " until it is back" } else { "" };
            let what = format!(
                "{} in the token {token}, which is not used for it{until}: {fault}",
                settings.key
            );
            let warning = self.config.places.warning(wanted.key("key"), what, remedy(fault.kind));
            self.loaded.absences.push(warning);
        }
        match RemoteKey::new(group, handles, public.clone(), &schemes) {
            Some(key) => Ok((Arc::new(key), public)),
            None => {
                let fault = Fault::new(FaultKind::Object, "a public key of a kind that cannot be used");
                Err(self.of_fault(wanted, "key", &fault, &settings.key.to_string()))
            }
        }
    }

    /// The certificates beside the one in a token, which may be of several keys.
    fn in_token(
        &mut self,
        wanted: &Wanted<'_>,
        object: &InTokens,
        public: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let group = self.group(&self.group_spec(&object.tokens));
        let mut fault = None;
        for token in &group.tokens {
            match self.custody.certificates(token, &object.object) {
                Ok(found) => {
                    let found: Vec<_> = found.into_iter().map(CertificateDer::from).collect();
                    // In a token nothing has an order, and what else is there is of other keys.
                    return match chain::arrange(&found, public) {
                        Ok(arranged) => Ok(arranged.chain),
                        Err(_) => Ok(found),
                    };
                }
                Err(other) => fault = fault.or(Some(other)),
            }
        }
        let fault = fault.expect("a group has a token, and none has the certificate");
        Err(self.of_fault(wanted, "certificate", &fault, &object.uri))
    }

    fn of_fault(&self, wanted: &Wanted<'_>, key: &'static str, fault: &Fault, place: &str) -> Problem {
        let (expected, remedy) = match (key, &wanted.settings.key) {
            ("key", KeySource::Signer(_)) if is_of_file(fault.kind) => (KEY, KEY_REMEDY),
            ("key", _) => (
                "a private key in a token that signs for the certificate",
                remedy(fault.kind),
            ),
            (_, _) => ("certificates in a token", remedy(fault.kind)),
        };
        let found = format!("{} in {place}", fault.found);
        self.config.places.problem(wanted.key(key), found, expected, remedy)
    }

    fn of_certificate(&self, wanted: &Wanted<'_>, what: &str, remedy: &str) -> Problem {
        let found = format!("{what} in {}", wanted.settings.certificate);
        self.config
            .places
            .problem(wanted.key("certificate"), found, CHAIN, remedy)
    }

    fn of_key(&self, wanted: &Wanted<'_>, what: &str, remedy: &str) -> Problem {
        let found = format!("{what} in {}", wanted.settings.key);
        self.config.places.problem(wanted.key("key"), found, KEY, remedy)
    }
}

/// An identity to be loaded, and where the configuration says so.
struct Wanted<'a> {
    settings: &'a config::Identity,
    /// The `[[identity]]`.
    configured: &'a str,
    in_folder: bool,
}

impl<'a> Wanted<'a> {
    fn configured(settings: &'a config::Identity) -> Wanted<'a> {
        Wanted {
            settings,
            configured: &settings.name,
            in_folder: false,
        }
    }

    fn of_folder(settings: &'a config::Identity, configured: &'a str) -> Wanted<'a> {
        Wanted {
            settings,
            configured,
            in_folder: true,
        }
    }

    /// The key of the configuration that it comes from: of a folder always the folder.
    fn key(&self, key: &'static str) -> String {
        self.own_key(if self.in_folder { "certificates" } else { key })
    }

    fn own_key(&self, key: &'static str) -> String {
        format!("identity \"{}\": {key}", self.configured)
    }
}

/// The file is at fault, where the signer reads it.
fn is_of_file(kind: FaultKind) -> bool {
    match kind {
        FaultKind::Module | FaultKind::Pin | FaultKind::Object | FaultKind::Mechanism => true,
        FaultKind::Token | FaultKind::Device | FaultKind::Timeout | FaultKind::Signer => false,
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
