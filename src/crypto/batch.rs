//! Operations that wait, and the engine that answers them: up to eight of one kind by one call of libcrypto_mb, where that is
//! cheaper than one by one with aws-lc.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::digest;
use rustls::crypto::{CompletedKeyExchange, SharedSecret};
use rustls::{NamedGroup, SignatureScheme};

use super::inline::MLKEM_KEY_BYTES;
use super::key::{Key, LaneCurve, LaneKey};
use super::measure::{self, shortest};
use super::multibuffer::{Block, Hash, RsaKey};
use super::multibuffer::{EcdhJob, EcdsaJob, Lanes, Multibuffer, RsaJob, RsaScratch, X25519Job};
use super::multibuffer::{P256, P384, Point, Signature, VerifyJob};
use super::pool::{Ahead, CurvePair, X25519Pair};
use super::verifier::{self, Verification};
use super::{CryptoOp, CryptoResult, inline, pool};

pub use super::multibuffer::LANES;

/// How long the two sides of each break-even are measured: 18 figures, within the 200 ms that a start may take for it.
const CALIBRATION_TIME: Duration = Duration::from_millis(4);

/// Operations in the order they were asked for; a tag says by whom.
pub struct Queue<Tag> {
    /// In the order in which a handshake asks: exchanges, signatures, verifications.
    lanes: [VecDeque<(Tag, CryptoOp)>; 3],
    /// The worker has looked for more since the last answer.
    looked: bool,
}

impl<Tag> Default for Queue<Tag> {
    fn default() -> Self {
        Queue {
            lanes: std::array::from_fn(|_| VecDeque::new()),
            looked: false,
        }
    }
}

impl<Tag> Queue<Tag> {
    /// Appends an operation.
    pub fn push(&mut self, tag: Tag, op: CryptoOp) {
        let lane = match op {
            CryptoOp::KeyExchange { .. } => 0,
            CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } => 1,
            CryptoOp::Verify(_) => 2,
        };
        self.lanes[lane].push_back((tag, op));
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose operation waits longest.
    #[must_use]
    pub fn first_tag(&self) -> Option<Tag>
    where
        Tag: Copy,
    {
        let first = self.lanes.iter().find_map(VecDeque::front);
        first.map(|(tag, _)| *tag)
    }

    /// It is time for answers. Some, but not a batch of them, wait once for the worker to look, without sleeping, whether there are
    /// more; one alone never does.
    pub fn is_due(&mut self, engine: &Engine) -> bool {
        let most = self.lanes.iter().map(VecDeque::len).max().unwrap_or_default();
        let looks = engine.batch.is_some() && (2..LANES).contains(&most) && !self.looked;
        self.looked = looks;
        !looks
    }

    /// What is computed next: the oldest operation with those that share a call with it, or it alone. What handshakes ask for
    /// first comes first, because the rest comes of it, unless there is a whole batch of what they ask for later.
    pub fn take_call(&mut self, engine: &Engine) -> Vec<(Tag, CryptoOp)> {
        let full = self.lanes.iter().rposition(|lane| lane.len() >= LANES);
        let first = || self.lanes.iter().position(|lane| !lane.is_empty());
        let Some(chosen) = full.or_else(first) else {
            return Vec::new();
        };
        let waiting = &mut self.lanes[chosen];
        let oldest = &waiting[0].1;
        let kind = Kind::of(oldest);
        let shares = |(_, op): &(Tag, CryptoOp)| Kind::of(op) == kind;
        let sharing: Vec<usize> = (0..waiting.len().min(LOOKED_THROUGH))
            .filter(|&at| shares(&waiting[at]))
            .take(LANES)
            .collect();
        let together = engine.break_even(oldest).is_some_and(|count| sharing.len() >= count);
        let count = if together { sharing.len() } else { 1 };
        // From behind, so that the places of the others stay what they are.
        let taken = sharing[..count].iter().rev().filter_map(|&at| waiting.remove(at));
        let mut call: Vec<_> = taken.collect();
        call.reverse();
        call
    }
}

