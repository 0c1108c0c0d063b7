//! Which sessions may be resumed. rustls asks whether a ticket or session can be used and compares name and suite; whether it was
//! issued under what is in force now is up to us. Each carries a `Binding`, and is declined where that does not fit any more: a full handshake
//! follows, never a failed one.
//!
//! rustls' callbacks know neither the connection nor what it has shown of itself. Its `Attempt` does, and belongs to the thread while
//! rustls has the connection.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{ProducesTickets, StoresServerSessions};
use rustls::time_provider::TimeProvider;
use zeroize::Zeroizing;

use super::session_cache::SessionCache;
use super::tickets::{PolicyDigest, Tickets, Unopened};
use crate::crypto::sha256;
use crate::identity::client_auth::ClientAuth;
use crate::limits::TICKET_VALUE_BYTES_MAX;
use crate::metrics::{Declined, Resumptions, SessionKind};
use crate::mutants::{Mutant, active};

/// Says which identity or which revocation lists, and nothing of them.
pub type Digest = [u8; 16];

/// The digest of these parts, one behind the other.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> Digest {
    let [front, _] = *sha256::digest(parts).as_chunks().0 else {
        unreachable!("a hash of 32 bytes has two halves")
    };
    front
}

/// Resumption under one policy, that of a listener or of some of its names: what rustls asks for tickets and sessions.
#[derive(Debug)]
pub struct Resumption {
    /// A ticket of another policy cannot be opened.
    policy: PolicyDigest,
    /// The lists that clients' certificates are looked up in.
    revocation: Digest,
    /// From the full handshake to the last resumption, in seconds.
    lifetime: u64,
    tickets: Option<Arc<Tickets>>,
    cache: Option<Arc<SessionCache>>,
    clock: Arc<dyn TimeProvider>,
}

/// What a session is bound to, wherever it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Binding {
    /// When server and client showed their certificates, in seconds since 1970. Renewal does not change it.
    authenticated_at: u64,
    /// Until when the client's certificates were valid, in seconds since 1970; [`NO_CERTIFICATE`] when there were none.
    client_until: u64,
    /// The lists that they were looked up in.
    revocation: Digest,
    /// What the server showed.
    identity: Digest,
}

const NO_CERTIFICATE: u64 = u64::MAX;

/// What is known of one handshake, and what has become of its sessions.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// TLS 1.2 is spoken.
    tls12: bool,
    /// The client takes tickets, so that it needs no place in a cache.
    takes_tickets: bool,
    identity: Digest,
    client_until: Option<u64>,
    /// The last session that could be used.
    usable: Option<(SessionKind, Binding)>,
    /// It was found in the present call of rustls.
    is_new: bool,
    /// It is in a ticket that the client need not replace yet.
    lasts: bool,
    /// rustls has resumed it.
    resumed: bool,
    /// What the client is told of the last ticket, in seconds.
    hint: u32,
    declined: Option<(SessionKind, Declined)>,
    tickets_issued: u8,
    sessions_stored: u8,
}

thread_local! {
    static CURRENT: RefCell<Option<Box<Attempt>>> = const { RefCell::new(None) };
}

/// Runs a call of rustls that belongs to `attempt`. `resumed`: what rustls says of the handshake before it.
pub(super) fn during<R>(mut attempt: Box<Attempt>, resumed: bool, call: impl FnOnce() -> R) -> (R, Box<Attempt>) {
    attempt.is_new = false;
    attempt.lasts = false;
    attempt.resumed = resumed;
    CURRENT.set(Some(attempt));
    let result = call();
    let attempt = CURRENT.take().expect("whoever takes it away puts it back");
    (result, attempt)
}

/// Runs a call of rustls in a handshake that nothing is known of, for fuzz targets.
#[cfg(fuzzing)]
pub fn during_any<R>(call: impl FnOnce() -> R) -> R {
    during(Box::default(), false, call).0
}

