//! The client's loop: one thread, one of the gateway's own drivers (io_uring or epoll), a fixed number of slots for connections.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use ringlock::buffers::SendPool;
use ringlock::net::driver::{Close, Completion, Driver, Op, Role, Socket, Token};
use ringlock::net::epoll::EpollDriver;
use ringlock::net::uring::UringDriver;
use ringlock::server::host::DriverKind;
use rustix::thread::set_current_timer_slack;

use crate::connection::{Connection, Failure, Inbound};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Unanswered, rounded};
use crate::work::{Next, Work};

/// How often slots are searched for connections that take too long.
const TIMEOUT_SCAN: Duration = Duration::from_millis(250);

/// The kernel may end a wait later than asked, by 50 µs if nothing is said. An open loop begins its units late by that.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1_000).expect("not zero");

/// A connection that the server has closed at rest is opened anew after this or a little more. A server that
/// closes them all would otherwise be asked for handshakes as fast as it can do them.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// How long the driver may take to let go of connections that are dropped. It takes one turn.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// The connections of a run and the means to drive them.
pub(crate) struct Engine<'plan> {
    plan: &'plan ClientPlan,
    driver: Box<dyn Driver>,
    slots: Vec<Option<Client>>,
    /// Slots with a connection.
    live: usize,
    /// Of them those whose connection is established and not closing.
    established: usize,
    /// Slots that became free in the last turn.
    freed: Vec<usize>,
    /// Slots that are free and to be opened at that time, in order.
    paused: VecDeque<(Instant, usize)>,
    /// Slots whose connection has come to rest in the last turn.
    rested: Vec<usize>,
    pool: SendPool,
    completions: Vec<Completion>,
    next_scan: Instant,
    /// True exactly when no new work is begun.
    draining: bool,
}

/// A connection with its socket. Its slot is free when the driver has nothing of it left.
struct Client {
    connection: Connection,
    socket: Socket,
    receiving: bool,
    sending: bool,
    /// The work wants to go on when everything is sent.
    again: bool,
    /// It has ended; what is in flight comes back cancelled.
    over: bool,
}