/// Operations among which those are looked for that share a call.
const LOOKED_THROUGH: usize = 8 * LANES;

/// What can share a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Also the X25519 half of X25519MLKEM768.
    X25519,
    P256,
    SignP256,
    SignP384,
    SignRsa2048,
    SignRsa3072,
    SignRsa4096,
    VerifyP256,
    VerifyP384,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::X25519,
        Kind::P256,
        Kind::SignP256,
        Kind::SignP384,
        Kind::SignRsa2048,
        Kind::SignRsa3072,
        Kind::SignRsa4096,
        Kind::VerifyP256,
        Kind::VerifyP384,
    ];

    fn of(op: &CryptoOp) -> Option<Kind> {
        match op {
            CryptoOp::KeyExchange { group, peer_share } => match (*group, peer_share.len()) {
                (NamedGroup::X25519, 32) => Some(Kind::X25519),
                (NamedGroup::X25519MLKEM768, bytes) if bytes == MLKEM_KEY_BYTES + 32 => Some(Kind::X25519),
                (NamedGroup::secp256r1, _) => Some(Kind::P256),
                (_, _) => None,
            },
            CryptoOp::Sign { key, scheme, .. } => match key.lanes()? {
                LaneKey::P256(_) if *scheme == P256::SCHEME => Some(Kind::SignP256),
                LaneKey::P384(_) if *scheme == P384::SCHEME => Some(Kind::SignP384),
                LaneKey::Rsa(key) => match key.bits() {
                    2048 => Some(Kind::SignRsa2048),
                    3072 => Some(Kind::SignRsa3072),
                    4096 => Some(Kind::SignRsa4096),
                    _ => None,
                },
                LaneKey::P256(_) | LaneKey::P384(_) => None,
            },
            CryptoOp::SignElsewhere { .. } => None,
            CryptoOp::Verify(verification) => Some(match verification.kind()? {
                verifier::Kind::P256 => Kind::VerifyP256,
                verifier::Kind::P384 => Kind::VerifyP384,
            }),
        }
    }
}

/// Answers operations. Workers share it.
pub struct Engine {
    batch: Option<Batch>,
    waits: bool,
    ahead: Ahead,
}

struct Batch {
    library: Multibuffer,
    /// As many operations of a kind are cheaper in one call than one by one; in the order of [`Kind::ALL`].
    break_even: [usize; Kind::ALL.len()],
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.batch {
            Some(_) => "in batches of up to eight",
            None => "one by one",
        })
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({self})")
    }
}

thread_local! {
    static RSA_SCRATCH: RefCell<Option<RsaScratch>> = const { RefCell::new(None) };
}

impl Engine {
    /// One that computes everything by itself. When it `waits`, handshakes wait for signatures all the same, as for an engine that
    /// is elsewhere.
    #[must_use]
    pub fn inline(waits: bool) -> Engine {
        Engine {
            batch: None,
            waits,
            ahead: Ahead::NOTHING,
        }
    }

    /// One with the library; measures when that is cheaper.
    #[must_use]
    pub fn with_library(library: Multibuffer) -> Engine {
        let mut batch = Batch {
            library,
            break_even: [1; Kind::ALL.len()],
        };
        batch.break_even = calibrated(&batch);
        Engine {
            batch: Some(batch),
            waits: true,
            ahead: Ahead::NOTHING,
        }
    }

    /// The same, with this made ahead. Set-ups need the library.
    #[must_use]
    pub fn making_ahead(self, ahead: Ahead) -> Engine {
        let setups = ahead.setups && self.batch.is_some();
        Engine {
            ahead: Ahead { setups, ..ahead },
            ..self
        }
    }

    /// What is made ahead for it.
    #[must_use]
    pub fn ahead(&self) -> Ahead {
        self.ahead
    }

