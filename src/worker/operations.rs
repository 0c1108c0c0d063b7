//! What handshakes ask for: computed here by the engine, or by a signer. The time that a turn may spend on it is bounded.

use std::collections::VecDeque;

use super::Worker;
use crate::crypto::batch::{LANES, Queue};
use crate::crypto::requests::{Ask, Signed};
use crate::crypto::{CryptoOp, CryptoResult, OpId};
use crate::limits::{CALLS_PER_TURN, TURN_BUDGET};
use crate::mutants::{Mutant, active};
use crate::net::driver::{Driver, Role, Token};
use crate::proxy::session::Input;
use crate::tls::Tls;

/// An operation of a session, in a worker.
pub(super) type Asked = (Token, OpId);

/// Operations that wait, and answers that have not been delivered.
#[derive(Default)]
pub(super) struct Operations {
    queue: Queue<Asker>,
    answers: VecDeque<(Token, OpId, CryptoResult)>,
    /// Signatures of tokens that are being verified; `None` where the place is free.
    signed: Vec<Option<Box<Signed<Asked>>>>,
}

/// Who asked for an operation.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Session(Token, OpId),
    /// The verification of a token's signature, at this place in [`Operations::signed`].
    Signed(usize),
}

impl Operations {
    /// An answer that is to be delivered.
    pub(super) fn answer(&mut self, (token, id): Asked, result: CryptoResult) {
        self.answers.push_back((token, id, result));
    }
}

impl<D: Driver, T: Tls> Worker<D, T> {
    /// Operations wait to be computed, or answers to be delivered.
    pub(super) fn has_operations(&self) -> bool {
        !self.operations.queue.is_empty() || !self.operations.answers.is_empty() || self.signers.has_answers()
    }

    /// A session asks for an operation.
    pub(super) fn ask(&mut self, slot: u32, id: OpId, op: CryptoOp) {
        let token = self.token(slot, Role::Downstream);
        let CryptoOp::SignElsewhere { key, scheme, message } = op else {
            return self.operations.queue.push(Asker::Session(token, id), op);
        };
        let now = self.driver.now();
        let snapshot = self.snapshot_of(slot);
        let session = &self.live_mut(slot).session;
        let own = session.poll_timeout(&snapshot);
        let deadline = now + key.group().spec.timeout;
        let ask = Ask {
            tag: (token, id),
            listener: session.listener(),
            deadline: own.map_or(deadline, |own| own.min(deadline)),
            key,
            scheme,
            message,
        };
        self.signers.requests.push(ask, now);
    }

    /// Answers operations that wait, for as long as established traffic may be kept waiting. A call and what its answers lead to
    /// may take several turns.
    pub(super) fn run_operations(&mut self) {
        if active(Mutant::FlushForgotten) && self.operations.queue.len() > LANES {
            return;
        }
        let mut calls = 0;
        loop {
            if let Some((token, id, answer)) = self.operations.answers.pop_front() {
                if self.side_of(token).is_some() {
                    self.handle(token, Input::CryptoDone(id, answer));
                }
            } else if calls < CALLS_PER_TURN
                && !self.operations.queue.is_empty()
                && self.operations.queue.is_due(&self.shared.engine)
            {
                calls += 1;
                self.compute();
            } else {
                return;
            }
            if self.driver.busy() >= TURN_BUDGET {
                return;
            }
        }
    }

    /// Computes the next call of operations.
    fn compute(&mut self) {
        let mut call = self.operations.queue.take_call(&self.shared.engine);
        call.retain(|(asker, _)| self.is_wanted(*asker));
        let (mut askers, ops): (Vec<_>, Vec<_>) = call.into_iter().unzip();
        if active(Mutant::CryptoResultToWrongSlot) {
            askers.extend(self.operations.queue.first_tag());
            let by = usize::from(askers.len() > 1);
            askers.rotate_left(by);
        }
        let metrics = &self.shared.metrics;
        let answers = self.shared.engine.answer(&ops, |lanes| match lanes {
            1 => metrics.crypto_inline.add(1),
            lanes => metrics.crypto_batches[lanes - 1].add(1),
        });
        for (asker, answer) in askers.into_iter().zip(answers) {
            match asker {
                Asker::Session(token, id) => self.operations.answer((token, id), answer),
                Asker::Signed(place) => {
                    let signed = self.operations.signed[place].take();
                    let signed = signed.expect("what is verified is kept");
                    self.deliver(*signed, matches!(answer, CryptoResult::Verified(true)));
                }
            }
        }
    }

    /// A token's signature is delivered if it is right.
    pub(super) fn verify(&mut self, signed: Box<Signed<Asked>>) {
        match signed.verification() {
            Some(verification) => {
                let place = super::place(&mut self.operations.signed, signed);
                let op = CryptoOp::Verify(verification);
                self.operations.queue.push(Asker::Signed(place), op);
            }
            None => self.deliver(*signed, false),
        }
    }

    fn deliver(&mut self, signed: Signed<Asked>, right: bool) {
        if let Some((asked, signature)) = self.signers.requests.verified(signed, right) {
            self.operations.answer(asked, CryptoResult::Signature(Ok(signature)));
        }
    }

    fn is_wanted(&mut self, asker: Asker) -> bool {
        let token = match asker {
            Asker::Session(token, _) => token,
            Asker::Signed(place) => {
                let signed = self.operations.signed[place].as_ref();
                signed.expect("what is verified is kept").tag().0
            }
        };
        let wanted = self.side_of(token).is_some();
        if let Asker::Signed(place) = asker
            && !wanted
        {
            self.operations.signed[place] = None;
        }
        wanted
    }
}
