//! Engines that answer the operations of handshakes, as a worker has them answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ringlock::crypto::batch::{Engine, Queue};
use ringlock::crypto::multibuffer::{Multibuffer, Processor};
use ringlock::crypto::pool::{self, Ahead};
use ringlock::crypto::suspend;
use ringlock::metrics::WorkerMetrics;
use ringlock::tls::Tls;

use super::tls::{Ringlock, Shared};

/// The library that `scripts/setup-multibuffer` has put into `target`, or that RINGLOCK_MULTIBUFFER names. Without it a line says what is
/// left out, and why.
pub(crate) fn library(left_out: &str) -> Option<Multibuffer> {
    let set_up = concat!(env!("CARGO_MANIFEST_DIR"), "/target/multibuffer/libcrypto_mb.so.13");
    let path = PathBuf::from(std::env::var_os("RINGLOCK_MULTIBUFFER").unwrap_or_else(|| set_up.into()));
    let loaded = match Processor::detect().missing() {
        Some(missing) => Err(format!("this processor lacks {missing}")),
        None => Multibuffer::load(Some(&path)).map_err(|error| error.to_string()),
    };
    loaded.inspect_err(|why| eprintln!("{left_out}: left out, {why}")).ok()
}

/// An engine in use on this thread, as a worker uses it. Ends when it is dropped.
pub(crate) struct InUse {
    pub(crate) engine: Arc<Engine>,
}

impl InUse {
    pub(crate) fn new(engine: Engine) -> InUse {
        let engine = Arc::new(engine);
        suspend::allow(engine.is_worth_waiting_for());
        if let Err(error) = pool::open(&engine, &Arc::new(WorkerMetrics::default()), Instant::now()) {
            eprintln!("secrets are not made ahead, but when they are needed: {error}");
        }
        InUse { engine }
    }

    /// Computes by itself, with this made ahead.
    pub(crate) fn inline(ahead: Ahead) -> InUse {
        InUse::new(Engine::inline(false).making_ahead(ahead))
    }

    /// Computes up to eight operations together where that is cheaper.
    pub(crate) fn batched(library: Multibuffer, ahead: Ahead) -> InUse {
        InUse::new(Engine::with_library(library).making_ahead(ahead))
    }

    /// What a worker does when nothing else is to be done.
    pub(crate) fn refill(&self) {
        while pool::wants_more() {
            pool::refill();
        }
    }

    /// Has servers take a flight each, and their operations answered together.
    pub(crate) fn serve(
        &self,
        shared: &mut Shared,
        servers: &mut [Ringlock],
        flights: &mut [Vec<u8>],
        answers: &mut [Vec<u8>],
    ) {
        let mut queue = Queue::default();
        let mut used = vec![0; servers.len()];
        for (number, server) in servers.iter_mut().enumerate() {
            if let Some(op) = server.go_on(shared, &mut flights[number], &mut used[number]) {
                queue.push(number, op);
            }
        }
        while !queue.is_empty() {
            let (numbers, ops): (Vec<usize>, Vec<_>) = queue.take_call(&self.engine).into_iter().unzip();
            let answered = self.engine.answer(&ops, |_| {});
            for (number, answer) in numbers.into_iter().zip(answered) {
                let server = &mut servers[number];
                server.tls.crypto_done(answer);
                if let Some(op) = server.go_on(shared, &mut flights[number], &mut used[number]) {
                    queue.push(number, op);
                }
            }
        }
        for (number, server) in servers.iter_mut().enumerate() {
            server.take_answer(shared, &flights[number], used[number], &mut answers[number]);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        pool::close();
        suspend::allow(false);
    }
}