    /// The library, if it has it.
    #[must_use]
    pub fn library(&self) -> Option<&Multibuffer> {
        self.batch.as_ref().map(|batch| &batch.library)
    }

    /// It is worth leaving a call of rustls for an answer.
    #[must_use]
    pub fn is_worth_waiting_for(&self) -> bool {
        self.waits
    }

    /// As many operations like this one are computed together when they wait; nothing when they never are.
    #[must_use]
    pub fn break_even(&self, op: &CryptoOp) -> Option<usize> {
        let break_even = self.batch.as_ref()?.break_even[Kind::of(op)? as usize];
        (break_even <= LANES).then_some(break_even)
    }

    /// Answers the operations of one call ([`Queue::take_call`]) together, whether that is worth it or not; nothing when they
    /// cannot share one, or one of them is refused.
    ///
    /// # Panics
    /// There are more than [`LANES`], or none.
    #[must_use]
    pub fn answer_together(&self, ops: &[CryptoOp]) -> Option<Vec<CryptoResult>> {
        let answers = self.batch.as_ref()?.compute(ops);
        answers.into_iter().take(ops.len()).collect()
    }

    /// Answers the operations of one call ([`Queue::take_call`]), in their order. `count` is told how many were computed together.
    ///
    /// # Panics
    /// There are more than [`LANES`].
    pub fn answer(&self, ops: &[CryptoOp], mut count: impl FnMut(usize)) -> Vec<CryptoResult> {
        assert!(ops.len() <= LANES, "a call has {LANES} lanes");
        let break_even = ops.first().and_then(|op| self.break_even(op));
        let together = break_even.is_some_and(|break_even| ops.len() >= break_even);
        let answers = match &self.batch {
            Some(batch) if together => {
                count(ops.len());
                batch.compute(ops)
            }
            Some(_) | None => Lanes::default(),
        };
        let answers = answers.into_iter().zip(ops).map(|(answer, op)| {
            // What a batch refuses is computed again: aws-lc has the error for it, or does better.
            answer.unwrap_or_else(|| {
                count(1);
                inline::run(op)
            })
        });
        answers.collect()
    }
}

impl Batch {
    /// Computes operations of one kind; nothing of those that are refused, or of any when they have none.
    fn compute(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        assert!(
            (1..=LANES).contains(&ops.len()),
            "a call has {LANES} lanes, and one is used"
        );
        let kind = Kind::of(&ops[0]);
        debug_assert!(ops.iter().all(|op| Kind::of(op) == kind), "a call is of one kind");
        match kind {
            None => Lanes::default(),
            Some(Kind::X25519) => self.x25519(ops),
            Some(Kind::P256) => self.p256(ops),
            Some(Kind::SignP256) => self.ecdsa::<P256>(ops),
            Some(Kind::SignP384) => self.ecdsa::<P384>(ops),
            Some(Kind::SignRsa2048 | Kind::SignRsa3072 | Kind::SignRsa4096) => self.rsa(ops),
            Some(Kind::VerifyP256) => self.verify::<P256>(ops),
            Some(Kind::VerifyP384) => self.verify::<P384>(ops),
        }
    }

    fn x25519(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        let pairs: Vec<X25519Pair> = pool::take(ops.len(), &self.library);
        let jobs: Vec<X25519Job<'_>> = pairs
            .iter()
            .zip(ops)
            .map(|(pair, op)| X25519Job {
                private: &pair.private,
                peer: exchange(op).1.last_chunk().expect("Kind::of has seen its length"),
            })
            .collect();
        let mut answers = Lanes::default();
        let computed = pairs.iter().zip(ops).zip(self.library.x25519(&jobs));
        for (answer, ((pair, op), shared)) in answers.iter_mut().zip(computed) {
            let (group, share) = exchange(op);
            let Some(shared) = shared else { continue };
            let done = if group == NamedGroup::X25519MLKEM768 {
                inline::hybrid(&share[..MLKEM_KEY_BYTES], &pair.public, shared.bytes())
            } else {
                Ok(CompletedKeyExchange {
                    group,
                    pub_key: pair.public.to_vec(),
                    secret: SharedSecret::from(shared.bytes().as_slice()),
                })
            };
            *answer = Some(CryptoResult::KeyExchange(done));
        }
        answers
    }

