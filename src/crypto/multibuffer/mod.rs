//! Up to eight operations of public-key cryptography in one call: Intel's libcrypto_mb, which puts one operation in each of
//! the eight lanes of AVX-512 IFMA. One call costs the same however many lanes are used.
//!
//! The library is found at run time ([`Multibuffer::load`]) and believed only after it agreed with aws-lc on everything it is
//! used for. What it does not check is checked here: points are on their curve ([`Point`]), scalars are in range
//! ([`Scalar`]), X25519 results are not zero, RSA results are verified before they leave. Nonces are drawn here and used
//! once. Its functions take the same time whatever the secrets are, and wipe their own copies; ours are wiped when dropped.
//!
//! Each operation takes 1 to [`LANES`] jobs and gives as many results, in the same order; the rest is `None`, as is the
//! result of a lane that was refused. A lane does not see the others.

mod curve;
mod library;
mod load;
mod rsa;
mod self_check;
mod signature;

use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroize;

pub use super::cpu::Processor;
pub use curve::{Curve, P256, P384, Point, Scalar};
pub use load::LoadError;
pub use rsa::{Block, Hash, RsaKey};
pub use signature::Signature;

use curve::digest_number;
use library::{Inputs, Library, RSA_BYTES_MAX, RsaInputs};

pub use crate::limits::LANES;

/// The result of each lane that was used and not refused.
pub type Lanes<T> = [Option<T>; LANES];

/// A curve of which there are batched operations: P-256 and P-384.
#[allow(
    private_bounds,
    reason = "which functions of the library are a curve's is not for others"
)]
pub trait BatchedCurve: library::Batched {}

impl BatchedCurve for P256 {}
impl BatchedCurve for P384 {}

/// Secret bytes, as a private key or the result of an agreement. Wiped when dropped; not to be copied or shown.
pub struct Secret<B: Zeroize>(B);

/// What X25519 works on.
pub type Secret32 = Secret<[u8; 32]>;

impl<B: Zeroize> Secret<B> {
    /// Takes the bytes over. Whoever has a copy of them wipes it.
    #[must_use]
    pub fn new(bytes: B) -> Secret<B> {
        Secret(bytes)
    }

    /// To be used and not kept.
    #[must_use]
    pub fn bytes(&self) -> &B {
        &self.0
    }
}

impl Secret32 {
    /// An X25519 private key.
    #[must_use]
    pub fn random() -> Secret32 {
        let mut secret = Secret([0; 32]);
        crate::crypto::random(&mut secret.0);
        secret
    }
}

impl<B: Zeroize> Drop for Secret<B> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// An agreement of X25519.
#[derive(Clone, Copy)]
pub struct X25519Job<'a> {
    /// Ours.
    pub private: &'a Secret32,
    /// As the peer sent it.
    pub peer: &'a [u8; 32],
}

/// An agreement on a curve.
#[derive(Clone, Copy)]
pub struct EcdhJob<'a, C: Curve> {
    /// Ours.
    pub private: &'a Scalar<C>,
    /// The peer's, checked.
    pub peer: &'a Point<C>,
}

/// An ECDSA signature that is to be made.
#[derive(Clone, Copy)]
pub struct EcdsaJob<'a, C: Curve> {
    /// The signer's.
    pub key: &'a Scalar<C>,
    /// Of the message, of any length: ECDSA uses as much of it as the curve has bits.
    pub digest: &'a [u8],
}

/// The half of an ECDSA signature that depends on neither key nor message: a nonce, inverted, and its point. It makes one
/// signature and is wiped: used twice it gives the key away, so it can be neither copied nor read.
pub struct EcdsaSetup<C: Curve> {
    pub(super) inverse: C::Limbs,
    pub(super) r: C::Limbs,
}

impl<C: Curve> Drop for EcdsaSetup<C> {
    fn drop(&mut self) {
        self.inverse.zeroize();
        self.r.zeroize();
    }
}

/// An ECDSA signature that is to be verified.
#[derive(Clone, Copy)]
pub struct VerifyJob<'a, C: Curve> {
    /// The signer's, checked.
    pub key: &'a Point<C>,
    /// Of the message.
    pub digest: &'a [u8],
    /// As the peer sent it.
    pub signature: &'a Signature<C>,
}

/// A private operation of RSA.
pub struct RsaJob<'a> {
    /// All keys of a call have the same size.
    pub key: &'a RsaKey,
    /// The padded message, as long as the modulus.
    pub block: &'a [u8],
    /// The signature goes here; as long as the modulus. Zeros when the lane is refused.
    pub out: &'a mut [u8],
}

/// An Ed25519 key. The public half is computed from the seed and never taken from elsewhere: signing with two different
/// ones would give the key away.
pub struct Ed25519Key {
    seed: Secret32,
    public: [u8; 32],
}