impl<'plan> Engine<'plan> {
    /// An engine with `plan.connections` free slots, for the calling thread.
    pub(crate) fn new(plan: &'plan ClientPlan) -> Result<Self, PerfError> {
        set_current_timer_slack(Some(TIMER_SLACK)).map_err(|errno| PerfError::io("have precise timers", errno))?;
        Ok(Self {
            plan,
            driver: new_driver(plan.io)?,
            slots: (0..plan.connections).map(|_| None).collect(),
            live: 0,
            established: 0,
            freed: Vec::new(),
            paused: VecDeque::new(),
            rested: Vec::new(),
            pool: SendPool::default(),
            completions: Vec::new(),
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
        match self.connect(source, due) {
            Ok(client) => {
                self.slots[slot] = Some(client);
                self.live += 1;
                self.step(slot, Ok(0), work, tally);
            }
            Err(failure) => {
                tally.failure(&failure);
                self.freed.push(slot);
            }
        }
    }

    fn connect(&mut self, source: Option<Ipv4Addr>, due: Instant) -> Result<Client, Failure> {
        let (connection, socket) = Connection::open(self.plan, source, Inbound::Count, due, Instant::now())?;
        Ok(Client {
            connection,
            socket: self.driver.adopt(socket)?,
            receiving: false,
            sending: false,
            again: false,
            over: false,
        })
    }

    /// Lets a connection at rest begin the unit that was due at `due`. False: none is at rest there (it may have failed).
    pub(crate) fn resume(&mut self, slot: usize, due: Instant, work: &mut dyn Work, tally: &mut Tally) -> bool {
        let Some(client) = &mut self.slots[slot] else {
            return false;
        };
        let state = &mut client.connection.state;
        if client.over || !state.resting {
            return false;
        }
        state.resting = false;
        state.due = Some(due);
        self.step(slot, Ok(0), work, tally);
        true
    }

    /// Waits at most `timeout` and lets every connection with news go on.
    ///
    /// # Errors
    /// When more connections have failed than the plan allows.
    pub(crate) fn turn(&mut self, timeout: Duration, work: &mut dyn Work, tally: &mut Tally) -> Result<(), PerfError> {
        let deadline = Instant::now() + timeout.min(TIMEOUT_SCAN);
        self.wait(deadline, |engine, completion| engine.complete(completion, work, tally));
        self.close_late(tally);
        let failed = tally.failures_total();
        if failed >= self.plan.errors_max {
            let kinds = tally.failure_kinds();
            return Err(PerfError::GaveUp(format!("{failed} connections failed ({kinds})")));
        }
        Ok(())
    }

    /// Slots that became free since the last call, and those whose pause is over.
    pub(crate) fn take_freed(&mut self) -> Vec<usize> {
        let mut freed = std::mem::take(&mut self.freed);
        while let Some((_, slot)) = self.paused.pop_front_if(|(at, _)| *at <= Instant::now()) {
            freed.push(slot);
        }
        freed
    }

    /// Slots whose connection has come to rest since the last call, see [`Next::Rest`].
    pub(crate) fn take_rested(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.rested)
    }

    /// Connections that live.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Connections that are established and not closing.
    pub(crate) fn established(&self) -> usize {
        self.established
    }

    /// Begins no more work; established connections close in order, those being opened when they are open.
    pub(crate) fn drain(&mut self, work: &mut dyn Work, tally: &mut Tally) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            self.step(slot, Ok(0), work, tally);
        }
    }

    /// Begins work again after [`Engine::drain`].
    pub(crate) fn end_drain(&mut self) {
        self.draining = false;
    }

    /// Units that have begun and are not done.
    pub(crate) fn unanswered(&self, now: Instant) -> Unanswered {
        let mut unanswered = Unanswered::default();
        for connection in self.at_work() {
            if let Some(due) = connection.waiting_since() {
                unanswered.add(Unanswered {
                    units: 1,
                    longest_us: rounded(now.saturating_duration_since(due).as_secs_f64() * 1e6),
                });
            }
        }
        unanswered
    }

    /// Counts what is still not done as failed, before it is dropped.
    pub(crate) fn give_up(&self, tally: &mut Tally) {
        for connection in self.at_work().filter(|connection| connection.waiting_since().is_some()) {
            tally.failure(&Failure::Timeout(connection.activity()));
        }
    }

    fn at_work(&self) -> impl Iterator<Item = &Connection> {
        let clients = self.slots.iter().flatten().filter(|client| !client.over);
        clients.map(|client| &client.connection)
    }

    /// Drops all connections, without a farewell.
    pub(crate) fn abort(&mut self) {
        for slot in 0..self.slots.len() {
            self.end(slot, false);
        }
        let end = Instant::now() + ABORT_MAX;
        while self.live > 0 && Instant::now() < end {
            self.wait(end, Engine::settle);
        }
    }

    /// Waits until `deadline` and hands out what has completed.
    fn wait(&mut self, deadline: Instant, mut complete: impl FnMut(&mut Self, Completion)) {
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.wait(Some(deadline), &mut completions);
        for completion in completions.drain(..) {
            complete(self, completion);
        }
        // What completed while connections ended is for the next turn.
        completions.append(&mut self.completions);
        self.completions = completions;
    }

    fn complete(&mut self, completion: Completion, work: &mut dyn Work, tally: &mut Tally) {
        let slot = slot_of(&completion);
        if self.slots[slot].as_ref().is_none_or(|client| client.over) {
            return self.settle(completion);
        }
        let client = self.slots[slot].as_mut().expect("looked at above");
        let connection = &mut client.connection;
        let news = match completion {
            Completion::Received { buffer: None, .. } => {
                client.receiving = false;
                connection.received_end();
                Ok(0)
            }
            Completion::Received {
                buffer: Some(buffer), ..
            } => {
                client.receiving = false;
                let received = connection.received(self.driver.received(&buffer));
                self.driver.recycle(buffer);
                received
            }
            Completion::ReceiveFailed { error, .. } => {
                client.receiving = false;
                connection.io_failed(error).map(|()| 0)
            }
            Completion::Sent { buffer, result, .. } => {
                client.sending = false;
                connection.returned(buffer, result.unwrap_or(0), &mut self.pool);
                match result {
                    // Work that waits for an answer has no use for this.
                    Ok(_) if connection.is_established() && !(client.again && connection.all_sent()) => {
                        return self.exchange(slot);
                    }
                    Ok(_) => Ok(0),
                    Err(error) => connection.io_failed(error).map(|()| 0),
                }
            }
            Completion::Connected { .. } | Completion::Accepted { .. } | Completion::AcceptFailed { .. } => {
                unreachable!("sockets connect by themselves, and none listens")
            }
        };
        self.step(slot, news, work, tally);
    }

    /// Takes what comes back from a connection that is over, whose slot is free with the last of it.
    fn settle(&mut self, completion: Completion) {
        let slot = slot_of(&completion);
        let Some(client) = &mut self.slots[slot] else { return };
        match completion {
            Completion::Received { buffer, .. } => {
                client.receiving = false;
                if let Some(buffer) = buffer {
                    self.driver.recycle(buffer);
                }
            }
            Completion::ReceiveFailed { .. } => client.receiving = false,
            Completion::Sent { buffer, .. } => {
                client.sending = false;
                self.pool.give(buffer);
            }
            Completion::Connected { .. } | Completion::Accepted { .. } | Completion::AcceptFailed { .. } => {
                unreachable!("sockets connect by themselves, and none listens")
            }
        }
        self.free_if_settled(slot);
    }

    /// Lets a connection go on with what it has received.
    fn step(&mut self, slot: usize, received: Result<usize, Failure>, work: &mut dyn Work, tally: &mut Tally) {
        let Some(client) = self.slots[slot].as_mut().filter(|client| !client.over) else {
            return;
        };
        let was_established = client.connection.is_established();
        let result = received.and_then(|received| advance(client, received, self.draining, work, tally));
        let is_established = client.connection.is_established();
        self.established += usize::from(is_established);
        self.established -= usize::from(was_established);
        match result {
            Ok(state) => {
                self.exchange(slot);
                match state {
                    State::Waiting => {}
                    State::Rested => self.rested.push(slot),
                    State::Finished => self.end(slot, false),
                }
            }
            Err(failure) => {
                tally.failure(&failure);
                // The server may be told why.
                self.end(slot, matches!(failure, Failure::Tls(_)));
            }
        }
    }

    /// Submits what the connection wants of its socket.
    fn exchange(&mut self, slot: usize) {
        let Some(client) = &mut self.slots[slot] else { return };
        let token = token(slot);
        if let Some(buffer) = client.connection.take_outgoing(&mut self.pool) {
            client.sending = true;
            self.driver.submit(token, Op::Send(client.socket, buffer));
        }
        if client.connection.take_fin() {
            self.driver.shutdown_write(client.socket);
        }
        if !client.receiving && client.connection.wants_receive() {
            client.receiving = true;
            self.driver.submit(token, Op::Receive(client.socket));
        }
    }

    /// The connection is over: cancels what is in flight. With `farewell`, what is queued gets one chance to be sent.
    fn end(&mut self, slot: usize, farewell: bool) {
        let Some(client) = self.slots[slot].as_mut().filter(|client| !client.over) else {
            return;
        };
        client.over = true;
        self.established -= usize::from(client.connection.is_established());
        let token = token(slot);
        if farewell && let Some(buffer) = client.connection.take_outgoing(&mut self.pool) {
            client.sending = true;
            self.driver.submit(token, Op::Send(client.socket, buffer));
            self.driver.begin(&mut self.completions);
        }
        client.connection.forget_outgoing(&mut self.pool);
        if client.receiving || client.sending {
            self.driver.submit(token, Op::Cancel(client.socket));
        }
        self.free_if_settled(slot);
    }

    fn free_if_settled(&mut self, slot: usize) {
        let settled = |client: &mut Client| client.over && !client.receiving && !client.sending;
        if let Some(client) = self.slots[slot].take_if(settled) {
            self.driver.close(client.socket, Close::Orderly);
            self.live -= 1;
            if client.connection.state.closed_at_rest {
                self.paused.push_back((Instant::now() + REOPEN_PAUSE, slot));
            } else {
                self.freed.push(slot);
            }
        }
    }

    fn close_late(&mut self, tally: &mut Tally) {
        let now = Instant::now();
        if now < self.next_scan {
            return;
        }
        self.next_scan = now + TIMEOUT_SCAN;
        for slot in 0..self.slots.len() {
            let Some(client) = self.slots[slot].as_ref().filter(|client| !client.over) else {
                continue;
            };
            let connection = &client.connection;
            if connection.deadline.is_some_and(|deadline| now >= deadline) {
                tally.failure(&Failure::Timeout(connection.activity()));
                self.end(slot, false);
            }
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        self.abort();
    }
}

