//! `ringlock keys test`: keys sign through the signer, as the gateway has them, and what they signed is verified.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use ringlock_hsm::custody::{Custody, ExaminedKey, launcher};
use ringlock_hsm::protocol::{Fault, KeyPlace};
use ringlock_hsm::remote::{Group, GroupSpec, TokenSpec};
use ringlock_hsm::scheme::KeyKind;
use ringlock_hsm::uri::{ObjectMatch, Uri};
use ringlock_hsm::{formats, pin, regular_file, signer};
use rustls::pki_types::CertificateDer;
use serde::Serialize;

use super::{Answer, KeysError, Place, group};
use crate::config::{CertificateSource, Config, Identity, KeySource, TokenId};
use crate::control::table::{printable, table};
use crate::identity::chain;
use crate::limits::CERTIFICATE_FILE_BYTES_MAX;
use crate::snapshot;

/// A key of one token, and what it is to belong to.
pub(super) struct Subject {
    identity: Option<String>,
    key: String,
    token: GroupSpec,
    place: KeyPlace,
    certificate: Option<Certificate>,
}

#[derive(Clone)]
struct Certificate {
    shown: String,
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// With the file of the pass phrase.
    File(PathBuf, Option<PathBuf>),
    Tokens(Vec<TokenSpec>, ObjectMatch),
}

/// The key of a URI, in each of these tokens.
pub(super) fn subjects_of(uri: &Uri, places: &[Place], config: Option<&Config>) -> Vec<Subject> {
    let subject = |place: &Place| {
        let certificate = config.and_then(|config| {
            let is_named = |TokenId(token): &TokenId| Some(&config.tokens[*token].name) == place.name.as_ref();
            let uses = |identity: &&Identity| {
                matches!(&identity.key, KeySource::Tokens(key) if key.object == uri.object && key.tokens.iter().any(is_named))
            };
            Some(Certificate::of(config.identities.iter().find(uses)?, config))
        });
        let key = Uri {
            pin_source: None,
            ..uri.clone()
        };
        Subject {
            identity: None,
            key: key.to_string(),
            token: group(place.spec(config)),
            place: KeyPlace::Object(uri.object.clone()),
            certificate,
        }
    };
    places.iter().map(subject).collect()
}

/// The keys of a configuration that are in tokens or behind a signer.
pub(super) fn subjects_in(config: Option<&Config>) -> Result<Vec<Subject>, KeysError> {
    let Some(config) = config else {
        let remedy = "give --config FILE, or --key URI with --module PATH and --pin-source file:PATH";
        return Err(KeysError::new("found neither a configuration nor a key", remedy));
    };
    let user = config.global.user.as_ref();
    let mut subjects = Vec::new();
    for identity in identities_in(config)? {
        let (tokens, place) = match &identity.key {
            // The gateway uses it itself, and a load tells whether it can.
            KeySource::File(_) => continue,
            KeySource::Signer(path) => {
                let place = KeyPlace::File {
                    path: path.clone(),
                    passphrase: identity.passphrase.clone(),
                };
                (vec![snapshot::files(user)], place)
            }
            KeySource::Tokens(key) => (
                specs(config, &key.tokens).map(group).collect(),
                KeyPlace::Object(key.object.clone()),
            ),
        };
        subjects.extend(tokens.into_iter().map(|token| Subject {
            identity: Some(identity.name.clone()),
            key: identity.key.to_string(),
            token,
            place: place.clone(),
            certificate: Some(Certificate::of(&identity, config)),
        }));
    }
    if subjects.is_empty() {
        let remedy = "name a key by --key; `ringlock check` tries those in files";
        let found = "found no [[identity]] whose key is in a token or behind a signer";
        return Err(KeysError::new(found, remedy));
    }
    Ok(subjects)
}

