//! Made ahead, one pool for each worker: what a handshake needs and does not depend on its peer. Ephemeral key pairs, and the nonce
//! half of ECDSA signatures. What is made is used once or thrown away: taking it out moves it and wipes its place.
//!
//! A pool is filled while its worker has nothing else to do ([`refill`]) and, where eight cost as much as one, whenever it is found
//! empty. Nothing is made of a kind that nobody has asked for lately, and nothing is kept for longer than [`MADE_AHEAD_AGE_MAX`].

mod queue;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use std::{fmt, io};

use aws_lc_rs::digest::digest;
use rustls::crypto::ActiveKeyExchange;
use rustls::{NamedGroup, SignatureScheme};
use zeroize::Zeroize;

use queue::{Kept, Queue, put_limbs, take_limbs};

use super::batch::Engine;
use super::key::{Key, LaneCurve, LaneKey};
use super::multibuffer::{Curve, EcdsaJob, EcdsaSetup, LANES, Lanes, Multibuffer, P256, P384, Point, Scalar, Secret32};
use super::provider;
use crate::limits::{MADE_AHEAD_AGE_MAX, MADE_AHEAD_MAX, MADE_AHEAD_STARTED_MAX};
use crate::metrics::WorkerMetrics;

/// An X25519 key pair for a batch.
pub struct X25519Pair {
    /// Ours alone.
    pub private: Secret32,
    /// For the peer.
    pub public: [u8; 32],
}

/// A key pair on a curve, for a batch.
pub struct CurvePair<C: Curve> {
    /// Ours alone.
    pub private: Scalar<C>,
    /// For the peer.
    pub public: Point<C>,
}

impl Kept for X25519Pair {
    const BYTES: usize = 64;

    fn put(self, bytes: &mut [u8]) {
        bytes[..32].copy_from_slice(self.private.bytes());
        bytes[32..].copy_from_slice(&self.public);
    }

    fn take(bytes: &[u8]) -> X25519Pair {
        let (mut private, mut public) = ([0; 32], [0; 32]);
        private.copy_from_slice(&bytes[..32]);
        public.copy_from_slice(&bytes[32..]);
        let pair = X25519Pair {
            private: Secret32::new(private),
            public,
        };
        private.zeroize();
        pair
    }
}

impl<C: Curve> Kept for CurvePair<C> {
    const BYTES: usize = 3 * size_of::<C::Limbs>();

    fn put(self, bytes: &mut [u8]) {
        let bytes = put_limbs(self.private.limbs().as_ref(), bytes);
        let bytes = put_limbs(self.public.x.as_ref(), bytes);
        put_limbs(self.public.y.as_ref(), bytes);
    }

    fn take(bytes: &[u8]) -> CurvePair<C> {
        let mut private = C::LIMBS;
        let (mut x, mut y) = (C::LIMBS, C::LIMBS);
        let bytes = take_limbs(private.as_mut(), bytes);
        let bytes = take_limbs(x.as_mut(), bytes);
        take_limbs(y.as_mut(), bytes);
        CurvePair {
            private: Scalar::from_limbs(private).expect("it was a scalar when it was put there"),
            public: Point { x, y },
        }
    }
}

impl<C: Curve> Kept for EcdsaSetup<C> {
    const BYTES: usize = 2 * size_of::<C::Limbs>();

    fn put(self, bytes: &mut [u8]) {
        let bytes = put_limbs(self.inverse.as_ref(), bytes);
        put_limbs(self.r.as_ref(), bytes);
    }

    fn take(bytes: &[u8]) -> EcdsaSetup<C> {
        let mut setup = EcdsaSetup::<C> {
            inverse: C::LIMBS,
            r: C::LIMBS,
        };
        let bytes = take_limbs(setup.inverse.as_mut(), bytes);
        take_limbs(setup.r.as_mut(), bytes);
        setup
    }
}

/// What is made eight at a time.
pub trait Made: Kept {
    /// Makes eight.
    fn make(library: &Multibuffer) -> Lanes<Self>;

