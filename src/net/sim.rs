//! The simulated driver: a virtual clock, virtual sockets, and a network with faults, all from one seed. Tests drive the other
//! ends of the connections ([`SimDriver::dial`] and what follows it) between the turns of a real worker. `docs/simulator.md` says
//! how it is used.
//!
//! It holds the worker to the contract of [`super::driver`] and panics where the worker breaks it.

pub mod faults;
pub mod random;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use self::faults::Faults;
use self::random::{Random, mix};
use self::wire::{Place, Weather, Wire};
use super::buffer::ReceiveBuffer;
use super::driver::{Close, Completion, Driver, Op, Role, Socket, Token};
use super::socket::Table;
use crate::address::{Endpoints, ServerEndpoint};
use crate::buffers::SendBuffer;
use crate::error::IoError;
use crate::limits::{ACCEPTS_PER_TURN, HIGH_WATER_BYTES, RECEIVE_BYTES_MAX};

/// The scripted end of a simulated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer(pub usize);

/// A connection attempt of the worker's that waits for [`SimDriver::answer`].
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The server's end.
    pub peer: Peer,
    /// Where the worker connects to.
    pub endpoint: ServerEndpoint,
    /// The client whose session this is for.
    pub client: Peer,
}

/// A connection as the simulation knows it, for oracles.
#[derive(Debug)]
struct Connection {
    wire: Wire,
    endpoints: Option<Endpoints>,
    /// The answer to a connection attempt; from the start for connections to a listener.
    answer: Option<Result<(), IoError>>,
    /// The client whose session made this connection.
    client: Option<Peer>,
    /// A fault hit it that excuses an early end.
    faulted: bool,
    closed_by_worker: bool,
}

/// An operation in flight.
struct Pending {
    token: Token,
    since: Instant,
    not_before: Instant,
}

struct Listener {
    /// In the order in which the worker took listeners over.
    number: usize,
    accept: Option<Token>,
    cancelled: bool,
    backlog: VecDeque<Peer>,
}

struct Stream {
    peer: Peer,
    /// Slot and generation of the session that uses it.
    owner: Option<Token>,
    receive: Option<Pending>,
    send: Option<(Pending, SendBuffer)>,
    connect: Option<Pending>,
    cancelled: Option<Instant>,
    /// When bytes last moved, or the worker got it.
    moved_at: Instant,
}

enum Entry {
    Listener(Listener),
    Stream(Stream),
}

/// See the module.
pub struct SimDriver {
    start: Instant,
    now: Instant,
    random: Random,
    faults: Faults,
    sockets: Table<Entry>,
    open: Vec<u32>,
    connections: Vec<Connection>,
    /// Those that have not ended.
    active: Vec<Peer>,
    /// Times at which something may happen.
    agenda: BTreeSet<Instant>,
    /// Times at which the scripted peers want to act.
    wakes: BTreeSet<Instant>,
    attempts: VecDeque<Attempt>,
    /// The client of each session, by slot and generation.
    clients: BTreeMap<(u32, u32), Peer>,
    listeners_taken: usize,
    /// The bytes of receive buffers that are lent, by id.
    lent: Vec<Option<Vec<u8>>>,
    /// Something happened that the scripted peers should look at.
    news: bool,
    asleep: bool,
    hash: u64,
    print: bool,
}

impl SimDriver {
    /// A network with these faults. With `print` every event goes to standard error.
    #[must_use]
    pub fn new(start: Instant, random: Random, faults: Faults, print: bool) -> SimDriver {
        SimDriver {
            start,
            now: start,
            random,
            lent: std::iter::repeat_with(|| None).take(faults.receive_buffers).collect(),
            faults,
            sockets: Table::default(),
            open: Vec::new(),
            connections: Vec::new(),
            active: Vec::new(),
            agenda: BTreeSet::new(),
            wakes: BTreeSet::new(),
            attempts: VecDeque::new(),
            clients: BTreeMap::new(),
            listeners_taken: 0,
            news: false,
            asleep: false,
            hash: 0,
            print,
        }
    }