/// Those of folders one by one; what is broken there is left to `ringlock check`.
fn identities_in(config: &Config) -> Result<Vec<Identity>, KeysError> {
    let mut identities = Vec::new();
    for identity in &config.identities {
        match &identity.certificate {
            CertificateSource::Folder(folder) => {
                let pairs = snapshot::pairs(identity, folder).map_err(|what| {
                    let found = format!("found {what} in {}", folder.display());
                    KeysError::new(
                        found,
                        "check the path; docs/certificates.md says which files are looked for",
                    )
                })?;
                identities.extend(pairs.into_iter().flatten());
            }
            CertificateSource::File(_) | CertificateSource::Tokens(_) => identities.push(identity.clone()),
        }
    }
    Ok(identities)
}

fn specs<'a>(config: &'a Config, tokens: &'a [TokenId]) -> impl Iterator<Item = TokenSpec> + 'a {
    let user = config.global.user.as_ref();
    tokens
        .iter()
        .map(move |TokenId(token)| snapshot::token_spec(&config.tokens[*token], user))
}

impl Certificate {
    fn of(identity: &Identity, config: &Config) -> Certificate {
        Certificate {
            shown: identity.certificate.to_string(),
            source: match &identity.certificate {
                CertificateSource::File(path) | CertificateSource::Folder(path) => {
                    Source::File(path.clone(), identity.passphrase.clone())
                }
                CertificateSource::Tokens(object) => {
                    Source::Tokens(specs(config, &object.tokens).collect(), object.object.clone())
                }
            },
        }
    }
}

#[derive(Serialize)]
struct Tested {
    identity: Option<String>,
    /// URI or path.
    key: String,
    /// Of `[keys.NAME]`, or its module.
    configured_token: String,
    /// Label and serial number.
    token: Option<String>,
    kind: Option<String>,
    certificate: Option<TestedCertificate>,
    schemes: Vec<TestedScheme>,
    /// Why there is nothing to test.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct TestedCertificate {
    certificate: String,
    /// Why it is not the key's.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct TestedScheme {
    scheme: String,
    mechanism: String,
    signing_us: u64,
    /// Why there is no right signature.
    trouble: Option<String>,
}

pub(super) fn run(subjects: Vec<Subject>, json: bool) -> Answer {
    let mut test = Test {
        custody: Custody::new(0, launcher(signer::on_thread)),
        groups: Vec::new(),
    };
    let tested: Vec<Tested> = subjects.into_iter().map(|subject| test.test(subject)).collect();
    let failures = tested.iter().filter(|tested| !tested.works()).count();
    let text = if json {
        format!("{:#}\n", serde_json::json!({ "keys": tested, "works": failures == 0 }))
    } else {
        let verdict = match failures {
            0 => "every key works".to_owned(),
            failures => format!("{failures} of {} keys fail", tested.len()),
        };
        let texts: Vec<String> = tested.iter().map(Tested::text).collect();
        format!("{}\n{verdict}\n", texts.join("\n"))
    };
    Answer {
        text,
        whole: failures == 0,
    }
}

struct Test {
    custody: Custody,
    /// Kept, so that each token is opened once: a PIN that was refused is not tried again for the next key.
    groups: Vec<Arc<Group>>,
}

impl Test {
    fn group(&mut self, spec: &GroupSpec) -> Arc<Group> {
        let group = self.custody.group(spec);
        self.groups.push(Arc::clone(&group));
        group
    }

    fn test(&mut self, subject: Subject) -> Tested {
        let group = self.group(&subject.token);
        let mut tested = Tested {
            identity: subject.identity,
            key: subject.key,
            configured_token: subject.token.name,
            token: None,
            kind: None,
            certificate: None,
            schemes: Vec::new(),
            trouble: None,
        };
        let ExaminedKey {
            public, token, trials, ..
        } = match self.custody.examine(&group.tokens[0], &subject.place) {
            Ok(examined) => examined,
            Err(fault) => {
                tested.trouble = Some(told(fault));
                return tested;
            }
        };
        tested.token = Some(token);
        tested.kind = KeyKind::of(&public).map(|kind| kind.to_string());
        tested.certificate = subject.certificate.map(|certificate| TestedCertificate {
            trouble: self.compare(&certificate, &public).err().map(|error| error.to_string()),
            certificate: certificate.shown,
        });
        tested.schemes = trials
            .into_iter()
            .map(|trial| TestedScheme {
                scheme: format!("{:?}", trial.scheme),
                mechanism: trial.mechanism,
                signing_us: u64::try_from(trial.signing.as_micros()).unwrap_or(u64::MAX),
                trouble: trial.outcome.err().map(told),
            })
            .collect();
        if tested.schemes.is_empty() {
            let remedy = "use a key of a kind that the token can sign with";
            let found = "found no mechanism of the token that this key can sign with";
            tested.trouble = Some(KeysError::new(found, remedy).to_string());
        }
        tested
    }

