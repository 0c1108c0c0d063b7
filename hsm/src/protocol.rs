//! What the gateway and a signer tell each other. Two kinds of connection, both stream sockets that the gateway makes:
//!
//! - one **control connection**: the gateway's [`Order`]s one way, the signer's [`Report`]s the other. The signer's end is its
//!   standard input; a channel's descriptor comes with the order that announces it.
//! - one **channel** for each worker: [`Request`]s one way, [`Response`]s in any order the other.
//!
//! A message is its length (4 bytes, little-endian) and its postcard encoding.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::uri::{ObjectMatch, PinSource, TokenMatch};

/// A longer message is a defect of whoever sends it, and ends the connection.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// A token of one signer, numbered by the gateway and never anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenNumber(pub u32);

/// A key of one signer, numbered by the gateway and never anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyNumber(pub u32);

/// From the gateway, obeyed in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// First, and once: what to load. Answered with [`Report::Loaded`].
    Load {
        /// A PKCS#11 module; `None` when the keys are in files.
        module: Option<PathBuf>,
        /// Give up rights that no module needs, for good.
        sandbox: bool,
    },
    /// A token that keys will be in. Opened at once; tried again for as long as it is not there, unless it refuses the PIN.
    Token {
        /// Its number from here on.
        token: TokenNumber,
        /// How it is used.
        settings: TokenSettings,
    },
    /// A key. Answered with [`Report::Key`]. From here on channels may ask for its signatures, also when it is not found now.
    Key {
        /// Its number from here on.
        key: KeyNumber,
        /// Of an [`Order::Token`].
        token: TokenNumber,
        /// Where it is.
        place: KeyPlace,
        /// What the proofs sign.
        challenge: Vec<u8>,
    },
    /// Certificates. Answered with [`Report::Certificates`].
    Certificates {
        /// Comes back with the answer.
        question: u64,
        /// Of an [`Order::Token`].
        token: TokenNumber,
        /// Which.
        object: ObjectMatch,
    },
    /// No signatures of this key any more.
    Forget(KeyNumber),
    /// This token is not needed any more; its keys are forgotten.
    Close(TokenNumber),
    /// A worker's channel: its descriptor comes with this order.
    Channel,
    /// Answered with [`Report::Pong`].
    Ping(u64),
}

/// How a token is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenSettings {
    /// Which token. Of keys in files: nothing.
    pub find: TokenMatch,
    /// Where its PIN is; `None` for a token that wants none.
    pub pin: Option<PinSource>,
    /// Sessions, each with a thread of its own.
    pub sessions: u32,
    /// A signature that takes longer hangs.
    pub timeout: Duration,
    /// A session that has been idle for so long is used for something harmless; `None`: never.
    pub keep_alive: Option<Duration>,
    /// False after the token has refused the PIN: not again before somebody has looked at it.
    pub login: bool,
}

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyPlace {
    /// In the token.
    Object(ObjectMatch),
    /// In a file that only the signer reads.
    File {
        /// The file.
        path: PathBuf,
        /// The file with the pass phrase of an encrypted key.
        passphrase: Option<PathBuf>,
    },
}

/// From the signer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Of [`Order::Load`]: what the module says of itself. After a fault the signer ends.
    Loaded(Result<String, Fault>),
    /// Of [`Order::Key`].
    Key {
        /// Which.
        key: KeyNumber,
        /// What was found.
        found: Result<KeyDescription, Fault>,
    },
    /// Of [`Order::Certificates`].
    Certificates {
        /// As asked.
        question: u64,
        /// In DER; all that fit.
        found: Result<Vec<Vec<u8>>, Fault>,
    },
    /// Without being asked: whenever it has changed, and at least once a second.
    Status {
        /// Of which token.
        token: TokenNumber,
        /// How it is.
        status: TokenStatus,
    },
    /// Of [`Order::Ping`].
    Pong(u64),
}

/// A private key as far as it may be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDescription {
    /// Its public key: SubjectPublicKeyInfo in DER.
    pub public: Vec<u8>,
    /// The token in which it was found, for people: label and serial number.
    pub token: String,
    /// One for each scheme for which key and token have what it takes.
    pub proofs: Vec<Proof>,
}

/// A signature of the challenge, made to see whether it can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// As in TLS.
    pub scheme: u16,
    /// By which it is made, such as CKM_ECDSA; for people.
    pub mechanism: String,
    /// As TLS wants it.
    pub signature: Result<Vec<u8>, Fault>,
    /// What the token took, in microseconds.
    pub signing_us: u32,
}

/// What kind of thing went wrong: decides what the operator is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// The module cannot be loaded or initialised, or the file not be read.
    Module,
    /// No token is like that, or several are.
    Token,
    /// The PIN cannot be read, or the token refuses it, or has one attempt left, which is not used.
    Pin,
    /// No object of the token is like that, or several are.
    Object,
    /// The token has not what this key needs.
    Mechanism,
    /// The token failed.
    Device,
    /// The token has not answered in time.
    Timeout,
    /// The signer itself ended or does not answer.
    Signer,
}

impl FaultKind {
    /// What is not there now may be there later, as it was.
    #[must_use]
    pub fn may_pass(self) -> bool {
        match self {
            FaultKind::Token | FaultKind::Device | FaultKind::Timeout | FaultKind::Signer => true,
            FaultKind::Module | FaultKind::Pin | FaultKind::Object | FaultKind::Mechanism => false,
        }
    }
}

/// Something went wrong. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{found}")]
pub struct Fault {
    /// What kind of thing.
    pub kind: FaultKind,
    /// What was found, to be read after "found ".
    pub found: String,
    /// The error's name in PKCS#11, such as `CKR_DEVICE_REMOVED`.
    pub ckr: Option<String>,
}