    /// The faults of this network.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Adds an event to the trace.
    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        let at = self.now.duration_since(self.start).as_micros() as u64;
        let mut trace = Trace(mix(self.hash ^ at));
        // Writing to the trace cannot fail.
        let _ = fmt::write(&mut trace, event);
        self.hash = trace.0;
        if self.print {
            eprintln!("{:>10.4} ms  {event}", at as f64 / 1000.0);
        }
    }

    /// What the trace comes to: equal for runs in which the same things happened at the same times.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    /// Numbers of the listeners that are open, in the order in which the worker took them over.
    #[must_use]
    pub fn listeners(&self) -> Vec<usize> {
        let number = |index: &u32| match self.sockets.get(Socket(*index)) {
            Some(Entry::Listener(listener)) => Some(listener.number),
            Some(Entry::Stream(_)) | None => None,
        };
        let mut numbers: Vec<usize> = self.open.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Sockets that are open, listeners included.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.open.len()
    }

    /// True when the last wait found nothing to wait for: a real driver would have slept for ever.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.asleep
    }

    /// The longest that a session has moved no byte, and the longest that a send has been in flight.
    #[must_use]
    pub fn longest_silences(&self) -> (Duration, Duration) {
        let mut moved: BTreeMap<(u32, u32), Instant> = BTreeMap::new();
        let mut send = Duration::ZERO;
        for &index in &self.open {
            let Some(Entry::Stream(stream)) = self.sockets.get(Socket(index)) else {
                continue;
            };
            if let Some(owner) = stream.owner {
                let at = moved.entry((owner.slot, owner.generation)).or_insert(stream.moved_at);
                *at = stream.moved_at.max(*at);
            }
            if let Some((pending, _)) = &stream.send {
                send = send.max(self.now - pending.since);
            }
        }
        let longest = moved.values().map(|at| self.now - *at).max();
        (longest.unwrap_or_default(), send)
    }

    /// Ends the current or next wait at `at`.
    pub fn wake_at(&mut self, at: Instant) {
        self.wakes.insert(at);
    }

    /// Ends the next wait at once.
    pub fn wake(&mut self) {
        self.news = true;
    }

    fn weather(&mut self) -> (&mut Vec<Connection>, Weather<'_>) {
        let weather = Weather {
            now: self.now,
            random: &mut self.random,
            faults: &self.faults,
        };
        (&mut self.connections, weather)
    }

    fn add(&mut self, connection: Connection) -> Peer {
        let peer = Peer(self.connections.len());
        self.connections.push(connection);
        self.active.push(peer);
        peer
    }

    /// Puts the times at which things arrive on the agenda.
    fn schedule(&mut self, peer: Peer) {
        self.agenda.extend(self.connections[peer.0].wire.next_arrival());
    }

    fn stream(&mut self, socket: Socket) -> &mut Stream {
        match self.sockets.open_mut(socket) {
            Entry::Stream(stream) => stream,
            Entry::Listener(_) => panic!("a listener carries no bytes"),
        }
    }

    fn pending(&mut self, token: Token) -> Pending {
        let mut not_before = self.now;
        if self.random.chance(self.faults.late) {
            let steps = self.faults.late_max.as_micros() as usize / 100;
            not_before += Duration::from_micros(self.random.below(steps + 1) as u64 * 100);
            self.agenda.insert(not_before);
        }
        Pending {
            token,
            since: self.now,
            not_before,
        }
    }
}

