//! The client's loop: one thread, one epoll instance, a fixed number of slots for connections.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::connection::{Connection, Failure, Inbound};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::work::{Next, Work};

/// Bytes per read. Large, because one read for many records is what keeps the client cheap.
const READ_BUFFER: usize = 256 * 1024;

/// How often slots are searched for connections that take too long.
const TIMEOUT_SCAN: Duration = Duration::from_millis(250);

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;

/// The alarm's token; slots are smaller.
const ALARM: Token = Token(usize::MAX);

/// The connections of a run and the means to drive them.
pub(crate) struct Engine<'plan> {
    plan: &'plan ClientPlan,
    poll: Poll,
    events: Events,
    slots: Vec<Option<Connection>>,
    /// Slots whose connection is to be continued without an event; bounded by two entries per slot and turn.
    ready: VecDeque<usize>,
    /// Slots that became free in the last turn.
    freed: Vec<usize>,
    /// Slots whose connection has come to rest in the last turn.
    rested: Vec<usize>,
    /// Ends a wait to the microsecond, where epoll's own timeout is milliseconds: for open loops.
    alarm: Option<OwnedFd>,
    buffer: Vec<u8>,
    next_scan: Instant,
    /// True exactly when no new work is begun.
    draining: bool,
}

impl<'plan> Engine<'plan> {
    /// An engine with `plan.connections` free slots.
    pub(crate) fn new(plan: &'plan ClientPlan) -> Result<Self, PerfError> {
        let poll = Poll::new().map_err(|error| PerfError::io("create an epoll instance", error))?;
        Ok(Self {
            plan,
            events: Events::with_capacity(EVENTS),
            alarm: plan.rate.map(|_| new_alarm(&poll)).transpose()?,
            slots: (0..plan.connections).map(|_| None).collect(),
            ready: VecDeque::new(),
            freed: Vec::new(),
            rested: Vec::new(),
            poll,
            buffer: vec![0; READ_BUFFER],
            next_scan: Instant::now() + TIMEOUT_SCAN,
            draining: false,
        })
    }

    /// Opens a connection in a free slot. `due` is when it should start: latencies count from it.
    pub(crate) fn open(&mut self, slot: usize, due: Instant, work: &mut dyn Work, tally: &mut Tally) {
        debug_assert!(self.slots[slot].is_none(), "a slot is opened only when it is free");
        let sources = &self.plan.sources;
        let source = (!sources.is_empty()).then(|| sources[tally.opened as usize % sources.len()]);
        tally.opened += 1;
        match self.connect(slot, source, due) {
            Ok(connection) => {
                self.slots[slot] = Some(connection);
                // On loopback the connection is often complete already; the ClientHello then goes out at once.
                self.step(slot, false, work, tally);
            }
            Err(failure) => {
                tally.failure(&failure);
                self.freed.push(slot);
            }
        }
    }

    fn connect(&self, slot: usize, source: Option<std::net::Ipv4Addr>, due: Instant) -> Result<Connection, Failure> {
        let mut connection = Connection::open(self.plan, source, Inbound::Count, due, Instant::now())?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(connection.stream(), Token(slot), interest)?;
        Ok(connection)
    }

    /// Lets a connection at rest begin the unit that was due at `due`. False: none is at rest there (it may have failed).
    pub(crate) fn resume(&mut self, slot: usize, due: Instant, work: &mut dyn Work, tally: &mut Tally) -> bool {
        let Some(connection) = &mut self.slots[slot] else {
            return false;
        };
        if !connection.state.resting {
            return false;
        }
        connection.state.resting = false;
        connection.state.due = Some(due);
        self.step(slot, false, work, tally);
        true
    }

    /// Waits at most `timeout` and lets every connection with news go on.
    ///
    /// # Errors
    /// When epoll fails, or when more connections have failed than the plan allows.
    pub(crate) fn turn(&mut self, timeout: Duration, work: &mut dyn Work, tally: &mut Tally) -> Result<(), PerfError> {
        let timeout = if self.ready.is_empty() {
            timeout.min(TIMEOUT_SCAN)
        } else {
            Duration::ZERO
        };
        let timeout = match &self.alarm {
            Some(alarm) if !timeout.is_zero() => {
                set_alarm(alarm, timeout)?;
                None
            }
            Some(_) | None => Some(timeout),
        };
        if let Err(error) = self.poll.poll(&mut self.events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(PerfError::io("wait for events", error));
        }
        let continued = self.ready.len();
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in events.iter().filter(|event| event.token() != ALARM) {
            self.step(event.token().0, event.is_read_closed() || event.is_error(), work, tally);
        }
        self.events = events;
        for _ in 0..continued {
            if let Some(slot) = self.ready.pop_front() {
                self.step(slot, true, work, tally);
            }
        }
        self.close_late(tally);
        let failed = tally.failures_total();
        if failed >= self.plan.errors_max {
            let kinds = tally.failure_kinds();
            return Err(PerfError::GaveUp(format!("{failed} connections failed ({kinds})")));
        }
        Ok(())
    }