    #[doc(hidden)]
    fn of(pool: &mut Pool) -> &mut Kind<Self>;
}

impl Made for X25519Pair {
    fn make(library: &Multibuffer) -> Lanes<X25519Pair> {
        let private: [_; LANES] = std::array::from_fn(|_| Secret32::random());
        let public = library.x25519_public_key(&private.each_ref());
        pairs(private, public, |private, public| X25519Pair { private, public })
    }

    fn of(pool: &mut Pool) -> &mut Kind<X25519Pair> {
        &mut pool.x25519
    }
}

impl Made for CurvePair<P256> {
    fn make(library: &Multibuffer) -> Lanes<CurvePair<P256>> {
        let private: [_; LANES] = std::array::from_fn(|_| Scalar::random());
        let public = library.public_key(&private.each_ref());
        pairs(private, public, |private, public| CurvePair { private, public })
    }

    fn of(pool: &mut Pool) -> &mut Kind<CurvePair<P256>> {
        &mut pool.p256
    }
}

impl Made for EcdsaSetup<P256> {
    fn make(library: &Multibuffer) -> Lanes<EcdsaSetup<P256>> {
        library.ecdsa_setup()
    }

    fn of(pool: &mut Pool) -> &mut Kind<EcdsaSetup<P256>> {
        &mut pool.sign_p256
    }
}

impl Made for EcdsaSetup<P384> {
    fn make(library: &Multibuffer) -> Lanes<EcdsaSetup<P384>> {
        library.ecdsa_setup()
    }

    fn of(pool: &mut Pool) -> &mut Kind<EcdsaSetup<P384>> {
        &mut pool.sign_p384
    }
}

fn pairs<A, B, P>(private: [A; LANES], public: Lanes<B>, pair: impl Fn(A, B) -> P) -> Lanes<P> {
    let mut pairs = private.into_iter().zip(public);
    std::array::from_fn(|_| {
        let (private, public) = pairs.next().expect("there are eight of both");
        Some(pair(private, public?))
    })
}

/// What is made of one kind.
#[doc(hidden)]
pub struct Kind<T> {
    /// None where there is no memory that can be locked.
    queue: Option<Queue<T>>,
    /// Somebody has asked for it since it was last thrown away.
    asked: bool,
}

impl<T: Kept> Kind<T> {
    fn new(failed: &mut Option<io::Error>) -> Kind<T> {
        let queue = Queue::new(MADE_AHEAD_MAX);
        Kind {
            queue: queue.map_err(|error| *failed = Some(error)).ok(),
            asked: false,
        }
    }

    fn wants_more(&self) -> bool {
        self.asked && self.queue.as_ref().is_some_and(|queue| queue.room() >= LANES)
    }

    fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::len)
    }

    fn clear(&mut self) {
        self.asked = false;
        if let Some(queue) = &mut self.queue {
            queue.clear();
        }
    }
}

/// Exchanges that aws-lc has begun: what it computes one by one takes its own key pairs.
#[derive(Default)]
struct Started {
    waiting: VecDeque<Box<dyn ActiveKeyExchange>>,
    asked: bool,
}

/// In the order of [`Pool`]'s `started`.
const STARTED: [NamedGroup; 3] = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

/// See the module.
#[doc(hidden)]
pub struct Pool {
    engine: Arc<Engine>,
    metrics: Arc<WorkerMetrics>,
    x25519: Kind<X25519Pair>,
    p256: Kind<CurvePair<P256>>,
    sign_p256: Kind<EcdsaSetup<P256>>,
    sign_p384: Kind<EcdsaSetup<P384>>,
    started: [Started; STARTED.len()],
    /// Nothing in it is older.
    since: Instant,
}

/// What is made ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Ephemeral key pairs.
    pub key_pairs: bool,
    /// Signature set-ups. A machine that is copied while it runs would use one twice, and give the key away.
    pub setups: bool,
}

