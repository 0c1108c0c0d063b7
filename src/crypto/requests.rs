//! What one worker asks of tokens: who waits, who has been asked, who is asked next. Time, bytes and results come in, bytes and answers
//! go out; sockets are the worker's.
//!
//! A request waits in the queue of its key's group until a token of the group has room for it, and goes out on the channel of that
//! token's signer. It is answered by its deadline, whatever tokens do. A token that fails, or signs wrongly, or whose signer ends, costs a
//! request its first attempt; the second is its last. Waiting for a token that says at once that it cannot be used costs none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use ringlock_hsm::protocol::{self, Garbled, Refusal, Response};
use ringlock_hsm::remote::{Group, RemoteKey, SignerNumber, Token};
use rustls::SignatureScheme;

use super::verifier::Verification;
use crate::error::KeyFailure;
use crate::limits::TOKEN_RETRY_INTERVAL;
use crate::metrics::KeyMetrics;
use crate::mutants::{Mutant, active};

/// A signature that somebody wants.
#[derive(Debug)]
pub struct Ask<Tag> {
    /// Who.
    pub tag: Tag,
    /// Whose share of the queue it takes.
    pub listener: usize,
    /// By which key.
    pub key: Arc<RemoteKey>,
    /// One that the key has.
    pub scheme: SignatureScheme,
    /// What is signed, before any hash.
    pub message: Box<[u8]>,
    /// When the answer is of no use any more.
    pub deadline: Instant,
}

#[derive(Debug)]
struct Request<Tag> {
    ask: Ask<Tag>,
    asked_at: Instant,
    /// The token that spent the first attempt, by position in the group, once one has.
    failed: Option<usize>,
}

/// A signature as a token made it. Goes back by [`Requests::verified`].
#[derive(Debug)]
pub struct Signed<Tag> {
    request: Request<Tag>,
    token: usize,
    signature: Vec<u8>,
}

impl<Tag> Signed<Tag> {
    /// Who wants it.
    pub fn tag(&self) -> &Tag {
        &self.request.ask.tag
    }

    /// Whether it is right; nothing when the key has not this scheme.
    #[must_use]
    pub fn verification(&self) -> Option<Verification> {
        let Ask {
            key, scheme, message, ..
        } = &self.request.ask;
        let (algorithm, public) = key.verifier(*scheme)?;
        Some(Verification::new(algorithm, public, message, &self.signature))
    }
}

/// What comes of a request.
#[derive(Debug)]
pub enum Answer<Tag> {
    /// To be verified.
    Signed(Box<Signed<Tag>>),
    /// There will be no signature.
    Failed(Tag, KeyFailure),
}

/// The queue of a group. It is there for as long as anything uses the group, which whatever waits in it does by its key.
struct Queue<Tag> {
    /// Number of the group.
    number: u32,
    /// Not kept by this: tokens that nothing uses any more are given up.
    group: Weak<Group>,
    metrics: Arc<KeyMetrics>,
    /// By listener, and there by deadline.
    waiting: Vec<(usize, ByDeadline<Tag>)>,
    /// Position in `waiting` of the listener whose turn it is.
    turn: usize,
    /// By position of the group's tokens.
    tokens: Vec<TokenState>,
}

type ByDeadline<Tag> = BTreeMap<(Instant, u64), Request<Tag>>;

#[derive(Clone, Debug, Default)]
struct TokenState {
    in_flight: usize,
    /// It has said that it cannot be used: asked again then.
    blocked_until: Option<Instant>,
}

/// A connection to a signer.
struct Channel<Tag> {
    reader: protocol::Reader,
    in_flight: BTreeMap<u64, InFlight<Tag>>,
}

struct InFlight<Tag> {
    /// `None` when its time is over: the answer only makes room.
    request: Option<Request<Tag>>,
    /// Number of the group.
    group: u32,
    token: usize,
    deadline: Instant,
}

