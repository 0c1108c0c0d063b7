//! Key custody: the one place, besides Ringlock's crypto engines, that holds private keys. Everybody else holds a [`KeyRef`].

mod channel;
pub mod custody;
pub mod files;
pub mod formats;
pub mod launcher;
mod loaded;
mod local;
mod passing;
pub mod pin;
pub mod pkcs11;
mod pool;
pub mod protocol;
mod queue;
pub mod regular_file;
pub mod remote;
pub mod sandbox;
pub mod scheme;
mod seat;
pub mod signer;
pub mod token;
pub mod uri;
pub mod verify;

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

/// A private key that can be used but not read.
#[derive(Clone)]
pub struct KeyRef(Arc<dyn SigningKey>);

/// Why a key, or certificates, cannot be used: what was found in place of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The file is of no format that is known.
    #[error("neither PEM nor DER nor PKCS#12")]
    Unknown,
    /// The file holds no private key.
    #[error("no private key")]
    Missing,
    /// Nothing tells which of so many keys is meant.
    #[error("{0} private keys")]
    Several(usize),
    /// The key, or all of the file, is protected by a pass phrase.
    #[error("a private key that is encrypted with a pass phrase")]
    Encrypted,
    /// The pass phrase is of something else.
    #[error("what the pass phrase does not open")]
    Passphrase,
    /// A format that is not read.
    #[error("{}", .0.name)]
    Foreign(&'static formats::Foreign),
    /// The file is no valid PEM.
    #[error("text that is no valid PEM ({0})")]
    Pem(String),
    /// The key's algorithm or encoding is not supported.
    #[error("a private key that cannot be used ({0})")]
    Unsupported(String),
}

impl KeyError {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            KeyError::Unknown | KeyError::Missing => "check the path, and what the file holds",
            KeyError::Several(_) => "write the key that belongs to the certificate to a file of its own",
            KeyError::Encrypted => {
                "set passphrase_file to a file whose first line is the pass phrase, or take it off: openssl pkey -in FILE -out PLAIN"
            }
            KeyError::Passphrase => "correct the first line of passphrase_file",
            KeyError::Foreign(format) => format.conversion,
            KeyError::Pem(_) => "check that the file is complete",
            KeyError::Unsupported(_) => {
                "make a new key, or convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW"
            }
        }
    }
}

impl KeyRef {
    /// Loads a key from the bytes of a file, whatever its format.
    ///
    /// # Errors
    /// No key in it, an encrypted key, or an algorithm that is not supported.
    pub fn from_pem(file: &[u8]) -> Result<KeyRef, KeyError> {
        formats::private_key(file, None).and_then(local::load_der).map(KeyRef)
    }

    /// Takes over a key.
    ///
    /// # Errors
    /// An algorithm that is not supported.
    pub fn from_der(der: PrivateKeyDer<'static>) -> Result<KeyRef, KeyError> {
        local::load_der(der).map(KeyRef)
    }
}

impl fmt::Debug for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRef({:?})", self.0.algorithm())
    }
}

impl SigningKey for KeyRef {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(offered)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}
