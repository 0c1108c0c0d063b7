use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::UnixTime;

use super::*;
use crate::tls::tickets::Secrets;

const NOON: u64 = 1_800_000_000;
const LIFETIME: u64 = 12 * 3600;

#[derive(Debug)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.0.load(Ordering::Relaxed),
        )))
    }
}

struct Bench {
    clock: Arc<Clock>,
    secrets: Secrets,
    resumption: Resumption,
}

impl Bench {
    fn new() -> Bench {
        let clock = Arc::new(Clock(AtomicU64::new(NOON)));
        let tickets = Arc::new(Tickets::new());
        let mut secrets = Secrets::new(Arc::clone(&tickets));
        // Epochs so long that they do not matter here.
        secrets
            .replace(&[7; 32], Duration::from_secs(7 * 86_400), NOON)
            .unwrap();
        let lifetime = Duration::from_secs(LIFETIME);
        let resumption = Resumption::new("edge", None, lifetime, Some(tickets), clock.clone());
        Bench {
            clock,
            secrets,
            resumption: resumption.with_cache(Arc::new(SessionCache::new(1 << 20))),
        }
    }

    fn at(&mut self, now: u64) -> &Bench {
        self.clock.0.store(now, Ordering::Relaxed);
        self.secrets.advance(now).unwrap();
        self
    }

    /// One call of rustls.
    fn call<R>(&self, attempt: &mut Attempt, resumed: bool, call: impl FnOnce(&Resumption) -> R) -> R {
        let (result, after) = during(Box::new(std::mem::take(attempt)), resumed, || call(&self.resumption));
        *attempt = *after;
        result
    }

    /// A ticket after a full handshake of a client that shows this certificate.
    fn full(&self, client_until: Option<u64>) -> Option<Vec<u8>> {
        let mut attempt = Attempt::default();
        self.call(&mut attempt, false, |_| {
            note_identity([1; 16]);
            if let Some(until) = client_until {
                note_client(until);
            }
        });
        self.call(&mut attempt, false, |resumption| resumption.encrypt(b"value"))
    }

    /// What becomes of a ticket, when rustls takes what it is given.
    fn resume(&self, ticket: &[u8]) -> Resumptions {
        let mut attempt = Attempt::default();
        let value = self.call(&mut attempt, false, |resumption| {
            note_identity([1; 16]);
            resumption.decrypt(ticket)
        });
        assert_eq!(value.as_deref().unwrap_or(b"value"), b"value");
        attempt.outcome(value.is_some())
    }

    fn declined(&self, ticket: &[u8]) -> Option<Declined> {
        self.resume(ticket).declined.map(|(_, why)| why)
    }
}

#[test]
fn a_session_ends_when_its_lifetime_is_over() {
    let mut bench = Bench::new();
    let ticket = bench.full(None).unwrap();
    assert_eq!(bench.resume(&ticket).accepted, Some(SessionKind::Ticket));
    assert_eq!(bench.at(NOON + LIFETIME - 1).declined(&ticket), None);
    assert_eq!(bench.at(NOON + LIFETIME).declined(&ticket), Some(Declined::Expired));
}

/// In TLS 1.3 the next ticket is issued in a later call than the one that resumes, in TLS 1.2 in the same.
#[test]
fn renewal_does_not_lengthen_a_session() {
    for later_call in [true, false] {
        let mut bench = Bench::new();
        let mut ticket = bench.full(Some(NOON + LIFETIME + 5)).unwrap();
        for hours in 1..12 {
            bench.at(NOON + hours * 3600);
            let mut attempt = Attempt::default();
            ticket = bench
                .call(&mut attempt, false, |resumption| {
                    note_identity([1; 16]);
                    assert!(resumption.decrypt(&ticket).is_some());
                    (!later_call).then(|| resumption.encrypt(b"value"))
                })
                .unwrap_or_else(|| bench.call(&mut attempt, true, |resumption| resumption.encrypt(b"value")))
                .unwrap();
            assert_eq!(u64::from(attempt.hint), LIFETIME - hours * 3600);
        }
        assert_eq!(bench.at(NOON + LIFETIME).declined(&ticket), Some(Declined::Expired));
    }
}

/// What rustls asks before it promises a ticket: in TLS 1.2 there is another when the epoch is another, in TLS 1.3 always.
#[test]
fn a_ticket_of_tls_1_2_is_replaced_once_an_epoch() {
    let mut bench = Bench::new();
    let ticket = bench.full(None).unwrap();
    let promised = |bench: &Bench, tls12: bool, ticket: &[u8]| {
        bench.call(&mut Attempt::new(tls12, true), false, |resumption| {
            note_identity([1; 16]);
            (resumption.decrypt(ticket).is_some(), resumption.enabled())
        })
    };
    assert_eq!(promised(&bench, true, &ticket), (true, false));
    assert_eq!(promised(&bench, false, &ticket), (true, true));
    assert_eq!(promised(&bench, true, b"somebody else's"), (false, true));
    let epoch = 7 * 86_400;
    let begin = NOON / epoch * epoch;
    let ticket = bench.at(begin + epoch - 1).full(None).unwrap();
    assert_eq!(promised(&bench, true, &ticket), (true, false));
    bench.at(begin + epoch);
    assert_eq!(promised(&bench, true, &ticket), (true, true));
}

