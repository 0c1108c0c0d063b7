//! Signatures for a while, as many as a key makes: by itself, and through the signer.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringlock_hsm::protocol::{self, Fault, FaultKind, KeyNumber, Reader, Request, Response};
use ringlock_hsm::token::{FoundKey, Session};
use ringlock_hsm::verify::PublicKey;
use rustls::SignatureScheme;
use serde::Serialize;

use crate::crypto::verifier::Verification;

/// As long as what the server signs in TLS 1.3 with SHA-256 (RFC 8446, 4.4.3).
const MESSAGE_BYTES: usize = 130;

/// No server signs what begins with this.
const PREFIX: &[u8] = b"Ringlock measures how fast this key signs: ";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Load {
    pub(super) per_second: f64,
    /// Of one signature, from asking for it to having it.
    pub(super) median_us: u64,
    pub(super) p99_us: u64,
}

/// What is signed: each time something else, in case the module remembers what it has signed.
fn message(number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [b' '; MESSAGE_BYTES];
    message[..PREFIX.len()].copy_from_slice(PREFIX);
    message[MESSAGE_BYTES - 8..].copy_from_slice(&number.to_le_bytes());
    message
}

/// What has been measured so far.
struct Measured(Histogram<u64>);

impl Measured {
    fn new() -> Measured {
        // Nanoseconds, of which the largest that can be told are hours.
        Measured(Histogram::new(3).expect("three digits are possible"))
    }

    fn note(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(ns).expect("the histogram grows");
    }

    fn load(&self, within: Duration) -> Load {
        let us = |quantile| self.0.value_at_quantile(quantile) / 1000;
        Load {
            per_second: self.0.len() as f64 / within.as_secs_f64(),
            median_us: us(0.5),
            p99_us: us(0.99),
        }
    }
}

/// One thread for each session.
///
/// # Errors
/// One fails.
pub(super) fn of_sessions(
    sessions: Vec<Box<dyn Session>>,
    key: &FoundKey,
    scheme: SignatureScheme,
    duration: Duration,
) -> Result<Load, Fault> {
    // One more, who takes the time.
    let start = Barrier::new(sessions.len() + 1);
    let failed = AtomicBool::new(false);
    let one = |mut session: Box<dyn Session>, numbers: u64| -> Result<Measured, Fault> {
        let mut measured = Measured::new();
        // The first one may find things out.
        let first = session.sign(key, scheme, &message(numbers));
        failed.fetch_or(first.is_err(), Ordering::Relaxed);
        start.wait();
        first?;
        let end = Instant::now() + duration;
        let mut now = Instant::now();
        for number in numbers + 1.. {
            if now >= end || failed.load(Ordering::Relaxed) {
                break;
            }
            let signed = session.sign(key, scheme, &message(number));
            let after = Instant::now();
            measured.note(after - now);
            now = after;
            if let Err(fault) = signed {
                failed.store(true, Ordering::Relaxed);
                return Err(fault);
            }
        }
        Ok(measured)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(sessions)
            .map(|(number, session)| scope.spawn(move || one(session, number << 32)))
            .collect();
        start.wait();
        let begin = Instant::now();
        let mut all = Measured::new();
        for thread in threads {
            let one = thread.join().expect("no thread panics")?;
            all.0.add(one.0).expect("the histogram grows");
        }
        Ok(all.load(begin.elapsed()))
    })
}

/// A key that a signer has been told of.
pub(super) struct Remote<'a> {
    pub(super) key: KeyNumber,
    /// SubjectPublicKeyInfo in DER.
    pub(super) public: &'a [u8],
    pub(super) scheme: SignatureScheme,
    /// Requests on their way.
    pub(super) window: usize,
    /// Of a signature, waiting included.
    pub(super) timeout: Duration,
}

/// A request on its way.
struct Slot {
    asked: Instant,
    message: [u8; MESSAGE_BYTES],
}

