//! Keys in files, behind the signer: read here, used here, never shown to the gateway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::SignatureScheme;
use rustls::sign::SigningKey;

use crate::protocol::{Fault, FaultKind, KeyPlace, TokenSettings};
use crate::token::{FoundKey, Module, Session};
use crate::uri::ObjectMatch;
use crate::{KeyError, formats, local, pin, regular_file};

/// A longer file is no private key.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Best first: stronger curves and hashes are only dearer, so each key begins with what clients ask for most.
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Keys in files, as a module: the keys that have been read, by their handles.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<Keys>>);

#[derive(Default)]
struct Keys {
    loaded: BTreeMap<u64, Arc<dyn SigningKey>>,
    /// Handles are never used twice.
    next: u64,
}

impl Files {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().expect("nobody panics while holding this lock")
    }
}

impl Module for Files {
    fn description(&self) -> String {
        "keys in files".to_owned()
    }

    /// What has been read stays: a file may have been replaced, and its old key is used until somebody asks for the new one.
    fn reset(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn open(&self, _settings: &TokenSettings) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl Session for Files {
    fn token(&self) -> String {
        "files".to_owned()
    }

    fn find(&mut self, place: &KeyPlace) -> Result<FoundKey, Fault> {
        let (path, passphrase) = match place {
            KeyPlace::File { path, passphrase } => (path, passphrase),
            KeyPlace::Object(_) => {
                return Err(Fault::new(
                    FaultKind::Object,
                    "an object of a token, where a file is expected",
                ));
            }
        };
        let file = regular_file::read(path, FILE_BYTES_MAX)
            .map_err(|error| Fault::new(FaultKind::Module, format!("{error} in {}", path.display())))?;
        let passphrase = passphrase.as_deref().map(pin::passphrase).transpose()?;
        let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_slice());
        let key = formats::private_key(&file, passphrase).and_then(local::load_der);
        let key = key.map_err(|error| {
            let kind = match error {
                KeyError::Unknown
                | KeyError::Missing
                | KeyError::Several(_)
                | KeyError::Encrypted
                | KeyError::Passphrase
                | KeyError::Foreign(_)
                | KeyError::Pem(_) => FaultKind::Object,
                KeyError::Unsupported(_) => FaultKind::Mechanism,
            };
            Fault::new(kind, format!("{error} in {}", path.display()))
        })?;
        let Some(public) = key.public_key().map(|public| public.to_vec()) else {
            return Err(Fault::new(
                FaultKind::Mechanism,
                format!("no public key in {}", path.display()),
            ));
        };
        let able = |scheme: &SignatureScheme| key.choose_scheme(&[*scheme]).is_some();
        let schemes = SCHEMES
            .into_iter()
            .filter(able)
            .map(|scheme| (scheme, "software"))
            .collect();
        let mut keys = self.keys();
        let handle = keys.next;
        keys.next += 1;
        keys.loaded.insert(handle, key);
        Ok(FoundKey {
            handle,
            public,
            schemes,
        })
    }

    fn release(&mut self, key: &FoundKey) {
        self.keys().loaded.remove(&key.handle);
    }

    fn sign(&mut self, key: &FoundKey, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let Some(key) = self.keys().loaded.get(&key.handle).cloned() else {
            return Err(Fault::new(FaultKind::Object, "a key that has been released"));
        };
        let Some(signer) = key.choose_scheme(&[scheme]) else {
            return Err(Fault::new(
                FaultKind::Mechanism,
                format!("a key that cannot sign with {scheme:?}"),
            ));
        };
        signer
            .sign(message)
            .map_err(|error| Fault::new(FaultKind::Device, error.to_string()))
    }

    fn certificates(&mut self, _object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault> {
        Err(Fault::new(
            FaultKind::Object,
            "keys in files, which have no certificates beside them",
        ))
    }

    fn touch(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file_at(path: &Path) -> KeyPlace {
        KeyPlace::File {
            path: path.to_owned(),
            passphrase: None,
        }
    }

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn place(file: &tempfile::NamedTempFile) -> KeyPlace {
        file_at(file.path())
    }

    #[test]
    fn a_key_signs_until_it_is_released_whatever_becomes_of_its_file() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
        let pair = rcgen::KeyPair::generate().unwrap();
        let file = file(pair.serialize_pem().as_bytes());
        let mut session = Files::default();
        let key = session.find(&place(&file)).unwrap();
        assert_eq!(key.public, rcgen::PublicKeyData::subject_public_key_info(&pair));
        assert_eq!(key.schemes, [(SignatureScheme::ECDSA_NISTP256_SHA256, "software")]);
        std::fs::write(file.path(), "another").unwrap();
        let signature = session.sign(&key, key.schemes[0].0, b"message").unwrap();
        let public = rcgen::PublicKeyData::der_bytes(&pair);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public)
            .verify(b"message", &signature)
            .unwrap();
        let wrong = session.sign(&key, SignatureScheme::ED25519, b"message").unwrap_err();
        assert_eq!(wrong.kind, FaultKind::Mechanism);
        session.release(&key);
        assert_eq!(
            session.sign(&key, key.schemes[0].0, b"message").unwrap_err().kind,
            FaultKind::Object
        );
        assert!(session.keys().loaded.is_empty());
    }

    #[test]
    fn what_is_no_key_is_named_with_its_file() {
        let mut session = Files::default();
        let certificate = file(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let fault = session.find(&place(&certificate)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Object);
        assert_eq!(
            fault.found,
            format!("no private key in {}", certificate.path().display())
        );
        let fault = session.find(&file_at(Path::new("/nonexistent/key.pem"))).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Module);
        assert!(fault.found.ends_with("in /nonexistent/key.pem"), "{fault}");
        let long = file(&vec![b'\n'; 1024 * 1024 + 1]);
        let fault = session.find(&place(&long)).unwrap_err();
        assert!(fault.found.starts_with("1048577 bytes, more than 1048576"), "{fault}");
        let folder = file_at(&std::env::temp_dir());
        assert_eq!(session.find(&folder).unwrap_err().kind, FaultKind::Module);
    }
}
