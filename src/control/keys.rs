//! What an operator does with keys in tokens: `ringlock keys`. Most commands load the module themselves; those that try and measure keys
//! start a signer.

mod bench;
mod csr;
mod list;
mod load;
mod test;

use std::path::PathBuf;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ringlock_hsm::pkcs11::{Access, NewKey, Pkcs11Module, Pkcs11Session};
use ringlock_hsm::protocol::{Fault, FaultKind, TokenSettings};
use ringlock_hsm::remote::{GroupSpec, Isolation, SignerSpec, TokenSpec};
use ringlock_hsm::scheme::Curve;
use ringlock_hsm::token::Session;
use ringlock_hsm::uri::{ObjectKind, ObjectMatch, PinSource, TokenMatch, Uri, UriError};

use crate::cli::{KeyType, KeysCommand, KeysTokens};
use crate::config::{Config, TokenConfig};
use crate::snapshot;

/// Bytes of a CKA_ID that is made up.
const ID_BYTES: usize = 8;

/// PKCS#11 has no bound, but tokens do.
const ID_BYTES_MAX: usize = 64;

/// What a signature may take in a token of which no configuration says that.
const SIGNATURE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a command has to say.
#[derive(Debug)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// False when it leaves something out that was asked for.
    pub whole: bool,
}

/// Why a command has failed: what was found, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{found}; {remedy}")]
pub struct KeysError {
    found: String,
    remedy: String,
}