    /// Whether the certificate, of a chain the first one, has this public key.
    fn compare(&mut self, certificate: &Certificate, public: &[u8]) -> Result<(), KeysError> {
        let found = match &certificate.source {
            Source::File(path, passphrase) => {
                let unreadable = |why: String| {
                    let found = format!("found {why} in {}", path.display());
                    KeysError::new(found, "check the path, and that the file holds the chain")
                };
                let file = regular_file::read(path, CERTIFICATE_FILE_BYTES_MAX)
                    .map_err(|error| unreadable(error.to_string()))?;
                let passphrase = passphrase.as_deref().map(pin::passphrase).transpose()?;
                let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_slice());
                formats::certificates(&file, passphrase).map_err(|error| unreadable(error.to_string()))?
            }
            Source::Tokens(tokens, object) => {
                let mut read = Err(None);
                for token in tokens {
                    let group = self.group(&group(token.clone()));
                    read = match read {
                        Err(first) => self
                            .custody
                            .certificates(&group.tokens[0], object)
                            .map_err(|fault| first.or(Some(fault))),
                        read => read,
                    };
                }
                let read = read.map_err(|fault| KeysError::from(fault.expect("a certificate has a token")))?;
                read.into_iter().map(CertificateDer::from).collect()
            }
        };
        chain::arrange(&found, public).map(|_| ()).map_err(|error| {
            let remedy = "check that URI and certificate are of the same key, and that both were renewed together";
            KeysError::new(format!("found {error} in {}", certificate.shown), remedy)
        })
    }
}

fn told(fault: Fault) -> String {
    KeysError::from(fault).to_string()
}

impl Tested {
    fn works(&self) -> bool {
        self.troubles().next().is_none()
    }

    fn troubles(&self) -> impl Iterator<Item = &String> {
        let certificate = self.certificate.iter().filter_map(|tested| tested.trouble.as_ref());
        let schemes = self.schemes.iter().filter_map(|tested| tested.trouble.as_ref());
        self.trouble.iter().chain(certificate).chain(schemes)
    }

    fn text(&self) -> String {
        let identity = self.identity.as_ref().map(|name| format!("identity \"{name}\": "));
        let mut text = format!(
            "{}{} in {}\n",
            identity.unwrap_or_default(),
            self.key,
            self.configured_token
        );
        if let Some(token) = &self.token {
            let kind = self.kind.as_deref().unwrap_or("of an unknown kind");
            let _ = writeln!(text, "  key {kind} found in {}", printable(token));
        }
        if let Some(TestedCertificate {
            certificate,
            trouble: None,
        }) = &self.certificate
        {
            let _ = writeln!(text, "  certificate {certificate} is the key's");
        }
        let rows: Vec<Vec<String>> = self.schemes.iter().map(TestedScheme::row).collect();
        if !rows.is_empty() {
            text.push_str(&table(&["scheme", "mechanism", "signature", "took"], rows, 2, 3));
        }
        for trouble in self.troubles() {
            let _ = writeln!(text, "  error: {}", printable(trouble));
        }
        text
    }
}

impl TestedScheme {
    fn row(&self) -> Vec<String> {
        let outcome = if self.trouble.is_none() { "right" } else { "FAILED" };
        vec![
            self.scheme.clone(),
            self.mechanism.clone(),
            outcome.to_owned(),
            format!("{:.2} ms", self.signing_us as f64 / 1000.0),
        ]
    }
}
