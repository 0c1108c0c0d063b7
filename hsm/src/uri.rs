//! RFC 7512: names of tokens and of what is in them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which token: it has all that is given here. Nothing given: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenMatch {
    /// Its label.
    pub label: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its manufacturer.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// The slot that it is in.
    pub slot_id: Option<u64>,
}

/// Which object of a token: it has all that is given here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectMatch {
    /// CKA_LABEL
    pub label: Option<String>,
    /// CKA_ID
    pub id: Option<Vec<u8>>,
}

/// Where a PIN is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PinSource {
    /// A file: its first line.
    File(PathBuf),
    /// A credential that systemd passes (`LoadCredential=`), by name.
    Credential(String),
}