/// rustls did not take the session, because of its name or suite: the client has shown anew who it is.
#[test]
fn a_full_handshake_begins_a_new_session_whatever_was_offered() {
    let mut bench = Bench::new();
    let old = bench.full(None).unwrap();
    bench.at(NOON + LIFETIME - 1);
    let mut attempt = Attempt::default();
    bench.call(&mut attempt, false, |resumption| {
        note_identity([1; 16]);
        assert!(resumption.decrypt(&old).is_some());
    });
    let new = bench.call(&mut attempt, false, |resumption| resumption.encrypt(b"value"));
    let declined = Some((SessionKind::Ticket, Declined::Parameters));
    assert_eq!(
        (attempt.outcome(false).declined, attempt.outcome(false).tickets_issued),
        (declined, 1)
    );
    assert_eq!(bench.at(NOON + LIFETIME + 10).declined(&new.unwrap()), None);
}

#[test]
fn a_session_ends_with_the_clients_certificate() {
    let mut bench = Bench::new();
    let ticket = bench.full(Some(NOON + 100)).unwrap();
    assert_eq!(bench.at(NOON + 99).declined(&ticket), None);
    assert_eq!(
        bench.at(NOON + 101).declined(&ticket),
        Some(Declined::ClientCertificate)
    );
    assert_eq!(bench.full(Some(NOON + 50)), None, "it has ended already");
}

#[test]
fn other_revocation_lists_end_the_sessions_of_clients_with_certificates() {
    let mut bench = Bench::new();
    let (with, without) = (bench.full(Some(u64::MAX - 1)).unwrap(), bench.full(None).unwrap());
    bench.resumption.revocation = [9; 16];
    assert_eq!(bench.declined(&with), Some(Declined::Crl));
    assert_eq!(bench.declined(&without), None);
}

#[test]
fn a_session_is_for_the_identity_that_was_shown() {
    let bench = Bench::new();
    let ticket = bench.full(None).unwrap();
    let mut attempt = Attempt::default();
    let value = bench.call(&mut attempt, false, |resumption| {
        note_identity([2; 16]);
        resumption.decrypt(&ticket)
    });
    assert_eq!(
        (value, attempt.outcome(false).declined),
        (None, Some((SessionKind::Ticket, Declined::Policy)))
    );
}

#[test]
fn every_part_of_the_policy_counts() {
    let digest = |listener: &str| Bench::new().with_listener(listener).policy;
    assert_eq!(digest("edge"), digest("edge"));
    assert_ne!(digest("edge"), digest("edge2"));
    assert_ne!(digest(""), digest("listener"));
}

/// Listeners share no cache, but the admissions of one do.
#[test]
fn of_a_cache_each_policy_finds_its_own_sessions() {
    let bench = Bench::new();
    let cache = bench.resumption.cache().unwrap();
    let other = bench.with_listener("other").with_cache(Arc::clone(cache));
    let id = [7; 32];
    let mut attempt = Attempt::default();
    bench.call(&mut attempt, false, |resumption| {
        assert!(resumption.put(id.to_vec(), b"value".to_vec()));
        for id in [id, resumption.place(&id), other.place(&id)] {
            assert_eq!((other.get(&id), other.take(&id)), (None, None));
        }
    });
    let declined = Some((SessionKind::Session, Declined::Unknown));
    assert_eq!(attempt.outcome(false).declined, declined);
    bench.call(&mut attempt, false, |resumption| {
        assert_eq!(resumption.get(&id).as_deref(), Some(&b"value"[..]));
        assert_eq!(resumption.take(&id).as_deref(), Some(&b"value"[..]));
        assert_eq!(resumption.take(&id), None);
    });
}

impl Bench {
    fn with_listener(&self, name: &str) -> Resumption {
        let lifetime = Duration::from_secs(LIFETIME);
        Resumption::new(name, None, lifetime, None, self.clock.clone())
    }
}

#[test]
fn of_several_tickets_the_one_that_can_be_used_counts() {
    let mut bench = Bench::new();
    let old = bench.full(None).unwrap();
    let new = bench.at(NOON + LIFETIME).full(None).unwrap();
    let mut attempt = Attempt::default();
    bench.call(&mut attempt, false, |resumption| {
        note_identity([1; 16]);
        assert!(resumption.decrypt(b"somebody else's").is_none());
        assert!(resumption.decrypt(&old).is_none());
        assert!(resumption.decrypt(&new).is_some());
    });
    assert_eq!(attempt.outcome(true).accepted, Some(SessionKind::Ticket));
    assert_eq!(attempt.outcome(true).declined, None);
}

