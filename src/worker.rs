//! The loop, one thread per core: wait, hand each completion to its session, do what the session wants, then answer crypto
//! operations. Owns every session, buffer and its driver; shares nothing but counters. The only place that knows both
//! sessions and drivers.

mod listening;
mod operations;
mod revoked;
mod signers;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Receiver;
use crossbeam::queue::ArrayQueue;
use ringlock_hsm::remote::SignerNumber;

use self::listening::Listening;
use self::operations::Operations;
use self::signers::Signers;
use crate::buffers::SendPool;
use crate::crypto::batch::Engine;
use crate::crypto::{pool, suspend};
use crate::error::{Cause, IoError};
use crate::identity::client_auth::ClientSubject;
use crate::metrics::{ServerMetrics, WorkerMetrics};
use crate::mutants::{Mutant, active};
use crate::net::driver::{Close, Completion, Driver, Op, Role, Socket, Token};
use crate::net::timer::{Entry, TimerWheel};
use crate::proxy::session::{Context, Input, Output, Phase, Session, Side};
use crate::proxy::upstream::{Balancer, GroupDescription, ServerId};
use crate::record::{ConnectionRecord, wanted};
use crate::snapshot::{Listener, Snapshot};
use crate::tls::Tls;

/// What the control thread tells a worker; wake its driver afterwards.
#[derive(Debug)]
pub enum Command {
    /// Accept new connections under this snapshot, at these addresses and no others.
    Serve(Arc<Snapshot>, Vec<Bound>),
    /// A new channel to a signer, in place of any earlier one.
    Signer(SignerNumber, OwnedFd),
    /// Accept no more.
    StopAccepting,
    /// End every session.
    EndSessions,
    /// Return from [`Worker::run`] once no session is left.
    Exit,
}

/// An address to accept at.
#[derive(Debug)]
pub struct Bound {
    /// Position of the listener in the snapshot.
    pub listener: usize,
    /// The address, as configured.
    pub address: SocketAddr,
    /// Its listening socket; `None` when the worker has it already.
    pub socket: Option<OwnedFd>,
}

/// What a worker shares with the control thread.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Position of the worker, which chooses its server counters.
    pub index: usize,
    /// Counters.
    pub metrics: Arc<WorkerMetrics>,
    /// Ends of connections, to be logged.
    pub records: Arc<ArrayQueue<ConnectionRecord>>,
    /// Computes what handshakes ask for.
    pub engine: Arc<Engine>,
}

/// A snapshot that sessions of this worker still use, with its upstream state.
struct Generation {
    snapshot: Arc<Snapshot>,
    balancer: Balancer,
    sessions: usize,
}

impl Generation {
    fn set_sessions(&mut self, sessions: usize, worker: usize) {
        self.sessions = sessions;
        self.snapshot.connections[worker].set(sessions as u64);
    }
}

struct Slot<T> {
    /// Changes each time the slot is used anew.
    generation: u32,
    /// When the timer wheel will look at this slot; `None` when it will not.
    timer: Option<Instant>,
    /// In the worker's list of sessions that hold bytes back.
    held: bool,
    live: Option<Live<T>>,
}

struct Live<T> {
    session: Session<T>,
    /// Position in the worker's generations.
    config: usize,
    /// The client is not revoked by the snapshot of this epoch.
    client_good_in: u64,
    downstream: Option<Socket>,
    upstream: Option<Socket>,
}

/// See the module.
pub struct Worker<D, T> {
    driver: D,
    commands: Receiver<Command>,
    shared: Shared,
    /// Freed entries are `None` and used again; `current` never is.
    generations: Vec<Option<Generation>>,
    current: usize,
    /// Of the current snapshot.
    epoch: u64,
    /// The next slot whose client may be revoked by the current snapshot; none when all have been looked at.
    unchecked: Option<u32>,
    /// By the slot of the listener's token; `None` where it is closed and the position free.
    listening: Vec<Option<Listening>>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    timers: TimerWheel,
    pool: SendPool,
    operations: Operations,
    signers: Signers,
    /// Slots whose sessions hold bytes back until the end of a turn.
    held: Vec<u32>,
    live: usize,
    /// Connections that ended without a failure: chooses those that are logged.
    sample: u64,
    exiting: bool,
}

