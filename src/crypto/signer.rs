//! A key as rustls sees it: every signature is an operation that another engine may answer.

use ringlock_hsm::KeyRef;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use super::{CryptoOp, CryptoResult, suspend};

/// See the module.
#[derive(Debug)]
pub struct SuspendingKey(pub KeyRef);

#[derive(Debug)]
struct SuspendingSigner {
    key: KeyRef,
    scheme: SignatureScheme,
}

impl SigningKey for SuspendingKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.0.choose_scheme(offered)?.scheme();
        Some(Box::new(SuspendingSigner {
            key: self.0.clone(),
            scheme,
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Signer for SuspendingSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let op = CryptoOp::Sign {
            key: self.key.clone(),
            scheme: self.scheme,
            message: message.into(),
        };
        match suspend::ask(op) {
            CryptoResult::Signature(answer) => answer,
            CryptoResult::Abandoned => Err(Error::General("the connection is over".into())),
            CryptoResult::KeyExchange(_) => unreachable!("the answer is of the operation's kind"),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
