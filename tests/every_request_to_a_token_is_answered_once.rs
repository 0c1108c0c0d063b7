//! What a worker asks of tokens, against signers that a seed decides: slow, failing, signing wrongly, ending at any moment. Every handshake
//! that waits hears once, in time, and never gets a wrong signature. `RINGLOCK_SEED=n` replays one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{KeyPair, PublicKeyData};
use ringlock::crypto::requests::{Answer, Ask, Requests};
use ringlock::error::KeyFailure;
use ringlock::metrics::KeyMetrics;
use ringlock::net::sim::random::Random;
use ringlock_hsm::protocol::{
    self, Breaker, KeyNumber, KeyPlace, Reader, Refusal, Request, Response, TokenNumber, TokenSettings, TokenStatus,
};
use ringlock_hsm::remote::{Group, GroupSpec, KeyHandle, RemoteKey, SignerNumber, SignerSpec, Token, TokenSpec};
use ringlock_hsm::uri::{ObjectMatch, TokenMatch};
use rustls::SignatureScheme;

const SEEDS: u64 = 256;
const STEPS: usize = 400;
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
/// What the clock moves by at most in one step.
const STEP: Duration = Duration::from_millis(40);

fn seeds() -> std::ops::Range<u64> {
    let replayed = std::env::var("RINGLOCK_SEED").ok().and_then(|seed| seed.parse().ok());
    replayed.map_or(0..SEEDS, |seed: u64| seed..seed + 1)
}

/// A signer as the worker sees it: what it has been asked and has not answered.
#[derive(Default)]
struct Signer {
    connected: bool,
    reader: Reader,
    pending: Vec<(u64, KeyNumber, Vec<u8>)>,
    /// Answers, cut off in the middle of a message.
    rest: Vec<u8>,
}

/// A handshake that waits.
struct Waiting {
    group: usize,
    deadline: Instant,
    /// How often a token has been asked for it, not counting those that said that they cannot be used.
    attempts: usize,
}

struct Run {
    random: Random,
    now: Instant,
    requests: Requests<u64>,
    groups: Vec<Arc<Group>>,
    metrics: Vec<Arc<KeyMetrics>>,
    keys: Vec<Vec<Arc<RemoteKey>>>,
    signers: Vec<Signer>,
    waiting: BTreeMap<u64, Waiting>,
    gone: BTreeSet<u64>,
    asked: u64,
    failed: Vec<String>,
    /// Per mille of answers that are so.
    fails: usize,
    wrong: usize,
    unavailable: usize,
    signed: u64,
}

/// What a token makes of a message; the last byte tells a right one.
fn signature(message: &[u8], right: bool) -> Vec<u8> {
    [message, &[u8::from(right)]].concat()
}

impl Run {
    fn new(seed: u64, public: &[u8]) -> Run {
        let mut random = Random::new(seed);
        let signers = random.between(1, 3);
        let mut numbers = 0;
        let mut token = |random: &mut Random, name: &str| {
            numbers += 1;
            let spec = TokenSpec {
                name: name.to_owned(),
                signer: SignerSpec::default(),
                settings: TokenSettings {
                    find: TokenMatch::default(),
                    pin: None,
                    sessions: u32::try_from(random.between(1, 6)).unwrap(),
                    timeout: Duration::from_millis(500),
                    keep_alive: None,
                    login: true,
                },
            };
            let signer = SignerNumber(u32::try_from(random.below(signers)).unwrap());
            Arc::new(Token::new(spec, TokenNumber(numbers), signer, Arc::default()))
        };
        let groups: Vec<Arc<Group>> = (0..random.between(1, 3))
            .map(|number| {
                let name = format!("group-{number}");
                let tokens: Vec<Arc<Token>> = (0..random.between(1, 3)).map(|_| token(&mut random, &name)).collect();
                let spec = GroupSpec {
                    name,
                    tokens: tokens.iter().map(|token| token.spec.clone()).collect(),
                    queue: random.between(3, 30),
                    waits: random.chance(700),
                    timeout: Duration::from_millis(500),
                };
                let number = u32::try_from(number).unwrap();
                Arc::new(Group { number, spec, tokens })
            })
            .collect();
        let mut number = 0;
        let keys = groups
            .iter()
            .map(|group| {
                let keys = (0..2).map(|_| {
                    let handles: Vec<_> = group
                        .tokens
                        .iter()
                        .map(|token| {
                            number += 1;
                            let handle = KeyHandle {
                                number: KeyNumber(number),
                                token: token.number,
                                place: KeyPlace::Object(ObjectMatch::default()),
                            };
                            random.chance(800).then(|| Arc::new(handle))
                        })
                        .collect();
                    Arc::new(RemoteKey::new(Arc::clone(group), handles, public.to_vec(), &[SCHEME]).unwrap())
                });
                keys.collect()
            })
            .collect();
        let metrics: Vec<Arc<KeyMetrics>> = groups.iter().map(|_| Arc::default()).collect();
        let mut requests = Requests::default();
        requests.know(groups.iter().zip(&metrics));
        let rates = [0, 0, 20, 200];
        Run {
            now: Instant::now(),
            requests,
            metrics,
            keys,
            signers: (0..signers).map(|_| Signer::default()).collect(),
            groups,
            waiting: BTreeMap::new(),
            gone: BTreeSet::new(),
            asked: 0,
            failed: Vec::new(),
            fails: random.pick(&rates),
            wrong: random.pick(&rates),
            unavailable: random.pick(&rates),
            signed: 0,

            random,
        }
    }

