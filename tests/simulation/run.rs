//! One run: a real worker over the simulated driver, scripted peers at the other ends, and the oracle that watches.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use ringlock::address::{Endpoints, ServerEndpoint};
use ringlock::crypto::batch::Engine;
use ringlock::crypto::multibuffer::Multibuffer;
use ringlock::crypto::pool::Ahead;
use ringlock::error::{Cause, IoError};
use ringlock::net::driver::Driver as _;
use ringlock::net::sim::faults::Faults;
use ringlock::net::sim::random::Random;
use ringlock::net::sim::{Attempt, Peer, SimDriver};
use ringlock::record::ConnectionRecord;
use ringlock::snapshot::Snapshot;
use ringlock::worker::{Bound, Command, Shared, Worker};

use super::client::{Client, ClientPlan, ClientTls, Mischief};
use super::oracle;
use super::plan::{
    Action, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, LINGER_TIMEOUT, Plan, SLACK, WRITE_TIMEOUT, listener_addresses,
};
use super::server::{Health, Server};
use crate::support::multibuffer;

/// Virtual time within which every run is over.
const RUN_MAX: Duration = Duration::from_secs(300);
/// Turns that peers without latency can cause within one instant of virtual time.
const TURNS_MAX: usize = 20_000;

/// Everything about a run but its worker.
pub(crate) struct World<C> {
    pub(crate) plan: Plan,
    random: Random,
    start: Instant,
    /// Not dialled yet, latest first.
    expected: Vec<ClientPlan>,
    pub(crate) clients: Vec<Client<C>>,
    pub(crate) servers: Vec<Server>,
    /// The server that each client's session has tried last: its position, if it accepted.
    partners: BTreeMap<Peer, Option<usize>>,
    /// Not done yet, latest first.
    actions: Vec<(Duration, Action)>,
    commands: Sender<Command>,
    pub(crate) snapshots: Vec<Arc<Snapshot>>,
    pub(crate) shared: Shared,
    both_listeners: bool,
    /// For each listener the driver took over, by number: which of the addresses.
    listeners: Vec<usize>,
    /// When sessions were told to end.
    pub(crate) ended_sessions: Vec<Instant>,
    pub(crate) records: Vec<ConnectionRecord>,
}

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Equal when the same happened at the same times.
    trace: u64,
    /// Sessions that ended, by cause.
    pub(crate) causes: [u64; Cause::LABELS.len()],
    /// Sessions for which nothing but a perfect end was good enough.
    pub(crate) perfect: u64,
}

/// Runs one seed; what it came to, or what went wrong.
pub(crate) fn run<C: ClientTls>(seed: u64, print: bool) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| play::<C>(seed, print))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

/// Every engine gets its seeds: one that answers within the call, one for which handshakes wait, and where there is the library
/// the one that computes in batches.
fn engine(seed: u64) -> Arc<Engine> {
    static BATCH: LazyLock<Option<Arc<Engine>>> = LazyLock::new(|| {
        let library = Multibuffer::load(Some(&multibuffer::library()?)).unwrap_or_else(|error| panic!("{error}"));
        Some(Arc::new(Engine::with_library(library).making_ahead(Ahead::ALL)))
    });
    match (seed % 3, &*BATCH) {
        (0, Some(batch)) => Arc::clone(batch),
        (waits, _) => Arc::new(Engine::inline(waits == 1)),
    }
}

fn play<C: ClientTls>(seed: u64, print: bool) -> Outcome {
    let mut random = Random::new(seed);
    let mut faults = Faults::draw(&mut random);
    let plan = Plan::draw(&mut random, &mut faults);
    let start = Instant::now();
    let mut driver = SimDriver::new(start, random.fork(), faults, print);
    driver.note(format_args!("{:?}", driver.faults().clone()));
    driver.note(format_args!("servers {:?}", plan.health));
    let (commands, received) = crossbeam::channel::unbounded();
    let shared = Shared {
        index: 0,
        metrics: Arc::default(),
        records: Arc::new(ArrayQueue::new(1024)),
        engine: engine(seed),
    };
    let mut worker: Worker<SimDriver, C::Server> = Worker::new(driver, received, shared.clone());
    let mut world: World<C> = World::new(plan, random, start, commands, shared);
    world.serve(true);
    let mut completions = Vec::new();
    worker.turn(&mut completions);
    let (mut then, mut turns) = (start, 0);
    while !world.is_over() {
        let now = worker.driver().now();
        turns = if now == then { turns + 1 } else { 0 };
        then = now;
        assert!(turns < TURNS_MAX, "the worker spins:\n{}", world.describe());
        assert!(
            now - start < RUN_MAX,
            "not over after {RUN_MAX:?}:\n{}",
            world.describe()
        );
        world.step(worker.driver(), now);
        world.watch(worker.driver());
        worker.turn(&mut completions);
        let asleep = worker.driver().is_asleep();
        assert!(
            !asleep || world.is_over(),
            "the worker waits for nothing:\n{}",
            world.describe()
        );
    }
    world.command(Command::StopAccepting);
    world.command(Command::Exit);
    for _ in 0..100 {
        // Before time moves on: a record tells only how long its session has lived.
        world.collect(worker.driver().now());
        worker.turn(&mut completions);
    }
    assert_eq!(worker.sessions(), 0, "sessions at the end");
    worker.run();
    assert_eq!(
        worker.lent_bytes(),
        0,
        "invariant 7: send buffers are missing at the end"
    );
    assert_eq!(
        worker.balanced_connections(),
        0,
        "balancers count connections at the end"
    );
    assert_eq!(worker.driver().open_sockets(), 0, "sockets are open at the end");
    let now = worker.driver().now();
    world.collect(now);
    Outcome {
        perfect: oracle::judge(&world, worker.driver()),
        trace: worker.driver().trace_hash(),
        causes: std::array::from_fn(|index| world.shared.metrics.done[index].value()),
    }
}

