//! A worker's channels to signers: stream sockets of its own driver, over which requests go out in batches, once a turn.

use std::os::fd::OwnedFd;
use std::time::Instant;

use ringlock_hsm::remote::SignerNumber;

use super::Worker;
use super::operations::Asked;
use crate::buffers::Outbox;
use crate::crypto::CryptoResult;
use crate::crypto::requests::{Answer, Requests};
use crate::net::buffer::ReceiveBuffer;
use crate::net::driver::{Close, Completion, Driver, Op, Role, Socket, Token};
use crate::snapshot::Snapshot;
use crate::tls::Tls;

/// See the module.
#[derive(Default)]
pub(super) struct Signers {
    pub(super) requests: Requests<Asked>,
    channels: Vec<Channel>,
    /// Of the newest channel: tells completions of channels to the same signer apart.
    generation: u32,
}

struct Channel {
    signer: SignerNumber,
    generation: u32,
    socket: Socket,
    outbox: Outbox,
    receiving: bool,
    /// It is closed as soon as nothing is in flight.
    lost: bool,
}

impl Signers {
    /// Nothing has to be closed.
    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// See [`Requests::has_answers`].
    pub(super) fn has_answers(&self) -> bool {
        self.requests.has_answers()
    }

    /// See [`Requests::next_deadline`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.requests.next_deadline()
    }

    /// The keys of this snapshot will be asked for.
    pub(super) fn know(&mut self, snapshot: &Snapshot, worker: usize) {
        let groups = snapshot.key_groups.iter();
        self.requests
            .know(groups.map(|group| (&group.group, &group.metrics[worker])));
    }

    fn find(&mut self, token: Token) -> Option<&mut Channel> {
        self.channels
            .iter_mut()
            .find(|channel| channel.signer.0 == token.slot && channel.generation == token.generation)
    }
}

impl Channel {
    fn token(&self) -> Token {
        Token {
            slot: self.signer.0,
            generation: self.generation,
            role: Role::Signer,
        }
    }
}

impl<D: Driver, T: Tls> Worker<D, T> {
    /// Takes over a new channel; an earlier one to the same signer is closed.
    pub(super) fn connect_signer(&mut self, signer: SignerNumber, stream: OwnedFd) {
        self.lose_signer(signer);
        // Fails for lack of memory or descriptors: the token stays without a channel, and handshakes say that it cannot be used.
        let Ok(socket) = self.driver.adopt(stream) else {
            return tracing::error!("a channel to a signer cannot be used: out of memory or descriptors");
        };
        self.signers.generation = self.signers.generation.wrapping_add(1);
        let channel = Channel {
            signer,
            generation: self.signers.generation,
            socket,
            outbox: Outbox::default(),
            receiving: true,
            lost: false,
        };
        self.driver.submit(channel.token(), Op::Receive(socket));
        self.signers.channels.push(channel);
        self.signers.requests.connected(signer);
    }

    /// Closes every channel: no session is left that could use one.
    pub(super) fn leave_signers(&mut self) {
        let signers: Vec<_> = self.signers.channels.iter().map(|channel| channel.signer).collect();
        for signer in signers {
            self.lose_signer(signer);
        }
    }

    /// Takes what is for a signer's channel; gives back what is not.
    pub(super) fn complete_signer(&mut self, completion: Completion) -> Option<Completion> {
        match completion {
            Completion::Received { token, buffer, .. } if token.role == Role::Signer => {
                self.received_of_signer(token, buffer);
            }
            Completion::ReceiveFailed { token, .. } if token.role == Role::Signer => {
                self.received_of_signer(token, None);
            }
            Completion::Sent { token, buffer, result } if token.role == Role::Signer => {
                let Some(channel) = self.signers.find(token) else {
                    self.pool.give(buffer);
                    return None;
                };
                let signer = channel.signer;
                channel.outbox.returned(buffer, result.unwrap_or(0), &mut self.pool);
                if channel.lost {
                    channel.outbox.clear(&mut self.pool);
                }
                if result.is_err() {
                    self.lose_signer(signer);
                }
                self.close_lost();
            }
            Completion::Accepted { .. }
            | Completion::AcceptFailed { .. }
            | Completion::Received { .. }
            | Completion::ReceiveFailed { .. }
            | Completion::Sent { .. }
            | Completion::Connected { .. } => return Some(completion),
        }
        None
    }

    /// No buffer: nothing more comes.
    fn received_of_signer(&mut self, token: Token, buffer: Option<ReceiveBuffer>) {
        let now = self.driver.now();
        let Some(channel) = self.signers.find(token) else {
            if let Some(buffer) = buffer {
                self.driver.recycle(buffer);
            }
            return;
        };
        let (signer, socket, lost) = (channel.signer, channel.socket, channel.lost);
        channel.receiving = false;
        let good = buffer.is_some_and(|buffer| {
            let bytes = self.driver.received(&buffer);
            let good = lost || self.signers.requests.received(signer, bytes, now).is_ok();
            self.driver.recycle(buffer);
            good
        });
        if good && !lost {
            self.driver.submit(token, Op::Receive(socket));
            self.signers.find(token).expect("it was found before").receiving = true;
        } else if !lost {
            self.lose_signer(signer);
        }
        self.close_lost();
    }

    /// The signer has ended, or says what makes no sense.
    fn lose_signer(&mut self, signer: SignerNumber) {
        let in_use = |channel: &&mut Channel| channel.signer == signer && !channel.lost;
        let Some(channel) = self.signers.channels.iter_mut().find(in_use) else {
            return;
        };
        channel.lost = true;
        channel.outbox.clear(&mut self.pool);
        if channel.receiving || channel.outbox.in_flight() {
            let (token, socket) = (channel.token(), channel.socket);
            self.driver.submit(token, Op::Cancel(socket));
        }
        self.signers.requests.lost(signer);
        self.close_lost();
    }

    fn close_lost(&mut self) {
        let driver = &mut self.driver;
        self.signers.channels.retain(|channel| {
            let closes = channel.lost && !channel.receiving && !channel.outbox.in_flight();
            if closes {
                driver.close(channel.socket, Close::Orderly);
            }
            !closes
        });
    }

    /// Passes on what signers have answered.
    pub(super) fn take_signatures(&mut self) {
        while let Some(answer) = self.signers.requests.pop_answer() {
            match answer {
                Answer::Signed(signed) => self.verify(signed),
                Answer::Failed(tag, failure) => {
                    let error = CryptoResult::Signature(Err(failure.into()));
                    self.operations.answer(tag, error);
                }
            }
        }
    }

    /// Sends what has been asked for and finds room.
    pub(super) fn ask_signers(&mut self) {
        let now = self.driver.now();
        self.signers.requests.expire(now);
        let (slots, channels, pool) = (&self.slots, &mut self.signers.channels, &mut self.pool);
        let wanted = |(token, _): &Asked| {
            let slot = slots.get(token.slot as usize);
            slot.is_some_and(|slot| slot.generation == token.generation && slot.live.is_some())
        };
        let send = |signer, bytes: &[u8]| {
            let in_use = |channel: &&mut Channel| channel.signer == signer && !channel.lost;
            if let Some(channel) = channels.iter_mut().find(in_use) {
                channel.outbox.sink(pool).write(bytes);
            }
        };
        self.signers.requests.dispatch(now, wanted, send);
        for channel in &mut self.signers.channels {
            if let Some(buffer) = channel.outbox.take() {
                self.driver.submit(channel.token(), Op::Send(channel.socket, buffer));
            }
        }
    }
}