impl<D: Driver, T: Tls> Worker<D, T> {
    /// A worker that serves nothing until told to.
    pub fn new(driver: D, commands: Receiver<Command>, shared: Shared) -> Worker<D, T> {
        let now = driver.now();
        suspend::allow(shared.engine.is_worth_waiting_for());
        if let Err(error) = pool::open(&shared.engine, &shared.metrics, now) {
            tracing::warn!(
                "memory for what is made ahead cannot be locked ({error}): raise RLIMIT_MEMLOCK (LimitMEMLOCK=)"
            );
        }
        Worker {
            driver,
            commands,
            shared,
            generations: Vec::new(),
            current: 0,
            epoch: 0,
            unchecked: None,
            listening: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            timers: TimerWheel::new(now),
            pool: SendPool::default(),
            operations: Operations::default(),
            signers: Signers::default(),
            held: Vec::new(),
            live: 0,
            sample: 0,
            exiting: false,
        }
    }

    /// Serves until told to exit.
    pub fn run(&mut self) {
        let mut completions = Vec::new();
        while !self.exiting || self.live > 0 || !self.signers.is_empty() {
            self.turn(&mut completions);
        }
    }

    /// One turn of the loop.
    pub fn turn(&mut self, completions: &mut Vec<Completion>) {
        let makes_ahead = pool::wants_more();
        let deadline = if makes_ahead {
            Some(self.driver.now())
        } else {
            self.next_deadline()
        };
        self.driver.wait(deadline, completions);
        if makes_ahead && completions.is_empty() {
            pool::refill();
        }
        pool::expire(self.driver.now());
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.release_held();
        self.take_signatures();
        if self.has_operations() {
            // What established connections send does not wait for what handshakes compute.
            self.driver.begin(completions);
        }
        self.run_operations();
        self.ask_signers();
        self.look_for_revoked();
        self.expire_timers();
        self.retry_accepts();
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        self.shared.metrics.turns.add(1);
        self.shared.metrics.buffer_bytes.set(self.pool.lent_bytes() as u64);
    }