/// The thread has another connection's call in between.
#[test]
fn a_call_that_is_left_in_the_middle_finds_its_attempt_again() {
    let bench = Bench::new();
    let mut attempt = Attempt::default();
    bench.call(&mut attempt, false, |_| {
        note_identity([1; 16]);
        let other = aside(|| {
            let mut other = Attempt::default();
            bench.call(&mut other, false, |_| {
                note_identity([2; 16]);
                note_client(5);
            });
            other
        });
        assert_eq!((other.identity, other.client_until), ([2; 16], Some(5)));
    });
    assert_eq!((attempt.identity, attempt.client_until), ([1; 16], None));
    assert!(with_current(|_| ()).is_none(), "none is left behind");
}

#[test]
fn outside_of_a_handshake_nothing_is_issued_or_accepted() {
    let bench = Bench::new();
    let ticket = bench.full(None).unwrap();
    assert_eq!(bench.resumption.encrypt(b"value"), None);
    assert_eq!(bench.resumption.decrypt(&ticket), None);
    assert!(!bench.resumption.put(vec![1; 32], b"value".to_vec()));
    assert_eq!(bench.resumption.get(&[1; 32]), None);
}

#[test]
fn a_session_in_the_cache_is_bound_like_a_ticket() {
    let mut bench = Bench::new();
    let id = vec![3; 32];
    let store = |bench: &Bench| {
        let mut attempt = Attempt::default();
        bench.call(&mut attempt, false, |resumption| {
            note_identity([1; 16]);
            note_client(NOON + 1000);
            resumption.put(id.clone(), b"value".to_vec())
        })
    };
    let find = |bench: &Bench, identity: Digest, id: &[u8]| {
        let mut attempt = Attempt::default();
        let found = bench.call(&mut attempt, false, |resumption| {
            note_identity(identity);
            resumption.get(id)
        });
        (found, attempt.outcome(false).declined.map(|(_, why)| why))
    };
    assert!(store(&bench));
    let value = (Some(b"value".to_vec()), Some(Declined::Parameters));
    assert_eq!(find(&bench, [1; 16], &id), value, "rustls is not asked here");
    assert_eq!(find(&bench, [2; 16], &id), (None, Some(Declined::Policy)));
    assert_eq!(find(&bench, [1; 16], &[4; 32]), (None, Some(Declined::Unknown)));
    bench.at(NOON + 1001);
    assert_eq!(find(&bench, [1; 16], &id), (None, Some(Declined::ClientCertificate)));
    assert!(!store(&bench), "it has ended already");
}

/// TLS 1.2: whoever takes tickets resumes by them.
#[test]
fn a_client_that_takes_tickets_takes_no_place_in_the_cache() {
    let bench = Bench::new();
    for takes_tickets in [true, false] {
        let mut attempt = Attempt::new(false, takes_tickets);
        let stored = bench.call(&mut attempt, false, |resumption| {
            resumption.put(vec![3; 32], b"value".to_vec())
        });
        assert_eq!(
            (stored, attempt.outcome(false).sessions_stored),
            (!takes_tickets, u8::from(!takes_tickets))
        );
    }
}

#[test]
fn what_is_too_large_is_not_kept() {
    let bench = Bench::new();
    let mut attempt = Attempt::default();
    let issued = |attempt: &mut Attempt, bytes: usize| {
        bench
            .call(attempt, false, |resumption| resumption.encrypt(&vec![0; bytes]))
            .is_some()
    };
    assert!(issued(&mut attempt, TICKET_VALUE_BYTES_MAX));
    assert!(!issued(&mut attempt, TICKET_VALUE_BYTES_MAX + 1));
    assert_eq!((attempt.hint, attempt.tickets_issued), (0, 1));
}

#[cfg(feature = "mutants")]
#[test]
fn every_planted_mutant_of_resumption_is_found() {
    crate::mutants::assert_found(&[
        (
            Mutant::IdentityNotCompared,
            a_session_is_for_the_identity_that_was_shown,
        ),
        (
            Mutant::RevocationNotCompared,
            other_revocation_lists_end_the_sessions_of_clients_with_certificates,
        ),
        (
            Mutant::PolicyNotInCachePlace,
            of_a_cache_each_policy_finds_its_own_sessions,
        ),
        (Mutant::RenewalBeginsAnew, renewal_does_not_lengthen_a_session),
        (
            Mutant::OfferedBindingKept,
            a_full_handshake_begins_a_new_session_whatever_was_offered,
        ),
        (
            Mutant::ClientExpiryNotNoted,
            a_session_ends_with_the_clients_certificate,
        ),
        (
            Mutant::AttemptNotPutAside,
            a_call_that_is_left_in_the_middle_finds_its_attempt_again,
        ),
    ]);
}
