//! Clients that connect again and again while a test does something else.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Client, eventually, try_exchange};

/// What has come of connections so far.
#[derive(Debug, Default)]
pub(crate) struct Load {
    stop: AtomicBool,
    succeeded: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Whole connections that have done all that they should.
    pub(crate) fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::SeqCst)
    }

    /// Why others have not.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Waits until more have succeeded.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, more: usize) {
        let wanted = self.succeeded() + more;
        eventually("more connections to succeed", || {
            (self.succeeded() >= wanted).then_some(())
        });
    }

    fn run(&self, client: &Client<'_>) {
        while !self.stop.load(Ordering::SeqCst) {
            match try_exchange(client) {
                Ok(()) => _ = self.succeeded.fetch_add(1, Ordering::SeqCst),
                Err(error) => self.failures.lock().unwrap().push(error.to_string()),
            }
        }
    }
}

/// Has so many threads make one connection after the other by this client, for as long as `meanwhile` takes.
#[track_caller]
pub(crate) fn under_load<T>(client: &Client<'_>, threads: usize, meanwhile: impl FnOnce(&Load) -> T) -> (Load, T) {
    /// Ends the threads also when the test fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let load = Load::default();
    let outcome = std::thread::scope(|scope| {
        let _stop = Stop(&load.stop);
        for _ in 0..threads {
            scope.spawn(|| load.run(client));
        }
        meanwhile(&load)
    });
    (load, outcome)
}