impl Remote<'_> {
    /// Asks on this channel for as much as a worker would. With `verify` each signature is verified as a worker without batches does it:
    /// after those that come next have been asked for.
    ///
    /// # Errors
    /// The signer ends, refuses a signature, or gives a wrong one.
    pub(super) fn of_channel(&self, channel: &mut UnixStream, verify: bool, duration: Duration) -> Result<Load, Fault> {
        let lost = |error: std::io::Error| {
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
                Fault::new(FaultKind::Timeout, format!("no answer within {:?}", 2 * self.timeout))
            } else {
                ended()
            }
        };
        channel.set_read_timeout(Some(2 * self.timeout)).map_err(lost)?;
        let public = PublicKey::from_der(self.public);
        let algorithm = public.and_then(|key| key.algorithm(self.scheme));
        let (Some(public), Some(algorithm)) = (public, algorithm) else {
            return Err(Fault::new(FaultKind::Object, "a public key that verifies nothing"));
        };
        let mut number = 0;
        let mut ask = |id: usize, out: &mut Vec<u8>| {
            number += 1;
            let message = message(number);
            let request = Request {
                id: id as u64,
                key: self.key,
                scheme: self.scheme.into(),
                left_us: u32::try_from(self.timeout.as_micros()).unwrap_or(u32::MAX),
                message: &message,
            };
            protocol::write(&request, out);
            Slot {
                asked: Instant::now(),
                message,
            }
        };
        let mut out = Vec::new();
        let mut slots: Vec<Slot> = (0..self.window).map(|id| ask(id, &mut out)).collect();
        channel.write_all(&out).map_err(lost)?;
        let mut reader = Reader::default();
        let mut buffer = vec![0; 64 * 1024];
        let mut to_verify = Vec::new();
        let mut measured = Measured::new();
        // Until as many answers have come as were asked for at once, the signer is not in its stride.
        let mut early = self.window;
        let mut begin = Instant::now();
        let mut in_flight = self.window;
        // Once it is over; then answers are only waited for.
        let mut within = None;
        while in_flight > 0 {
            let length = channel.read(&mut buffer).map_err(lost)?;
            if length == 0 {
                return Err(ended());
            }
            reader.push(&buffer[..length]);
            let now = Instant::now();
            out.clear();
            while let Some(bytes) = reader.next_bytes().map_err(garbled)? {
                let Response { id, signature, .. } = protocol::decode(bytes).map_err(garbled)?;
                let refused = |refusal| {
                    let found = format!("a signature that the signer has refused ({refusal:?})");
                    Fault::new(FaultKind::Device, found)
                };
                let signature = signature.map_err(refused)?;
                let id = usize::try_from(id).unwrap_or(usize::MAX);
                let slot = slots.get_mut(id).ok_or_else(|| garbled(protocol::Garbled))?;
                if verify {
                    to_verify.push(Verification::new(algorithm, public.bits(), &slot.message, signature));
                }
                if within.is_some() {
                    in_flight -= 1;
                    continue;
                }
                match early {
                    0 => measured.note(now - slot.asked),
                    1 => (early, begin) = (0, now),
                    _ => early -= 1,
                }
                *slot = ask(id, &mut out);
            }
            channel.write_all(&out).map_err(lost)?;
            if to_verify.drain(..).any(|verification| !verification.verify()) {
                let found = format!("a wrong signature by {:?}", self.scheme);
                return Err(Fault::new(FaultKind::Mechanism, found));
            }
            if within.is_none() && early == 0 && now - begin >= duration {
                within = Some(now - begin);
            }
        }
        Ok(measured.load(within.expect("nobody stops asking before it is over")))
    }
}

fn ended() -> Fault {
    Fault::new(FaultKind::Signer, "a signer that has ended")
}

fn garbled(garbled: protocol::Garbled) -> Fault {
    Fault::new(FaultKind::Signer, format!("{garbled} from the signer"))
}
