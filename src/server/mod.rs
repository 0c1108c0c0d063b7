//! The gateway as a whole: binds, drops privileges, starts the workers, hands them snapshots, joins them.

pub mod confine;
pub mod host;
mod listen;
pub mod ticket_secret;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::ArrayQueue;
use ringlock_hsm::custody::{Custody, Launcher};

use self::confine::{ConfineError, Confinement};
use self::host::{DriverKind, Equipment, Plan};
pub use self::listen::Inherited;
use self::ticket_secret::TicketSecrets;
use crate::config::{Config, Problem, Problems};
use crate::control::log::{Collector, LinesLost, Logging};
use crate::control::metrics::{
    self, CertificateView, KeyGroupView, ServerView, SessionCacheView, TokenView, UpstreamView, View, WorkerView,
};
use crate::control::ocsp::Stapler;
use crate::control::{Condition, Service};
use crate::limits::{CUSTODY_INTERVAL, LOG_QUEUE_RECORDS};
use crate::metrics::WorkerMetrics;
use crate::net::Waker;
use crate::net::driver::Driver;
use crate::net::epoll::EpollDriver;
use crate::net::uring::UringDriver;
use crate::snapshot::Snapshot;
use crate::tls::handshake::Connection;
use crate::worker::{Bound, Command, Shared, Worker};