enum State {
    Waiting,
    Rested,
    Finished,
}

fn new_driver(kind: DriverKind) -> Result<Box<dyn Driver>, PerfError> {
    Ok(match kind {
        DriverKind::Uring => Box::new(
            UringDriver::new().map_err(|error| PerfError::io("create an io_uring (or use --io epoll)", error))?,
        ),
        DriverKind::Epoll => {
            Box::new(EpollDriver::new().map_err(|error| PerfError::io("create an epoll instance", error))?)
        }
    })
}

/// A slot is free only when nothing of its connection is in flight, so there is no completion of an earlier one.
fn token(slot: usize) -> Token {
    Token {
        slot: u32::try_from(slot).expect("the plan bounds the connections"),
        generation: 0,
        role: Role::Upstream,
    }
}

fn slot_of(completion: &Completion) -> usize {
    match completion {
        Completion::Accepted { token, .. }
        | Completion::AcceptFailed { token, .. }
        | Completion::Received { token, .. }
        | Completion::ReceiveFailed { token, .. }
        | Completion::Sent { token, .. }
        | Completion::Connected { token, .. } => token.slot as usize,
    }
}

fn advance(
    client: &mut Client,
    received: usize,
    draining: bool,
    work: &mut dyn Work,
    tally: &mut Tally,
) -> Result<State, Failure> {
    let connection = &mut client.connection;
    let progress = connection.news(received)?;
    if progress.established
        && let Some(parameters) = connection.negotiated()
    {
        tally.established(parameters);
    }
    let mut state = State::Waiting;
    if connection.is_established() {
        let now = Instant::now();
        if progress.writable {
            client.again = false;
        }
        let next = work.progress(connection, &progress, now, tally)?;
        if next == Next::Close || draining {
            connection.begin_close(now);
        }
        if next == Next::Rest && !connection.state.resting {
            connection.state.resting = true;
            connection.deadline = None;
            state = State::Rested;
        }
        if next == Next::Again {
            client.again = true;
        }
    }
    if let Some(ending) = connection.ending() {
        tally.ending(ending);
        work.finished(connection, tally);
        return Ok(State::Finished);
    }
    Ok(state)
}