    fn complain(&mut self, what: String) {
        self.failed.push(what);
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=7 => {
                for _ in 0..self.random.between(1, 8) {
                    self.ask();
                }
            }
            8..=13 => {
                let signer = self.random.below(self.signers.len());
                self.answer(signer);
            }
            14 => self.change_token(),
            15 => self.connect_or_end(),
            16 => self.leave(),
            _ => {
                let step = self.random.below(STEP.as_micros() as usize) as u64;
                self.now += Duration::from_micros(step);
            }
        }
        self.turn();
    }

    /// As a worker's turn.
    fn turn(&mut self) {
        self.requests.expire(self.now);
        self.take_answers();
        self.dispatch();
        self.take_answers();
    }

    fn ask(&mut self) {
        let group = self.random.below(self.groups.len());
        let key = Arc::clone(&self.keys[group][self.random.below(2)]);
        self.asked += 1;
        let tag = self.asked;
        // A flood comes from listener 0.
        let listener = if self.random.chance(800) { 0 } else { 1 };
        let deadline = self.now + Duration::from_millis(self.random.between(20, 500) as u64);
        self.waiting.insert(
            tag,
            Waiting {
                group,
                deadline,
                attempts: 0,
            },
        );
        let ask = Ask {
            tag,
            listener,
            key,
            scheme: SCHEME,
            message: tag.to_le_bytes().into(),
            deadline,
        };
        self.requests.push(ask, self.now);
        self.take_answers();
    }

    fn dispatch(&mut self) {
        let gone = &self.gone;
        let mut sent: Vec<(SignerNumber, Vec<u8>)> = Vec::new();
        self.requests.dispatch(
            self.now,
            |tag| !gone.contains(tag),
            |signer, bytes| sent.push((signer, bytes.to_vec())),
        );
        for (signer, bytes) in sent {
            let signer = signer.0 as usize;
            if !self.signers[signer].connected {
                self.complain(format!("signer {signer} is sent something and has no channel"));
            }
            self.signers[signer].reader.push(&bytes);
            while let Some(bytes) = self.signers[signer].reader.next_bytes().unwrap() {
                let request: Request<'_> = protocol::decode(bytes).unwrap();
                let entry = (request.id, request.key, request.message.to_vec());
                self.signers[signer].pending.push(entry);
            }
            let (_, key, message) = self.signers[signer].pending.last().unwrap().clone();
            self.check_sent(signer, key, &message);
        }
    }

    fn check_sent(&mut self, signer: usize, key: KeyNumber, message: &[u8]) {
        let tag = u64::from_le_bytes(message.try_into().unwrap());
        let Some(waiting) = self.waiting.get_mut(&tag) else {
            return self.complain(format!("{tag} is asked for and nobody waits"));
        };
        waiting.attempts += 1;
        let (attempts, group) = (waiting.attempts, waiting.group);
        if attempts > 2 {
            self.complain(format!("{tag} is asked for the {attempts}th time"));
        }
        let keys = self.keys[group].clone();
        let group = Arc::clone(&self.groups[group]);
        let tokens = &group.tokens;
        let token = (0..tokens.len()).find(|&at| keys.iter().any(|of| of.number(at) == Some(key)));
        let Some(token) = token else {
            return self.complain(format!("{tag} is asked for with a key of another group"));
        };
        if tokens[token].signer.0 as usize != signer {
            self.complain(format!("{tag} went to a signer that has not its token"));
        }
        if !tokens[token].is_usable() {
            self.complain(format!("{tag} went to a token that cannot be used"));
        }
        let of_token = |(_, key, _): &&(u64, KeyNumber, Vec<u8>)| keys.iter().any(|of| of.number(token) == Some(*key));
        let in_flight = self.signers[signer].pending.iter().filter(of_token).count();
        let sessions = tokens[token].spec.settings.sessions as usize;
        if in_flight > 2 * sessions + 2 {
            self.complain(format!("{in_flight} requests at a token of {sessions} sessions"));
        }
    }

    /// A signer answers something, in any order.
    fn answer(&mut self, signer: usize) {
        if self.signers[signer].pending.is_empty() {
            return;
        }
        let mut bytes = std::mem::take(&mut self.signers[signer].rest);
        for _ in 0..self.random.between(1, 6) {
            let pending = &mut self.signers[signer].pending;
            if pending.is_empty() {
                break;
            }
            let (id, _, message) = pending.swap_remove(self.random.below(pending.len()));
            let right = !self.random.chance(self.wrong);
            let made = signature(&message, right);
            let mut free_attempt = false;
            let signature = if self.random.chance(self.fails) {
                Err(self.random.pick(&[Refusal::Failed, Refusal::Expired, Refusal::Unknown]))
            } else if self.random.chance(self.unavailable) {
                free_attempt = true;
                Err(self.random.pick(&[Refusal::Unavailable, Refusal::Full]))
            } else {
                Ok(&*made)
            };
            if free_attempt
                && let Some(waiting) = self.waiting.get_mut(&u64::from_le_bytes(message.try_into().unwrap()))
            {
                waiting.attempts -= 1;
            }
            let signing_us = 100;
            protocol::write(
                &Response {
                    id,
                    signing_us,
                    signature,
                },
                &mut bytes,
            );
        }
        // An answer that nobody has asked for is nobody's.
        if self.random.chance(50) {
            let response = Response {
                id: u64::MAX,
                signing_us: 0,
                signature: Ok(b"stray"),
            };
            protocol::write(&response, &mut bytes);
        }
        let cut = self.random.between(0, bytes.len());
        self.signers[signer].rest = bytes.split_off(cut);
        let number = SignerNumber(u32::try_from(signer).unwrap());
        self.requests.received(number, &bytes, self.now).unwrap();
    }

    fn connect_or_end(&mut self) {
        let signer = self.random.below(self.signers.len());
        let number = SignerNumber(u32::try_from(signer).unwrap());
        let connected = self.signers[signer].connected;
        self.signers[signer] = Signer::default();
        // A new channel may come before the end of the old one is seen.
        if connected && self.random.chance(700) {
            self.requests.lost(number);
        } else {
            self.requests.connected(number);
            self.signers[signer].connected = true;
        }
    }

    fn change_token(&mut self) {
        let group = self.random.below(self.groups.len());
        let tokens = &self.groups[group].tokens;
        let token = &tokens[self.random.below(tokens.len())];
        let breaker = self
            .random
            .pick(&[Breaker::Closed, Breaker::Closed, Breaker::HalfOpen, Breaker::Open]);
        token.set_status(TokenStatus {
            breaker,
            ..TokenStatus::default()
        });
    }

    fn leave(&mut self) {
        if let Some(tag) = self.waiting.keys().next().copied() {
            self.gone.insert(tag);
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.requests.pop_answer() {
            match answer {
                Answer::Signed(signed) => {
                    let tag = *signed.tag();
                    let verification = signed.verification().unwrap();
                    let right = verification.signature() == signature(&tag.to_le_bytes(), true);
                    assert_eq!(verification.message(), tag.to_le_bytes());
                    if let Some((tag, made)) = self.requests.verified(*signed, right) {
                        if made != signature(&tag.to_le_bytes(), true) {
                            self.complain(format!("{tag} gets a wrong signature"));
                        }
                        self.signed += 1;
                        self.answered(tag);
                    }
                }
                Answer::Failed(tag, _) => self.answered(tag),
            }
        }
    }

    fn answered(&mut self, tag: u64) {
        match self.waiting.remove(&tag) {
            None => self.complain(format!("{tag} is answered twice")),
            Some(waiting) if self.now > waiting.deadline + STEP + Duration::from_millis(1) => {
                self.complain(format!("{tag} is answered {:?} too late", self.now - waiting.deadline));
            }
            Some(_) => {}
        }
    }

    /// All that is left is answered when its time is over, whatever signers do.
    fn finish(mut self) -> Result<(), String> {
        let mut turns = 0;
        while self.waiting.keys().any(|tag| !self.gone.contains(tag)) && turns < 1000 {
            let next = self.requests.next_deadline();
            let Some(next) = next else {
                self.complain("handshakes wait and nothing is due".into());
                break;
            };
            self.now = self.now.max(next).min(self.now + STEP);
            self.turn();
            turns += 1;
        }
        let left: Vec<u64> = self
            .waiting
            .keys()
            .copied()
            .filter(|tag| !self.gone.contains(tag))
            .collect();
        if !left.is_empty() {
            self.complain(format!("{left:?} are never answered"));
        }
        let signed: u64 = self.metrics.iter().map(|metrics| metrics.signed.value()).sum();
        if signed != self.signed {
            self.complain(format!("{} signatures, {signed} counted", self.signed));
        }
        match self.failed.first() {
            None => Ok(()),
            Some(first) => Err(first.clone()),
        }
    }
}

