//! What a signer signs with. Two kinds: the tokens of a PKCS#11 module and keys in files.

use rustls::SignatureScheme;

use crate::protocol::{Fault, KeyPlace, TokenSettings};
use crate::uri::ObjectMatch;

/// A loaded module. One for each signer.
pub trait Module: Send + Sync {
    /// What it says of itself, for people: its name and version.
    fn description(&self) -> String;

    /// Begins anew, as if it had just been loaded. Every session of every token is lost, so none may be in use.
    ///
    /// # Errors
    /// It does not come up again.
    fn reset(&self) -> Result<(), Fault>;

    /// Opens a session. The first one of a token logs in, with the PIN read anew; later ones find that done.
    ///
    /// # Errors
    /// The token is not there, refuses the PIN, has only one attempt left (which is not used), or has no session left.
    fn open(&self, settings: &TokenSettings) -> Result<Box<dyn Session>, Fault>;
}

/// A session with a token, of one thread.
pub trait Session: Send {
    /// The token, for people: label and serial number.
    fn token(&self) -> String;

    /// Finds a private key, and its public key.
    ///
    /// # Errors
    /// There is none like that, or several, or nothing tells its public key.
    fn find(&mut self, place: &KeyPlace) -> Result<FoundKey, Fault>;

    /// This key is not used any more: what is kept of it may go. Tokens keep their keys themselves.
    fn release(&mut self, _key: &FoundKey) {}

    /// Signs. The message is hashed here where the scheme wants a hash; ECDSA's r and s come in DER.
    ///
    /// # Errors
    /// The token failed.
    fn sign(&mut self, key: &FoundKey, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, Fault>;

    /// The certificates that fit, in DER.
    ///
    /// # Errors
    /// There are none, or the token failed.
    fn certificates(&mut self, object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault>;

    /// Does something harmless, so that the token does not drop an idle session.
    ///
    /// # Errors
    /// The session is lost.
    fn touch(&mut self) -> Result<(), Fault>;
}

/// A private key, of the session that found it and those of the same token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundKey {
    /// What the module calls it.
    pub handle: u64,
    /// Its public key: SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
    /// What it can sign with, best first, and by which mechanism of the token (such as `CKM_ECDSA`).
    pub schemes: Vec<(SignatureScheme, &'static str)>,
}