    /// Slots that became free since the last call.
    pub(crate) fn take_freed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.freed)
    }

    /// Slots whose connection has come to rest since the last call, see [`Next::Rest`].
    pub(crate) fn take_rested(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.rested)
    }

    /// The driver in use.
    pub(crate) fn io(&self) -> &'static str {
        "epoll"
    }

    /// Connections that live.
    pub(crate) fn live(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Connections that are established and not closing.
    pub(crate) fn established(&self) -> usize {
        self.slots
            .iter()
            .flatten()
            .filter(|connection| connection.is_established())
            .count()
    }

    /// Begins no more work; established connections close in order, those being opened when they are open.
    pub(crate) fn drain(&mut self, work: &mut dyn Work, tally: &mut Tally) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_some() {
                self.step(slot, true, work, tally);
            }
        }
    }

    /// Begins work again after [`Engine::drain`].
    pub(crate) fn end_drain(&mut self) {
        self.draining = false;
    }

    /// Drops all connections, without a farewell.
    pub(crate) fn abort(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = None);
    }

    fn step(&mut self, slot: usize, peer_closing: bool, work: &mut dyn Work, tally: &mut Tally) {
        // Without a connection this is an event of one that has ended.
        let Some(connection) = &mut self.slots[slot] else {
            return;
        };
        let result = advance(connection, peer_closing, &mut self.buffer, self.draining, work, tally);
        match result {
            Ok(State::Waiting) => {}
            Ok(State::Ready) => self.ready.push_back(slot),
            Ok(State::Rested) => self.rested.push(slot),
            Ok(State::Finished) => self.free(slot),
            Err(failure) => {
                tally.failure(&failure);
                self.free(slot);
            }
        }
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.freed.push(slot);
    }

    fn close_late(&mut self, tally: &mut Tally) {
        let now = Instant::now();
        if now < self.next_scan {
            return;
        }
        self.next_scan = now + TIMEOUT_SCAN;
        for slot in 0..self.slots.len() {
            let Some(connection) = &self.slots[slot] else { continue };
            if connection.deadline.is_some_and(|deadline| now >= deadline) {
                tally.failure(&Failure::Timeout(connection.activity()));
                self.free(slot);
            }
        }
    }
}

enum State {
    Waiting,
    Ready,
    Rested,
    Finished,
}

/// A timer that wakes `poll`.
fn new_alarm(poll: &Poll) -> Result<OwnedFd, PerfError> {
    let failed = |errno: Errno| PerfError::io("create a timer", errno);
    let alarm = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )
    .map_err(failed)?;
    let registered = poll
        .registry()
        .register(&mut SourceFd(&alarm.as_raw_fd()), ALARM, Interest::READABLE);
    registered.map_err(|error| PerfError::io("wait for a timer", error))?;
    Ok(alarm)
}

/// Setting it also takes back an expiry that nobody has read.
fn set_alarm(alarm: &OwnedFd, after: Duration) -> Result<(), PerfError> {
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let once = Itimerspec {
        it_interval: never,
        it_value: Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        },
    };
    timerfd_settime(alarm, TimerfdTimerFlags::empty(), &once).map_err(|errno| PerfError::io("set a timer", errno))?;
    Ok(())
}

fn advance(
    connection: &mut Connection,
    peer_closing: bool,
    buffer: &mut [u8],
    draining: bool,
    work: &mut dyn Work,
    tally: &mut Tally,
) -> Result<State, Failure> {
    let progress = connection.advance(peer_closing, buffer)?;
    if progress.established {
        tally.established(connection.negotiated());
    }
    let mut more = progress.more;
    let mut rested = false;
    if connection.is_established() {
        let now = Instant::now();
        let next = work.progress(connection, &progress, now, tally)?;
        if next == Next::Close || draining {
            connection.begin_close(now);
        }
        if next == Next::Rest && !connection.state.resting {
            connection.state.resting = true;
            connection.deadline = None;
            rested = true;
        }
        let flushed = connection.flush()?;
        more |= next == Next::Again && flushed;
    }
    if let Some(ending) = connection.ending() {
        tally.ending(ending);
        work.finished(connection, tally);
        return Ok(State::Finished);
    }
    Ok(if rested {
        State::Rested
    } else if more {
        State::Ready
    } else {
        State::Waiting
    })
}