/// See the module.
pub struct Requests<Tag> {
    queues: Vec<Queue<Tag>>,
    /// By [`SignerNumber`].
    channels: Vec<Option<Channel<Tag>>>,
    /// Of requests on their way, with signer.
    deadlines: BTreeSet<(Instant, u64, u32)>,
    numbers: u64,
    /// Somebody waits for a token that may be usable then.
    retry_at: Option<Instant>,
    answers: VecDeque<Answer<Tag>>,
}

impl<Tag> Default for Requests<Tag> {
    fn default() -> Self {
        Requests {
            queues: Vec::new(),
            channels: Vec::new(),
            deadlines: BTreeSet::new(),
            numbers: 0,
            retry_at: None,
            answers: VecDeque::new(),
        }
    }
}

impl<Tag> Requests<Tag> {
    /// Keys of these groups will be asked for, and keys of earlier ones for as long as there are any.
    pub fn know<'a>(&mut self, groups: impl Iterator<Item = (&'a Arc<Group>, &'a Arc<KeyMetrics>)>) {
        self.queues.retain(|queue| queue.group.strong_count() > 0);
        for (group, metrics) in groups {
            if queue_of(&mut self.queues, group.number).is_none() {
                self.queues.push(Queue {
                    number: group.number,
                    group: Arc::downgrade(group),
                    metrics: Arc::clone(metrics),
                    waiting: Vec::new(),
                    turn: 0,
                    tokens: vec![TokenState::default(); group.tokens.len()],
                });
            }
        }
    }

    /// Puts a request into its queue. One that is refused is answered at once.
    pub fn push(&mut self, ask: Ask<Tag>, now: Instant) {
        let number = self.next_number();
        let Some(queue) = queue_of(&mut self.queues, ask.key.group().number) else {
            debug_assert!(false, "the groups of a snapshot are known before its keys are used");
            return self.answers.push_back(Answer::Failed(ask.tag, KeyFailure::Down));
        };
        if queue.len() >= ask.key.group().spec.queue {
            match queue.make_room(ask.listener) {
                Some(dropped) => {
                    queue.metrics.refused.add(1);
                    self.answers.push_back(Answer::Failed(dropped, KeyFailure::Full));
                }
                None => {
                    queue.metrics.refused.add(1);
                    return self.answers.push_back(Answer::Failed(ask.tag, KeyFailure::Full));
                }
            }
        }
        queue.insert(
            Request {
                ask,
                asked_at: now,
                failed: None,
            },
            number,
        );
    }

    /// There is a new channel to this signer; an earlier one is gone.
    pub fn connected(&mut self, signer: SignerNumber) {
        self.lost(signer);
        let position = signer.0 as usize;
        if self.channels.len() <= position {
            self.channels.resize_with(position + 1, || None);
        }
        self.channels[position] = Some(Channel {
            reader: protocol::Reader::default(),
            in_flight: BTreeMap::new(),
        });
        for queue in &mut self.queues {
            let Some(group) = queue.group.upgrade() else { continue };
            for (token, state) in group.tokens.iter().zip(&mut queue.tokens) {
                if token.signer == signer {
                    state.blocked_until = None;
                }
            }
        }
    }

    /// The channel to this signer is gone. What it had been asked is asked once more.
    pub fn lost(&mut self, signer: SignerNumber) {
        let Some(channel) = self.channels.get_mut(signer.0 as usize).and_then(Option::take) else {
            return;
        };
        for (number, in_flight) in channel.in_flight {
            let (token, group) = (in_flight.token, in_flight.group);
            self.deadlines.remove(&(in_flight.deadline, number, signer.0));
            if let Some(queue) = queue_of(&mut self.queues, group) {
                queue.tokens[token].in_flight -= 1;
            }
            if let Some(request) = in_flight.request
                && !active(Mutant::RequestsLostWithSigner)
            {
                self.again(request, token, "its signer has ended");
            }
        }
    }

    /// Takes bytes of a signer.
    ///
    /// # Errors
    /// They are no answers: the channel is to be closed.
    pub fn received(&mut self, signer: SignerNumber, bytes: &[u8], now: Instant) -> Result<(), Garbled> {
        if let Some(channel) = self.channels.get_mut(signer.0 as usize).and_then(Option::as_mut) {
            channel.reader.push(bytes);
        }
        loop {
            let channel = self.channels.get_mut(signer.0 as usize).and_then(Option::as_mut);
            let Some(bytes) = channel
                .map(|channel| channel.reader.next_bytes())
                .transpose()?
                .flatten()
            else {
                return Ok(());
            };
            let Response {
                id,
                signing_us,
                signature,
            } = protocol::decode(bytes)?;
            let signature = signature.map(<[u8]>::to_vec);
            self.answered(signer, id, signing_us, signature, now);
        }
    }

    fn answered(
        &mut self,
        signer: SignerNumber,
        number: u64,
        signing_us: u32,
        signature: Result<Vec<u8>, Refusal>,
        now: Instant,
    ) {
        let channel = self.channels[signer.0 as usize].as_mut();
        // An answer that was not asked for is nobody's.
        let Some(in_flight) = channel.and_then(|channel| channel.in_flight.remove(&number)) else {
            return;
        };
        let (token, group) = (in_flight.token, in_flight.group);
        self.deadlines.remove(&(in_flight.deadline, number, signer.0));
        let Some(queue) = queue_of(&mut self.queues, group) else {
            return;
        };
        queue.tokens[token].in_flight -= 1;
        if signing_us > 0 {
            queue.metrics.signing.observe(u64::from(signing_us));
        }
        let Some(request) = in_flight.request else { return };
        match signature {
            Ok(signature) => self.answers.push_back(Answer::Signed(Box::new(Signed {
                request,
                token,
                signature,
            }))),
            Err(Refusal::Unavailable | Refusal::Full) => {
                queue.tokens[token].blocked_until = Some(now + TOKEN_RETRY_INTERVAL);
                queue.insert(request, number);
            }
            Err(Refusal::Failed) => self.again(request, token, "its token has failed"),
            Err(Refusal::Expired) => self.fail(request, KeyFailure::Late),
            Err(Refusal::Unknown) => {
                let why = "its signer does not know it, or not with this scheme";
                self.fail(request, KeyFailure::Failed(why.into()));
            }
        }
    }

    /// What the verification of a signature says. One that is wrong counts as a failure of its token; nothing comes out then, but later.
    pub fn verified(&mut self, signed: Signed<Tag>, right: bool) -> Option<(Tag, Vec<u8>)> {
        let Signed {
            request,
            token,
            signature,
        } = signed;
        let metrics = queue_of(&mut self.queues, request.ask.key.group().number).map(|queue| &queue.metrics);
        if right || active(Mutant::WrongSignatureBelieved) {
            if let Some(metrics) = metrics {
                metrics.signed.add(1);
            }
            return Some((request.ask.tag, signature));
        }
        if let Some(metrics) = metrics {
            metrics.wrong.add(1);
        }
        if request.failed.is_some() {
            self.fail(request, KeyFailure::Wrong);
        } else {
            self.again(request, token, "");
        }
        None
    }

    /// The request has lost an attempt at this token.
    fn again(&mut self, mut request: Request<Tag>, token: usize, why: &str) {
        if request.failed.is_some() && !active(Mutant::RetriedWithoutEnd) {
            return self.fail(request, KeyFailure::Failed(format!("{why}, twice")));
        }
        request.failed = Some(token);
        let number = self.next_number();
        if let Some(queue) = queue_of(&mut self.queues, request.ask.key.group().number) {
            queue.metrics.retried.add(1);
            queue.insert(request, number);
        }
    }

    fn fail(&mut self, request: Request<Tag>, failure: KeyFailure) {
        if let Some(queue) = queue_of(&mut self.queues, request.ask.key.group().number) {
            match failure {
                KeyFailure::Late | KeyFailure::Down => queue.metrics.expired.add(1),
                KeyFailure::Full | KeyFailure::Wrong | KeyFailure::Failed(_) => queue.metrics.failed.add(1),
            }
        }
        self.answers.push_back(Answer::Failed(request.ask.tag, failure));
    }

    /// Sends what tokens have room for. `wanted` says whether somebody still waits; `send` appends bytes to a signer's channel.
    pub fn dispatch(
        &mut self,
        now: Instant,
        mut wanted: impl FnMut(&Tag) -> bool,
        mut send: impl FnMut(SignerNumber, &[u8]),
    ) {
        self.retry_at = None;
        let mut bytes = Vec::new();
        for queue in &mut self.queues {
            let Some(group) = queue.group.upgrade() else { continue };
            // Those whose key no token in use has, while others have theirs.
            let mut aside = Vec::new();
            while let Some((listener, request)) = queue.next() {
                if !wanted(&request.ask.tag) {
                    queue.take(listener);
                    continue;
                }
                let has_channel = |token: &Token| {
                    let channel = self.channels.get(token.signer.0 as usize);
                    channel.is_some_and(Option::is_some)
                };
                let Some(token) = queue.choose(&group, request, now, has_channel) else {
                    let is_up = |at| queue.is_up(&group, at, now, &has_channel);
                    let has_key = |at| request.ask.key.number(at).is_some();
                    let mut tokens = 0..queue.tokens.len();
                    if tokens.clone().any(|at| is_up(at) && has_key(at)) {
                        // It has no room: its answers make some.
                        break;
                    }
                    // Whoever has been asked for once was not to know.
                    if group.spec.waits || request.failed.is_some() {
                        self.retry_at = Some(now + TOKEN_RETRY_INTERVAL);
                        if !tokens.any(is_up) {
                            break;
                        }
                        aside.push(queue.take(listener));
                    } else {
                        let request = queue.take(listener);
                        queue.metrics.expired.add(1);
                        self.answers
                            .push_back(Answer::Failed(request.ask.tag, KeyFailure::Down));
                    }
                    continue;
                };
                let request = queue.take(listener);
                let signer = group.tokens[token].signer;
                self.numbers += 1;
                let number = self.numbers;
                let left = request.ask.deadline.saturating_duration_since(now);
                let waited = now.saturating_duration_since(request.asked_at);
                queue.metrics.wait.observe(waited.as_micros() as u64);
                queue.tokens[token].in_flight += 1;
                bytes.clear();
                let message = protocol::Request {
                    id: number,
                    key: request
                        .ask
                        .key
                        .number(token)
                        .expect("a token is chosen that has the key"),
                    scheme: request.ask.scheme.into(),
                    left_us: u32::try_from(left.as_micros()).unwrap_or(u32::MAX),
                    message: &request.ask.message,
                };
                protocol::write(&message, &mut bytes);
                send(signer, &bytes);
                let deadline = request.ask.deadline;
                self.deadlines.insert((deadline, number, signer.0));
                let in_flight = InFlight {
                    request: Some(request),
                    group: group.number,
                    token,
                    deadline,
                };
                let channel = self.channels[signer.0 as usize].as_mut();
                let channel = channel.expect("a token is chosen whose signer has a channel");
                channel.in_flight.insert(number, in_flight);
            }
            for request in aside {
                self.numbers += 1;
                queue.insert(request, self.numbers);
            }
            queue.note_lengths();
        }
    }

    /// Answers those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        if active(Mutant::TokenNotTimed) {
            return;
        }
        for queue in &mut self.queues {
            let Some(group) = queue.group.upgrade() else { continue };
            let failure = || {
                let usable = group.tokens.iter().any(|token| token.is_usable());
                if usable { KeyFailure::Late } else { KeyFailure::Down }
            };
            for (_, waiting) in &mut queue.waiting {
                while waiting
                    .first_key_value()
                    .is_some_and(|((deadline, _), _)| *deadline <= now)
                    && let Some((_, request)) = waiting.pop_first()
                {
                    queue.metrics.expired.add(1);
                    self.answers.push_back(Answer::Failed(request.ask.tag, failure()));
                }
            }
        }
        while let Some(&(deadline, number, signer)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let channel = self.channels[signer as usize].as_mut();
            let in_flight = channel.and_then(|channel| channel.in_flight.get_mut(&number));
            if let Some(request) = in_flight.and_then(|in_flight| in_flight.request.take()) {
                self.fail(request, KeyFailure::Late);
            }
        }
    }

    /// When [`Requests::expire`] or [`Requests::dispatch`] have something to do, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.queues.iter().flat_map(|queue| &queue.waiting);
        let first = waiting.filter_map(|(_, waiting)| Some(waiting.first_key_value()?.0.0));
        let in_flight = self.deadlines.first().map(|(deadline, ..)| *deadline);
        first.chain(in_flight).chain(self.retry_at).min()
    }

    /// The next answer.
    pub fn pop_answer(&mut self) -> Option<Answer<Tag>> {
        self.answers.pop_front()
    }

    /// There are answers.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

