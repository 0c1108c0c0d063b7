//! A key that a signer has found: what it signed to show that it can, and whether that is right.

use std::sync::Arc;
use std::time::Duration;

use rustls::SignatureScheme;

use crate::protocol::{Fault, FaultKind, KeyDescription, KeyNumber, Proof};
use crate::remote::KeyHandle;
use crate::verify::PublicKey;

/// What proofs sign begins with this, so that they are of no use as anything else (RFC 8446, 4.4.3, has its own context).
const CHALLENGE: &[u8] = b"Ringlock asks whether this key can be used: ";

/// A key that has shown that it can sign.
#[derive(Debug)]
pub struct OpenedKey {
    /// Keeps it open.
    pub handle: Arc<KeyHandle>,
    /// SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
    /// What it has signed with, best first. Not empty.
    pub schemes: Vec<SignatureScheme>,
    /// In which token, for people.
    pub token: String,
}

/// A key with all that it has tried.
#[derive(Debug)]
pub struct ExaminedKey {
    /// Keeps it open.
    pub handle: Arc<KeyHandle>,
    /// SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
    /// In which token, for people.
    pub token: String,
    /// One for each scheme for which key and token have what it takes, best first.
    pub trials: Vec<Trial>,
}

/// A signature that was made, and verified here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Of TLS.
    pub scheme: SignatureScheme,
    /// By which it is made, such as CKM_ECDSA.
    pub mechanism: String,
    /// What the token took.
    pub signing: Duration,
    /// Whether the signature is right.
    pub outcome: Result<(), Fault>,
}

impl ExaminedKey {
    pub(super) fn new(handle: Arc<KeyHandle>, description: KeyDescription) -> Result<ExaminedKey, Fault> {
        let KeyDescription { public, token, proofs } = description;
        let Some(key) = PublicKey::from_der(&public) else {
            return Err(Fault::new(FaultKind::Object, "a public key that is none"));
        };
        let challenge = challenge(handle.number);
        let tried = |proof: Proof| {
            let (scheme, mechanism) = (SignatureScheme::from(proof.scheme), proof.mechanism);
            let outcome = match proof.signature {
                Ok(signature) if key.verify(scheme, &challenge, &signature) => Ok(()),
                Ok(_) => {
                    let found = format!("a wrong signature by {mechanism} ({scheme:?}) from the token {token}");
                    Err(Fault::new(FaultKind::Mechanism, found))
                }
                Err(fault) => Err(Fault {
                    found: format!(
                        "{} when the token {token} signs by {mechanism} ({scheme:?})",
                        fault.found
                    ),
                    ..fault
                }),
            };
            Trial {
                scheme,
                mechanism,
                signing: Duration::from_micros(proof.signing_us.into()),
                outcome,
            }
        };
        let trials = proofs.into_iter().map(tried).collect();
        Ok(ExaminedKey {
            handle,
            public,
            token,
            trials,
        })
    }

    /// The schemes with which it signs.
    ///
    /// # Errors
    /// There is none, or one that it should have and has not.
    pub fn schemes(&self) -> Result<Vec<SignatureScheme>, Fault> {
        if self.trials.is_empty() {
            let found = format!("no mechanism of the token {} that this key can sign with", self.token);
            return Err(Fault::new(FaultKind::Mechanism, found));
        }
        let proven = |trial: &Trial| trial.outcome.clone().map(|()| trial.scheme);
        self.trials.iter().map(proven).collect()
    }
}

/// What its proofs sign.
pub(super) fn challenge(key: KeyNumber) -> Vec<u8> {
    [CHALLENGE, &key.0.to_le_bytes()].concat()
}
