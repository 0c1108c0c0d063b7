//! The sessions of one token: a queue that is ordered by deadline, a thread for each session, and a breaker that opens when the token
//! fails and closes when it signs again.
//!
//! Threads ask [`Pool::next`] what to do; whatever calls the token is in `seat.rs`. Nothing here waits for a token, so the control
//! connection's thread may call anything.

mod state;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::Reply;
use crate::loaded::Loaded;
use crate::protocol::{Breaker, Fault, FaultKind, KeyNumber, Refusal, Report, TokenSettings, TokenStatus};
use crate::queue::{Job, QUEUE_MAX};
use crate::seat::{Era, Key, Open, Pending, Seat, Watched};
use crate::token::FoundKey;
use crate::uri::ObjectMatch;
use state::{Phase, State, Taken};

/// Threads for each session, those included that are in a call that does not return.
const THREADS_PER_SESSION: usize = 2;

/// Failures of the device, one after the other, that open the breaker when none of them says that sessions are lost.
const FAILURES_MAX: u32 = 3;

/// Sessions beyond the first one that cannot be opened, for instance because the token has no more, are tried again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// A question of the control connection.
#[derive(Clone)]
pub(crate) enum Inquiry {
    /// What the key is, and whether it signs.
    Key { key: Arc<Key>, challenge: Vec<u8> },
    /// The certificates that fit.
    Certificates { question: u64, object: ObjectMatch },
    /// No question: this key is not used any more.
    Release(Arc<FoundKey>),
}

impl Inquiry {
    fn refuse(self, fault: Fault) -> Option<Report> {
        match self {
            Inquiry::Key { key, .. } => Some(Report::Key {
                key: key.number,
                found: Err(fault),
            }),
            Inquiry::Certificates { question, .. } => Some(Report::Certificates {
                question,
                found: Err(fault),
            }),
            Inquiry::Release(_) => None,
        }
    }
}

/// What a thread of the pool does next.
pub(crate) enum Task {
    Sign(Job),
    Refuse(Vec<Reply>, Refusal),
    Inquire(Inquiry),
    /// Use the session for something harmless.
    Touch,
    Open,
    Close,
    Recover,
    Leave,
}

/// The sessions of one token.
pub(crate) struct Pool {
    loaded: Arc<Loaded>,
    start: Instant,
    state: Mutex<State>,
    /// For those that have a session.
    work: Condvar,
    /// For those that have none.
    change: Condvar,
    /// Failures of the device since the last signature.
    failures: AtomicU32,
    /// As in the settings.
    timeout_us: AtomicU32,
}

impl Pool {
    /// Begins to open the token.
    pub(crate) fn start(loaded: &Arc<Loaded>, mut settings: TokenSettings) -> Arc<Pool> {
        settings.sessions = settings.sessions.max(1);
        let now = Instant::now();
        let pool = Arc::new(Pool {
            loaded: Arc::clone(loaded),
            start: now,
            timeout_us: AtomicU32::new(micros(settings.timeout)),
            state: Mutex::new(State::new(settings, now)),
            work: Condvar::new(),
            change: Condvar::new(),
            failures: AtomicU32::new(0),
        });
        loaded.add(&pool);
        pool.watch();
        pool
    }

    /// Somebody has looked at the token: it may be logged in again.
    pub(crate) fn renew(self: &Arc<Self>, mut settings: TokenSettings) {
        settings.sessions = settings.sessions.max(1);
        let mut state = self.state();
        self.timeout_us.store(micros(settings.timeout), Ordering::Relaxed);
        state.pin_refused = false;
        state.settings = settings;
        if let Phase::Open { .. } = state.phase {
            state.phase = Phase::Open {
                at: Instant::now(),
                attempts: 0,
            };
        }
        drop(state);
        self.rouse();
        self.watch();
    }

    /// Announces a key.
    pub(crate) fn add_key(&self, key: Arc<Key>) {
        self.state().keys.insert(key.number, key);
    }

    /// Forgets a key.
    pub(crate) fn forget(&self, number: KeyNumber) {
        let mut state = self.state();
        if let Some(found) = state.keys.remove(&number).and_then(|key| key.forget()) {
            state.inquiries.push_back(Inquiry::Release(found));
            self.work.notify_one();
        }
    }

