//! `ringlock keys csr`: a request for a certificate whose key stays in the token.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;

use rcgen::string::PrintableString;
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, PublicKeyData, SignatureAlgorithm, SigningKey};
use ringlock_hsm::pkcs11::{Access, Pkcs11Session};
use ringlock_hsm::protocol::{Fault, FaultKind, KeyPlace};
use ringlock_hsm::scheme::{Curve, KeyKind};
use ringlock_hsm::token::{FoundKey, Session};
use ringlock_hsm::uri::ObjectMatch;
use ringlock_hsm::verify::PublicKey;
use rustls::SignatureScheme;
use rustls_pki_types::ServerName;

use super::{KeysError, Place, open};

/// X.520: the longest common name.
const COMMON_NAME_MAX: usize = 64;

/// What the certificate is to say.
pub(super) struct Wanted(CertificateParams);

impl Wanted {
    pub(super) fn new(names: &[String], subject: Option<&str>) -> Result<Wanted, KeysError> {
        for name in names {
            let host = name.strip_prefix("*.").unwrap_or(name);
            if ServerName::try_from(host).is_err() {
                let found = format!("found {name:?} as --name, which is neither a DNS name nor an IP address");
                return Err(KeysError::new(
                    found,
                    "correct it; internationalised names are written in ASCII, xn--…",
                ));
            }
        }
        let params = CertificateParams::new(names);
        let mut params = params.map_err(|error| {
            KeysError::new(
                format!("found names that cannot be asked for ({error})"),
                "correct --name",
            )
        })?;
        params.distinguished_name = match subject {
            Some(subject) => parse_subject(subject)?,
            None => common_name(&names[0]),
        };
        Ok(Wanted(params))
    }
}

/// Asks in the first of the tokens that has the key: those of a group hold the same.
pub(super) fn run(
    places: &[Place],
    object: ObjectMatch,
    wanted: &Wanted,
    out: Option<&Path>,
) -> Result<String, KeysError> {
    let place = KeyPlace::Object(object);
    let mut failed = None;
    for token in places {
        let found = open(token, Access::Read).and_then(|(module, mut session)| {
            let key = session.find(&place)?;
            Ok((module, session, key))
        });
        match found {
            Ok((_module, session, key)) => {
                let pem = request(session, key, wanted)?;
                let Some(path) = out else { return Ok(pem) };
                write_new(path, pem.as_bytes())?;
                return Ok(format!("wrote {}\n", path.display()));
            }
            Err(fault) => failed = failed.or(Some(fault)),
        }
    }
    Err(failed.expect("there is a token, and its key was not found").into())
}

fn request(session: Pkcs11Session, key: FoundKey, wanted: &Wanted) -> Result<String, KeysError> {
    let key = TokenKey::new(session, key)?;
    let made = wanted.0.serialize_request(&key);
    if let Some(fault) = key.fault.take() {
        return Err(fault.into());
    }
    let pem = made.and_then(|request| request.pem());
    pem.map_err(|error| {
        KeysError::new(
            format!("found names that cannot be asked for ({error})"),
            "correct --name and --subject",
        )
    })
}

/// A key in a token, as rcgen wants it.
struct TokenKey {
    session: RefCell<Pkcs11Session>,
    key: FoundKey,
    /// The public key itself, without its algorithm.
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
    scheme: SignatureScheme,
    /// What rcgen's error cannot carry.
    fault: RefCell<Option<Fault>>,
}

