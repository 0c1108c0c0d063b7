//! What a pool knows, and what each of its threads does next: decided here, under the pool's lock, and done elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Inquiry, Task};
use crate::channel::Reply;
use crate::loaded::Loaded;
use crate::protocol::{Fault, FaultKind, Refusal, Report, TokenSettings};
use crate::queue::Queue;
use crate::seat::{Era, Keys, Seat, Watched};

/// The first attempt to recover is made at once; these are the pauses after it. A token that is back serves within 5 s.
const BACKOFF: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// A breaker that opens again so soon was closed too soon: the back-off goes on where it was.
const RELAPSE: Duration = Duration::from_secs(4);

/// PKCS#11 has some ninety errors, and vendors have their own.
const ERROR_NAMES_MAX: usize = 128;

/// See the module.
pub(super) struct State {
    pub(super) settings: TokenSettings,
    pub(super) phase: Phase,
    /// How often the breaker has opened.
    pub(super) trips: u64,
    pub(super) queue: Queue,
    pub(super) inquiries: VecDeque<Inquiry>,
    pub(super) inquiring: usize,
    /// Whether an inquiry comes before a signature next time: they take turns.
    pub(super) inquiry_next: bool,
    pub(super) keys: Keys,
    pub(super) seats: BTreeMap<u32, Taken>,
    pub(super) next_seat: u32,
    /// Threads with a session that wait for work.
    pub(super) idle: usize,
    /// Who opens a session. One at a time, so that a PIN is never tried by two.
    pub(super) opening: Option<u32>,
    pub(super) open_again: Option<Instant>,
    pub(super) fault: Option<Fault>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) recoveries: u64,
    pub(super) served: bool,
    pub(super) pin_refused: bool,
    pub(super) ended: bool,
}

/// A thread of the pool as the pool sees it.
pub(super) struct Taken {
    pub(super) watched: Arc<Watched>,
    /// It is in a call that takes too long.
    pub(super) hung: bool,
    /// It has a session.
    pub(super) open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The token is used. If it fails soon, the back-off begins after so many attempts.
    Closed { since: Instant, relapse: usize },
    /// This thread tries it.
    HalfOpen { by: u32, attempts: usize },
    /// It is not used, and tried again then.
    Open { at: Instant, attempts: usize },
}

impl State {
    /// Of a token that is to be opened at once.
    pub(super) fn new(settings: TokenSettings, now: Instant) -> State {
        State {
            settings,
            phase: Phase::Open { at: now, attempts: 0 },
            trips: 0,
            queue: Queue::default(),
            inquiries: VecDeque::new(),
            inquiring: 0,
            inquiry_next: true,
            keys: Keys::new(),
            seats: BTreeMap::new(),
            next_seat: 0,
            idle: 0,
            opening: None,
            open_again: None,
            fault: None,
            errors: BTreeMap::new(),
            recoveries: 0,
            served: false,
            pin_refused: false,
            ended: false,
        }
    }

    /// The thread is not in a call any more.
    pub(super) fn arrived(&mut self, seat: &Seat) {
        let taken = self
            .seats
            .get_mut(&seat.number)
            .expect("a thread has its entry until it leaves");
        taken.hung = false;
        taken.open = seat.open.is_some();
    }

    /// What this thread does, or until when it waits for that to change.
    pub(super) fn next(&mut self, seat: &Seat, era: Era, now: Instant) -> Result<Task, Option<Instant>> {
        let leaves = self.ended || self.able() > self.settings.sessions as usize;
        let Some(open) = &seat.open else {
            if leaves {
                self.seats.remove(&seat.number);
                return Ok(Task::Leave);
            }
            return self.next_without_session(seat.number, now);
        };
        if open.era != era {
            return Ok(Task::Close);
        }
        if leaves {
            let released = if self.ended { self.inquiries.pop_front() } else { None };
            return Ok(released.map_or(Task::Close, |inquiry| self.begin(inquiry)));
        }
        let expired = self.queue.take_expired(now);
        if !expired.is_empty() {
            return Ok(Task::Refuse(expired, Refusal::Expired));
        }
        if !self.inquiries.is_empty() && (self.queue.is_empty() || self.inquiry_next && self.inquiring == 0) {
            self.inquiry_next = false;
            let inquiry = self.inquiries.pop_front().expect("there is one");
            return Ok(self.begin(inquiry));
        }
        self.inquiry_next = true;
        if let Some(job) = self.queue.pop() {
            return Ok(Task::Sign(job));
        }
        let touch = self.settings.keep_alive.map(|after| seat.used + after);
        match touch {
            Some(touch) if touch <= now => Ok(Task::Touch),
            touch => Err(touch),
        }
    }