/// Runs what does not belong to the present attempt: a call of rustls is left in the middle, and others run.
pub fn aside<R>(others: impl FnOnce() -> R) -> R {
    if active(Mutant::AttemptNotPutAside) {
        return others();
    }
    let attempt = CURRENT.take();
    let result = others();
    CURRENT.set(attempt);
    result
}

/// This identity is shown to the client, unless a session is resumed that it was shown in.
pub fn note_identity(identity: Digest) {
    with_current(|attempt| attempt.identity = identity);
}

/// The client has shown certificates, the first of which expires then, in seconds since 1970.
pub fn note_client(until: u64) {
    let until = (!active(Mutant::ClientExpiryNotNoted)).then_some(until);
    with_current(|attempt| attempt.client_until = until);
}

fn with_current<R>(act: impl FnOnce(&mut Attempt) -> R) -> Option<R> {
    CURRENT.with_borrow_mut(|current| current.as_deref_mut().map(act))
}

impl Attempt {
    /// `tls12`: that will be the version. `takes_tickets`: the client says so in the form of TLS 1.2.
    pub(super) fn new(tls12: bool, takes_tickets: bool) -> Attempt {
        Attempt {
            tls12,
            takes_tickets,
            ..Attempt::default()
        }
    }

    /// What has become of it, once the handshake is complete.
    pub(super) fn outcome(&self, resumed: bool) -> Resumptions {
        let kind = |usable: Option<(SessionKind, Binding)>| usable.map(|(kind, _)| kind);
        Resumptions {
            tickets_issued: self.tickets_issued,
            sessions_stored: self.sessions_stored,
            accepted: kind(self.usable).filter(|_| resumed),
            declined: match (resumed, self.usable) {
                (true, _) => None,
                // rustls found that it belongs to another name or suite.
                (false, Some((kind, _))) => Some((kind, Declined::Parameters)),
                (false, None) => self.declined,
            },
        }
    }

    /// Of several tickets the first counts.
    fn decline(&mut self, kind: SessionKind, why: Declined) {
        self.declined.get_or_insert((kind, why));
    }

    /// What a session is bound to that is issued now: where this handshake resumes another, to what that is bound to.
    fn binding(&self, now: u64, revocation: Digest) -> Binding {
        // TLS 1.2 issues a ticket in the very call that resumes a session, TLS 1.3 in a later one.
        let resumes = self.resumed || self.is_new || active(Mutant::OfferedBindingKept);
        match self.usable.filter(|_| resumes) {
            Some((_, binding)) if active(Mutant::RenewalBeginsAnew) => Binding {
                authenticated_at: now,
                ..binding
            },
            Some((_, binding)) => binding,
            None => Binding {
                authenticated_at: now,
                client_until: self.client_until.unwrap_or(NO_CERTIFICATE),
                revocation,
                identity: self.identity,
            },
        }
    }
}

impl Resumption {
    /// For the listener of this name. Sessions are not resumed when the full handshake was longer than `lifetime` (whole seconds) ago.
    #[must_use]
    pub fn new(
        listener: &str,
        client_auth: Option<&ClientAuth>,
        lifetime: Duration,
        tickets: Option<Arc<Tickets>>,
        clock: Arc<dyn TimeProvider>,
    ) -> Resumption {
        let clients = client_auth.map(ClientAuth::policy).unwrap_or_default();
        let parts: [&[u8]; 4] = [
            b"ringlock resumption policy",
            &clients,
            b"listener",
            listener.as_bytes(),
        ];
        Resumption {
            policy: sha256::digest(&parts),
            revocation: client_auth.map(ClientAuth::revocation).unwrap_or_default(),
            lifetime: lifetime.as_secs(),
            tickets,
            cache: None,
            clock,
        }
    }

    /// Sessions are kept here, too.
    #[must_use]
    pub fn with_cache(self, cache: Arc<SessionCache>) -> Resumption {
        let cache = Some(cache);
        Resumption { cache, ..self }
    }