/// Loads the configuration again, for a reload.
pub type Loader = Box<dyn FnMut() -> Result<Config, Problems>>;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for what is not there.
    #[error("{}", lines(.0))]
    Problems(Vec<Problem>),
    /// A thread, or the driver that is made in it, cannot be started.
    #[error("cannot start a thread: {0}; check the limits of this process (ulimit -a)")]
    Thread(#[source] std::io::Error),
    /// Rights cannot be given up.
    #[error(transparent)]
    Confine(ConfineError),
    /// There is no page for the secret of session tickets.
    #[error("no memory for the secret of session tickets: {0}")]
    Memory(#[source] std::io::Error),
}

impl From<Vec<Problem>> for StartError {
    fn from(problems: Vec<Problem>) -> Self {
        StartError::Problems(problems)
    }
}

impl From<ConfineError> for StartError {
    fn from(error: ConfineError) -> Self {
        match error {
            ConfineError::Problem(problem) => StartError::Problems(vec![problem]),
            error @ ConfineError::Sandbox(_) => StartError::Confine(error),
        }
    }
}

/// Everything that has to be found out before anything is bound or started, for `check`.
///
/// # Errors
/// Everything that the configuration asks for and is not there.
pub fn load(config: Config) -> Result<Loaded, Vec<Problem>> {
    load_with(config, |_| Ok(host::launcher()))
}

/// The same, with signers that are started by what `launcher` makes.
fn load_with(
    config: Config,
    launcher: impl FnOnce(&Config) -> Result<Launcher, Problem>,
) -> Result<Loaded, Vec<Problem>> {
    let plan = host::plan(&config);
    let ticket_secret = ticket_secret::read(&config);
    let workers = plan.as_ref().map_or(1, |plan| plan.cpus.len());
    if let Err(problems) = host::check_users_of_signers(&config, None) {
        return Err(plan.err().into_iter().flatten().chain(problems).collect());
    }
    let launcher = launcher(&config).map_err(|problem| vec![problem])?;
    let mut custody = Custody::new(workers, launcher);
    let snapshot = Snapshot::load(config, workers, None, &mut custody);
    match (plan, snapshot, ticket_secret) {
        (Ok(plan), Ok(snapshot), Ok(ticket_secret)) => Ok(Loaded {
            plan,
            snapshot,
            custody,
            ticket_secret,
        }),
        (plan, snapshot, ticket_secret) => {
            let problems = plan.err().into_iter().chain(snapshot.err()).flatten();
            Err(problems.chain(ticket_secret.err()).collect())
        }
    }
}

/// What `run` begins with.
pub struct Loaded {
    /// What the machine gives.
    pub plan: Plan,
    /// The configuration with its files.
    pub snapshot: Snapshot,
    /// The tokens that it uses.
    pub custody: Custody,
    /// What tickets are to be sealed with.
    pub ticket_secret: ticket_secret::Loaded,
}

/// See the module.
pub struct Server {
    loader: Loader,
    plan: Plan,
    custody: Custody,
    ticket_secrets: TicketSecrets,
    stapler: Stapler,
    /// Whom signers can become besides the gateway's user.
    users_of_signers: Vec<String>,
    snapshot: Arc<Snapshot>,
    workers: Vec<WorkerHandle>,
    /// Addresses that the workers listen at.
    bound: Vec<SocketAddr>,
    inherited: Inherited,
    /// Writes connection records until it is dropped, after the workers.
    collector: Option<Collector>,
    lines_lost: LinesLost,
    confinement: Confinement,
    started: SystemTime,
    draining: bool,
    reloads_succeeded: u64,
    reloads_failed: u64,
}

struct WorkerHandle {
    cpu: usize,
    shared: Shared,
    commands: Sender<Command>,
    waker: Waker,
    /// Cleared when the thread ends, however it ends.
    alive: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    fn send(&self, command: Command) {
        // Fails only when the worker has ended, which `condition` reports.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

impl Server {
    /// Loads, binds, gives up what it does not need any more and starts the workers. The folder `temporary` is this process's own, to be
    /// removed at its end.
    ///
    /// # Errors
    /// Why it cannot start, with every reason.
    pub fn start(
        config: Config,
        inherited: Inherited,
        loader: Loader,
        logging: &mut Logging,
        temporary: Option<&Path>,
    ) -> Result<Server, StartError> {
        let Loaded {
            plan,
            snapshot,
            custody,
            ticket_secret,
        } = load_with(config, host::launcher_process)?;
        let descriptors = host::raise_descriptor_limit();
        let snapshot = Arc::new(snapshot);
        let sockets = bind_new(&snapshot, &[], plan.cpus.len(), &inherited)?;
        metrics::open_process_files();
        // No thread has been started yet: those that are take it over.
        let confinement = Confinement::begin(&snapshot.config, temporary)?;
        logging.start_thread();
        let ticket_secrets = TicketSecrets::new(Arc::clone(&snapshot.tickets), &snapshot.config.tickets, ticket_secret)
            .map_err(StartError::Memory)?;
        let mut server = Server {
            loader,
            plan,
            custody,
            ticket_secrets,
            stapler: Stapler::new(&snapshot.config.global.stapling),
            users_of_signers: host::users_of_signers(&snapshot.config),
            snapshot: Arc::clone(&snapshot),
            workers: Vec::new(),
            bound: Vec::new(),
            inherited,
            collector: None,
            lines_lost: logging.lines_lost(),
            confinement,
            started: now(),
            draining: false,
            reloads_succeeded: 0,
            reloads_failed: 0,
        };
        server.start_workers()?;
        server.hand_out_channels();
        let queues = server
            .workers
            .iter()
            .map(|worker| Arc::clone(&worker.shared.records))
            .collect();
        server.collector = Some(Collector::start(queues).map_err(StartError::Thread)?);
        server.stapler.adopt(&snapshot);
        server
            .confinement
            .complete(&snapshot.config, server.plan.equipment.driver);
        server.serve(snapshot, sockets);
        let Plan { cpus, equipment } = &server.plan;
        let Equipment {
            driver,
            reason,
            engine,
            engine_reason,
        } = equipment;
        tracing::info!(driver = driver.name(), reason, ?cpus, descriptors, "workers started");
        let ahead = engine.ahead();
        tracing::info!(%engine, reason = engine_reason, made_ahead = %ahead, "handshakes are computed");
        for address in server.inherited.unused(&server.bound) {
            tracing::warn!(
                "a socket for {address} was passed (LISTEN_FDS) and no listener has that address: its clients wait"
            );
        }
        Ok(server)
    }

    fn start_workers(&mut self) -> Result<(), StartError> {
        for (index, &cpu) in self.plan.cpus.iter().enumerate() {
            let shared = Shared {
                index,
                metrics: Arc::new(WorkerMetrics::default()),
                records: Arc::new(ArrayQueue::new(LOG_QUEUE_RECORDS)),
                engine: Arc::clone(&self.plan.equipment.engine),
            };
            let worker = start_worker(self.plan.equipment.driver, cpu, shared).map_err(StartError::Thread)?;
            self.workers.push(worker);
        }
        Ok(())
    }

    /// Hands the snapshot to every worker, with the sockets that it does not have yet.
    fn serve(&mut self, snapshot: Arc<Snapshot>, mut sockets: Sockets) {
        for worker in &self.workers {
            let addresses = addresses(&snapshot).map(|(listener, address)| {
                let new = sockets.iter_mut().find(|(bound, _)| *bound == address);
                Bound {
                    listener,
                    address,
                    socket: new.and_then(|(_, sockets)| sockets.pop()),
                }
            });
            worker.send(Command::Serve(Arc::clone(&snapshot), addresses.collect()));
        }
        self.bound = addresses(&snapshot).map(|(_, address)| address).collect();
        self.snapshot = snapshot;
    }

    /// Workers get their ends of channels to signers, also while a configuration is being loaded.
    fn hand_out_channels(&mut self) {
        let ends: Vec<_> = self
            .workers
            .iter()
            .map(|worker| (worker.commands.clone(), worker.waker.clone()))
            .collect();
        self.custody.deliver_channels(Box::new(move |channel| {
            let (commands, waker) = &ends[channel.worker];
            // Fails only when the worker has ended, which `condition` reports.
            let _ = commands.send(Command::Signer(channel.signer, channel.socket));
            waker.wake();
        }));
    }

    /// What is in force now.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn try_reload(&mut self) -> Result<String, String> {
        if self.draining {
            return Err("the gateway is draining".into());
        }
        let mut config = (self.loader)().map_err(|problems| problems.to_string())?;
        self.confinement.check(&config).map_err(|problems| lines(&problems))?;
        host::check(&config).map_err(|problems| lines(&problems))?;
        let (old, new) = (&self.snapshot.config.global, &config.global);
        let (old_log, new_log) = (&old.log, &new.log);
        let fixed = [
            ("workers", old.workers != new.workers),
            ("io", old.io != new.io),
            ("admin", old.admin != new.admin),
            ("user", old.user != new.user),
            ("group", old.group != new.group),
            ("unsafe_*", old.given_up != new.given_up),
            ("log.format", old_log.format != new_log.format),
            ("log.level", old_log.level != new_log.level),
            ("log.file", old_log.file != new_log.file),
        ];
        // Signers become whom the gateway has become.
        config.global.user.clone_from(&old.user);
        host::check_users_of_signers(&config, Some(&self.users_of_signers)).map_err(|problems| lines(&problems))?;
        let ticket_secret = ticket_secret::read(&config).map_err(|problem| problem.to_string())?;
        let workers = self.plan.cpus.len();
        let snapshot = Snapshot::load(config, workers, Some(&self.snapshot), &mut self.custody);
        let snapshot = snapshot.map_err(|problems| lines(&problems))?;
        let sockets =
            bind_new(&snapshot, &self.bound, workers, &self.inherited).map_err(|problems| lines(&problems))?;
        self.ticket_secrets
            .reload(&snapshot.config.tickets, ticket_secret)
            .map_err(|error| StartError::Memory(error).to_string())?;
        for warning in snapshot.warnings(ticket_secret::unix_now().cast_signed()) {
            tracing::warn!("{warning}");
        }
        self.stapler.adopt(&snapshot);
        self.serve(Arc::new(snapshot), sockets);
        for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
            tracing::warn!("global.{key} has changed; that takes effect at the next start");
        }
        let Snapshot {
            epoch,
            listeners,
            identities,
            upstreams,
            ..
        } = &*self.snapshot;
        let (listeners, identities, upstreams) = (listeners.len(), identities.len(), upstreams.len());
        Ok(format!(
            "epoch {epoch}: {listeners} listeners, {identities} identities, {upstreams} upstreams"
        ))
    }
}

impl Service for Server {
    fn view(&self) -> View {
        let worker = |worker: &WorkerHandle| WorkerView {
            cpu: worker.cpu,
            driver: self.plan.equipment.driver.name(),
            metrics: Arc::clone(&worker.shared.metrics),
        };
        let upstream = |upstream: &crate::snapshot::Upstream| UpstreamView {
            name: upstream.settings.name.clone(),
            servers: upstream
                .servers
                .iter()
                .map(|server| ServerView {
                    address: server.label.to_string(),
                    workers: server.metrics.clone(),
                })
                .collect(),
        };
        let certificate = |identity: &Arc<crate::identity::Identity>| CertificateView {
            identity: identity.name.to_string(),
            not_after_unix: identity.facts.leaf().not_after,
            serial: identity.facts.leaf().serial.clone(),
        };
        let key_group = |known: &crate::snapshot::KeyGroup| KeyGroupView {
            name: known.group.spec.name.clone(),
            workers: known.metrics.clone(),
        };
        let token = |token: &Arc<ringlock_hsm::remote::Token>| TokenView {
            name: token.spec.name.clone(),
            status: token.status(),
            signer_restarts: token.signer_restarts(),
        };
        let session_cache = |listener: &crate::snapshot::Listener| {
            Some(SessionCacheView {
                listener: listener.name.to_string(),
                usage: listener.resumption.cache()?.usage(),
            })
        };
        View {
            workers: self.workers.iter().map(worker).collect(),
            upstreams: self.snapshot.upstreams.iter().map(upstream).collect(),
            stapling: self.stapler.view(),
            certificates: self.snapshot.identities.iter().map(certificate).collect(),
            key_groups: self.snapshot.key_groups.iter().map(key_group).collect(),
            tokens: self.custody.tokens().iter().map(token).collect(),
            tickets: self.snapshot.tickets.in_use(),
            session_caches: self.snapshot.listeners.iter().filter_map(session_cache).collect(),
            epoch: self.snapshot.epoch,
            reloads_succeeded: self.reloads_succeeded,
            reloads_failed: self.reloads_failed,
            log_lines_lost: self.lines_lost.value(),
            confinement: self.confinement.in_force(),
            started: self.started,
        }
    }

    fn condition(&self) -> Condition {
        if let Some(worker) = self.workers.iter().find(|worker| !worker.alive.load(Ordering::Relaxed)) {
            return Condition::Failed(format!("the worker on processor {} has ended", worker.cpu));
        }
        let metrics = || self.workers.iter().map(|worker| &worker.shared.metrics);
        if self.draining && metrics().all(|metrics| metrics.live.value() == 0) {
            return Condition::Finished;
        }
        // A worker listens from its first turns on.
        if metrics().any(|metrics| metrics.turns.value() == 0) {
            return Condition::Starting;
        }
        Condition::Running
    }

    fn tick(&mut self, now: Instant) -> Option<Duration> {
        self.custody.tick(now);
        let custody = self.custody.has_signers().then_some(CUSTODY_INTERVAL);
        let tickets = self.ticket_secrets.tick(now);
        let stapler = self.stapler.tick();
        [custody, Some(tickets), Some(stapler)].into_iter().flatten().min()
    }

    fn reload(&mut self) -> Result<String, String> {
        let result = self.try_reload();
        match &result {
            Ok(_) => self.reloads_succeeded += 1,
            Err(_) => self.reloads_failed += 1,
        }
        result
    }

    fn drain(&mut self) {
        self.draining = true;
        for worker in &self.workers {
            worker.send(Command::StopAccepting);
        }
    }

    fn drain_timeout(&self) -> Duration {
        self.snapshot.config.global.drain_timeout
    }

    fn stop_now(&mut self) {
        for worker in &self.workers {
            worker.send(Command::StopAccepting);
            worker.send(Command::EndSessions);
            worker.send(Command::Exit);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("the worker on processor {} panicked", worker.cpu);
            }
        }
        self.collector = None;
    }
}