struct Trace(u64);

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// The scripted ends.
impl SimDriver {
    /// A client connects to the listener with this number. Nobody there looks like a reset.
    pub fn dial(&mut self, listener: usize, endpoints: Endpoints) -> Peer {
        let peer = self.add(Connection {
            wire: Wire::new(),
            endpoints: Some(endpoints),
            answer: Some(Ok(())),
            client: None,
            faulted: false,
            closed_by_worker: false,
        });
        self.note(format_args!("client {} dials listener {listener}", peer.0));
        self.news = true;
        for &index in &self.open {
            if let Some(Entry::Listener(open)) = self.sockets.get_mut(Socket(index))
                && open.number == listener
            {
                open.backlog.push_back(peer);
                return peer;
            }
        }
        self.refuse(peer);
        peer
    }

    fn refuse(&mut self, peer: Peer) {
        let (connections, mut weather) = self.weather();
        let connection = &mut connections[peer.0];
        connection.faulted = true;
        connection.closed_by_worker = true;
        connection.wire.reset(Place::Gateway, &mut weather);
        connection.wire.close(Place::Gateway, &mut weather);
        self.schedule(peer);
    }

    /// The next connection attempt of the worker's.
    pub fn attempt(&mut self) -> Option<Attempt> {
        self.attempts.pop_front()
    }

    /// What the worker hears of its attempt. Without an answer it waits.
    pub fn answer(&mut self, peer: Peer, answer: Result<(), IoError>) {
        self.note(format_args!("server {} answers {answer:?}", peer.0));
        self.connections[peer.0].answer = Some(answer);
        self.news = true;
        if answer.is_err() {
            self.close(peer);
        }
    }

    /// Sends from the scripted end; says how much was taken.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, peer: Peer, bytes: &[u8]) -> Result<usize, IoError> {
        let (connections, mut weather) = self.weather();
        let sent = connections[peer.0].wire.send(Place::Peer, bytes, &mut weather)?;
        if sent > 0 {
            self.news = true;
            self.note(format_args!("peer {} sends {sent}", peer.0));
        }
        self.schedule(peer);
        Ok(sent)
    }

    /// Receives at the scripted end. `None` when there is nothing yet, no bytes at the end of the stream.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn receive(&mut self, peer: Peer, most: usize) -> Option<Result<Vec<u8>, IoError>> {
        let wire = &mut self.connections[peer.0].wire;
        if !wire.end(Place::Peer).is_readable() {
            return None;
        }
        // Room has become free.
        self.news = true;
        let received = wire.receive(Place::Peer, most);
        match &received {
            Ok(bytes) => self.note(format_args!("peer {} receives {}", peer.0, bytes.len())),
            Err(error) => self.note(format_args!("peer {} receives {error:?}", peer.0)),
        }
        Some(received)
    }

    /// Sends the end of the stream from the scripted end.
    pub fn shutdown(&mut self, peer: Peer) {
        self.note(format_args!("peer {} ends its stream", peer.0));
        let (connections, mut weather) = self.weather();
        connections[peer.0].wire.shutdown(Place::Peer, &mut weather);
        self.news = true;
        self.schedule(peer);
    }

    /// Closes the scripted end; with unread bytes that is a reset.
    pub fn close(&mut self, peer: Peer) {
        let (connections, mut weather) = self.weather();
        let wire = &mut connections[peer.0].wire;
        if wire.end(Place::Peer).open {
            wire.close(Place::Peer, &mut weather);
            self.note(format_args!("peer {} closes", peer.0));
            self.news = true;
            self.schedule(peer);
        }
    }

    /// Breaks the connection from the scripted end.
    pub fn reset(&mut self, peer: Peer) {
        self.note(format_args!("peer {} resets", peer.0));
        let (connections, mut weather) = self.weather();
        connections[peer.0].wire.reset(Place::Peer, &mut weather);
        self.news = true;
        self.schedule(peer);
        self.close(peer);
    }

    /// A fault of the network or the kernel hit the connection.
    #[must_use]
    pub fn is_faulted(&self, peer: Peer) -> bool {
        self.connections[peer.0].faulted
    }

    /// The worker has closed its end, or never had one.
    #[must_use]
    pub fn is_closed_by_worker(&self, peer: Peer) -> bool {
        self.connections[peer.0].closed_by_worker
    }

    /// Bytes that the worker has taken from the scripted end.
    #[must_use]
    pub fn taken_by_worker(&self, peer: Peer) -> usize {
        self.connections[peer.0].wire.end(Place::Gateway).received
    }
}

