//! The batch's library, for tests and benches.

use std::path::PathBuf;

use ringlock::crypto::multibuffer::Processor;

/// The library that `scripts/setup-multibuffer` has put into `target`, or that RINGLOCK_MULTIBUFFER names. Nothing, with a note,
/// on a processor that cannot run it, and outside CI where it has not been set up: then there is nothing to test.
pub(crate) fn library() -> Option<PathBuf> {
    if let Some(missing) = Processor::detect().missing() {
        eprintln!("not tested: this processor lacks {missing}");
        return None;
    }
    let set_up = concat!(env!("CARGO_MANIFEST_DIR"), "/target/multibuffer/libcrypto_mb.so.13");
    let path = PathBuf::from(std::env::var_os("RINGLOCK_MULTIBUFFER").unwrap_or_else(|| set_up.into()));
    if path.exists() {
        return Some(path);
    }
    let missing = format!("{} is missing: run scripts/setup-multibuffer", path.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("not tested: {missing}");
    None
}
