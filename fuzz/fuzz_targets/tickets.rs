//! Any tickets at any time, those of other listeners, identities, secrets and epochs changed in any way: no panic, and a value comes out
//! of an unchanged ticket of this very listener and identity alone, in an epoch that is open and within its lifetime.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use ringlock::limits::{TICKET_SECRETS_MAX, TICKET_VALUE_BYTES_MAX};
use ringlock::tls::resumption::{Resumption, during_any, note_identity};
use ringlock::tls::tickets::{Secrets, Tickets};
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;

/// The lifetime of the one ends before an epoch's tickets are over, that of the other after.
const LISTENERS: [(&str, u64); 2] = [("edge", ROTATION), ("edge2", 3 * ROTATION)];
const IDENTITIES: [[u8; 16]; 2] = [[1; 16], [2; 16]];
/// More than are kept.
const SECRETS: u8 = 6;
const ROTATION: u64 = 3600;
const START: u64 = 498_000 * ROTATION + ROTATION / 2;

/// Header and tag, and in front of the tag what the value is bound to: two times and two digests.
const TICKET_BYTES: usize = (4 + 4 + 16 + 8) + (2 * 8 + 2 * 16) + 16;

#[derive(Arbitrary, Debug)]
enum Step {
    /// So many minutes pass.
    Wait(u8),
    Replace {
        secret: u8,
    },
    Seal {
        bytes: u16,
    },
    Offer {
        ticket: usize,
        edits: Vec<Edit>,
        from: Whose,
    },
    OfferAny {
        ticket: Vec<u8>,
        from: Whose,
    },
}

/// A listener and an identity of it.
#[derive(Arbitrary, Clone, Copy, Debug, Default, PartialEq)]
struct Whose {
    listener: bool,
    identity: bool,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Flip {
        at: usize,
        bits: u8,
    },
    Cut {
        bytes: usize,
    },
    Append(Vec<u8>),
    /// Bytes that another ticket has at this place.
    Mix {
        ticket: usize,
        at: usize,
        bytes: u8,
    },
}

struct Genuine {
    ticket: Vec<u8>,
    value: Vec<u8>,
    whose: Whose,
    secret: u8,
    /// When it was issued.
    at: u64,
}

impl Genuine {
    /// When its lifetime is over.
    fn end(&self) -> u64 {
        let (_, lifetime) = LISTENERS[usize::from(self.whose.listener)];
        self.at + lifetime
    }
}

/// What other hosts with these secrets have issued, some ahead of us.
static GENUINE: LazyLock<Vec<Genuine>> = LazyLock::new(|| {
    let mut genuine = Vec::new();
    for (secret, hours) in (0..SECRETS).flat_map(|secret| (0..6).map(move |hours| (secret, hours))) {
        let at = START - 2 * ROTATION + hours * ROTATION;
        let host = Host::new(secret, at);
        for (listener, identity) in [(false, false), (false, true), (true, false), (true, true)] {
            let whose = Whose { listener, identity };
            let value = vec![secret; genuine.len() % 50];
            let ticket = host.issue(whose, &value).expect("there is a secret");
            genuine.push(Genuine {
                ticket,
                value,
                whose,
                secret,
                at,
            });
        }
    }
    genuine
});

#[derive(Debug)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.0.load(Ordering::Relaxed),
        )))
    }
}

struct Host {
    clock: Arc<Clock>,
    secrets: Secrets,
    listeners: [Resumption; 2],
}

impl Host {
    fn new(secret: u8, now: u64) -> Host {
        let (tickets, clock) = (Arc::new(Tickets::new()), Arc::new(Clock(AtomicU64::new(now))));
        let listeners = LISTENERS.map(|(name, lifetime)| {
            let lifetime = Duration::from_secs(lifetime);
            Resumption::new(name, None, lifetime, Some(Arc::clone(&tickets)), clock.clone())
        });
        let mut host = Host {
            clock,
            secrets: Secrets::new(tickets),
            listeners,
        };
        host.replace(secret, now);
        host
    }

    fn replace(&mut self, secret: u8, now: u64) -> bool {
        let rotation = Duration::from_secs(ROTATION);
        self.secrets
            .replace(&[secret; 32], rotation, now)
            .expect("there is memory")
    }

    fn advance(&mut self, now: u64) {
        self.clock.0.store(now, Ordering::Relaxed);
        let wait = self.secrets.advance(now).expect("there is memory");
        assert_eq!(wait, ROTATION - now % ROTATION);
    }

