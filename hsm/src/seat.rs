//! The thread of one session: takes what its pool has for it, calls the token, and says how that went.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rustls::SignatureScheme;

use crate::channel::Reply;
use crate::loaded::{End, Pass};
use crate::pool::{Inquiry, Pool, Task};
use crate::protocol::{Fault, FaultKind, KeyDescription, KeyNumber, KeyPlace, Proof, Refusal, Report};
use crate::queue::Job;
use crate::token::{FoundKey, Session};

/// A key that was looked for and not found is not looked for again for so long.
const MISSING_FOR: Duration = Duration::from_secs(1);

/// Opening a session is several calls in one, and logging in may take as long as a signature.
const OPENING_TIMEOUTS: u32 = 2;

/// What a half-open breaker signs.
const PROBE: &[u8] = b"ringlock asks whether this token signs";

/// A key that may be asked for.
pub(crate) struct Key {
    pub(crate) number: KeyNumber,
    pub(crate) place: KeyPlace,
    /// Its public key when it was found first. Another one is another key.
    public: OnceLock<Vec<u8>>,
    whereabouts: Mutex<Whereabouts>,
}

#[derive(Default)]
struct Whereabouts {
    located: Option<Located>,
    seen: Seen,
    /// Nothing is to be kept for it any more.
    forgotten: bool,
}

/// How it was when somebody last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Never,
    There,
    Missing,
    /// There is another key in its place.
    Replaced,
}

struct Located {
    era: Era,
    at: Instant,
    found: Result<Arc<FoundKey>, Fault>,
}

/// What a key's handle and a session live for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Era {
    /// How often the pool's breaker has opened.
    pub(crate) trips: u64,
    /// How often the module has begun anew.
    pub(crate) resets: u64,
}

impl Key {
    pub(crate) fn new(number: KeyNumber, place: KeyPlace) -> Key {
        Key {
            number,
            place,
            public: OnceLock::new(),
            whereabouts: Mutex::default(),
        }
    }

    /// It is not used any more. Returns what is kept for it.
    pub(crate) fn forget(&self) -> Option<Arc<FoundKey>> {
        let mut whereabouts = self.whereabouts();
        whereabouts.forgotten = true;
        whereabouts.located.take()?.found.ok()
    }

    /// It was here, and should be.
    fn is_known(&self) -> bool {
        match self.whereabouts().seen {
            Seen::There | Seen::Missing => true,
            Seen::Never | Seen::Replaced => false,
        }
    }

    fn is_forgotten(&self) -> bool {
        self.whereabouts().forgotten
    }

    /// What was found there means nothing any more, unless somebody has found it again meanwhile.
    fn lose(&self, stale: &Arc<FoundKey>) {
        let is_it = |located: &mut Located| located.found.as_ref().is_ok_and(|found| Arc::ptr_eq(found, stale));
        self.whereabouts().located.take_if(is_it);
    }

    fn whereabouts(&self) -> MutexGuard<'_, Whereabouts> {
        self.whereabouts.lock().expect("nobody panics while holding this lock")
    }
}

/// What others may see and do while the thread is in a call.
#[derive(Default)]
pub(crate) struct Watched {
    /// When the call that it is in is late, in microseconds since the pool's start; 0 while it is in none.
    late_us: AtomicU64,
    /// Who is told when it does not return.
    pending: Mutex<Option<Pending>>,
}

/// Whoever waits for what a session does.
pub(crate) enum Pending {
    Reply(Reply),
    Inquiry(Inquiry),
}

impl Watched {
    pub(crate) fn is_late(&self, now_us: u64) -> bool {
        let late_us = self.late_us.load(Ordering::Acquire);
        late_us != 0 && late_us <= now_us
    }

    /// Whoever takes it answers it.
    pub(crate) fn take(&self) -> Option<Pending> {
        self.pending().take()
    }

    fn put(&self, pending: Pending) {
        *self.pending() = Some(pending);
    }

    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().expect("nobody panics while holding this lock")
    }
}

