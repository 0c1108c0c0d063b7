//! Where a worker accepts: sockets taken over, kept over reloads, tried again when something is lacking, and closed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Bound, Worker, place};
use crate::error::IoError;
use crate::limits::ACCEPT_BACKOFF;
use crate::mutants::{Mutant, active};
use crate::net::driver::{Close, Driver, Op, Role, Socket, Token};
use crate::snapshot::Snapshot;
use crate::tls::Tls;

/// A listening socket of this worker.
pub(super) struct Listening {
    pub(super) socket: Socket,
    address: SocketAddr,
    /// Position in the newest snapshot.
    pub(super) listener: usize,
    /// Accepting failed for lack of something; tried again then.
    pub(super) retry_at: Option<Instant>,
    /// Accepting has been cancelled: closed as soon as that is done, so that nothing accepted before is lost.
    stopping: bool,
}

impl<D: Driver, T: Tls> Worker<D, T> {
    pub(super) fn serve(&mut self, snapshot: Arc<Snapshot>, addresses: Vec<Bound>) {
        self.use_snapshot(snapshot);
        for position in 0..self.listening.len() {
            let kept = |listening: &Listening| addresses.iter().any(|bound| bound.address == listening.address);
            if !self.listening[position].as_ref().is_some_and(kept) {
                self.stop_listening(position);
            }
        }
        for bound in addresses {
            let known = self
                .listening
                .iter_mut()
                .flatten()
                .find(|listening| listening.address == bound.address);
            match (known, bound.socket) {
                (Some(listening), _) => listening.listener = bound.listener,
                (None, Some(socket)) => self.listen(bound.listener, bound.address, socket),
                (None, None) => debug_assert!(false, "an address that the worker does not have comes with its socket"),
            }
        }
    }

    pub(super) fn listen(&mut self, listener: usize, address: SocketAddr, socket: OwnedFd) {
        match self.driver.listen(socket) {
            Ok(socket) => {
                let position = place(
                    &mut self.listening,
                    Listening {
                        socket,
                        address,
                        listener,
                        retry_at: None,
                        stopping: false,
                    },
                );
                self.driver.submit(listener_token(position), Op::Accept(socket));
            }
            // Lack of memory or descriptors in the driver: counted, and seen as a worker that accepts nothing here.
            Err(_) => self.shared.metrics.accept_failures.add(1),
        }
    }

    pub(super) fn stop_listening(&mut self, position: usize) {
        if let Some(listening) = self.listening[position].take() {
            self.driver.close(listening.socket, Close::Orderly);
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        for position in 0..self.listening.len() {
            let Some(listening) = &mut self.listening[position] else {
                continue;
            };
            if listening.retry_at.is_some() {
                // Nothing is under way.
                self.stop_listening(position);
            } else if !listening.stopping {
                listening.stopping = true;
                let socket = listening.socket;
                self.driver.submit(listener_token(position), Op::Cancel(socket));
            }
        }
    }

    pub(super) fn accept_failed(&mut self, position: usize, error: IoError) {
        let stopping = |listening: &Listening| listening.stopping;
        if self
            .listening
            .get(position)
            .and_then(Option::as_ref)
            .is_some_and(stopping)
        {
            return self.stop_listening(position);
        }
        self.shared.metrics.accept_failures.add(1);
        let now = self.driver.now();
        if let Some(listening) = self.listening.get_mut(position).and_then(Option::as_mut)
            && error != IoError::CANCELLED
            && !active(Mutant::AcceptNotRetried)
        {
            listening.retry_at = Some(now + ACCEPT_BACKOFF);
        }
    }

    pub(super) fn retry_accepts(&mut self) {
        let now = self.driver.now();
        for position in 0..self.listening.len() {
            if let Some(listening) = &mut self.listening[position]
                && listening.retry_at.take_if(|at| *at <= now).is_some()
            {
                let socket = listening.socket;
                self.driver.submit(listener_token(position), Op::Accept(socket));
            }
        }
    }
}

fn listener_token(position: usize) -> Token {
    let slot = u32::try_from(position).expect("a process has fewer than 2^32 listeners");
    Token {
        slot,
        generation: 0,
        role: Role::Listener,
    }
}