/// New sockets by address, one for each worker.
type Sockets = Vec<(SocketAddr, Vec<std::os::fd::OwnedFd>)>;

fn addresses(snapshot: &Snapshot) -> impl Iterator<Item = (usize, SocketAddr)> {
    let listeners = snapshot.listeners.iter().enumerate();
    listeners.flat_map(|(position, listener)| listener.settings().addresses.iter().map(move |&at| (position, at)))
}

/// Listens at those addresses that are not `bound`: all of them, or none is kept.
fn bind_new(
    snapshot: &Snapshot,
    bound: &[SocketAddr],
    workers: usize,
    inherited: &Inherited,
) -> Result<Sockets, Vec<Problem>> {
    let mut sockets = Vec::new();
    let mut problems = Vec::new();
    for (position, address) in addresses(snapshot).filter(|(_, address)| !bound.contains(address)) {
        let listener = &snapshot.listeners[position];
        match listen::bind(
            address,
            workers,
            listener.settings().congestion_control.as_deref(),
            inherited,
        ) {
            Ok(made) => sockets.push((address, made)),
            Err(error) => {
                let key = format!("listener \"{}\": address", listener.name);
                let found = format!("{address}, which cannot be listened at ({error})");
                let (expected, remedy) = listen::explain(&error, !bound.is_empty());
                problems.push(snapshot.config.places.problem(key, found, expected, remedy));
            }
        }
    }
    if problems.is_empty() {
        Ok(sockets)
    } else {
        Err(problems)
    }
}