impl Ed25519Key {
    /// From the seed, which is what PKCS#8 stores.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Ed25519Key {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ed25519Key {
            seed: Secret(*seed),
            public,
        }
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }
}

/// An Ed25519 signature that is to be made.
#[derive(Clone, Copy)]
pub struct Ed25519Job<'a> {
    /// The signer's.
    pub key: &'a Ed25519Key,
    /// Itself, not a digest of it.
    pub message: &'a [u8],
}

/// The memory that RSA works in, made once for each thread. Holds nothing between calls.
pub struct RsaScratch {
    buffer: Box<[u8]>,
    /// Signatures that are not verified yet.
    signed: Box<[[u8; RSA_BYTES_MAX]; LANES]>,
    /// What comes out of them by the public operation.
    recovered: Box<[[u8; RSA_BYTES_MAX]; LANES]>,
}

impl RsaScratch {
    fn wipe(&mut self) {
        self.buffer.zeroize();
        self.signed.zeroize();
        self.recovered.zeroize();
    }
}

/// The library, loaded and checked. Threads share it.
pub struct Multibuffer {
    library: Library,
    path: PathBuf,
}

impl Multibuffer {
    /// Opens the library at `path`, which is the file or the folder that holds it, or without one where the system keeps
    /// libraries, and checks all of it. That takes some 20 ms.
    ///
    /// # Errors
    /// Why it is not to be used. Everything works without it.
    pub fn load(path: Option<&Path>) -> Result<Multibuffer, LoadError> {
        Self::load_on(Processor::detect(), path)
    }