fn queue_of<Tag>(queues: &mut [Queue<Tag>], group: u32) -> Option<&mut Queue<Tag>> {
    queues.iter_mut().find(|queue| queue.number == group)
}

impl<Tag> Queue<Tag> {
    fn len(&self) -> usize {
        self.waiting.iter().map(|(_, waiting)| waiting.len()).sum()
    }

    fn insert(&mut self, request: Request<Tag>, number: u64) {
        let listener = request.ask.listener;
        let position = match self.waiting.iter().position(|(of, _)| *of == listener) {
            Some(position) => position,
            None => {
                self.waiting.push((listener, BTreeMap::new()));
                self.waiting.len() - 1
            }
        };
        self.waiting[position].1.insert((request.ask.deadline, number), request);
    }

    /// Takes the place of somebody, for a listener that has not the longest part of the queue: of the listener that has, whoever
    /// has waited longest, and has therefore most likely gone.
    fn make_room(&mut self, listener: usize) -> Option<Tag> {
        let own = self.waiting.iter().find(|(of, _)| *of == listener);
        let own = own.map_or(0, |(_, waiting)| waiting.len());
        let (_, longest) = self.waiting.iter_mut().max_by_key(|(_, waiting)| waiting.len())?;
        if longest.len() <= own + 1 || active(Mutant::QueueUnfair) {
            return None;
        }
        longest.pop_first().map(|(_, request)| request.ask.tag)
    }