    /// Sessions of this policy and of others; none unless they are kept.
    #[must_use]
    pub fn cache(&self) -> Option<&Arc<SessionCache>> {
        self.cache.as_ref()
    }

    /// Where the cache has the session of this id. Under another policy it is elsewhere, and no choice of ids leads there.
    fn place(&self, id: &[u8]) -> [u8; 32] {
        let policy: &[u8] = if active(Mutant::PolicyNotInCachePlace) {
            &[]
        } else {
            &self.policy
        };
        sha256::digest(&[policy, id])
    }

    /// rustls' clock, which both of us go by.
    pub(super) fn clock(&self) -> &Arc<dyn TimeProvider> {
        &self.clock
    }

    pub(super) fn issues_tickets(&self) -> bool {
        self.tickets.is_some()
    }

    fn now(&self) -> Option<u64> {
        Some(self.clock.current_time()?.as_secs())
    }

    /// When a session of this binding is over.
    fn end(&self, binding: &Binding) -> u64 {
        let end = binding.authenticated_at.saturating_add(self.lifetime);
        // A certificate is valid in its last second, too.
        end.min(binding.client_until.saturating_add(1))
    }

    /// `value` with what it is bound to, and when it ends; none when that is now.
    fn bind(&self, attempt: &Attempt, value: &[u8]) -> Option<(Zeroizing<Vec<u8>>, u64, u64)> {
        let now = self.now()?;
        let binding = attempt.binding(now, self.revocation);
        let end = self.end(&binding);
        if end <= now {
            return None;
        }
        let mut bound = Zeroizing::new(Vec::with_capacity(value.len() + Binding::BYTES));
        bound.extend_from_slice(value);
        binding.append_to(&mut bound);
        Some((bound, now, end))
    }

    /// What rustls had put there, if what it is bound to still holds.
    fn unbind(&self, attempt: &mut Attempt, kind: SessionKind, bound: Vec<u8>) -> Option<Vec<u8>> {
        match self.check(attempt, bound) {
            Ok((value, binding)) => {
                attempt.usable = Some((kind, binding));
                attempt.is_new = true;
                Some(value)
            }
            Err(why) => {
                attempt.decline(kind, why);
                None
            }
        }
    }

    fn check(&self, attempt: &Attempt, mut bound: Vec<u8>) -> Result<(Vec<u8>, Binding), Declined> {
        let binding = Binding::take_from(&mut bound).ok_or(Declined::Corrupt)?;
        let now = self.now().ok_or(Declined::Expired)?;
        let had_certificate = binding.client_until != NO_CERTIFICATE;
        if binding.identity != attempt.identity && !active(Mutant::IdentityNotCompared) {
            Err(Declined::Policy)
        } else if had_certificate && binding.revocation != self.revocation && !active(Mutant::RevocationNotCompared) {
            Err(Declined::Crl)
        } else if binding.client_until < now {
            Err(Declined::ClientCertificate)
        } else if self.end(&binding) <= now {
            Err(Declined::Expired)
        } else {
            Ok((bound, binding))
        }
    }
}

impl Binding {
    const BYTES: usize = 2 * size_of::<u64>() + 2 * size_of::<Digest>();

    fn append_to(&self, value: &mut Vec<u8>) {
        value.extend_from_slice(&self.authenticated_at.to_be_bytes());
        value.extend_from_slice(&self.client_until.to_be_bytes());
        value.extend_from_slice(&self.revocation);
        value.extend_from_slice(&self.identity);
    }

    fn take_from(value: &mut Vec<u8>) -> Option<Binding> {
        let (rest, &identity) = value.split_last_chunk()?;
        let (rest, &revocation) = rest.split_last_chunk()?;
        let (rest, &client_until) = rest.split_last_chunk()?;
        let (rest, &authenticated_at) = rest.split_last_chunk()?;
        let length = rest.len();
        let binding = Binding {
            authenticated_at: u64::from_be_bytes(authenticated_at),
            client_until: u64::from_be_bytes(client_until),
            revocation,
            identity,
        };
        value.truncate(length);
        Some(binding)
    }
}

