//! Keys that are somewhere else, as the gateway sees them: in tokens, of which a group holds the same keys.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::protocol::{Breaker, KeyNumber, KeyPlace, TokenNumber, TokenSettings, TokenStatus};
use crate::verify::PublicKey;

/// A signer, numbered from 0 in the order of their first start. Each worker has a channel to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignerNumber(pub u32);

/// Where a signer runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// In a process of its own: what its module does to it ends only that.
    #[default]
    Process,
    /// On threads of the gateway.
    Thread,
}

/// What makes two tokens share a signer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SignerSpec {
    /// The PKCS#11 module; `None` for keys in files.
    pub module: Option<PathBuf>,
    /// Where it runs.
    pub isolation: Isolation,
    /// Whom its process becomes; `None`: the gateway's user.
    pub user: Option<String>,
    /// Its process gives up what no module needs.
    pub sandbox: bool,
}

/// A token, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// For people and metrics.
    pub name: String,
    /// Who loads its module.
    pub signer: SignerSpec,
    /// How it is used.
    pub settings: TokenSettings,
}

/// Tokens that hold the same keys, as configured. Most have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// For people and metrics.
    pub name: String,
    /// At least one.
    pub tokens: Vec<TokenSpec>,
    /// Handshakes of one worker that may wait.
    pub queue: usize,
    /// While no token can be used, handshakes wait for one; otherwise they fail at once.
    pub waits: bool,
    /// What a signature may take, waiting included.
    pub timeout: Duration,
}

/// A token that is in use.
#[derive(Debug)]
pub struct Token {
    /// As configured.
    pub spec: TokenSpec,
    /// Of its signer.
    pub number: TokenNumber,
    /// Who has it.
    pub signer: SignerNumber,
    usable: AtomicBool,
    status: Mutex<TokenStatus>,
    signer_restarts: Arc<AtomicU64>,
}

impl Token {
    /// One of which nothing is known yet. `signer_restarts` is counted by whoever restarts its signer.
    #[must_use]
    pub fn new(spec: TokenSpec, number: TokenNumber, signer: SignerNumber, signer_restarts: Arc<AtomicU64>) -> Token {
        Token {
            spec,
            number,
            signer,
            usable: AtomicBool::new(false),
            status: Mutex::default(),
            signer_restarts,
        }
    }

    /// Requests may be sent to it, as far as is known.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> TokenStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often its signer was started again.
    #[must_use]
    pub fn signer_restarts(&self) -> u64 {
        self.signer_restarts.load(Ordering::Relaxed)
    }

    /// Requests that one worker has on their way to it at most: it keeps all sessions busy by itself, with some requests at their door
    /// while answers are on their way.
    #[must_use]
    pub fn window(&self) -> usize {
        let sessions = self.spec.settings.sessions as usize;
        sessions + sessions / 2 + 2
    }

    /// Takes what has become known.
    pub fn set_status(&self, status: TokenStatus) {
        self.usable.store(status.breaker != Breaker::Open, Ordering::Relaxed);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// A group that is in use. Its number is that of its queue in every worker.
#[derive(Debug)]
pub struct Group {
    /// Never used anew.
    pub number: u32,
    /// As configured.
    pub spec: GroupSpec,
    /// In the order of the specification.
    pub tokens: Vec<Arc<Token>>,
}

/// A key that a signer has been told of. The signer is told to forget it when the last reference is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyHandle {
    /// Of its signer.
    pub number: KeyNumber,
    /// In which token.
    pub token: TokenNumber,
    /// Where there.
    pub place: KeyPlace,
}

/// A private key in a token of a group, or the same one in several.
pub struct RemoteKey {
    group: Arc<Group>,
    /// By position of the group's tokens; `None`: it was not found there.
    handles: Vec<Option<Arc<KeyHandle>>>,
    public: Vec<u8>,
    /// Of `public`, the key itself.
    bits: Vec<u8>,
    algorithm: SignatureAlgorithm,
    schemes: Vec<(SignatureScheme, &'static dyn SignatureVerificationAlgorithm)>,
}

impl RemoteKey {
    /// `handles` are by position of the group's tokens; `public` is its SubjectPublicKeyInfo. `None` when that is none, or can verify
    /// nothing of these schemes.
    #[must_use]
    pub fn new(
        group: Arc<Group>,
        handles: Vec<Option<Arc<KeyHandle>>>,
        public: Vec<u8>,
        schemes: &[SignatureScheme],
    ) -> Option<RemoteKey> {
        debug_assert!(handles.len() == group.tokens.len(), "one entry for each token");
        let key = PublicKey::from_der(&public)?;
        let verifier = |&scheme: &SignatureScheme| Some((scheme, key.algorithm(scheme)?));
        let schemes: Vec<_> = schemes.iter().filter_map(verifier).collect();
        let algorithm = algorithm(schemes.first()?.0);
        let bits = key.bits().to_vec();
        Some(RemoteKey {
            group,
            handles,
            public,
            bits,
            algorithm,
            schemes,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Its number in the group's token at this position.
    #[must_use]
    pub fn number(&self, token: usize) -> Option<KeyNumber> {
        Some(self.handles.get(token)?.as_ref()?.number)
    }

    /// SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn public(&self) -> SubjectPublicKeyInfoDer<'_> {
        SubjectPublicKeyInfoDer::from(self.public.as_slice())
    }

    /// Its kind.
    #[must_use]
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The first of its schemes, best first, that is offered.
    #[must_use]
    pub fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<SignatureScheme> {
        let mut own = self.schemes.iter().map(|(scheme, _)| *scheme);
        own.find(|scheme| offered.contains(scheme))
    }

    /// What verifies its signatures of this scheme, and the key as that wants it; nothing when it has not this scheme.
    #[must_use]
    pub fn verifier(&self, scheme: SignatureScheme) -> Option<(&'static dyn SignatureVerificationAlgorithm, &[u8])> {
        let (_, algorithm) = self.schemes.iter().find(|(own, _)| *own == scheme)?;
        Some((*algorithm, &self.bits))
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteKey({:?} in {})", self.algorithm, self.group.spec.name)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has more schemes than keys can have here"
)]
fn algorithm(scheme: SignatureScheme) -> SignatureAlgorithm {
    use SignatureScheme as S;
    match scheme {
        S::ECDSA_NISTP256_SHA256 | S::ECDSA_NISTP384_SHA384 | S::ECDSA_NISTP521_SHA512 => SignatureAlgorithm::ECDSA,
        S::ED25519 => SignatureAlgorithm::ED25519,
        _ => SignatureAlgorithm::RSA,
    }
}