    fn issue(&self, whose: Whose, value: &[u8]) -> Option<Vec<u8>> {
        self.call(whose, |resumption| resumption.encrypt(value))
    }

    fn call<R>(&self, whose: Whose, call: impl FnOnce(&Resumption) -> R) -> R {
        during_any(|| {
            note_identity(IDENTITIES[usize::from(whose.identity)]);
            call(&self.listeners[usize::from(whose.listener)])
        })
    }
}

/// A host, and what is to be expected of it.
struct Run {
    host: Host,
    now: u64,
    /// The present one first, each that was replaced with the last epoch in which it counts.
    secrets: Vec<(u8, u64)>,
}

impl Run {
    fn epoch(&self) -> u64 {
        self.now / ROTATION
    }

    fn replace(&mut self, secret: u8) {
        let changed = self.secrets[0].0 != secret;
        assert_eq!(self.host.replace(secret, self.now), changed);
        if changed {
            self.secrets.retain(|&(known, _)| known != secret);
            self.secrets[0].1 = self.epoch() + 1;
            self.secrets.insert(0, (secret, u64::MAX));
            self.secrets.truncate(TICKET_SECRETS_MAX);
        }
    }

    fn wait(&mut self, minutes: u8) {
        self.now += u64::from(minutes) * 60;
        self.host.advance(self.now);
        let epoch = self.epoch();
        self.secrets.retain(|&(_, last)| epoch <= last);
    }

    fn seal(&self, value: &[u8]) {
        let whose = Whose::default();
        let Some(ticket) = self.host.issue(whose, value) else {
            return assert!(value.len() > TICKET_VALUE_BYTES_MAX);
        };
        assert_eq!(ticket.len(), TICKET_BYTES + value.len());
        let opened = self.host.call(whose, |resumption| resumption.decrypt(&ticket));
        assert_eq!(opened.as_deref(), Some(value));
    }

    fn offer(&self, ticket: &[u8], from: Whose) {
        let expected = GENUINE
            .iter()
            .find(|genuine| genuine.ticket == ticket && self.holds(genuine, from));
        self.host.call(from, |resumption| {
            let opened = resumption.decrypt(ticket);
            assert_eq!(opened.as_ref(), expected.map(|genuine| &genuine.value));
            let (Some(value), Some(genuine)) = (opened, expected) else {
                return;
            };
            let renewed = resumption.encrypt(&value).expect("it has not ended");
            assert_eq!(renewed.len(), ticket.len());
            assert!(u64::from(resumption.lifetime()) <= genuine.end() - self.now);
        });
    }

    fn holds(&self, genuine: &Genuine, from: Whose) -> bool {
        genuine.whose == from
            && self.secrets.iter().any(|&(secret, _)| secret == genuine.secret)
            && (genuine.at / ROTATION).abs_diff(self.epoch()) <= 1
            && self.now < genuine.end()
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let genuine = |position: usize| &GENUINE[position % GENUINE.len()];
    let mut run = Run {
        host: Host::new(0, START),
        now: START,
        secrets: vec![(0, u64::MAX)],
    };
    for step in steps {
        match step {
            Step::Wait(minutes) => run.wait(minutes),
            Step::Replace { secret } => run.replace(secret % SECRETS),
            Step::Seal { bytes } => run.seal(&vec![5; usize::from(bytes) % (TICKET_VALUE_BYTES_MAX + 9)]),
            Step::OfferAny { ticket, from } => run.offer(&ticket, from),
            Step::Offer { ticket, edits, from } => {
                let mut ticket = genuine(ticket).ticket.clone();
                for edit in edits {
                    apply(&edit, &mut ticket, &genuine);
                }
                run.offer(&ticket, from);
            }
        }
    }
});

fn apply(edit: &Edit, ticket: &mut Vec<u8>, genuine: &impl Fn(usize) -> &'static Genuine) {
    let length = ticket.len();
    match *edit {
        Edit::Flip { at, bits } if length > 0 => ticket[at % length] ^= bits,
        Edit::Flip { .. } => {}
        Edit::Cut { bytes } => ticket.truncate(length - bytes % (length + 1)),
        Edit::Append(ref bytes) => ticket.extend_from_slice(bytes),
        Edit::Mix {
            ticket: other,
            at,
            bytes,
        } => {
            let other = &genuine(other).ticket;
            let common = length.min(other.len());
            let start = at % (common + 1);
            let end = common.min(start + usize::from(bytes));
            ticket[start..end].copy_from_slice(&other[start..end]);
        }
    }
}
