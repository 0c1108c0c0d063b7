//! A PKCS#11 2.40 module over keys in files that is slow, hangs, fails, lies or crashes on cue: for tests and benches, never for
//! service.
//!
//! The variable `RINGLOCK_FAULTY` names a folder; without it, it is the one that the module's file is in. Each folder in it is a token
//! of that name:
//!
//! | file | what it is |
//! |---|---|
//! | `LABEL.pem` | a key pair: RSA, ECDSA on P-256, P-384 or P-521, Ed25519 |
//! | `LABEL.crt.pem` | certificates; the first one is that of the key |
//! | `pin` | the PIN; a token without this file wants none |
//! | `pin_failures` | one byte for each time that the PIN was wrong; three lock the token |
//! | `cue` | what goes wrong, looked at before each call ([`Folder::cue`]) |
//! | `fired` | one byte for each fault that was counted against `times` |
//! | `calls` | the name of each function that was called, a line each |
//!
//! `cue` and `calls` of the outer folder are for calls that concern no token. Tests write and read all of this with [`Folder`].

mod cue;
mod entry;
mod folder;
mod key;
mod module;
mod object;

pub use folder::{Folder, VARIABLE, module_file};
