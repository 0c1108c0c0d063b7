//! A key that is somewhere else, as rustls sees it: every signature is an operation that its token answers.

use std::sync::Arc;

use ringlock_hsm::remote::RemoteKey;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use super::{CryptoOp, suspend};

/// What rustls holds.
#[derive(Debug)]
pub struct RemoteSigningKey(pub Arc<RemoteKey>);

#[derive(Debug)]
struct RemoteSigner {
    key: Arc<RemoteKey>,
    scheme: SignatureScheme,
}

impl SigningKey for RemoteSigningKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.0.choose_scheme(offered)?;
        let key = Arc::clone(&self.0);
        Some(Box::new(RemoteSigner { key, scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.public())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let op = CryptoOp::SignElsewhere {
            key: Arc::clone(&self.key),
            scheme: self.scheme,
            message: message.into(),
        };
        suspend::signature(op)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