    /// [`Self::load`] on a processor that has no more than this.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_on(processor: Processor, path: Option<&Path>) -> Result<Multibuffer, LoadError> {
        if let Some(missing) = processor.missing().or_else(|| Processor::detect().missing()) {
            return Err(LoadError::NotApplicable { missing });
        }
        let (path, library) = load::find(path)?;
        let loaded = Multibuffer { library, path };
        match self_check::run(&loaded) {
            Ok(()) => Ok(loaded),
            Err(operation) => Err(LoadError::SelfCheck {
                path: loaded.path,
                operation: operation.to_owned(),
            }),
        }
    }

    /// What was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The public keys of X25519 private keys.
    #[must_use]
    pub fn x25519_public_key(&self, private: &[&Secret32]) -> Lanes<[u8; 32]> {
        let mut public = [[0; 32]; LANES];
        let status = self
            .library
            .x25519_public_key(&mut public, &inputs(private, |private| &private.0));
        results(private.len(), |lane| status.is_ok(lane).then_some(public[lane]))
    }

    /// X25519 (RFC 7748). Refuses peers whose result is zero, and those close below or above the prime, for which the library
    /// (version 2.3.0) computes something else: seen up to 2¹¹ below it, refused from 2¹⁹² below it.
    #[must_use]
    pub fn x25519(&self, jobs: &[X25519Job]) -> Lanes<Secret32> {
        let mut shared = Secret([[0; 32]; LANES]);
        let private = inputs(jobs, |job| &job.private.0);
        let status = self
            .library
            .x25519(&mut shared.0, &private, &inputs(jobs, |job| job.peer));
        results(jobs.len(), |lane| {
            let zero = verify_slices_are_equal(&shared.0[lane], &[0; 32]).is_ok();
            (status.is_ok(lane) && !zero && !is_close_to_prime(jobs[lane].peer)).then(|| Secret(shared.0[lane]))
        })
    }

    /// The public keys of private keys of a curve.
    #[must_use]
    pub fn public_key<C: BatchedCurve>(&self, private: &[&Scalar<C>]) -> Lanes<Point<C>> {
        let (mut x, mut y) = ([C::LIMBS; LANES], [C::LIMBS; LANES]);
        let status = self
            .library
            .public_key::<C>(&mut x, &mut y, &inputs(private, |private| private.limbs()));
        results(private.len(), |lane| {
            status.is_ok(lane).then_some(Point { x: x[lane], y: y[lane] })
        })
    }

    /// The x-coordinates of the products, big-endian (SEC 1, 3.3.1).
    #[must_use]
    pub fn ecdh<C: BatchedCurve>(&self, jobs: &[EcdhJob<C>]) -> Lanes<Secret<C::Bytes>> {
        let mut shared = Secret::<SharedLanes<C>>(SharedLanes([C::BYTES; LANES]));
        let private = inputs(jobs, |job| job.private.limbs());
        let (x, y) = (inputs(jobs, |job| &job.peer.x), inputs(jobs, |job| &job.peer.y));
        let status = self.library.ecdh::<C>(&mut shared.0.0, &private, &x, &y);
        results(jobs.len(), |lane| status.is_ok(lane).then(|| Secret(shared.0.0[lane])))
    }

    /// ECDSA signatures, each with a nonce of its own. A digest that is zero modulo the order is refused, which no hash
    /// function is known to give.
    #[must_use]
    pub fn ecdsa_sign<C: BatchedCurve>(&self, jobs: &[EcdsaJob<C>]) -> Lanes<Signature<C>> {
        let nonces: [Option<Scalar<C>>; LANES] = std::array::from_fn(|lane| (lane < jobs.len()).then(Scalar::random));
        self.ecdsa_sign_with(jobs, &nonces)
    }

    fn ecdsa_sign_with<C: BatchedCurve>(&self, jobs: &[EcdsaJob<C>], nonces: &Lanes<Scalar<C>>) -> Lanes<Signature<C>> {
        let digests = digests::<C>(jobs.iter().map(|job| job.digest));
        let nonces = nonces.each_ref().map(|nonce| nonce.as_ref().map(Scalar::limbs));
        let (mut r, mut s) = ([C::BYTES; LANES], [C::BYTES; LANES]);
        let status = self.library.sign::<C>(
            (&mut r, &mut s),
            &some(&digests, jobs.len()),
            &nonces,
            &inputs(jobs, |job| job.key.limbs()),
        );
        results(jobs.len(), |lane| {
            status.is_ok(lane).then_some(Signature { r: r[lane], s: s[lane] })
        })
    }

    /// Eight set-ups, each with a nonce of its own.
    #[must_use]
    pub fn ecdsa_setup<C: BatchedCurve>(&self) -> Lanes<EcdsaSetup<C>> {
        self.ecdsa_setup_with(&std::array::from_fn(|_| Some(Scalar::random())))
    }

    fn ecdsa_setup_with<C: BatchedCurve>(&self, nonces: &Lanes<Scalar<C>>) -> Lanes<EcdsaSetup<C>> {
        let nonces = nonces.each_ref().map(|nonce| nonce.as_ref().map(Scalar::limbs));
        let (mut inverse, mut r) = ([C::LIMBS; LANES], [C::LIMBS; LANES]);
        let status = self.library.sign_setup::<C>(&mut inverse, &mut r, &nonces);
        let setups = results(LANES, |lane| {
            status.is_ok(lane).then_some(EcdsaSetup {
                inverse: inverse[lane],
                r: r[lane],
            })
        });
        inverse.iter_mut().for_each(Zeroize::zeroize);
        r.iter_mut().for_each(Zeroize::zeroize);
        setups
    }

    /// Makes signatures of set-ups, which are used up.
    ///
    /// # Panics
    /// There are more than [`LANES`].
    #[must_use]
    pub fn ecdsa_complete<'a, C: BatchedCurve>(
        &self,
        jobs: impl IntoIterator<Item = (EcdsaSetup<C>, EcdsaJob<'a, C>)>,
    ) -> Lanes<Signature<C>> {
        let mut jobs = jobs.into_iter();
        let taken: [_; LANES] = std::array::from_fn(|_| jobs.next());
        assert!(jobs.next().is_none(), "a call has {LANES} lanes");
        let used = taken.iter().flatten().count();
        let digests = digests::<C>(taken.iter().flatten().map(|(_, job)| job.digest));
        let taken = taken.each_ref().map(Option::as_ref);
        let (mut r, mut s) = ([C::BYTES; LANES], [C::BYTES; LANES]);
        let status = self.library.sign_complete::<C>(
            (&mut r, &mut s),
            &some(&digests, used),
            &taken.map(|taken| taken.map(|(setup, _)| &setup.r)),
            &taken.map(|taken| taken.map(|(setup, _)| &setup.inverse)),
            &taken.map(|taken| taken.map(|(_, job)| job.key.limbs())),
        );
        results(used, |lane| {
            status.is_ok(lane).then_some(Signature { r: r[lane], s: s[lane] })
        })
    }

    /// Whether each signature is right; `Some(())` when it is.
    #[must_use]
    pub fn ecdsa_verify<C: BatchedCurve>(&self, jobs: &[VerifyJob<C>]) -> Lanes<()> {
        let digests = digests::<C>(jobs.iter().map(|job| job.digest));
        let status = self.library.verify::<C>(
            (
                &inputs(jobs, |job| &job.signature.r),
                &inputs(jobs, |job| &job.signature.s),
            ),
            &some(&digests, jobs.len()),
            (&inputs(jobs, |job| &job.key.x), &inputs(jobs, |job| &job.key.y)),
        );
        results(jobs.len(), |lane| {
            (status.is_ok(lane) && jobs[lane].signature.is_legal()).then_some(())
        })
    }

    /// Ed25519 signatures (RFC 8032).
    #[must_use]
    pub fn ed25519_sign(&self, jobs: &[Ed25519Job]) -> Lanes<[u8; 64]> {
        let (mut r, mut s) = ([[0; 32]; LANES], [[0; 32]; LANES]);
        let messages = std::array::from_fn(|lane| jobs.get(lane).map(|job| job.message));
        let status = self.library.ed25519_sign(
            (&mut r, &mut s),
            messages,
            &inputs(jobs, |job| &job.key.seed.0),
            &inputs(jobs, |job| &job.key.public),
        );
        results(jobs.len(), |lane| {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&r[lane]);
            signature[32..].copy_from_slice(&s[lane]);
            status.is_ok(lane).then_some(signature)
        })
    }

    /// Memory for [`Self::rsa_private`] on one thread.
    #[must_use]
    pub fn rsa_scratch(&self) -> RsaScratch {
        RsaScratch {
            buffer: vec![0; self.library.rsa_scratch()].into_boxed_slice(),
            signed: Box::new([[0; RSA_BYTES_MAX]; LANES]),
            recovered: Box::new([[0; RSA_BYTES_MAX]; LANES]),
        }
    }

    /// Private operations of RSA. Each result is taken through the public operation before it is handed out: one wrong result,
    /// by a fault of the hardware or by numbers that do not fit, would give away the key's primes.
    ///
    /// # Panics
    /// The keys are of different sizes, or a block or an output is not as long as its modulus.
    #[must_use]
    pub fn rsa_private(&self, jobs: &mut [RsaJob], scratch: &mut RsaScratch) -> Lanes<()> {
        assert!(
            (1..=LANES).contains(&jobs.len()),
            "a call has {LANES} lanes, and one is used"
        );
        let bits = jobs[0].key.bits();
        assert!(
            jobs.iter()
                .all(|job| job.key.bits() == bits && job.out.len() == bits / 8)
        );
        // The first job also stands in the lanes that are not used: RSA cannot leave one out.
        let job = |lane: usize| jobs.get(lane).unwrap_or(&jobs[0]);
        let blocks = std::array::from_fn(|lane| job(lane).block);
        let numbers: [_; LANES] = std::array::from_fn(|lane| job(lane).key.numbers());
        let keys = RsaInputs {
            p: numbers.map(|key| Some(&key.p)),
            q: numbers.map(|key| Some(&key.q)),
            dp: numbers.map(|key| Some(&key.dp)),
            dq: numbers.map(|key| Some(&key.dq)),
            q_inverse: numbers.map(|key| Some(&key.q_inverse)),
        };
        let modulus = numbers.map(|key| Some(&key.modulus));
        let RsaScratch {
            buffer,
            signed,
            recovered,
        } = scratch;
        let private = self.library.rsa_private_crt(bits, signed, &blocks, &keys, buffer);
        let public = self.library.rsa_public(bits, recovered, signed, &modulus, buffer);
        let done = results(jobs.len(), |lane| {
            let job = &mut jobs[lane];
            let recovered = &scratch.recovered[lane][..bits / 8];
            let verified = private.is_ok(lane) && public.is_ok(lane) && recovered == job.block;
            if verified {
                job.out.copy_from_slice(&scratch.signed[lane][..bits / 8]);
            } else {
                job.out.fill(0);
            }
            verified.then_some(())
        });
        scratch.wipe();
        done
    }
}