    fn p256(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        let mut answers = Lanes::default();
        let point = |(lane, op)| Some((lane, Point::<P256>::from_uncompressed(exchange(op).1)?));
        let peers: Vec<_> = ops.iter().enumerate().filter_map(point).collect();
        if peers.is_empty() {
            return answers;
        }
        let pairs: Vec<CurvePair<P256>> = pool::take(peers.len(), &self.library);
        let jobs: Vec<EcdhJob<'_, P256>> = pairs
            .iter()
            .zip(&peers)
            .map(|(pair, (_, peer))| EcdhJob {
                private: &pair.private,
                peer,
            })
            .collect();
        let shared = self.library.ecdh(&jobs);
        for ((&(lane, _), pair), shared) in peers.iter().zip(&pairs).zip(shared) {
            let Some(shared) = shared else { continue };
            let mut bytes = [0; 65];
            answers[lane] = Some(CryptoResult::KeyExchange(Ok(CompletedKeyExchange {
                group: NamedGroup::secp256r1,
                pub_key: pair.public.write_uncompressed(&mut bytes).to_vec(),
                secret: SharedSecret::from(shared.bytes().as_ref()),
            })));
        }
        answers
    }

    fn ecdsa<C: LaneCurve>(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        let digests: Vec<_> = ops.iter().map(|op| digest(C::DIGEST, signature(op).2)).collect();
        let jobs: Vec<EcdsaJob<'_, C>> = ops
            .iter()
            .zip(&digests)
            .map(|(op, digest)| EcdsaJob {
                key: signature(op)
                    .0
                    .lanes()
                    .and_then(C::scalar)
                    .expect("Kind::of has seen the key"),
                digest: digest.as_ref(),
            })
            .collect();
        let signatures = self.library.ecdsa_sign(&jobs);
        signatures.map(|signature| Some(CryptoResult::Signature(Ok(signature?.to_der()))))
    }

    fn rsa(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        let mut answers = Lanes::default();
        let mut blocks: Vec<(usize, &RsaKey, Block, Vec<u8>)> = Vec::with_capacity(LANES);
        for (lane, op) in ops.iter().enumerate() {
            let (key, scheme, message) = signature(op);
            if let Some(LaneKey::Rsa(key)) = key.lanes()
                && let Some(block) = padded(key.bits(), scheme, message)
            {
                blocks.push((lane, key, block, vec![0; key.bits() / 8]));
            }
        }
        if blocks.is_empty() {
            return answers;
        }
        let mut jobs: Vec<RsaJob<'_>> = blocks
            .iter_mut()
            .map(|(_, key, block, out)| RsaJob {
                key,
                block: block.as_bytes(),
                out,
            })
            .collect();
        let done = RSA_SCRATCH.with_borrow_mut(|scratch| {
            let scratch = scratch.get_or_insert_with(|| self.library.rsa_scratch());
            self.library.rsa_private(&mut jobs, scratch)
        });
        for ((lane, _, _, signature), done) in blocks.into_iter().zip(done) {
            answers[lane] = done.map(|()| CryptoResult::Signature(Ok(signature)));
        }
        answers
    }