fn public_key() -> Vec<u8> {
    KeyPair::generate().unwrap().subject_public_key_info()
}

fn run(seed: u64, public: &[u8]) -> Result<u64, String> {
    let mut run = Run::new(seed, public);
    for _ in 0..STEPS {
        run.step();
    }
    let signed = run.signed;
    run.finish().map(|()| signed)
}

#[test]
fn whatever_signers_do() {
    let public = public_key();
    let mut signed = 0;
    for seed in seeds() {
        match run(seed, &public) {
            Ok(count) => signed += count,
            Err(why) => panic!("seed {seed}: {why} (RINGLOCK_SEED={seed} replays it)"),
        }
    }
    assert!(signed > 0, "some signatures are made");
}

/// A listener that floods a token does not keep others from it.
#[test]
fn a_flood_at_one_listener_leaves_room_for_another() {
    assert_eq!(flooded(), (true, true));
}

/// Whether another listener's handshake finds room beside a flood, and whether it is sent before most of the flood.
fn flooded() -> (bool, bool) {
    let public = public_key();
    let seed = (0..).find(|&seed| {
        let run = Run::new(seed, &public);
        run.groups[0].spec.queue > 8 && run.keys[0][0].number(0).is_some()
    });
    let mut run = Run::new(seed.unwrap(), &public);
    let group = Arc::clone(&run.groups[0]);
    let mut push = |tag: u64, listener: usize| {
        let deadline = run.now + Duration::from_millis(400);
        let key = Arc::clone(&run.keys[0][0]);
        let ask = Ask {
            tag,
            listener,
            key,
            scheme: SCHEME,
            message: tag.to_le_bytes().into(),
            deadline,
        };
        run.requests.push(ask, run.now);
    };
    for tag in 0..100 {
        push(tag, 0);
    }
    push(1000, 1);
    let mut refused = Vec::new();
    while let Some(answer) = run.requests.pop_answer() {
        if let Answer::Failed(tag, KeyFailure::Full) = answer {
            refused.push(tag);
        }
    }
    assert_eq!(refused.len(), 101 - group.spec.queue);
    let admitted = !refused.contains(&1000);
    run.requests.connected(group.tokens[0].signer);
    group.tokens[0].set_status(TokenStatus {
        breaker: Breaker::Closed,
        ..TokenStatus::default()
    });
    let mut order = Vec::new();
    run.requests.dispatch(
        run.now,
        |_| true,
        |_, bytes| {
            let request: Request<'_> = protocol::decode(&bytes[4..]).unwrap();
            order.push(u64::from_le_bytes(request.message.try_into().unwrap()));
        },
    );
    (admitted, order.iter().take(2).any(|&tag| tag == 1000))
}

#[cfg(feature = "mutants")]
#[test]
fn every_planted_mutant_of_requests_is_found() {
    use ringlock::mutants::{Mutant, plant};

    let public = public_key();
    for mutant in Mutant::OF_REQUESTS {
        plant(Some(mutant));
        let found = seeds().find_map(|seed| Some(format!("seed {seed}: {}", run(seed, &public).err()?)));
        let found = found.or_else(|| (flooded() != (true, true)).then(|| "a flood leaves no room".to_owned()));
        plant(None);
        let found = found.unwrap_or_else(|| panic!("{mutant:?} is not found in {SEEDS} seeds"));
        eprintln!("{mutant:?}: {found}");
    }
}