    /// Queues a request, or refuses it at once.
    pub(crate) fn push(&self, job: Job, now: Instant) {
        let mut state = self.state();
        if state.ended || !matches!(state.phase, Phase::Closed { .. }) {
            drop(state);
            return job.reply.refuse(Refusal::Unavailable);
        }
        let mut expired = Vec::new();
        if state.queue.len() == QUEUE_MAX {
            expired = state.queue.take_expired(now);
        }
        let full = state.queue.push(job).err();
        let idle = state.idle;
        drop(state);
        // Waking somebody is a system call, even when nobody sleeps.
        if idle > 0 {
            self.work.notify_one();
        }
        expired.into_iter().for_each(|reply| reply.refuse(Refusal::Expired));
        if let Some(job) = full {
            job.reply.refuse(Refusal::Full);
        }
    }

    /// Queues a question. One that comes while the token is about to be tried waits for that.
    pub(crate) fn inquire(&self, inquiry: Inquiry) {
        let mut state = self.state();
        let refused = match state.phase {
            Phase::Closed { .. } | Phase::HalfOpen { .. } => state.ended,
            Phase::Open { attempts, .. } => state.ended || state.pin_refused || attempts > 0,
        };
        if refused {
            let report = inquiry.refuse(state.trouble());
            drop(state);
            report.into_iter().for_each(|report| self.loaded.report(report));
        } else {
            state.inquiries.push_back(inquiry);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Looks after the threads: starts those that are missing, finds those that hang. To be called often.
    pub(crate) fn watch(self: &Arc<Self>) {
        let now = Instant::now();
        let mut state = self.state();
        let expired = state.queue.take_expired(now);
        let hung = self.find_hung(&mut state, now);
        let some_hang = !hung.is_empty();
        let all_hang = state.seats.values().all(|seat| seat.hung);
        let mut refused = Vec::new();
        let mut told = Vec::new();
        let mut hopeless = false;
        if some_hang {
            let text = format!("a call that has not returned within {:?}", state.settings.timeout);
            let fault = Fault::new(FaultKind::Timeout, text);
            for (number, _) in &hung {
                state.count(&fault);
                if state.opening == Some(*number) {
                    state.opening = None;
                    state.open_again = Some(now + OPEN_AGAIN);
                }
            }
            match state.phase {
                Phase::HalfOpen { by, attempts } if hung.iter().any(|(number, _)| *number == by) => {
                    // Every other session is closed or hangs as well.
                    hopeless = true;
                    told = state.stay_open(fault.clone(), attempts + 1, now);
                }
                Phase::Closed { .. } if all_hang => refused = self.trip(&mut state, fault.clone(), now),
                Phase::Closed { .. } | Phase::HalfOpen { .. } | Phase::Open { .. } => {}
            }
            told.extend(hung.into_iter().filter_map(|(_, pending)| match pending? {
                Pending::Reply(reply) => {
                    refused.push(reply);
                    None
                }
                Pending::Inquiry(inquiry) => inquiry.refuse(fault.clone()),
            }));
        }
        let threads_max = THREADS_PER_SESSION * state.settings.sessions as usize;
        let nobody_left = all_hang && state.seats.len() >= threads_max;
        self.fill(&mut state);
        drop(state);
        if some_hang {
            // A session that hangs is not waited for any more.
            self.change.notify_all();
            self.loaded.ring();
        }
        expired.into_iter().for_each(|reply| reply.refuse(Refusal::Expired));
        refused.into_iter().for_each(|reply| reply.refuse(Refusal::Failed));
        told.into_iter().for_each(|report| self.loaded.report(report));
        if nobody_left || hopeless && !self.loaded.others_serve(self) {
            self.loaded
                .hung("a token whose calls do not return, and which cannot be opened anew");
        }
    }

    /// Marks threads whose call takes too long, and takes over from them whoever waits for it.
    fn find_hung(&self, state: &mut State, now: Instant) -> Vec<(u32, Option<Pending>)> {
        let now_us = self.since_start_us(now);
        let mut hung = Vec::new();
        for (number, seat) in &mut state.seats {
            if !seat.hung && seat.watched.is_late(now_us) {
                seat.hung = true;
                hung.push((*number, seat.watched.take()));
            }
        }
        hung
    }

    /// Starts the threads that are missing.
    fn fill(self: &Arc<Self>, state: &mut State) {
        let sessions = state.settings.sessions as usize;
        while !state.ended && state.able() < sessions && state.seats.len() < THREADS_PER_SESSION * sessions {
            let number = state.next_seat;
            let watched = Arc::<Watched>::default();
            let seat = Seat {
                pool: Arc::clone(self),
                number,
                watched: Arc::clone(&watched),
                open: None,
                used: Instant::now(),
            };
            let thread = thread::Builder::new().name(format!("session {number}"));
            if let Err(error) = thread.spawn(move || seat.run()) {
                // Tried again the next time that somebody looks.
                state.fault = Some(Fault::new(
                    FaultKind::Signer,
                    format!("no thread for a session ({error})"),
                ));
                return;
            }
            state.next_seat += 1;
            let (hung, open) = (false, false);
            state.seats.insert(number, Taken { watched, hung, open });
        }
    }

    /// Waits for something to do.
    pub(crate) fn next(&self, seat: &Seat) -> Task {
        let mut state = self.state();
        loop {
            state.arrived(seat);
            let now = Instant::now();
            let era = state.era(&self.loaded);
            let until = match state.next(seat, era, now) {
                Ok(task) => {
                    if let Task::Leave = task {
                        self.change.notify_all();
                    }
                    return task;
                }
                Err(until) => until,
            };
            let has_session = seat.open.is_some();
            let condition = if has_session { &self.work } else { &self.change };
            state.idle += usize::from(has_session);
            state = match until {
                None => condition.wait(state).expect("nobody panics while holding this lock"),
                Some(until) => {
                    let waited = condition.wait_timeout(state, until.saturating_duration_since(now));
                    waited.expect("nobody panics while holding this lock").0
                }
            };
            state.idle -= usize::from(has_session);
        }
    }

    /// Another session than the first one has been opened, or not.
    pub(crate) fn opened(&self, seat: &mut Seat, opened: Result<Open, Fault>) {
        let mut state = self.state();
        if state.opening == Some(seat.number) {
            state.opening = None;
        }
        let mut refused = Vec::new();
        match opened {
            Ok(open) => {
                seat.open = Some(open);
                state.fault = None;
            }
            Err(fault) => {
                let now = Instant::now();
                state.count(&fault);
                state.open_again = Some(now + OPEN_AGAIN);
                state.pin_refused |= fault.kind == FaultKind::Pin;
                if fault.loses_sessions() || state.seats.values().all(|seat| !seat.open) {
                    refused = self.trip(&mut state, fault, now);
                } else {
                    state.fault = Some(fault);
                }
            }
        }
        drop(state);
        self.change.notify_all();
        self.loaded.ring();
        refused.into_iter().for_each(|reply| reply.refuse(Refusal::Unavailable));
    }

    /// An attempt to recover has ended.
    pub(crate) fn recovered(&self, seat: &Seat, outcome: Result<(), Fault>) {
        let mut state = self.state();
        if let Err(fault) = &outcome {
            state.count(fault);
            state.pin_refused |= fault.kind == FaultKind::Pin;
        }
        let mut told = Vec::new();
        // Otherwise it took so long that it was given up, and a session that it has opened is as old as the attempt.
        if let Phase::HalfOpen { by, attempts } = state.phase
            && by == seat.number
        {
            let now = Instant::now();
            match outcome {
                Ok(()) => state.closed(attempts, now),
                Err(fault) => told = state.stay_open(fault, attempts + 1, now),
            }
            self.failures.store(0, Ordering::Relaxed);
        }
        drop(state);
        self.rouse();
        self.loaded.ring();
        told.into_iter().for_each(|report| self.loaded.report(report));
    }

    /// The token has signed.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// The token has failed in a session of that era.
    pub(crate) fn failed(&self, era: Era, fault: &Fault) {
        let mut state = self.state();
        state.count(fault);
        // What fails in a session that is about to be closed anyway says nothing about those after it.
        if era != state.era(&self.loaded) || !matches!(state.phase, Phase::Closed { .. }) {
            return;
        }
        let opens = match fault.kind {
            _ if fault.loses_sessions() => true,
            FaultKind::Pin => {
                state.pin_refused = true;
                true
            }
            FaultKind::Device | FaultKind::Timeout | FaultKind::Token | FaultKind::Signer => {
                self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX
            }
            FaultKind::Module | FaultKind::Object | FaultKind::Mechanism => false,
        };
        if opens {
            let refused = self.trip(&mut state, fault.clone(), Instant::now());
            drop(state);
            refused.into_iter().for_each(|reply| reply.refuse(Refusal::Unavailable));
        }
    }

    /// The token is not what it was any more.
    pub(crate) fn lost(&self, era: Era, fault: &Fault) {
        let mut state = self.state();
        if era == state.era(&self.loaded) && matches!(state.phase, Phase::Closed { .. }) {
            let refused = self.trip(&mut state, fault.clone(), Instant::now());
            drop(state);
            refused.into_iter().for_each(|reply| reply.refuse(Refusal::Unavailable));
        }
    }

    /// Counts a fault that the token recovers from by itself.
    pub(crate) fn count(&self, fault: &Fault) {
        self.state().count(fault);
    }

    /// An inquiry has been answered.
    pub(crate) fn inquired(&self) {
        self.state().inquiring -= 1;
    }

    /// Opens the breaker. Whoever waits is refused, by the caller.
    fn trip(&self, state: &mut State, fault: Fault, now: Instant) -> Vec<Reply> {
        if state.pin_refused {
            // No attempt to recover will answer them.
            let told = state.refuse_questions(&fault);
            told.into_iter().for_each(|report| self.loaded.report(report));
        }
        let refused = state.trip(fault, now);
        self.work.notify_all();
        self.change.notify_all();
        self.loaded.ring();
        refused
    }

    /// Everybody looks again at what there is to do.
    pub(crate) fn rouse(&self) {
        // Whoever is about to wait has the lock until it does.
        drop(self.state());
        self.work.notify_all();
        self.change.notify_all();
    }

    /// Closes all sessions and ends all threads, except those that hang.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        let refused: Vec<Reply> = state.queue.take_all();
        let fault = Fault::new(FaultKind::Token, "a token that is not used any more");
        let told = state.refuse_questions(&fault);
        let keys = std::mem::take(&mut state.keys);
        let releases = keys.values().filter_map(|key| key.forget()).map(Inquiry::Release);
        state.inquiries.extend(releases);
        drop(state);
        self.rouse();
        refused.into_iter().for_each(|reply| reply.refuse(Refusal::Unavailable));
        told.into_iter().for_each(|report| self.loaded.report(report));
    }

    /// Waits for the threads of a pool that has been ended, except for those that hang.
    pub(crate) fn wait_until_left(&self) {
        let deadline = Instant::now() + self.timeout();
        let mut state = self.state();
        while state.able() > 0 && Instant::now() < deadline {
            let waited = self
                .change
                .wait_timeout(state, deadline.saturating_duration_since(Instant::now()));
            state = waited.expect("nobody panics while holding this lock").0;
        }
    }

    pub(crate) fn status(&self) -> TokenStatus {
        let state = self.state();
        let breaker = match state.phase {
            Phase::Closed { .. } => Breaker::Closed,
            Phase::HalfOpen { .. } => Breaker::HalfOpen,
            Phase::Open { .. } => Breaker::Open,
        };
        TokenStatus {
            breaker,
            sessions: u32::try_from(state.open()).expect("sessions are counted in 32 bits"),
            queued: u32::try_from(state.queue.len()).expect("the queue is short"),
            errors: state
                .errors
                .iter()
                .map(|(name, count)| (name.clone(), *count))
                .collect(),
            recoveries: state.recoveries,
            pin_refused: state.pin_refused,
            trouble: state
                .fault
                .as_ref()
                .map(Fault::to_string)
                .or_else(|| state.pin_refused.then(|| state.trouble().to_string())),
        }
    }

    /// A call of it does not return.
    pub(crate) fn hangs(&self) -> bool {
        self.state().seats.values().any(|seat| seat.hung)
    }

    /// It signs at present.
    pub(crate) fn serves(&self) -> bool {
        let state = self.state();
        matches!(state.phase, Phase::Closed { .. }) && state.open() > 0
    }

    /// Whether this thread, which tries to recover, may begin anew with the module.
    pub(crate) fn may_reset(&self, seat: u32) -> bool {
        let state = self.state();
        let recovers = matches!(state.phase, Phase::HalfOpen { by, .. } if by == seat);
        drop(state);
        recovers && self.loaded.may_reset(self)
    }

    /// What a session is opened with, and the breaker's part of its era.
    pub(crate) fn opening(&self) -> (TokenSettings, u64) {
        let state = self.state();
        (state.settings.clone(), state.trips)
    }

    /// Keys that may be asked for.
    pub(crate) fn keys(&self) -> Vec<Arc<Key>> {
        self.state().keys.values().cloned().collect()
    }

    pub(crate) fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_micros(u64::from(self.timeout_us.load(Ordering::Relaxed)))
    }

    /// When a call that begins now is late, for [`Watched::is_late`].
    pub(crate) fn late_us(&self, timeouts: u32) -> u64 {
        let timeout_us = u64::from(self.timeout_us.load(Ordering::Relaxed)) * u64::from(timeouts);
        self.since_start_us(Instant::now()) + timeout_us + 1
    }

    fn since_start_us(&self, now: Instant) -> u64 {
        u64::try_from((now - self.start).as_micros()).expect("no process runs for so long")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding this lock")
    }
}

/// A timeout is at most an hour and some.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