    /// Answers those that are right. What is wrong, or looks wrong, aws-lc decides.
    fn verify<C: LaneCurve>(&self, ops: &[CryptoOp]) -> Lanes<CryptoResult> {
        let mut answers = Lanes::default();
        let read = |(lane, op)| {
            let verification = verification(op);
            let key = Point::<C>::from_uncompressed(verification.key())?;
            let signature = Signature::<C>::from_der(verification.signature())?;
            Some((lane, key, signature, digest(C::DIGEST, verification.message())))
        };
        let read: Vec<_> = ops.iter().enumerate().filter_map(read).collect();
        if read.is_empty() {
            return answers;
        }
        let jobs: Vec<VerifyJob<'_, C>> = read
            .iter()
            .map(|(_, key, signature, digest)| VerifyJob {
                key,
                digest: digest.as_ref(),
                signature,
            })
            .collect();
        for ((lane, ..), right) in read.iter().zip(self.library.ecdsa_verify(&jobs)) {
            answers[*lane] = right.map(|()| CryptoResult::Verified(true));
        }
        answers
    }
}

fn exchange(op: &CryptoOp) -> (NamedGroup, &[u8]) {
    match op {
        CryptoOp::KeyExchange { group, peer_share } => (*group, peer_share),
        CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } | CryptoOp::Verify(_) => {
            unreachable!("Kind::of has told them apart")
        }
    }
}

fn signature(op: &CryptoOp) -> (&Key, SignatureScheme, &[u8]) {
    match op {
        CryptoOp::Sign { key, scheme, message } => (key, *scheme, message),
        CryptoOp::KeyExchange { .. } | CryptoOp::SignElsewhere { .. } | CryptoOp::Verify(_) => {
            unreachable!("Kind::of has told them apart")
        }
    }
}

fn verification(op: &CryptoOp) -> &Verification {
    match op {
        CryptoOp::Verify(verification) => verification,
        CryptoOp::KeyExchange { .. } | CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } => {
            unreachable!("Kind::of has told them apart")
        }
    }
}

fn padded(bits: usize, scheme: SignatureScheme, message: &[u8]) -> Option<Block> {
    use SignatureScheme as S;
    const PSS: [(SignatureScheme, Hash); 3] = [
        (S::RSA_PSS_SHA256, Hash::Sha256),
        (S::RSA_PSS_SHA384, Hash::Sha384),
        (S::RSA_PSS_SHA512, Hash::Sha512),
    ];
    const PKCS1: [(SignatureScheme, Hash); 3] = [
        (S::RSA_PKCS1_SHA256, Hash::Sha256),
        (S::RSA_PKCS1_SHA384, Hash::Sha384),
        (S::RSA_PKCS1_SHA512, Hash::Sha512),
    ];
    let hash = |table: [(SignatureScheme, Hash); 3]| table.into_iter().find(|entry| entry.0 == scheme);
    match (hash(PSS), hash(PKCS1)) {
        (Some((_, hash)), _) => Some(Block::pss(bits, hash, message)),
        (None, Some((_, hash))) => Some(Block::pkcs1(bits, hash, message)),
        (None, None) => None,
    }
}

/// The break-even of each kind, measured.
fn calibrated(batch: &Batch) -> [usize; Kind::ALL.len()] {
    let examples = measure::examples();
    Kind::ALL.map(|kind| {
        let example = examples.iter().find(|example| Kind::of(&example.op) == Some(kind));
        break_even(batch, &example.expect("there is one of each kind").op)
    })
}

fn break_even(batch: &Batch, op: &CryptoOp) -> usize {
    let ops: Vec<CryptoOp> = std::iter::repeat_n(op, LANES).cloned().collect();
    let together = shortest(CALIBRATION_TIME, || {
        let answers = batch.compute(&ops);
        assert!(answers.iter().all(Option::is_some), "the self-check has passed");
    });
    let alone = shortest(CALIBRATION_TIME, || drop(inline::run(op)));
    let operations = together.as_nanos().div_ceil(alone.as_nanos().max(1));
    // A call that is never worth it has a break-even that no batch reaches.
    usize::try_from(operations).unwrap_or(usize::MAX).clamp(2, LANES + 1)
}