    /// Who is next, listeners taking turns, and the position of its listener.
    fn next(&self) -> Option<(usize, &Request<Tag>)> {
        let listeners = self.waiting.len();
        (0..listeners).find_map(|step| {
            let position = (self.turn + step) % listeners;
            let (_, request) = self.waiting[position].1.first_key_value()?;
            Some((position, request))
        })
    }

    /// Takes what [`Queue::next`] has shown.
    fn take(&mut self, position: usize) -> Request<Tag> {
        self.turn = position + 1;
        let first = self.waiting[position].1.pop_first();
        first.expect("somebody of this listener waits").1
    }

    /// The token with the most room, if any has room; one at which the request has failed only where there is no other.
    fn choose(
        &self,
        group: &Group,
        request: &Request<Tag>,
        now: Instant,
        has_channel: impl Fn(&Token) -> bool,
    ) -> Option<usize> {
        let candidates = (0..self.tokens.len()).filter(|&at| {
            let has_key = request.ask.key.number(at).is_some();
            has_key && self.is_up(group, at, now, &has_channel) && self.room(group, at) > 0
        });
        candidates.max_by_key(|&at| (request.failed != Some(at), self.room(group, at)))
    }

    fn is_up(&self, group: &Group, at: usize, now: Instant, has_channel: &impl Fn(&Token) -> bool) -> bool {
        let token = &group.tokens[at];
        let blocked = self.tokens[at].blocked_until.is_some_and(|until| now < until);
        token.is_usable() && !blocked && has_channel(token)
    }

    fn room(&self, group: &Group, at: usize) -> usize {
        if active(Mutant::TokenOverfilled) {
            return 1;
        }
        group.tokens[at].window().saturating_sub(self.tokens[at].in_flight)
    }

    fn note_lengths(&self) {
        let in_flight: usize = self.tokens.iter().map(|token| token.in_flight).sum();
        self.metrics.waiting.set(self.len() as u64);
        self.metrics.in_flight.set(in_flight as u64);
    }
}