impl Fault {
    /// A fault that no error of PKCS#11 tells of.
    #[must_use]
    pub fn new(kind: FaultKind, found: impl Into<String>) -> Fault {
        Fault {
            kind,
            found: found.into(),
            ckr: None,
        }
    }

    /// Sessions and handles are gone with this: the module is to be reset, and keys are to be found again.
    #[must_use]
    pub fn loses_sessions(&self) -> bool {
        const LOST: [&str; 11] = [
            "CKR_GENERAL_ERROR",
            "CKR_DEVICE_ERROR",
            "CKR_DEVICE_REMOVED",
            "CKR_TOKEN_NOT_PRESENT",
            "CKR_TOKEN_NOT_RECOGNIZED",
            "CKR_SESSION_HANDLE_INVALID",
            "CKR_SESSION_CLOSED",
            "CKR_CRYPTOKI_NOT_INITIALIZED",
            // The token has been reset by somebody else, or has found itself anew: what was found in it means nothing any more.
            "CKR_USER_NOT_LOGGED_IN",
            "CKR_KEY_HANDLE_INVALID",
            "CKR_OBJECT_HANDLE_INVALID",
        ];
        self.ckr.as_deref().is_some_and(|ckr| LOST.contains(&ckr))
    }
}

/// Whether a token is asked for signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Breaker {
    /// It is.
    Closed,
    /// One signature is tried.
    HalfOpen,
    /// It is not: it has failed, or has not been opened yet.
    #[default]
    Open,
}

/// How a token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Whether it is used.
    pub breaker: Breaker,
    /// Open sessions.
    pub sessions: u32,
    /// Requests that wait for a session.
    pub queued: u32,
    /// Errors since the signer's start, by their names in PKCS#11.
    pub errors: Vec<(String, u64)>,
    /// How often it was opened anew since the signer's start.
    pub recoveries: u64,
    /// It has refused the PIN: it is not logged in again before the configuration is loaded again.
    pub pin_refused: bool,
    /// Why it is not used, for people.
    pub trouble: Option<String>,
}

/// A worker asks for a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// Chosen by the worker.
    pub id: u64,
    /// Of an [`Order::Key`].
    pub key: KeyNumber,
    /// As in TLS.
    pub scheme: u16,
    /// How long the answer is of use, in microseconds from now on.
    pub left_us: u32,
    /// What is signed, before any hash.
    pub message: &'a [u8],
}

/// The answer. Each request gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response<'a> {
    /// Of the request.
    pub id: u64,
    /// What the token took, in microseconds; 0 when it was not asked.
    pub signing_us: u32,
    /// As TLS wants it: r and s of ECDSA in DER.
    #[serde(borrow)]
    pub signature: Result<&'a [u8], Refusal>,
}

/// Why there is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Its time was over before a session was free.
    Expired,
    /// The key is not, or not any more, among those that may be asked for, or has not this scheme.
    Unknown,
    /// The token is not used at present: another may be, or this one later.
    Unavailable,
    /// The token was asked and failed: another attempt may succeed.
    Failed,
    /// More requests wait than may.
    Full,
}

/// Appends a message.
pub fn write<T: Serialize>(message: &T, to: &mut Vec<u8>) {
    let start = to.len();
    to.extend_from_slice(&[0; 4]);
    let bytes = postcard::to_extend(message, std::mem::take(to));
    *to = bytes.expect("a vector takes every message");
    let length = u32::try_from(to.len() - start - 4).expect("messages are short");
    to[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Bytes that are no messages of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes that are no message")]
pub struct Garbled;

/// Puts messages together again.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// Of `bytes`, those that have been read.
    used: usize,
}

impl Reader {
    /// Takes what has been received.
    pub fn push(&mut self, received: &[u8]) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(received);
    }

    /// The next whole message's encoding, for [`postcard::from_bytes`] with a borrowing type.
    ///
    /// # Errors
    /// It is longer than any message may be.
    pub fn next_bytes(&mut self) -> Result<Option<&[u8]>, Garbled> {
        let Some((length, rest)) = self.bytes[self.used..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(Garbled);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.used + 4;
        self.used = start + length;
        Ok(Some(&self.bytes[start..start + length]))
    }

    /// The next whole message.
    ///
    /// # Errors
    /// It is none.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Garbled> {
        match self.next_bytes()? {
            Some(bytes) => decode(bytes).map(Some),
            None => Ok(None),
        }
    }
}

/// A message from its encoding, which it may borrow.
///
/// # Errors
/// It is none.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Garbled> {
    postcard::from_bytes(bytes).map_err(|_| Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let mut sent = Vec::new();
        for id in 0..3 {
            let message = Request {
                id,
                key: KeyNumber(7),
                scheme: 0x0403,
                left_us: 1_000_000,
                message: b"what is signed",
            };
            write(&message, &mut sent);
        }
        for piece in 1..sent.len() {
            let mut reader = Reader::default();
            let mut ids = Vec::new();
            for bytes in sent.chunks(piece) {
                reader.push(bytes);
                while let Some(bytes) = reader.next_bytes().unwrap() {
                    let request: Request<'_> = decode(bytes).unwrap();
                    assert_eq!(request.message, b"what is signed");
                    ids.push(request.id);
                }
            }
            assert_eq!(ids, [0, 1, 2]);
        }
    }

    #[test]
    fn what_is_too_long_or_no_message_is_refused() {
        let mut reader = Reader::default();
        reader.push(&u32::MAX.to_le_bytes());
        assert_eq!(reader.next_bytes(), Err(Garbled));
        let mut reader = Reader::default();
        reader.push(&[2, 0, 0, 0, 250, 250]);
        assert_eq!(reader.next_message::<Report>(), Err(Garbled));
    }
}