impl Ahead {
    /// Nothing.
    pub const NOTHING: Ahead = Ahead {
        key_pairs: false,
        setups: false,
    };
    /// Everything.
    pub const ALL: Ahead = Ahead {
        key_pairs: true,
        setups: true,
    };
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.key_pairs, self.setups) {
            (true, true) => "key pairs and signature set-ups",
            (true, false) => "key pairs",
            (false, true) => "signature set-ups",
            (false, false) => "nothing",
        })
    }
}

thread_local! {
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// Makes ahead for this thread from now on, as `engine` says.
///
/// # Errors
/// There is no memory that can be locked: what is kept in such memory is made when it is needed.
pub fn open(engine: &Arc<Engine>, metrics: &Arc<WorkerMetrics>, now: Instant) -> io::Result<()> {
    if engine.ahead() == Ahead::NOTHING {
        close();
        return Ok(());
    }
    let mut failed = None;
    POOL.set(Some(Pool {
        engine: Arc::clone(engine),
        metrics: Arc::clone(metrics),
        x25519: Kind::new(&mut failed),
        p256: Kind::new(&mut failed),
        sign_p256: Kind::new(&mut failed),
        sign_p384: Kind::new(&mut failed),
        started: Default::default(),
        since: now,
    }));
    failed.map_or(Ok(()), Err)
}

/// Wipes what there is on this thread and makes nothing any more.
pub fn close() {
    POOL.set(None);
}

/// There is something to make when there is nothing else to do.
#[must_use]
pub fn wants_more() -> bool {
    POOL.with_borrow(|pool| pool.as_ref().is_some_and(Pool::wants_more))
}

/// Makes some of what is wanted: what one call gives.
pub fn refill() {
    POOL.with_borrow_mut(|pool| {
        if let Some(pool) = pool {
            pool.refill();
        }
    });
}

/// When what there is has to be thrown away; `None` when there is nothing.
#[must_use]
pub fn expires_at() -> Option<Instant> {
    POOL.with_borrow(|pool| {
        let pool = pool.as_ref().filter(|pool| pool.len() > 0)?;
        Some(pool.since + MADE_AHEAD_AGE_MAX)
    })
}

/// Throws away what is too old.
pub fn expire(now: Instant) {
    POOL.with_borrow_mut(|pool| {
        if let Some(pool) = pool
            && now >= pool.since + MADE_AHEAD_AGE_MAX
        {
            pool.clear();
            pool.since = now;
        }
    });
}

/// So many for a batch: from this thread's pool, which then keeps what is over, or made at once.
pub fn take<T: Made>(count: usize, library: &Multibuffer) -> Vec<T> {
    assert!(count <= LANES, "a batch has {LANES} lanes");
    POOL.with_borrow_mut(|pool| match with_key_pairs(pool) {
        Some(pool) => pool.take(count, library),
        None => T::make(library).into_iter().flatten().take(count).collect(),
    })
}

/// An exchange that was begun ahead, for what is computed one by one.
pub fn take_started(group: NamedGroup) -> Option<Box<dyn ActiveKeyExchange>> {
    POOL.with_borrow_mut(|pool| {
        let pool = with_key_pairs(pool)?;
        let at = STARTED.iter().position(|&known| known == group)?;
        pool.started[at].asked = true;
        let started = pool.started[at].waiting.pop_front();
        pool.count(usize::from(started.is_some()), usize::from(started.is_none()));
        started
    })
}

fn with_key_pairs(pool: &mut Option<Pool>) -> Option<&mut Pool> {
    pool.as_mut().filter(|pool| pool.engine.ahead().key_pairs)
}

/// A signature by a set-up, if they are made and the key has some.
pub fn sign(key: &Key, scheme: SignatureScheme, message: &[u8]) -> Option<Vec<u8>> {
    POOL.with_borrow_mut(|pool| {
        let pool = pool.as_mut().filter(|pool| pool.engine.ahead().setups)?;
        let key = key.lanes()?;
        match key {
            LaneKey::P256(key) if scheme == P256::SCHEME => pool.complete(key, message),
            LaneKey::P384(key) if scheme == P384::SCHEME => pool.complete(key, message),
            LaneKey::P256(_) | LaneKey::P384(_) | LaneKey::Rsa(_) => None,
        }
    })
}

impl Pool {
    fn wants_more(&self) -> bool {
        let batched = self.x25519.wants_more()
            || self.p256.wants_more()
            || self.sign_p256.wants_more()
            || self.sign_p384.wants_more();
        batched || self.started.iter().any(Started::wants_more)
    }

    fn len(&self) -> usize {
        let started: usize = self.started.iter().map(|started| started.waiting.len()).sum();
        self.x25519.len() + self.p256.len() + self.sign_p256.len() + self.sign_p384.len() + started
    }

    fn clear(&mut self) {
        self.metrics.made_ahead_expired.add(self.len() as u64);
        self.x25519.clear();
        self.p256.clear();
        self.sign_p256.clear();
        self.sign_p384.clear();
        self.started = Default::default();
    }

    fn refill(&mut self) {
        let engine = Arc::clone(&self.engine);
        if let Some(library) = engine.library() {
            let made = self.sign_p256.refill(library)
                || self.x25519.refill(library)
                || self.p256.refill(library)
                || self.sign_p384.refill(library);
            if made {
                return;
            }
        }
        let mut groups = self.started.iter_mut().zip(STARTED);
        if let Some((started, group)) = groups.find(|(started, _)| started.wants_more())
            && let Some(Ok(exchange)) = provider::library_group(group).map(rustls::crypto::SupportedKxGroup::start)
        {
            started.waiting.push_back(exchange);
        }
    }

    fn take<T: Made>(&mut self, count: usize, library: &Multibuffer) -> Vec<T> {
        let taken = T::of(self).take(count, library);
        self.count(taken.ahead, count - taken.ahead);
        taken.items
    }

    fn complete<C: LaneCurve>(&mut self, key: &Scalar<C>, message: &[u8]) -> Option<Vec<u8>>
    where
        EcdsaSetup<C>: Made,
    {
        let engine = Arc::clone(&self.engine);
        let library = engine.library()?;
        let setups: Vec<EcdsaSetup<C>> = self.take(1, library);
        let digest = digest(C::DIGEST, message);
        let job = EcdsaJob {
            key,
            digest: digest.as_ref(),
        };
        let [signature, ..] = library.ecdsa_complete(setups.into_iter().map(|setup| (setup, job)));
        Some(signature?.to_der())
    }

    fn count(&self, used: usize, missing: usize) {
        self.metrics.made_ahead_used.add(used as u64);
        self.metrics.made_ahead_missing.add(missing as u64);
    }
}

/// What was asked for.
struct Taken<T> {
    items: Vec<T>,
    /// How many of them were there.
    ahead: usize,
}

impl<T: Made> Kind<T> {
    /// Takes so many, at most eight; what is missing is made, and what is then over is kept.
    fn take(&mut self, count: usize, library: &Multibuffer) -> Taken<T> {
        self.asked = true;
        let mut items = Vec::with_capacity(count);
        if let Some(queue) = &mut self.queue {
            items.extend(std::iter::from_fn(|| queue.pop()).take(count));
        }
        let ahead = items.len();
        if ahead < count {
            let mut made = T::make(library).into_iter().flatten();
            items.extend(made.by_ref().take(count - ahead));
            self.keep(made);
        }
        Taken { items, ahead }
    }

    fn refill(&mut self, library: &Multibuffer) -> bool {
        let wants_more = self.wants_more();
        if wants_more {
            self.keep(T::make(library).into_iter().flatten());
        }
        wants_more
    }

    fn keep(&mut self, items: impl Iterator<Item = T>) {
        if let Some(queue) = &mut self.queue {
            items.for_each(|item| queue.push(item));
        }
    }
}

impl Started {
    fn wants_more(&self) -> bool {
        self.asked && self.waiting.len() < MADE_AHEAD_STARTED_MAX
    }
}

#[cfg(test)]
mod tests;