/// 2²⁵⁵ - 2¹⁹² or more, as X25519 reads it: without the highest bit.
fn is_close_to_prime(peer: &[u8; 32]) -> bool {
    peer[24..31] == [0xff; 7] && peer[31] | 0x80 == 0xff
}

/// The results of an agreement, wiped together.
struct SharedLanes<C: Curve>([C::Bytes; LANES]);

impl<C: Curve> Zeroize for SharedLanes<C> {
    fn zeroize(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}

fn inputs<'a, J, T>(jobs: &'a [J], input: impl Fn(&'a J) -> &'a T) -> Inputs<'a, T> {
    assert!(
        (1..=LANES).contains(&jobs.len()),
        "a call has {LANES} lanes, and one is used"
    );
    std::array::from_fn(|lane| jobs.get(lane).map(&input))
}

/// The first lanes.
fn some<T>(values: &[T; LANES], used: usize) -> Inputs<'_, T> {
    std::array::from_fn(|lane| (lane < used).then_some(&values[lane]))
}

fn digests<'a, C: Curve>(digests: impl IntoIterator<Item = &'a [u8]>) -> [C::Bytes; LANES] {
    let mut numbers = [C::BYTES; LANES];
    for (number, digest) in numbers.iter_mut().zip(digests) {
        *number = digest_number::<C>(digest);
    }
    numbers
}

fn results<T>(used: usize, mut result: impl FnMut(usize) -> Option<T>) -> Lanes<T> {
    std::array::from_fn(|lane| if lane < used { result(lane) } else { None })
}