impl ProducesTickets for Resumption {
    /// In TLS 1.2 rustls asks before it promises the next ticket, having found a session. A ticket of the present epoch is not replaced:
    /// it can be used again, and OpenSSL's clients that keep sessions themselves (nginx) get no sight of the one that comes with a
    /// resumption, while the old one counts as used up. They would do a full handshake every second time.
    fn enabled(&self) -> bool {
        let keeps = |attempt: &mut Attempt| attempt.tls12 && attempt.lasts;
        self.tickets.is_some() && !with_current(keeps).unwrap_or_default()
    }

    /// Of the ticket issued last: rustls asks right behind [`ProducesTickets::encrypt`].
    fn lifetime(&self) -> u32 {
        with_current(|attempt| attempt.hint).unwrap_or_default()
    }

    fn encrypt(&self, value: &[u8]) -> Option<Vec<u8>> {
        let tickets = self.tickets.as_ref()?;
        with_current(|attempt| {
            attempt.hint = 0;
            if value.len() > TICKET_VALUE_BYTES_MAX {
                return None;
            }
            let (bound, now, end) = self.bind(attempt, value)?;
            let sealed = tickets.seal(&self.policy, &bound)?;
            let left = end.min(sealed.accepted_until).saturating_sub(now);
            attempt.hint = u32::try_from(left).unwrap_or(u32::MAX);
            attempt.tickets_issued = attempt.tickets_issued.saturating_add(1);
            Some(sealed.ticket)
        })?
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let tickets = self.tickets.as_ref()?;
        with_current(|attempt| match tickets.open(&self.policy, ticket) {
            Ok(bound) => {
                let value = self.unbind(attempt, SessionKind::Ticket, bound)?;
                attempt.lasts = tickets.is_recent(ticket);
                Some(value)
            }
            Err(why) => {
                attempt.decline(SessionKind::Ticket, why.into());
                None
            }
        })?
    }
}

impl From<Unopened> for Declined {
    fn from(why: Unopened) -> Declined {
        match why {
            Unopened::UnknownSecret => Declined::Unknown,
            Unopened::Epoch => Declined::Expired,
            Unopened::Policy => Declined::Policy,
            Unopened::Corrupt => Declined::Corrupt,
        }
    }
}

impl StoresServerSessions for Resumption {
    /// In TLS 1.2 rustls asks on its way to a full handshake, before it promises a ticket: the session that it found did not fit.
    fn can_cache(&self) -> bool {
        with_current(|attempt| attempt.lasts = false);
        self.cache.is_some()
    }

    fn put(&self, id: Vec<u8>, value: Vec<u8>) -> bool {
        let value = Zeroizing::new(value);
        let Some(cache) = &self.cache else { return false };
        with_current(|attempt| {
            if self.issues_tickets() && attempt.takes_tickets {
                return false;
            }
            let stored = self
                .bind(attempt, &value)
                .is_some_and(|(bound, _, _)| cache.put(&self.place(&id), bound));
            attempt.sessions_stored = attempt.sessions_stored.saturating_add(u8::from(stored));
            stored
        })
        .unwrap_or_default()
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.found(self.cache.as_ref()?.get(&self.place(id)))
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.found(self.cache.as_ref()?.take(&self.place(id)))
    }
}

impl Resumption {
    /// What a session in the cache is good for.
    fn found(&self, found: Option<Zeroizing<Vec<u8>>>) -> Option<Vec<u8>> {
        with_current(|attempt| match found {
            Some(mut bound) => self.unbind(attempt, SessionKind::Session, std::mem::take(&mut *bound)),
            None => {
                attempt.decline(SessionKind::Session, Declined::Unknown);
                None
            }
        })?
    }
}

#[cfg(test)]
mod tests;
