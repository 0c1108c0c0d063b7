//! The batch's library, and operations answered as a worker has them answered.

use std::path::PathBuf;

use ringlock::crypto::batch::{Engine, Queue};
use ringlock::crypto::multibuffer::Processor;
use ringlock::crypto::{CryptoOp, CryptoResult};

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

/// Answers in the order of the operations, which wait together. `count` is told how many each computation had.
pub(crate) fn answered(engine: &Engine, ops: &[CryptoOp], mut count: impl FnMut(usize)) -> Vec<CryptoResult> {
    let mut queue = Queue::default();
    for (number, op) in ops.iter().enumerate() {
        queue.push(number, op.clone());
    }
    let mut answered = Vec::new();
    while !queue.is_empty() {
        let (numbers, call): (Vec<_>, Vec<_>) = queue.take_call(engine).into_iter().unzip();
        let answers = engine.answer(&call, &mut count);
        assert_eq!(answers.len(), call.len());
        answered.extend(numbers.into_iter().zip(answers));
    }
    answered.sort_by_key(|(number, _)| *number);
    answered.into_iter().map(|(_, answer)| answer).collect()
}