fn start_worker(driver: DriverKind, cpu: usize, shared: Shared) -> std::io::Result<WorkerHandle> {
    let (commands, received) = unbounded();
    let (ready, readiness) = crossbeam::channel::bounded(1);
    let alive = Arc::new(AtomicBool::new(true));
    let thread_shared = shared.clone();
    let thread_alive = Alive(Arc::clone(&alive));
    let body = move || {
        let _alive = thread_alive;
        // A ring belongs to the thread that makes it, so the driver is made here.
        match driver {
            DriverKind::Uring => run(
                UringDriver::new(),
                UringDriver::waker,
                cpu,
                received,
                thread_shared,
                &ready,
            ),
            DriverKind::Epoll => run(
                EpollDriver::new(),
                EpollDriver::waker,
                cpu,
                received,
                thread_shared,
                &ready,
            ),
        }
    };
    let thread = std::thread::Builder::new().name(format!("worker-{cpu}")).spawn(body)?;
    let waker = readiness.recv().map_err(std::io::Error::other)??;
    Ok(WorkerHandle {
        cpu,
        shared,
        commands,
        waker,
        alive,
        thread: Some(thread),
    })
}

/// Says that a thread has ended, also by panic.
struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn run<D: Driver>(
    driver: std::io::Result<D>,
    waker: impl FnOnce(&D) -> Waker,
    cpu: usize,
    commands: Receiver<Command>,
    shared: Shared,
    ready: &Sender<std::io::Result<Waker>>,
) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        tracing::warn!("the worker for processor {cpu} could not be pinned to it");
    }
    let announced = match driver {
        Ok(driver) => ready.send(Ok(waker(&driver))).map(|()| driver),
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if let Ok(driver) = announced {
        Worker::<D, Connection>::new(driver, commands, shared).run();
    }
}

fn lines<T: std::fmt::Display>(errors: &[T]) -> String {
    errors.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

fn now() -> SystemTime {
    SystemTime::now()
}