impl<C: ClientTls> World<C> {
    fn new(plan: Plan, random: Random, start: Instant, commands: Sender<Command>, shared: Shared) -> World<C> {
        let mut expected = plan.clients.clone();
        expected.sort_by_key(|plan| std::cmp::Reverse(plan.at));
        let mut actions = plan.actions.clone();
        actions.reverse();
        World {
            plan,
            random,
            start,
            expected,
            clients: Vec::new(),
            servers: Vec::new(),
            partners: BTreeMap::new(),
            actions,
            commands,
            snapshots: Vec::new(),
            shared,
            both_listeners: false,
            listeners: Vec::new(),
            ended_sessions: Vec::new(),
            records: Vec::new(),
        }
    }

    fn command(&self, command: Command) {
        self.commands.send(command).expect("the worker lives");
    }

    /// A new snapshot, with both listeners or the first one alone.
    fn serve(&mut self, both: bool) {
        let snapshot = self.plan.snapshot(self.snapshots.last().map(Arc::as_ref), both);
        let had = [!self.snapshots.is_empty(), self.both_listeners];
        let mut bounds = Vec::new();
        for (listener, address) in listener_addresses().into_iter().enumerate().take(1 + usize::from(both)) {
            let socket = (!had[listener]).then(|| {
                self.listeners.push(listener);
                // The simulated driver only counts it.
                std::fs::File::open("/dev/null")
                    .expect("the simulation is set up")
                    .into()
            });
            bounds.push(Bound {
                listener,
                address,
                socket,
            });
        }
        self.both_listeners = both;
        self.snapshots.push(Arc::clone(&snapshot));
        self.command(Command::Serve(snapshot, bounds));
    }

    fn is_over(&self) -> bool {
        let peers_left =
            self.clients.iter().all(|client| client.finished) && self.servers.iter().all(|server| server.finished);
        self.expected.is_empty() && self.actions.is_empty() && peers_left
    }

    /// Lets the peers do what they can do now.
    fn step(&mut self, net: &mut SimDriver, now: Instant) {
        self.act(net, now);
        self.dial(net, now);
        self.upheave(net, now);
        while let Some(attempt) = net.attempt() {
            self.answer(net, &attempt, now);
        }
        for client in &mut self.clients {
            if !client.finished {
                let server = self.partners.get(&client.peer).copied().flatten();
                client.step(net, now, server.map(|position| &self.servers[position]));
            }
        }
        for server in &mut self.servers {
            server.step(net, now);
        }
        self.collect(now);
    }

    fn act(&mut self, net: &mut SimDriver, now: Instant) {
        while let Some(&(at, action)) = self.actions.last() {
            if self.start + at > now {
                return net.wake_at(self.start + at);
            }
            self.actions.pop();
            net.note(format_args!("command: {action:?}"));
            net.wake();
            match action {
                Action::Reload => self.serve(self.both_listeners),
                Action::ReloadListeners => self.serve(!self.both_listeners),
                Action::EndSessions => {
                    self.ended_sessions.push(now);
                    self.command(Command::EndSessions);
                }
            }
        }
    }

    /// Ends all sessions and lets all clients that are left come in the turn after that.
    fn upheave(&mut self, net: &mut SimDriver, now: Instant) {
        if self.shared.metrics.accepted.value() == 0 {
            return;
        }
        match &mut self.plan.upheaval_after_turns {
            Some(0) => {
                self.plan.upheaval_after_turns = None;
                net.note(format_args!("upheaval"));
                net.wake();
                self.ended_sessions.push(now);
                self.command(Command::EndSessions);
                for plan in &mut self.expected {
                    plan.at = now - self.start;
                }
            }
            Some(turns) => *turns -= 1,
            None => {}
        }
    }