/// Completions.
impl SimDriver {
    fn deliver(&mut self) {
        let mut active = std::mem::take(&mut self.active);
        active.retain(|&peer| {
            let (connections, mut weather) = self.weather();
            let wire = &mut connections[peer.0].wire;
            let due = wire.next_arrival().is_some_and(|at| at <= weather.now);
            if due {
                let news = wire.deliver(&mut weather);
                self.news |= news;
            }
            let wire = &self.connections[peer.0].wire;
            let next = wire.next_arrival();
            let goes_on = !wire.is_over();
            self.agenda.extend(next);
            goes_on
        });
        self.active = active;
    }

    fn complete(&mut self, completions: &mut Vec<Completion>) {
        for position in 0..self.open.len() {
            let socket = Socket(self.open[position]);
            match self.sockets.get(socket) {
                Some(Entry::Listener(_)) => self.complete_accepts(socket, completions),
                Some(Entry::Stream(_)) => self.complete_stream(socket, completions),
                None => unreachable!("an open socket has an entry"),
            }
        }
    }

    fn complete_accepts(&mut self, socket: Socket, completions: &mut Vec<Completion>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let fails = self.random.chance(self.faults.accept_error);
            let Entry::Listener(listener) = self.sockets.open_mut(socket) else {
                return;
            };
            if let Some(token) = listener.accept.take_if(|_| listener.cancelled) {
                let error = IoError::CANCELLED;
                completions.push(Completion::AcceptFailed { token, error });
            }
            let (Some(token), Some(&peer)) = (listener.accept, listener.backlog.front()) else {
                return;
            };
            if fails {
                listener.accept = None;
                let error = IoError(libc::EMFILE);
                self.note(format_args!("accept fails: {error}"));
                completions.push(Completion::AcceptFailed { token, error });
                return;
            }
            listener.backlog.pop_front();
            let socket = self.insert_stream(peer);
            self.note(format_args!("accepted: client {} is socket {}", peer.0, socket.0));
            completions.push(Completion::Accepted { token, socket });
        }
    }

    fn insert_stream(&mut self, peer: Peer) -> Socket {
        let socket = self.sockets.insert(Entry::Stream(Stream {
            peer,
            owner: None,
            receive: None,
            send: None,
            connect: None,
            cancelled: None,
            moved_at: self.now,
        }));
        self.open.push(socket.0);
        socket
    }

    fn complete_stream(&mut self, socket: Socket, completions: &mut Vec<Completion>) {
        let now = self.now;
        let stream = self.stream(socket);
        let cancelled = stream.cancelled.take_if(|at| *at <= now).is_some();
        let due = |pending: &Pending| cancelled || pending.not_before <= now;
        let (connect, receive, send) = (
            stream.connect.as_ref().is_some_and(due),
            stream.receive.as_ref().is_some_and(due),
            stream.send.as_ref().is_some_and(|(pending, _)| due(pending)),
        );
        if connect {
            self.complete_connect(socket, cancelled, completions);
        }
        if receive {
            self.complete_receive(socket, cancelled, completions);
        }
        if send {
            self.complete_send(socket, cancelled, completions);
        }
    }

    /// A cancelled operation ends as such, unless it wins the race.
    fn loses_race(&mut self, cancelled: bool) -> bool {
        cancelled && !self.random.chance(self.faults.cancel_race)
    }

    fn complete_connect(&mut self, socket: Socket, cancelled: bool, completions: &mut Vec<Completion>) {
        let peer = self.stream(socket).peer;
        let answer = self.connections[peer.0].answer;
        let result = match answer {
            Some(answer) if !self.loses_race(cancelled) => answer,
            Some(_) | None if cancelled => Err(IoError::CANCELLED),
            Some(_) | None => return,
        };
        let now = self.now;
        let stream = self.stream(socket);
        stream.moved_at = now;
        let token = stream.connect.take().expect("the caller has looked").token;
        self.note(format_args!("socket {} connect: {result:?}", socket.0));
        completions.push(Completion::Connected { token, result });
    }

    fn complete_receive(&mut self, socket: Socket, cancelled: bool, completions: &mut Vec<Completion>) {
        let peer = self.stream(socket).peer;
        let readable = self.connections[peer.0].wire.end(Place::Gateway).is_readable();
        let free = self.lent.iter().position(Option::is_none);
        let result = if !readable || free.is_none() || self.loses_race(cancelled) {
            if !cancelled {
                return;
            }
            Err(IoError::CANCELLED)
        } else if self.random.chance(self.faults.receive_error) {
            self.break_connection(peer);
            Err(IoError(libc::ECONNRESET))
        } else {
            let most = self.random.between(1, self.faults.receive_max);
            self.connections[peer.0].wire.receive(Place::Gateway, most)
        };
        let now = self.now;
        let stream = self.stream(socket);
        let token = stream.receive.take().expect("the caller has looked").token;
        stream.moved_at = now;
        match &result {
            Ok(bytes) => self.note(format_args!("socket {} received {}", socket.0, bytes.len())),
            Err(error) => self.note(format_args!("socket {} receive: {error}", socket.0)),
        }
        completions.push(match (result, free) {
            (Err(error), _) => Completion::ReceiveFailed { token, error },
            (Ok(bytes), Some(id)) if !bytes.is_empty() => {
                let there = self.connections[peer.0].wire.end(Place::Gateway).is_readable();
                let more = if there {
                    !self.random.chance(self.faults.missing_more)
                } else {
                    self.random.chance(self.faults.spurious_more)
                };
                let len = u32::try_from(bytes.len()).expect("a receive is at most RECEIVE_BYTES_MAX");
                self.lent[id] = Some(bytes);
                let id = u16::try_from(id).expect("there are few buffers");
                let buffer = Some(ReceiveBuffer { id: u32::from(id), len });
                Completion::Received { token, buffer, more }
            }
            (Ok(_), _) => Completion::Received {
                token,
                buffer: None,
                more: false,
            },
        });
    }

    fn complete_send(&mut self, socket: Socket, cancelled: bool, completions: &mut Vec<Completion>) {
        let peer = self.stream(socket).peer;
        let end = self.connections[peer.0].wire.end(Place::Gateway);
        let possible = end.reset || self.connections[peer.0].wire.room(Place::Gateway, &self.faults) > 0;
        let lost = !possible || self.loses_race(cancelled);
        if lost && !cancelled {
            return;
        }
        let now = self.now;
        let stream = self.stream(socket);
        let (Pending { token, .. }, buffer) = stream.send.take().expect("the caller has looked");
        stream.moved_at = now;
        let result = if lost {
            Err(IoError::CANCELLED)
        } else if self.random.chance(self.faults.send_error) {
            self.connections[peer.0].faulted = true;
            if self.random.chance(500) {
                Err(IoError(libc::ENOBUFS))
            } else {
                self.break_connection(peer);
                Err(IoError(libc::ECONNRESET))
            }
        } else {
            let (connections, mut weather) = self.weather();
            let wire = &mut connections[peer.0].wire;
            wire.send(Place::Gateway, buffer.pending(), &mut weather)
        };
        self.schedule(peer);
        self.note(format_args!("socket {} sent {result:?} of {}", socket.0, buffer.len()));
        completions.push(Completion::Sent { token, buffer, result });
    }

    /// The network loses the connection: both ends see a reset.
    fn break_connection(&mut self, peer: Peer) {
        let (connections, mut weather) = self.weather();
        connections[peer.0].faulted = true;
        connections[peer.0].wire.reset(Place::Gateway, &mut weather);
        self.schedule(peer);
    }

    /// What a session has taken from its server and not given to its client has a bound.
    fn check_backpressure(&self) {
        for &index in &self.open {
            let Some(Entry::Stream(stream)) = self.sockets.get(Socket(index)) else {
                continue;
            };
            if let Some(client) = self.connections[stream.peer.0].client {
                let taken = self.connections[stream.peer.0].wire.end(Place::Gateway).received;
                let given = self.connections[client.0].wire.end(Place::Gateway).sent;
                assert!(
                    taken.saturating_sub(given) <= HIGH_WATER_BYTES + RECEIVE_BYTES_MAX,
                    "backpressure: {taken} bytes taken from server {}, {given} given to client {}",
                    stream.peer.0,
                    client.0
                );
            }
        }
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Instant {
        self.now
    }

    /// Everything has begun when it was submitted.
    fn begin(&mut self, _: &mut Vec<Completion>) {}

    /// Work takes no time here.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }

    fn listen(&mut self, listener: OwnedFd) -> Result<Socket, IoError> {
        drop(listener);
        let socket = self.sockets.insert(Entry::Listener(Listener {
            number: self.listeners_taken,
            accept: None,
            cancelled: false,
            backlog: VecDeque::new(),
        }));
        self.listeners_taken += 1;
        self.open.push(socket.0);
        Ok(socket)
    }

    /// Simulated workers have no signers: what is asked of them is simulated by itself.
    fn adopt(&mut self, _: OwnedFd) -> Result<Socket, IoError> {
        Err(IoError(libc::EOPNOTSUPP))
    }

    fn connect(&mut self, token: Token, endpoint: &ServerEndpoint) -> Result<Socket, IoError> {
        let client = *self
            .clients
            .get(&(token.slot, token.generation))
            .expect("a session has received from its client before it connects");
        if self.random.chance(self.faults.connect_error) {
            self.connections[client.0].faulted = true;
            self.note(format_args!("connect for client {} fails at once", client.0));
            return Err(IoError(libc::EMFILE));
        }
        let peer = self.add(Connection {
            wire: Wire::new(),
            endpoints: None,
            answer: None,
            client: Some(client),
            faulted: false,
            closed_by_worker: false,
        });
        let socket = self.insert_stream(peer);
        self.note(format_args!(
            "connect for client {}: server {} at {endpoint} is socket {}",
            client.0, peer.0, socket.0
        ));
        let pending = self.pending(token);
        let stream = self.stream(socket);
        stream.owner = Some(token);
        stream.connect = Some(pending);
        self.attempts.push_back(Attempt {
            peer,
            endpoint: endpoint.clone(),
            client,
        });
        self.news = true;
        Ok(socket)
    }

    fn submit(&mut self, token: Token, op: Op) {
        let pending = self.pending(token);
        let socket = match &op {
            Op::Accept(listener) => {
                let Entry::Listener(listener) = self.sockets.open_mut(*listener) else {
                    panic!("a stream accepts nothing");
                };
                assert!(listener.accept.is_none(), "one accept per listener");
                listener.accept = Some(token);
                return;
            }
            Op::Cancel(socket) => {
                if let Entry::Listener(listener) = self.sockets.open_mut(*socket) {
                    listener.cancelled = true;
                    self.news = true;
                    return;
                }
                *socket
            }
            Op::Receive(socket) | Op::Send(socket, _) => *socket,
        };
        let stream = self.stream(socket);
        let owner = *stream.owner.get_or_insert(token);
        let peer = stream.peer;
        assert!(owner == token, "socket {} of {owner:?} used by {token:?}", socket.0);
        assert!(stream.connect.is_none() || matches!(op, Op::Cancel(_)), "not connected");
        if token.role == Role::Downstream {
            self.clients.insert((token.slot, token.generation), peer);
        }
        let stream = self.stream(socket);
        match op {
            Op::Receive(_) => {
                assert!(
                    stream.receive.is_none(),
                    "invariant 1: a second receive on {}",
                    socket.0
                );
                stream.receive = Some(pending);
            }
            Op::Send(_, buffer) => {
                assert!(stream.send.is_none(), "invariant 1: a second send on {}", socket.0);
                assert!(!buffer.is_empty(), "an empty send");
                stream.send = Some((pending, buffer));
                let end = self.connections[peer.0].wire.end(Place::Gateway);
                assert!(!end.shut || end.reset, "a send after the end of the stream");
            }
            Op::Cancel(_) => stream.cancelled = Some(pending.not_before),
            Op::Accept(_) => unreachable!("returned above"),
        }
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        let lent = self.lent.iter().flatten().count();
        assert!(
            lent == 0,
            "invariant 2: {lent} receive buffers did not come back within a turn"
        );
        self.check_backpressure();
        self.asleep = false;
        loop {
            self.deliver();
            self.complete(completions);
            let later = self.now + Duration::from_nanos(1);
            let woken = self.wakes.first().is_some_and(|at| *at < later);
            self.wakes = self.wakes.split_off(&later);
            self.agenda = self.agenda.split_off(&later);
            let news = std::mem::take(&mut self.news) || woken;
            if news || !completions.is_empty() || deadline.is_some_and(|at| at <= self.now) {
                break;
            }
            let planned = [self.agenda.first().copied(), self.wakes.first().copied(), deadline];
            match planned.into_iter().flatten().min() {
                Some(at) => self.now = at,
                None => {
                    self.asleep = true;
                    break;
                }
            }
        }
        self.random.shuffle(completions);
    }

    fn received<'a>(&'a mut self, buffer: &'a ReceiveBuffer) -> &'a mut [u8] {
        self.lent[buffer.id as usize]
            .as_mut()
            .expect("a buffer is used before it is given back")
    }

    fn recycle(&mut self, buffer: ReceiveBuffer) {
        let bytes = self.lent[buffer.id as usize].take();
        assert!(bytes.is_some(), "invariant 2: a receive buffer comes back twice");
    }

    fn shutdown_write(&mut self, socket: Socket) {
        self.note(format_args!("socket {} ends its stream", socket.0));
        let stream = self.stream(socket);
        assert!(stream.send.is_none(), "half-closed while a send is in flight");
        let peer = stream.peer;
        let (connections, mut weather) = self.weather();
        let wire = &mut connections[peer.0].wire;
        let end = wire.end(Place::Gateway);
        assert!(!end.shut || end.reset, "half-closed twice");
        wire.shutdown(Place::Gateway, &mut weather);
        self.schedule(peer);
    }

    fn close(&mut self, socket: Socket, how: Close) {
        self.note(format_args!("socket {} closes: {how:?}", socket.0));
        self.open.retain(|index| *index != socket.0);
        match self.sockets.remove(socket) {
            Entry::Listener(listener) => {
                for peer in listener.backlog {
                    self.refuse(peer);
                }
            }
            Entry::Stream(stream) => {
                assert!(
                    stream.receive.is_none() && stream.send.is_none() && stream.connect.is_none(),
                    "invariant 3: socket {} is closed with an operation in flight",
                    socket.0
                );
                let peer = stream.peer;
                let (connections, mut weather) = self.weather();
                let connection = &mut connections[peer.0];
                connection.closed_by_worker = true;
                if how == Close::Reset {
                    connection.wire.reset(Place::Gateway, &mut weather);
                }
                connection.wire.close(Place::Gateway, &mut weather);
                self.schedule(peer);
                self.news = true;
            }
        }
    }

    fn endpoints(&self, socket: Socket) -> Option<Endpoints> {
        let Some(Entry::Stream(stream)) = self.sockets.get(socket) else {
            return None;
        };
        let connection = &self.connections[stream.peer.0];
        let here = !connection.wire.end(Place::Gateway).reset;
        connection.endpoints.filter(|_| here)
    }
}