    /// Number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.live
    }

    /// The driver, for simulations.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Bytes of send buffers with sessions and kernel.
    #[must_use]
    pub fn lent_bytes(&self) -> usize {
        self.pool.lent_bytes()
    }

    /// Connections to servers, open or opening, that balancers count.
    #[must_use]
    pub fn balanced_connections(&self) -> usize {
        let generations = self.generations.iter().flatten();
        generations
            .map(|generation| generation.balancer.all_connections())
            .sum()
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.has_operations() || !self.held.is_empty() || self.unchecked.is_some() {
            return Some(self.driver.now());
        }
        let retries = self
            .listening
            .iter()
            .flatten()
            .filter_map(|listening| listening.retry_at);
        let others = pool::expires_at().into_iter().chain(self.signers.next_deadline());
        let wakes = self.timers.next().into_iter().chain(retries).chain(others);
        wakes.min()
    }

    fn complete(&mut self, completion: Completion) {
        if let Some(completion) = self.complete_signer(completion) {
            self.complete_session(completion);
        }
    }

    fn complete_session(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { token, socket } => self.accepted(token.slot as usize, socket),
            Completion::AcceptFailed { token, error } => self.accept_failed(token.slot as usize, error),
            Completion::Received { token, buffer, more } => {
                let Some(side) = self.side_of(token) else {
                    if let Some(buffer) = buffer {
                        self.driver.recycle(buffer);
                    }
                    return;
                };
                match buffer {
                    None => self.handle(
                        token,
                        Input::Received {
                            side,
                            bytes: &mut [],
                            more,
                        },
                    ),
                    Some(buffer) => {
                        self.received(token, side, &buffer, more);
                        let lose = active(Mutant::ReceiveBufferLost)
                            && matches!(self.live_mut(token.slot).session.phase(), Phase::Closing(_));
                        if !lose {
                            self.driver.recycle(buffer);
                        }
                        self.obey_session(token.slot);
                    }
                }
            }
            Completion::ReceiveFailed { token, error } => {
                if let Some(side) = self.side_of(token) {
                    self.handle(token, Input::ReceiveFailed(side, error));
                }
            }
            Completion::Sent { token, buffer, result } => match self.side_of(token) {
                Some(side) => self.handle(token, Input::Sent { side, buffer, result }),
                None => self.pool.give(buffer),
            },
            Completion::Connected { token, result } => {
                if self.side_of(token).is_some() {
                    self.connected(token, result);
                }
            }
        }
    }

    /// The side that a completion is about; `None` when its session is over (invariant 4).
    fn side_of(&self, token: Token) -> Option<Side> {
        let slot = self.slots.get(token.slot as usize)?;
        let current = slot.generation == token.generation || active(Mutant::NoSlotGeneration);
        let current = current && slot.live.is_some();
        match token.role {
            Role::Downstream => current.then_some(Side::Downstream),
            Role::Upstream => current.then_some(Side::Upstream),
            Role::Listener | Role::Signer => None,
        }
    }

    fn accepted(&mut self, position: usize, socket: Socket) {
        let metrics = &self.shared.metrics;
        metrics.accepted.add(1);
        let listening = self.listening.get(position).and_then(Option::as_ref);
        let generation = self.generations.get_mut(self.current).and_then(Option::as_mut);
        let (Some(listening), Some(generation)) = (listening, generation) else {
            metrics.shed.add(1);
            return self.driver.close(socket, Close::Orderly);
        };
        let listener = listening.listener;
        if !generation.snapshot.listeners[listener].admit() {
            metrics.shed.add(1);
            return self.driver.close(socket, Close::Reset);
        }
        generation.set_sessions(generation.sessions + 1, self.shared.index);
        let now = self.driver.now();
        let session = Session::new(now, &generation.snapshot, listener, self.driver.endpoints(socket));
        let live = Live {
            session,
            config: self.current,
            client_good_in: self.epoch,
            downstream: Some(socket),
            upstream: None,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    timer: None,
                    held: false,
                    live: None,
                });
                u32::try_from(self.slots.len() - 1).expect("a process has fewer than 2^32 connections")
            }
        };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.timer = None;
        entry.live = Some(live);
        self.live += 1;
        metrics.live.set(self.live as u64);
        self.obey_session(slot);
    }

    fn received(&mut self, token: Token, side: Side, buffer: &crate::net::buffer::ReceiveBuffer, more: bool) {
        let now = self.driver.now();
        let bytes = self.driver.received(buffer);
        with_session(
            &mut self.slots,
            &mut self.generations,
            &mut self.pool,
            &self.shared,
            token.slot,
            |session, cx| {
                session.handle(now, Input::Received { side, bytes, more }, cx);
            },
        );
    }

    fn handle(&mut self, token: Token, input: Input<'_>) {
        self.tell(token.slot, input);
        self.obey_session(token.slot);
    }

    fn tell(&mut self, slot: u32, input: Input<'_>) {
        let now = self.driver.now();
        with_session(
            &mut self.slots,
            &mut self.generations,
            &mut self.pool,
            &self.shared,
            slot,
            |session, cx| session.handle(now, input, cx),
        );
    }

    /// Does everything the session wants, then arms its timer.
    fn obey_session(&mut self, slot: u32) {
        self.end_if_revoked(slot);
        loop {
            let mut output = None;
            with_session(
                &mut self.slots,
                &mut self.generations,
                &mut self.pool,
                &self.shared,
                slot,
                |session, cx| {
                    output = session.poll_output(cx);
                },
            );
            match output {
                None => break,
                Some(Output::Done(cause)) => return self.done(slot, &cause),
                Some(Output::Connect(server)) => self.connect(slot, server),
                Some(Output::Crypto(id, op)) => self.ask(slot, id, op),
                Some(Output::Receive(side)) => self.submit(slot, side, Op::Receive),
                Some(Output::Send(side, buffer)) => self.submit(slot, side, |socket| Op::Send(socket, buffer)),
                Some(Output::Cancel(side)) => self.submit(slot, side, Op::Cancel),
                Some(Output::ShutdownWrite(side)) => {
                    if let Some(socket) = *self.socket_mut(slot, side) {
                        self.driver.shutdown_write(socket);
                    }
                }
                Some(Output::Close { side, reset }) => self.close_socket(slot, side, reset),
            }
        }
        self.note_held(slot);
        self.arm_timer(slot);
    }

    fn note_held(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if !entry.held && entry.live.as_ref().is_some_and(|live| live.session.holds_bytes()) {
            entry.held = true;
            self.held.push(slot);
        }
    }

    /// Lets go what sessions hold back in vain.
    fn release_held(&mut self) {
        for slot in std::mem::take(&mut self.held) {
            let entry = &mut self.slots[slot as usize];
            entry.held = false;
            if let Some(live) = entry.live.as_mut().filter(|live| live.session.holds_bytes()) {
                live.session.end_of_turn();
                self.obey_session(slot);
            }
        }
    }

    fn submit(&mut self, slot: u32, side: Side, op: impl FnOnce(Socket) -> Op) {
        let role = match side {
            Side::Downstream => Role::Downstream,
            Side::Upstream => Role::Upstream,
        };
        let token = self.token(slot, role);
        let socket = self
            .socket_mut(slot, side)
            .expect("a session uses only sockets that are open");
        self.driver.submit(token, op(socket));
    }

    fn close_socket(&mut self, slot: u32, side: Side, reset: bool) {
        if side == Side::Upstream {
            if let Some(metrics) = self.server_metrics(slot) {
                metrics.connections.sub(1);
            }
            self.mirror_ejection(slot);
        }
        // A server that could not even be tried has no socket.
        let leak = side == Side::Upstream && active(Mutant::SocketLeakedWhileClosing);
        if let Some(socket) = self.socket_mut(slot, side).take().filter(|_| !leak) {
            self.driver
                .close(socket, if reset { Close::Reset } else { Close::Orderly });
        }
    }

    fn connect(&mut self, slot: u32, server: ServerId) {
        let token = self.token(slot, Role::Upstream);
        let snapshot = self.snapshot_of(slot);
        let target = snapshot.server(server.group, server.index);
        // Until the session closes this side, which it does also when there is no socket.
        target.metrics[self.shared.index].connections.add(1);
        match self.driver.connect(token, &target.endpoint) {
            Ok(socket) => *self.socket_mut(slot, Side::Upstream) = Some(socket),
            Err(error) => self.connected(token, Err(error)),
        }
    }

    fn connected(&mut self, token: Token, result: Result<(), IoError>) {
        // A session that connects no more has given the attempt up; one that does, and hears that it was cancelled, found
        // the server too slow.
        let wanted = *self.live_mut(token.slot).session.phase() == Phase::Connecting;
        if let Some(metrics) = self.server_metrics(token.slot) {
            match result {
                Ok(()) => metrics.connected.add(1),
                // Lack of descriptors or ports is not the server's doing.
                Err(error) if wanted && !error.is_exhaustion() => metrics.connect_failures.add(1),
                Err(_) => {}
            }
        }
        self.tell(token.slot, Input::Connected(result));
        self.mirror_ejection(token.slot);
        self.obey_session(token.slot);
    }

    /// The counters of the session's server; none before one was chosen.
    fn server_metrics(&self, slot: u32) -> Option<Arc<ServerMetrics>> {
        let live = self.slots[slot as usize].live.as_ref()?;
        let generation = self.generations[live.config].as_ref()?;
        let server = live.session.server()?;
        let server = generation.snapshot.server(server.group, server.index);
        Some(Arc::clone(&server.metrics[self.shared.index]))
    }

    /// Copies what the balancer knows of the session's server to the gauge that others read. Sessions of an old snapshot
    /// have a balancer of their own, which says nothing about new connections.
    fn mirror_ejection(&mut self, slot: u32) {
        let live = self.slots[slot as usize]
            .live
            .as_ref()
            .expect("only live sessions have servers");
        let generation = self.generations[live.config]
            .as_ref()
            .expect("a live session's generation is kept");
        if let Some(server) = live.session.server()
            && live.config == self.current
        {
            let metrics = &generation.snapshot.server(server.group, server.index).metrics[self.shared.index];
            metrics.ejected.set(u64::from(generation.balancer.ejected(server)));
        }
    }

    fn done(&mut self, slot: u32, cause: &Cause) {
        let entry = &mut self.slots[slot as usize];
        let live = entry.live.take().expect("a session is done once");
        debug_assert!(
            live.downstream.is_none() && live.upstream.is_none(),
            "a session closes its sockets first"
        );
        self.free.push(slot);
        self.live -= 1;
        let metrics = &self.shared.metrics;
        metrics.live.set(self.live as u64);
        metrics.done[cause.index()].add(1);
        let generation = self.generations[live.config]
            .as_mut()
            .expect("a live session's generation is kept");
        let snapshot = Arc::clone(&generation.snapshot);
        generation.set_sessions(generation.sessions - 1, self.shared.index);
        if generation.sessions == 0 && live.config != self.current {
            self.generations[live.config] = None;
        }
        if !active(Mutant::ListenerCountKept) {
            snapshot.listeners[live.session.listener()].leave();
        }
        self.record(&snapshot, &live.session, cause);
        if active(Mutant::DoneTwice) {
            self.record(&snapshot, &live.session, cause);
        }
    }

    fn record(&mut self, snapshot: &Snapshot, session: &Session<T>, cause: &Cause) {
        self.sample = self.sample.wrapping_add(1);
        if !wanted(&snapshot.config.global.log, cause, self.sample) {
            return;
        }
        let (received, sent) = session.relayed();
        let server = session
            .server()
            .map(|server| Arc::clone(&snapshot.server(server.group, server.index).label));
        let record = ConnectionRecord {
            listener: Arc::clone(&snapshot.listeners[session.listener()].name),
            peer: session.peer(),
            server_name: session.tls().server_name().map(Into::into),
            alpn: session.tls().alpn().map(Into::into),
            negotiated: session.tls().negotiated(),
            declined: session.tls().resumptions().declined.map(|(_, why)| why),
            client_subject: session.client().and_then(ClientSubject::shown),
            client_serial: session.client().map(ClientSubject::serial),
            server,
            received,
            sent,
            duration: session.age(),
            cause: cause.clone(),
        };
        if self.shared.records.push(record).is_err() {
            self.shared.metrics.log_dropped.add(1);
        }
    }

    fn arm_timer(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        let Some(live) = &entry.live else { return };
        let generation = self.generations[live.config]
            .as_ref()
            .expect("a live session's generation is kept");
        let Some(deadline) = live.session.poll_timeout(&generation.snapshot) else {
            return;
        };
        if entry.timer.is_none_or(|at| deadline < at) {
            entry.timer = Some(self.timers.arm(
                deadline,
                Entry {
                    slot,
                    generation: entry.generation,
                },
            ));
        }
    }

    fn expire_timers(&mut self) {
        let now = self.driver.now();
        let mut due = Vec::new();
        self.timers.expire(now, &mut due);
        for Entry { slot, generation } in due {
            let entry = &mut self.slots[slot as usize];
            // An entry for a session that is gone, or one that an earlier entry has replaced.
            if entry.generation != generation || entry.live.is_none() || entry.timer.is_none_or(|at| at > now) {
                continue;
            }
            entry.timer = None;
            with_session(
                &mut self.slots,
                &mut self.generations,
                &mut self.pool,
                &self.shared,
                slot,
                |session, cx| {
                    session.handle_timeout(now, cx);
                },
            );
            self.obey_session(slot);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Serve(snapshot, sockets) => self.serve(snapshot, sockets),
            Command::StopAccepting => {
                pool::close();
                self.stop_accepting();
            }
            Command::EndSessions => self.end_sessions(),
            Command::Signer(signer, socket) => self.connect_signer(signer, socket),
            Command::Exit => {
                self.exiting = true;
                self.leave_signers();
            }
        }
    }

    /// New sessions start under `snapshot`; those that live keep theirs.
    fn use_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        if !snapshot.key_groups.is_empty() {
            // Also when they are in no later snapshot: older sessions still use them.
            suspend::allow(true);
        }
        self.signers.know(&snapshot, self.shared.index);
        let groups: Vec<GroupDescription> = snapshot
            .upstreams
            .iter()
            .map(|upstream| GroupDescription {
                balance: upstream.settings.balance,
                servers: upstream.servers.len(),
            })
            .collect();
        self.epoch = snapshot.epoch;
        self.unchecked = snapshot.listeners.iter().any(Listener::closes_revoked).then_some(0);
        let balancer = Balancer::new(&groups, self.shared.index);
        // A new balancer begins with every server in favour.
        for server in snapshot.upstreams.iter().flat_map(|upstream| &upstream.servers) {
            server.metrics[self.shared.index].ejected.set(0);
        }
        if let Some(old) = self.generations.get_mut(self.current)
            && old
                .as_ref()
                .is_some_and(|generation| generation.sessions == 0 || active(Mutant::SnapshotDroppedEarly))
        {
            *old = None;
        }
        self.current = place(
            &mut self.generations,
            Generation {
                snapshot,
                balancer,
                sessions: 0,
            },
        );
    }

    fn end_sessions(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].live.is_some() {
                let token = self.token(slot, Role::Downstream);
                self.handle(token, Input::Drain);
            }
        }
    }

    fn token(&self, slot: u32, role: Role) -> Token {
        Token {
            slot,
            generation: self.slots[slot as usize].generation,
            role,
        }
    }

    fn live_mut(&mut self, slot: u32) -> &mut Live<T> {
        self.slots[slot as usize].live.as_mut().expect("only live sessions act")
    }

    fn socket_mut(&mut self, slot: u32, side: Side) -> &mut Option<Socket> {
        let live = self.live_mut(slot);
        match side {
            Side::Downstream => &mut live.downstream,
            Side::Upstream => &mut live.upstream,
        }
    }

    fn snapshot_of(&self, slot: u32) -> Arc<Snapshot> {
        let live = self.slots[slot as usize].live.as_ref().expect("only live sessions act");
        Arc::clone(
            &self.generations[live.config]
                .as_ref()
                .expect("a live session's generation is kept")
                .snapshot,
        )
    }
}

/// Puts `item` in the first free place and says where that is.
fn place<U>(places: &mut Vec<Option<U>>, item: U) -> usize {
    match places.iter().position(Option::is_none) {
        Some(position) => {
            places[position] = Some(item);
            position
        }
        None => {
            places.push(Some(item));
            places.len() - 1
        }
    }
}

/// Calls `f` with the session in `slot` and what it borrows; nothing when the slot is empty.
fn with_session<T>(
    slots: &mut [Slot<T>],
    generations: &mut [Option<Generation>],
    pool: &mut SendPool,
    shared: &Shared,
    slot: u32,
    f: impl FnOnce(&mut Session<T>, &mut Context<'_>),
) {
    let Some(live) = slots.get_mut(slot as usize).and_then(|slot| slot.live.as_mut()) else {
        return;
    };
    let Some(generation) = generations.get_mut(live.config).and_then(Option::as_mut) else {
        return;
    };
    let mut cx = Context {
        snapshot: &generation.snapshot,
        balancer: &mut generation.balancer,
        pool,
        metrics: &shared.metrics,
    };
    f(&mut live.session, &mut cx);
}