impl KeysError {
    fn new(found: impl Into<String>, remedy: impl Into<String>) -> KeysError {
        KeysError {
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

impl From<UriError> for KeysError {
    fn from(UriError { found, remedy }: UriError) -> KeysError {
        KeysError::new(format!("found {found}"), remedy)
    }
}

impl From<Fault> for KeysError {
    fn from(fault: Fault) -> KeysError {
        let remedy = match fault.kind {
            FaultKind::Module => {
                "check the module's path, and what it needs: its own configuration, its device, its service"
            }
            FaultKind::Token => "name one of the tokens that are there",
            FaultKind::Pin => "correct the PIN in its file before the next attempt: tokens lock after a few wrong ones",
            FaultKind::Object => "`ringlock keys list` shows what the token holds",
            FaultKind::Mechanism => "use a key of a kind that the token can sign with",
            FaultKind::Device | FaultKind::Timeout | FaultKind::Signer => "look at the token's own log",
        };
        KeysError::new(format!("found {fault}"), remedy)
    }
}

/// Does what a command says, with the tokens of its configuration if it has one.
///
/// # Errors
/// What kept it from that.
pub fn run(command: &KeysCommand, config: Option<&Config>) -> Result<Answer, KeysError> {
    let configured = config.map_or(&[][..], |config| &config.tokens);
    let text = match command {
        KeysCommand::List { tokens, json } => return list::run(&places(tokens, configured, &Uri::default())?, *json),
        KeysCommand::Generate {
            tokens,
            key,
            kind,
            label,
            id,
        } => {
            let uri = key.as_deref().map(token_uri).transpose()?.unwrap_or_default();
            generate(&one(places(tokens, configured, &uri)?)?, *kind, label, id.as_deref())?
        }
        KeysCommand::Csr {
            tokens,
            key,
            name,
            subject,
            out,
        } => {
            let uri = key_uri(key)?;
            let wanted = csr::Wanted::new(name, subject.as_deref())?;
            csr::run(&places(tokens, configured, &uri)?, uri.object, &wanted, out.as_deref())?
        }
        KeysCommand::Test { tokens, key, json } => {
            let subjects = match key {
                Some(key) => {
                    let uri = key_uri(key)?;
                    test::subjects_of(&uri, &places(tokens, configured, &uri)?, config)
                }
                None => test::subjects_in(config)?,
            };
            return Ok(test::run(subjects, *json));
        }
        KeysCommand::Bench {
            tokens,
            key,
            scheme,
            sessions,
            duration,
            json,
        } => {
            let uri = key_uri(key)?;
            let place = one(places(tokens, configured, &uri)?)?;
            let wanted = bench::Wanted {
                token: place.spec(config),
                object: uri.object,
                scheme: scheme.as_deref(),
                sessions,
                duration: *duration,
            };
            return bench::run(&wanted, *json);
        }
    };
    Ok(Answer { text, whole: true })
}

/// The URI of one key.
fn key_uri(text: &str) -> Result<Uri, KeysError> {
    let uri = Uri::parse(text)?;
    if uri.object == ObjectMatch::default() {
        let remedy = "add object=LABEL or id=ID: `ringlock keys list` shows both";
        return Err(KeysError::new("found a pkcs11: URI without a key as --key", remedy));
    }
    Ok(uri)
}

/// A token, and how to get at it.
#[derive(Clone, Debug)]
struct Place {
    /// Of `[keys.NAME]`.
    name: Option<String>,
    group: Option<String>,
    module: PathBuf,
    settings: TokenSettings,
}

impl Place {
    fn of(token: &TokenConfig) -> Place {
        Place {
            name: Some(token.name.clone()),
            group: token.group.clone(),
            module: token.module.clone(),
            settings: settings(token.find.clone(), token.pin.clone()),
        }
    }

    /// As a signer is to use it.
    fn spec(&self, config: Option<&Config>) -> TokenSpec {
        let of_name = |config: &Config| {
            let token = config
                .tokens
                .iter()
                .find(|token| Some(&token.name) == self.name.as_ref())?;
            Some(snapshot::token_spec(token, config.global.user.as_ref()))
        };
        config.and_then(of_name).unwrap_or_else(|| TokenSpec {
            name: self.shown(),
            signer: SignerSpec {
                module: Some(self.module.clone()),
                isolation: Isolation::Process,
                user: None,
                sandbox: true,
            },
            settings: TokenSettings {
                timeout: SIGNATURE_TIMEOUT,
                ..self.settings.clone()
            },
        })
    }

    fn shown(&self) -> String {
        match &self.name {
            Some(name) => format!("[keys.{name}]"),
            None => self.module.display().to_string(),
        }
    }

    /// What a URI's token attribute may call it, the strongest first.
    fn names(&self) -> [Option<&String>; 3] {
        [
            self.name.as_ref(),
            self.group.as_ref(),
            self.settings.find.label.as_ref(),
        ]
    }
}

fn settings(find: TokenMatch, pin: Option<PinSource>) -> TokenSettings {
    TokenSettings {
        find,
        pin,
        sessions: 1,
        // Of the signer's: nothing here measures time.
        timeout: Duration::MAX,
        keep_alive: None,
        login: true,
    }
}

/// The tokens that are meant: of the configuration, those that the URI fits; otherwise the one of the options and the URI together.
fn places(options: &KeysTokens, configured: &[TokenConfig], uri: &Uri) -> Result<Vec<Place>, KeysError> {
    if options.config.is_none() {
        return Ok(vec![direct(options, uri)?]);
    }
    let all: Vec<Place> = configured.iter().map(Place::of).collect();
    if all.is_empty() {
        let remedy = "add one, or name a module by --module and a token by --token";
        return Err(KeysError::new("found no [keys.NAME] in the configuration", remedy));
    }
    let Some(label) = &uri.token.label else {
        return Ok(all);
    };
    let named = (0..3).map(|way| -> Vec<Place> {
        let called = all.iter().filter(|place| place.names()[way] == Some(label));
        called.cloned().collect()
    });
    let found = named.into_iter().find(|found: &Vec<Place>| !found.is_empty());
    found.ok_or_else(|| {
        let names: Vec<String> = all.iter().map(Place::shown).collect();
        let found = format!("found no [keys.{label}] in the configuration, and no token with that label");
        KeysError::new(found, format!("name one of {}", names.join(", ")))
    })
}

fn direct(options: &KeysTokens, uri: &Uri) -> Result<Place, KeysError> {
    let module = options
        .module
        .clone()
        .or_else(|| uri.module_path.clone())
        .ok_or_else(|| {
            let remedy = "give --config FILE, or --module PATH with --token LABEL and --pin-source file:PATH";
            KeysError::new("found neither a configuration nor a module", remedy)
        })?;
    let pin = options.pin_source.as_deref().map(PinSource::parse).transpose()?;
    let token = options.token.as_deref().map(token_uri).transpose()?.unwrap_or_default();
    Ok(Place {
        name: None,
        group: None,
        module,
        settings: settings(
            // One of the two is enough.
            if options.token.is_some() {
                token.token
            } else {
                uri.token.clone()
            },
            pin.or(token.pin_source).or_else(|| uri.pin_source.clone()),
        ),
    })
}

/// A token by its name or label, or by a URI.
fn token_uri(text: &str) -> Result<Uri, KeysError> {
    if Uri::is_meant(text) {
        return Ok(Uri::parse(text)?);
    }
    Ok(Uri {
        token: TokenMatch {
            label: Some(text.to_owned()),
            ..TokenMatch::default()
        },
        ..Uri::default()
    })
}

fn one(places: Vec<Place>) -> Result<Place, KeysError> {
    <[Place; 1]>::try_from(places).map(|[place]| place).map_err(|places| {
        let names: Vec<String> = places.iter().map(Place::shown).collect();
        let remedy = format!("name one of {} by --key", names.join(", "));
        KeysError::new("found several tokens", remedy)
    })
}

/// A group of one token.
fn group(token: TokenSpec) -> GroupSpec {
    GroupSpec {
        name: token.name.clone(),
        queue: 0,
        waits: false,
        timeout: token.settings.timeout,
        tokens: vec![token],
    }
}

fn open(place: &Place, access: Access) -> Result<(Pkcs11Module, Pkcs11Session), Fault> {
    let module = Pkcs11Module::load(&place.module)?;
    let session = module.session(&place.settings, access)?;
    Ok((module, session))
}

fn generate(place: &Place, kind: KeyType, label: &str, id: Option<&str>) -> Result<String, KeysError> {
    let id = match id {
        Some(digits) => parse_id(digits)?,
        None => random_id(),
    };
    if label.is_empty() {
        return Err(KeysError::new("found an empty --label", "give the key a name"));
    }
    let new = match kind {
        KeyType::P256 => NewKey::Ec(Curve::P256),
        KeyType::P384 => NewKey::Ec(Curve::P384),
        KeyType::Rsa2048 => NewKey::Rsa(2048),
        KeyType::Rsa3072 => NewKey::Rsa(3072),
        KeyType::Rsa4096 => NewKey::Rsa(4096),
        KeyType::Ed25519 => NewKey::Ed25519,
    };
    let (_module, mut session) = open(place, Access::Write)?;
    session.generate(new, label, &id)?;
    let token = session.description()?;
    let uri = Uri {
        token: TokenMatch {
            label: Some(place.name.clone().unwrap_or(token.label)),
            ..TokenMatch::default()
        },
        object: ObjectMatch {
            label: Some(label.to_owned()),
            id: None,
        },
        kind: Some(ObjectKind::Private),
        ..Uri::default()
    };
    Ok(format!(
        "made in {}, id {}\nkey = \"{uri}\"\n",
        session.token(),
        HEXLOWER.encode(&id)
    ))
}

fn parse_id(digits: &str) -> Result<Vec<u8>, KeysError> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| match pair {
            [_, _] if pair.iter().all(u8::is_ascii_hexdigit) => {
                u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()
            }
            _ => None,
        })
        .collect();
    bytes
        .filter(|bytes| (1..=ID_BYTES_MAX).contains(&bytes.len()))
        .ok_or_else(|| {
            KeysError::new(
                "found an --id that is no identifier",
                "write pairs of hexadecimal digits, such as 01af",
            )
        })
}

fn random_id() -> Vec<u8> {
    let mut id = [0; ID_BYTES];
    aws_lc_rs::rand::fill(&mut id).expect("aws-lc has random bytes, or ends the process");
    id.to_vec()
}
