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
use super::measure::{self, shortest};
use super::multibuffer::{Block, Hash, RsaKey};
use super::multibuffer::{EcdhJob, EcdsaJob, Lanes, Multibuffer, RsaJob, RsaScratch, X25519Job};
use super::multibuffer::{P256, P384, Point, Signature, VerifyJob};
use super::pool::{Ahead, CurvePair, X25519Pair};
use super::signer::{Key, LaneCurve, LaneKey};
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
            CryptoOp::Sign { .. } => 1,
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

    /// Answers up to [`LANES`] operations in one call, whether that is worth it or not; nothing when they cannot share one, or
    /// one of them is refused.
    ///
    /// # Panics
    /// There are more, or none.
    #[must_use]
    pub fn answer_together(&self, ops: &[CryptoOp]) -> Option<Vec<CryptoResult>> {
        assert!(
            (1..=LANES).contains(&ops.len()),
            "a call has {LANES} lanes, and one is used"
        );
        let batch = self.batch.as_ref()?;
        let kind = Kind::of(&ops[0])?;
        let same = ops.iter().all(|op| Kind::of(op) == Some(kind));
        same.then(|| batch.compute_all(kind, ops))?
    }

    /// Answers up to [`LANES`] operations, in their order. `count` is told how many were computed together, for each call.
    ///
    /// # Panics
    /// There are more.
    pub fn answer(&self, ops: &[CryptoOp], mut count: impl FnMut(usize)) -> Vec<CryptoResult> {
        assert!(ops.len() <= LANES, "a call has {LANES} lanes");
        let mut answers: Lanes<CryptoResult> = Default::default();
        if let Some(batch) = &self.batch {
            for (kind, break_even) in Kind::ALL.into_iter().zip(batch.break_even) {
                let wanted = (0..ops.len()).filter(|&lane| Kind::of(&ops[lane]) == Some(kind));
                let wanted: Vec<usize> = wanted.collect();
                if wanted.len() >= break_even.max(2) {
                    count(wanted.len());
                    batch.compute(kind, ops, &wanted, &mut answers);
                }
            }
        }
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
    /// Computes up to [`LANES`], all of `kind`; nothing when one is refused.
    fn compute_all(&self, kind: Kind, ops: &[CryptoOp]) -> Option<Vec<CryptoResult>> {
        let wanted: Vec<usize> = (0..ops.len()).collect();
        let mut answers = Default::default();
        self.compute(kind, ops, &wanted, &mut answers);
        answers.into_iter().take(ops.len()).collect()
    }

    /// Computes the `wanted` of `ops`, all of `kind`.
    fn compute(&self, kind: Kind, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        match kind {
            Kind::X25519 => self.x25519(ops, wanted, answers),
            Kind::P256 => self.p256(ops, wanted, answers),
            Kind::SignP256 => self.ecdsa::<P256>(ops, wanted, answers),
            Kind::SignP384 => self.ecdsa::<P384>(ops, wanted, answers),
            Kind::SignRsa2048 | Kind::SignRsa3072 | Kind::SignRsa4096 => self.rsa(ops, wanted, answers),
            Kind::VerifyP256 => self.verify::<P256>(ops, wanted, answers),
            Kind::VerifyP384 => self.verify::<P384>(ops, wanted, answers),
        }
    }

    fn x25519(&self, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        let pairs: Vec<X25519Pair> = pool::take(wanted.len(), &self.library);
        let peers: Vec<&[u8; 32]> = wanted
            .iter()
            .map(|&lane| {
                exchange(&ops[lane])
                    .1
                    .last_chunk()
                    .expect("Kind::of has seen its length")
            })
            .collect();
        let jobs: Vec<X25519Job<'_>> = pairs
            .iter()
            .zip(&peers)
            .map(|(pair, peer)| X25519Job {
                private: &pair.private,
                peer,
            })
            .collect();
        let shared = self.library.x25519(&jobs);
        for ((&lane, pair), shared) in wanted.iter().zip(&pairs).zip(shared) {
            let (group, share) = exchange(&ops[lane]);
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
            answers[lane] = Some(CryptoResult::KeyExchange(done));
        }
    }

    fn p256(&self, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        let point = |&lane: &usize| Some((lane, Point::<P256>::from_uncompressed(exchange(&ops[lane]).1)?));
        let peers: Vec<_> = wanted.iter().filter_map(point).collect();
        if peers.is_empty() {
            return;
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
                group: exchange(&ops[lane]).0,
                pub_key: pair.public.write_uncompressed(&mut bytes).to_vec(),
                secret: SharedSecret::from(shared.bytes().as_ref()),
            })));
        }
    }

    fn ecdsa<C: LaneCurve>(&self, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        let digest = |&lane: &usize| digest(C::DIGEST, signature(&ops[lane]).2);
        let digests: Vec<_> = wanted.iter().map(digest).collect();
        let jobs: Vec<EcdsaJob<'_, C>> = wanted
            .iter()
            .zip(&digests)
            .map(|(&lane, digest)| EcdsaJob {
                key: signature(&ops[lane])
                    .0
                    .lanes()
                    .and_then(C::scalar)
                    .expect("Kind::of has seen the key"),
                digest: digest.as_ref(),
            })
            .collect();
        for (&lane, signed) in wanted.iter().zip(self.library.ecdsa_sign(&jobs)) {
            answers[lane] = signed.map(|signed| CryptoResult::Signature(Ok(signed.to_der())));
        }
    }

    fn rsa(&self, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        let mut blocks: Vec<(usize, &RsaKey, Block, Vec<u8>)> = Vec::with_capacity(LANES);
        for &lane in wanted {
            let (key, scheme, message) = signature(&ops[lane]);
            if let Some(LaneKey::Rsa(key)) = key.lanes()
                && let Some(block) = padded(key.bits(), scheme, message)
            {
                blocks.push((lane, key, block, vec![0; key.bits() / 8]));
            }
        }
        if blocks.is_empty() {
            return;
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
    }

    /// Answers those that are right. What is wrong, or looks wrong, aws-lc decides.
    fn verify<C: LaneCurve>(&self, ops: &[CryptoOp], wanted: &[usize], answers: &mut Lanes<CryptoResult>) {
        let read = |&lane: &usize| {
            let verification = verification(&ops[lane]);
            let key = Point::<C>::from_uncompressed(verification.key())?;
            let signature = Signature::<C>::from_der(verification.signature())?;
            Some((lane, key, signature, digest(C::DIGEST, verification.message())))
        };
        let read: Vec<_> = wanted.iter().filter_map(read).collect();
        if read.is_empty() {
            return;
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
    }
}

fn exchange(op: &CryptoOp) -> (NamedGroup, &[u8]) {
    match op {
        CryptoOp::KeyExchange { group, peer_share } => (*group, peer_share),
        CryptoOp::Sign { .. } | CryptoOp::Verify(_) => unreachable!("Kind::of has told them apart"),
    }
}

fn signature(op: &CryptoOp) -> (&Key, SignatureScheme, &[u8]) {
    match op {
        CryptoOp::Sign { key, scheme, message } => (key, *scheme, message),
        CryptoOp::KeyExchange { .. } | CryptoOp::Verify(_) => unreachable!("Kind::of has told them apart"),
    }
}

fn verification(op: &CryptoOp) -> &Verification {
    match op {
        CryptoOp::Verify(verification) => verification,
        CryptoOp::KeyExchange { .. } | CryptoOp::Sign { .. } => unreachable!("Kind::of has told them apart"),
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
        break_even(batch, kind, &example.expect("there is one of each kind").op)
    })
}

fn break_even(batch: &Batch, kind: Kind, op: &CryptoOp) -> usize {
    let ops: Vec<CryptoOp> = std::iter::repeat_n(op, LANES).cloned().collect();
    let together = shortest(CALIBRATION_TIME, || {
        let answers = batch.compute_all(kind, &ops);
        assert!(answers.is_some(), "the self-check has passed");
    });
    let alone = shortest(CALIBRATION_TIME, || drop(inline::run(op)));
    let operations = together.as_nanos().div_ceil(alone.as_nanos().max(1));
    // A call that is never worth it has a break-even that no batch reaches.
    usize::try_from(operations).unwrap_or(usize::MAX).clamp(2, LANES + 1)
}