    fn next_without_session(&mut self, seat: u32, now: Instant) -> Result<Task, Option<Instant>> {
        if self.pin_refused {
            return Err(None);
        }
        match self.phase {
            Phase::Closed { .. } => match self.open_again {
                _ if self.opening.is_some() => Err(None),
                Some(again) if again > now => Err(Some(again)),
                Some(_) | None => {
                    self.opening = Some(seat);
                    Ok(Task::Open)
                }
            },
            Phase::HalfOpen { .. } => Err(None),
            Phase::Open { at, .. } if at > now => Err(Some(at)),
            // Whoever closes the last of them comes here next, or leaves and says so.
            Phase::Open { .. } if self.open() > 0 => Err(None),
            Phase::Open { attempts, .. } => {
                self.phase = Phase::HalfOpen { by: seat, attempts };
                Ok(Task::Recover)
            }
        }
    }

    fn begin(&mut self, inquiry: Inquiry) -> Task {
        self.inquiring += 1;
        Task::Inquire(inquiry)
    }

    /// Opens the breaker. Whoever waits is to be refused.
    pub(super) fn trip(&mut self, fault: Fault, now: Instant) -> Vec<Reply> {
        let attempts = match self.phase {
            Phase::Closed { since, relapse } if now - since < RELAPSE => relapse,
            Phase::Closed { .. } | Phase::HalfOpen { .. } | Phase::Open { .. } => 0,
        };
        let at = now + pause(attempts);
        self.phase = Phase::Open { at, attempts };
        self.trips += 1;
        self.fault = Some(fault);
        self.queue.take_all()
    }

    /// An attempt to recover has succeeded.
    pub(super) fn closed(&mut self, attempts: usize, now: Instant) {
        let relapse = if self.served { attempts + 1 } else { 0 };
        self.phase = Phase::Closed { since: now, relapse };
        self.fault = None;
        self.open_again = None;
        self.recoveries += u64::from(self.served);
        self.served = true;
    }

    /// An attempt to recover has failed. Whoever waited for it is told why.
    pub(super) fn stay_open(&mut self, fault: Fault, attempts: usize, now: Instant) -> Vec<Report> {
        self.phase = Phase::Open {
            at: now + pause(attempts),
            attempts,
        };
        self.trips += 1;
        let told = self.refuse_questions(&fault);
        self.fault = Some(fault);
        told
    }

    pub(super) fn refuse_questions(&mut self, fault: &Fault) -> Vec<Report> {
        let is_release = |inquiry: &Inquiry| matches!(inquiry, Inquiry::Release(_));
        let (releases, questions): (VecDeque<_>, VecDeque<_>) = self.inquiries.drain(..).partition(is_release);
        self.inquiries = releases;
        questions
            .into_iter()
            .filter_map(|question| question.refuse(fault.clone()))
            .collect()
    }

    pub(super) fn count(&mut self, fault: &Fault) {
        let name = fault.ckr.clone().unwrap_or_else(|| format!("{:?}", fault.kind));
        let known = self.errors.contains_key(&name) || self.errors.len() < ERROR_NAMES_MAX;
        let name = if known { name } else { "others".to_owned() };
        *self.errors.entry(name).or_default() += 1;
    }

    pub(super) fn trouble(&self) -> Fault {
        let why = if self.pin_refused {
            Fault::new(
                FaultKind::Pin,
                "a token that has refused its PIN: it is not tried again before the configuration is loaded again",
            )
        } else {
            Fault::new(FaultKind::Device, "a token that has not been opened yet")
        };
        self.fault.clone().unwrap_or(why)
    }

    /// Threads that do not hang.
    pub(super) fn able(&self) -> usize {
        self.seats.values().filter(|seat| !seat.hung).count()
    }

    /// Sessions that do not hang.
    pub(super) fn open(&self) -> usize {
        self.seats.values().filter(|seat| seat.open && !seat.hung).count()
    }

    pub(super) fn era(&self, loaded: &Loaded) -> Era {
        Era {
            trips: self.trips,
            resets: loaded.resets(),
        }
    }
}

/// Before an attempt to recover after so many that failed.
fn pause(attempts: usize) -> Duration {
    match attempts.checked_sub(1) {
        None => Duration::ZERO,
        Some(failed) => BACKOFF[failed.min(BACKOFF.len() - 1)],
    }
}