impl TokenKey {
    fn new(session: Pkcs11Session, key: FoundKey) -> Result<TokenKey, Fault> {
        let unusable = || {
            Fault::new(
                FaultKind::Mechanism,
                format!("a key in {} that no request can be signed with", session.token()),
            )
        };
        let (algorithm, scheme): (&SignatureAlgorithm, _) = match KeyKind::of(&key.public).ok_or_else(unusable)? {
            KeyKind::Rsa { .. } => (&rcgen::PKCS_RSA_SHA256, SignatureScheme::RSA_PKCS1_SHA256),
            KeyKind::Ec(Curve::P256) => (&rcgen::PKCS_ECDSA_P256_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256),
            KeyKind::Ec(Curve::P384) => (&rcgen::PKCS_ECDSA_P384_SHA384, SignatureScheme::ECDSA_NISTP384_SHA384),
            KeyKind::Ec(Curve::P521) => (&rcgen::PKCS_ECDSA_P521_SHA512, SignatureScheme::ECDSA_NISTP521_SHA512),
            KeyKind::Ed25519 => (&rcgen::PKCS_ED25519, SignatureScheme::ED25519),
        };
        if !key.schemes.iter().any(|(offered, _)| *offered == scheme) {
            return Err(unusable());
        }
        let bits = PublicKey::from_der(&key.public).ok_or_else(unusable)?.bits().to_vec();
        Ok(TokenKey {
            session: RefCell::new(session),
            key,
            bits,
            algorithm,
            scheme,
            fault: RefCell::default(),
        })
    }

    /// Signs, and believes nothing.
    fn verified(&self, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut session = self.session.borrow_mut();
        let signature = session.sign(&self.key, self.scheme, message)?;
        let public = PublicKey::from_der(&self.key.public);
        if !public.is_some_and(|public| public.verify(self.scheme, message, &signature)) {
            let found = format!("a wrong signature from {}", session.token());
            return Err(Fault::new(FaultKind::Device, found));
        }
        Ok(signature)
    }
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.verified(message).map_err(|fault| {
            self.fault.replace(Some(fault));
            rcgen::Error::RemoteKeyError
        })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if name.len() <= COMMON_NAME_MAX {
        subject.push(DnType::CommonName, name);
    }
    subject
}

/// `CN=…,O=…`; a backslash takes the comma after it for what it is.
fn parse_subject(text: &str) -> Result<DistinguishedName, KeysError> {
    let refuse = |found: String| {
        let remedy = "write CN, O, OU, L, ST and C with their values, such as \"CN=www.example.com,O=Example,C=DE\"";
        Err(KeysError::new(found, remedy))
    };
    let mut subject = DistinguishedName::new();
    for part in split_unescaped(text) {
        let Some((name, value)) = part.split_once('=') else {
            return refuse(format!("found {part:?} in --subject, which has no value"));
        };
        let kind = match name.trim().to_ascii_uppercase().as_str() {
            "CN" => DnType::CommonName,
            "O" => DnType::OrganizationName,
            "OU" => DnType::OrganizationalUnitName,
            "L" => DnType::LocalityName,
            "ST" => DnType::StateOrProvinceName,
            "C" => DnType::CountryName,
            _ => {
                return refuse(format!(
                    "found {:?} in --subject, which is no attribute that is known",
                    name.trim()
                ));
            }
        };
        if value.trim().is_empty() {
            return refuse(format!("found {:?} in --subject without a value", name.trim()));
        }
        if subject.get(&kind).is_some() {
            return refuse(format!("found {:?} twice in --subject", name.trim()));
        }
        let value = value.trim();
        // X.520: the one attribute here that is not any text.
        if kind == DnType::CountryName {
            match PrintableString::try_from(value) {
                Ok(code) if value.len() == 2 => subject.push(kind, DnValue::PrintableString(code)),
                _ => {
                    return refuse(format!(
                        "found the country {value:?} in --subject, which is no code of two letters"
                    ));
                }
            }
        } else {
            subject.push(kind, value);
        }
    }
    Ok(subject)
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let last = parts.last_mut().expect("there is one from the beginning");
        match letter {
            ',' => parts.push(String::new()),
            '\\' => last.extend(letters.next()),
            letter => last.push(letter),
        }
    }
    parts
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), KeysError> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(content)).map_err(|error| {
        let found = format!("found {} unfit to be written ({error})", path.display());
        KeysError::new(found, "name a file that does not exist yet, in a directory that does")
    })
}