    fn dial(&mut self, net: &mut SimDriver, now: Instant) {
        let open = net.listeners();
        while let Some(plan) = self.expected.last() {
            if self.start + plan.at > now {
                return net.wake_at(self.start + plan.at);
            }
            let plan = self.expected.pop().expect("just seen");
            let listener = open[plan.listener % open.len()];
            let n = self.clients.len() as u8;
            let address = SocketAddr::from(([198, 51, 100, n], 1000));
            let local = listener_addresses()[self.listeners[listener]];
            let peer = net.dial(listener, Endpoints { peer: address, local });
            let announced = SocketAddr::from(([203, 0, 113, n], 2000));
            let header = self.listeners[listener] == 1 && plan.mischief != Some(Mischief::Garbage);
            let header = header.then_some((announced, local));
            net.note(format_args!("client {} is {plan:?}", peer.0));
            let mut random = self.random.fork();
            self.clients
                .push(Client::new(plan, peer, address, header, now, &mut random));
        }
    }

    fn answer(&mut self, net: &mut SimDriver, attempt: &Attempt, now: Instant) {
        let &Attempt { peer, client, .. } = attempt;
        let ServerEndpoint::Tcp(SocketAddr::V4(address)) = attempt.endpoint else {
            panic!("the configuration has no such server");
        };
        self.partners.insert(client, None);
        match self.plan.health[usize::from(address.ip().octets()[3])] {
            Health::Silent => {}
            Health::Refuses => net.answer(peer, Err(IoError(libc::ECONNREFUSED))),
            Health::Up => {
                net.answer(peer, Ok(()));
                let plan = self.plan.draw_server(&mut self.random);
                net.note(format_args!("server {} is {plan:?}", peer.0));
                let known = self.clients.iter().find(|known| known.peer == client);
                let known = known.expect("sessions belong to clients");
                let header = self.plan.send_proxy.then(|| known.announced.unwrap_or(known.address));
                self.partners.insert(client, Some(self.servers.len()));
                self.servers.push(Server::new(plan, peer, client, header, now));
            }
        }
    }

    fn collect(&mut self, now: Instant) {
        while let Some(record) = self.shared.records.pop() {
            let told = self.ended_sessions.iter().find(|told| now - record.duration < **told);
            assert!(
                told.is_none_or(|told| now - *told <= LINGER_TIMEOUT + SLACK),
                "a session that was told to end did not: {record:?}"
            );
            self.records.push(record);
        }
    }

    /// What must hold at any time.
    fn watch(&self, net: &SimDriver) {
        let by_epoch = self.snapshots.iter().map(|snapshot| snapshot.connections[0].value());
        assert_eq!(
            by_epoch.sum::<u64>(),
            self.shared.metrics.live.value(),
            "each connection counts under one epoch"
        );
        let (silence, send) = net.longest_silences();
        let handshake_or = |timeout: Duration| timeout.max(HANDSHAKE_TIMEOUT) + LINGER_TIMEOUT + SLACK;
        assert!(
            silence <= handshake_or(IDLE_TIMEOUT),
            "a session has been silent for {silence:?}:\n{}",
            self.describe()
        );
        assert!(
            send <= handshake_or(WRITE_TIMEOUT),
            "a send has been in flight for {send:?}:\n{}",
            self.describe()
        );
    }

    /// The server that a client's session tried last, if it accepted.
    pub(crate) fn server_of(&self, client: Peer) -> Option<&Server> {
        let position = self.partners.get(&client).copied().flatten()?;
        Some(&self.servers[position])
    }

    /// The record of a client's session.
    pub(crate) fn record_of(&self, client: &Client<C>) -> Option<&ConnectionRecord> {
        self.records.iter().find(|record| {
            record.peer == Some(client.address) || record.peer.is_some() && record.peer == client.announced
        })
    }

    fn describe(&self) -> String {
        let waiting = self.clients.iter().filter(|client| !client.finished);
        waiting.map(|client| client.describe() + "\n").collect()
    }

    /// Connections to servers that the gateway still counts, over all snapshots.
    pub(crate) fn counted_connections(&self) -> u64 {
        let servers = self.snapshots.iter().flat_map(|snapshot| &snapshot.upstreams);
        servers
            .flat_map(|upstream| &upstream.servers)
            .map(|server| server.metrics[0].connections.value())
            .sum()
    }

    /// Sessions that ended for this cause.
    pub(crate) fn ended_for(&self, cause: &Cause) -> u64 {
        self.shared.metrics.done[cause.index()].value()
    }
}