/// A thread of a pool.
pub(crate) struct Seat {
    pub(crate) pool: Arc<Pool>,
    pub(crate) number: u32,
    pub(crate) watched: Arc<Watched>,
    pub(crate) open: Option<Open>,
    /// When its session was last used.
    pub(crate) used: Instant,
}

/// An open session. Declared in this order because a session is closed before the module may begin anew.
pub(crate) struct Open {
    session: Box<dyn Session>,
    pub(crate) era: Era,
    _pass: Pass,
}

impl Seat {
    /// The thread's life.
    pub(crate) fn run(mut self) {
        let pool = Arc::clone(&self.pool);
        loop {
            match pool.next(&self) {
                Task::Sign(job) => self.sign(job),
                Task::Refuse(replies, refusal) => replies.into_iter().for_each(|reply| reply.refuse(refusal)),
                Task::Inquire(inquiry) => self.inquire(inquiry),
                Task::Touch => self.touch(),
                Task::Open => {
                    let opened = self.open();
                    pool.opened(&mut self, opened);
                }
                Task::Recover => {
                    let outcome = self.recover();
                    pool.recovered(&self, outcome);
                }
                Task::Close => {
                    let open = self.open.take();
                    self.call(1, || drop(open));
                }
                Task::Leave => return,
            }
        }
    }

    fn sign(&mut self, job: Job) {
        let Job {
            key,
            scheme,
            message,
            reply,
            ..
        } = job;
        self.watched.put(Pending::Reply(reply));
        let (signature, signing_us) = self.sign_with(&key, scheme, &message);
        // Otherwise it took so long that somebody was told so meanwhile.
        if let Some(Pending::Reply(reply)) = self.watched.take() {
            reply.give(signature.as_deref().map_err(|refusal| *refusal), signing_us);
        }
    }

    fn sign_with(
        &mut self,
        key: &Arc<Key>,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> (Result<Vec<u8>, Refusal>, u32) {
        let mut anew = false;
        loop {
            let found = match self.locate(key) {
                Ok(found) => found,
                Err(_) if key.is_forgotten() => return (Err(Refusal::Unknown), 0),
                Err(fault) => return (Err(self.refusal(fault)), 0),
            };
            if !found.schemes.iter().any(|(able, _)| *able == scheme) {
                return (Err(Refusal::Unknown), 0);
            }
            let start = Instant::now();
            let signature = self.with_session(|session| session.sign(&found, scheme, message));
            self.used = Instant::now();
            let signing_us = u32::try_from((self.used - start).as_micros()).unwrap_or(u32::MAX);
            match signature {
                Ok(signature) => {
                    self.pool.succeeded();
                    return (Ok(signature), signing_us);
                }
                // The object was written anew: its handle has changed, and the session is as good as before.
                Err(fault) if is_stale(&fault) && !anew => {
                    anew = true;
                    self.pool.count(&fault);
                    key.lose(&found);
                }
                Err(fault) => {
                    self.pool.failed(self.era(), &fault);
                    return (Err(Refusal::Failed), signing_us);
                }
            }
        }
    }

    /// Why there is no signature when the key is not found.
    fn refusal(&self, fault: Fault) -> Refusal {
        self.pool.failed(self.era(), &fault);
        match fault.kind {
            FaultKind::Object | FaultKind::Mechanism | FaultKind::Module => Refusal::Unavailable,
            FaultKind::Token | FaultKind::Pin | FaultKind::Device | FaultKind::Timeout | FaultKind::Signer => {
                Refusal::Failed
            }
        }
    }

    /// A key's handle is the same in all sessions of a token, so one session looks for all of them.
    fn locate(&mut self, key: &Arc<Key>) -> Result<Arc<FoundKey>, Fault> {
        let era = self.era();
        let whereabouts = key.whereabouts();
        if whereabouts.forgotten {
            return Err(forgotten());
        }
        if let Some(located) = &whereabouts.located
            && located.era == era
        {
            match &located.found {
                Ok(found) => return Ok(Arc::clone(found)),
                Err(fault) if located.at.elapsed() < MISSING_FOR => return Err(fault.clone()),
                Err(_) => {}
            }
        }
        drop(whereabouts);
        let mut found = self.with_session(|session| session.find(&key.place)).map(Arc::new);
        let mut seen = if found.is_ok() { Seen::There } else { Seen::Missing };
        if let Ok(new) = &found
            && key.public.get_or_init(|| new.public.clone()) != &new.public
        {
            self.release(Some(Arc::clone(new)));
            let what = "another key than the one that was there when the configuration was loaded";
            found = Err(Fault::new(FaultKind::Object, what));
            seen = Seen::Replaced;
        }
        let transient =
            |fault: &Fault| matches!(fault.kind, FaultKind::Device | FaultKind::Timeout) || fault.loses_sessions();
        if found.as_ref().is_err_and(transient) {
            return found;
        }
        let mut whereabouts = key.whereabouts();
        if whereabouts.forgotten {
            drop(whereabouts);
            self.release(found.ok());
            return Err(forgotten());
        }
        if let Some(theirs) = &whereabouts.located
            && theirs.era == era
            && let Ok(theirs) = &theirs.found
        {
            // Another session was faster, and may be signing with what it found.
            let theirs = Arc::clone(theirs);
            drop(whereabouts);
            self.release(found.ok());
            return Ok(theirs);
        }
        let before = whereabouts.located.replace(Located {
            era,
            at: Instant::now(),
            found: found.clone(),
        });
        let seen_before = std::mem::replace(&mut whereabouts.seen, seen);
        drop(whereabouts);
        self.release(before.and_then(|before| before.found.ok()));
        if let (Seen::There, Seen::Missing, Err(fault)) = (seen_before, seen, &found) {
            // Some modules go on with a token that has been taken away or made anew as if it were empty, until they begin anew.
            self.pool.lost(era, fault);
        }
        found
    }

    fn release(&mut self, found: Option<Arc<FoundKey>>) {
        if let Some(found) = found {
            self.with_session(|session| session.release(&found));
        }
    }

    fn touch(&mut self) {
        let touched = self.with_session(|session| session.touch());
        self.used = Instant::now();
        if let Err(fault) = touched {
            self.pool.failed(self.era(), &fault);
        }
    }

    fn inquire(&mut self, inquiry: Inquiry) {
        self.watched.put(Pending::Inquiry(inquiry.clone()));
        let report = match inquiry {
            Inquiry::Key { key, challenge } => {
                let found = self.describe(&key, &challenge);
                Some(Report::Key { key: key.number, found })
            }
            Inquiry::Certificates { question, object } => {
                let found = self.with_session(|session| session.certificates(&object));
                if let Err(fault) = &found {
                    self.pool.failed(self.era(), fault);
                }
                Some(Report::Certificates { question, found })
            }
            Inquiry::Release(found) => {
                self.release(Some(found));
                None
            }
        };
        self.used = Instant::now();
        let still_awaited = self.watched.take().is_some();
        self.pool.inquired();
        if let Some(report) = report.filter(|_| still_awaited) {
            self.pool.loaded().report(report);
        }
    }

    fn describe(&mut self, key: &Arc<Key>, challenge: &[u8]) -> Result<KeyDescription, Fault> {
        let found = self
            .locate(key)
            .inspect_err(|fault| self.pool.failed(self.era(), fault))?;
        let mut proofs: Vec<Proof> = Vec::new();
        let mut lost: Option<Fault> = None;
        for (scheme, mechanism) in &found.schemes {
            let start = Instant::now();
            let signature = match &lost {
                Some(fault) => Err(fault.clone()),
                None => self.with_session(|session| session.sign(&found, *scheme, challenge)),
            };
            let signing_us = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
            if let (Err(fault), None) = (&signature, &lost) {
                self.pool.failed(self.era(), fault);
                lost = fault.loses_sessions().then(|| fault.clone());
            }
            proofs.push(Proof {
                scheme: u16::from(*scheme),
                mechanism: (*mechanism).to_owned(),
                signature,
                signing_us,
            });
        }
        Ok(KeyDescription {
            public: found.public.clone(),
            token: self.with_session(|session| session.token()),
            proofs,
        })
    }

    fn open(&mut self) -> Result<Open, Fault> {
        let pass = self.pool.loaded().enter();
        let (settings, trips) = self.pool.opening();
        let era = Era {
            trips,
            resets: pass.resets,
        };
        let pool = Arc::clone(&self.pool);
        let session = self.call(OPENING_TIMEOUTS, || pool.loaded().module().open(&settings))?;
        self.used = Instant::now();
        Ok(Open {
            session,
            era,
            _pass: pass,
        })
    }

    /// Opens a session and tries it; when that is not enough, begins anew with the module, as far as that is allowed.
    fn recover(&mut self) -> Result<(), Fault> {
        match self.open_and_probe(false) {
            Err(fault) if fault.kind != FaultKind::Pin && self.pool.may_reset(self.number) => {
                let pool = Arc::clone(&self.pool);
                let patience = pool.timeout() * OPENING_TIMEOUTS;
                // The time in which others leave is theirs.
                self.call(2 * OPENING_TIMEOUTS, || pool.loaded().reset(patience))?;
                self.open_and_probe(true)
            }
            outcome => outcome,
        }
    }

    /// Leaves a session open when it signs. After the module has begun anew, keys that are missing are missing for good: the token
    /// serves then as it is.
    fn open_and_probe(&mut self, anew: bool) -> Result<(), Fault> {
        self.open = Some(self.open()?);
        let mut missing = None;
        for key in self.pool.keys().into_iter().filter(|key| key.is_known()) {
            let signed = self.locate(&key).and_then(|found| {
                let scheme = found.schemes.first().map(|(scheme, _)| *scheme);
                scheme.map_or(Ok(()), |scheme| {
                    self.with_session(|session| session.sign(&found, scheme, PROBE))
                        .map(|_| ())
                })
            });
            match signed {
                Ok(()) => return Ok(()),
                Err(fault) if fault.kind == FaultKind::Object => missing = Some(fault),
                Err(fault) => return self.close_with(fault),
            }
        }
        match missing {
            Some(fault) if !anew => self.close_with(fault),
            Some(_) | None => Ok(()),
        }
    }

    fn close_with(&mut self, fault: Fault) -> Result<(), Fault> {
        let open = self.open.take();
        self.call(1, || drop(open));
        Err(fault)
    }

    fn era(&self) -> Era {
        self.open
            .as_ref()
            .expect("only whoever has a session is given work for one")
            .era
    }

    fn with_session<T>(&mut self, call: impl FnOnce(&mut dyn Session) -> T) -> T {
        let open = self
            .open
            .as_mut()
            .expect("only whoever has a session is given work for one");
        let late_us = self.pool.late_us(1);
        self.watched.late_us.store(late_us, Ordering::Release);
        let result = call(&mut *open.session);
        self.watched.late_us.store(0, Ordering::Release);
        result
    }

    /// Calls the module, for at most so many times the timeout before it counts as hanging.
    fn call<T>(&mut self, timeouts: u32, call: impl FnOnce() -> T) -> T {
        self.watched
            .late_us
            .store(self.pool.late_us(timeouts), Ordering::Release);
        let result = call();
        self.watched.late_us.store(0, Ordering::Release);
        result
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.pool.loaded().end(End::Panicked);
        }
    }
}

fn forgotten() -> Fault {
    Fault::new(FaultKind::Object, "a key that is not used any more")
}

/// The object's handle is stale, the session is not.
fn is_stale(fault: &Fault) -> bool {
    matches!(
        fault.ckr.as_deref(),
        Some("CKR_KEY_HANDLE_INVALID" | "CKR_OBJECT_HANDLE_INVALID")
    )
}

/// Keys of a pool, by number.
pub(crate) type Keys = BTreeMap<KeyNumber, Arc<Key>>;
