//! The gateway as a whole: binds, drops privileges, starts the workers, hands them snapshots, joins them.

pub mod confine;
mod expiry;
pub mod host;
mod links;
mod listen;
mod stamp;
pub mod ticket_secret;
mod watch;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::ArrayQueue;
use ringlock_hsm::custody::{Custody, Launcher};

use self::confine::{ConfineError, Confinement};
use self::expiry::Expiries;
use self::host::{DriverKind, Equipment, Plan};
pub use self::listen::Inherited;
use self::ticket_secret::TicketSecrets;
use self::watch::{Seen, Watch};
use crate::config::{Config, Problem, Problems};
use crate::control::certs::{InForce, Inventory, LastReload};
use crate::control::log::{Collector, LinesLost, Logging};
use crate::control::metrics::{
    self, CertificateView, CrlView, KeyGroupView, Reloads, ServerView, SessionCacheView, TokenView, Trigger,
    UpstreamView, View, WorkerView,
};
use crate::control::ocsp::Stapler;
use crate::control::{Condition, Service};
use crate::limits::{CERTIFICATE_NAMES_SHOWN_MAX, CUSTODY_INTERVAL, FOLDER_MESSAGES_MAX, LOG_QUEUE_RECORDS};
use crate::metrics::WorkerMetrics;
use crate::net::Waker;
use crate::net::driver::Driver;
use crate::net::epoll::EpollDriver;
use crate::net::uring::UringDriver;
use crate::snapshot::{Renewal, Snapshot};
use crate::timestamp::Timestamp;
use crate::tls::handshake::Connection;
use crate::worker::{Bound, Command, Shared, Worker};

/// Changed files that a log line names.
const FILES_TOLD: usize = 4;

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
    let seen = seen(&config);
    let snapshot = Snapshot::load(config, workers, None, &mut custody);
    match (plan, snapshot, ticket_secret) {
        (Ok(plan), Ok(snapshot), Ok(ticket_secret)) => Ok(Loaded {
            plan,
            snapshot,
            custody,
            ticket_secret,
            seen,
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
    /// Files that are to be watched, as they were before they were read.
    seen: Seen,
}

/// See the module.
pub struct Server {
    loader: Loader,
    plan: Plan,
    custody: Custody,
    ticket_secrets: TicketSecrets,
    stapler: Stapler,
    watch: Watch,
    /// Whom signers can become besides the gateway's user.
    users_of_signers: Vec<String>,
    snapshot: Arc<Snapshot>,
    /// When it was put in force.
    loaded_at: Timestamp,
    /// Its certificates, for metrics.
    certificates: Arc<[CertificateView]>,
    expiries: Expiries,
    last_reload: Option<LastReload>,
    /// Earlier ones that sessions still use. They end here, not in a worker: letting go of thousands of certificates takes its time.
    retired: Vec<Arc<Snapshot>>,
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
    reloads: Reloads,
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
            seen,
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
        let mut watch = Watch::new(Instant::now());
        watch.follow(seen, Instant::now());
        let started = now();
        let mut server = Server {
            loader,
            plan,
            custody,
            ticket_secrets,
            stapler: Stapler::new(&snapshot.config.global.stapling),
            watch,
            users_of_signers: host::users_of_signers(&snapshot.config),
            loaded_at: Timestamp::now(),
            certificates: certificates(&snapshot),
            // `run` tells every warning of the snapshot that it starts with.
            expiries: Expiries::told(&snapshot, Timestamp::now().0),
            last_reload: None,
            snapshot: Arc::clone(&snapshot),
            retired: Vec::new(),
            workers: Vec::new(),
            bound: Vec::new(),
            inherited,
            collector: None,
            lines_lost: logging.lines_lost(),
            confinement,
            started,
            draining: false,
            reloads: Reloads::new(started),
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
        let seen = seen(&config);
        let out_of_reach = self.confinement.links_out_of_reach(&config);
        let snapshot = Snapshot::load(config, workers, Some(&self.snapshot), &mut self.custody);
        let snapshot = snapshot.map_err(|problems| lines(&[out_of_reach, problems].concat()))?;
        for warning in snapshot.warnings(Timestamp::now().0) {
            tracing::warn!("{warning}");
        }
        self.put_in_force(snapshot, Some(ticket_secret))?;
        // Every warning has just been told.
        self.expiries.note(&self.snapshot, self.loaded_at.0);
        self.watch.follow(seen, Instant::now());
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

    /// New connections are served by this snapshot from now on; those that are open keep theirs.
    fn put_in_force(&mut self, snapshot: Snapshot, ticket_secret: Option<ticket_secret::Loaded>) -> Result<(), String> {
        let workers = self.plan.cpus.len();
        let sockets =
            bind_new(&snapshot, &self.bound, workers, &self.inherited).map_err(|problems| lines(&problems))?;
        if let Some(ticket_secret) = ticket_secret {
            self.ticket_secrets
                .reload(&snapshot.config.tickets, ticket_secret)
                .map_err(|error| StartError::Memory(error).to_string())?;
        }
        self.retired.push(Arc::clone(&self.snapshot));
        self.stapler.adopt(&snapshot);
        self.serve(Arc::new(snapshot), sockets);
        self.loaded_at = Timestamp::now();
        self.certificates = certificates(&self.snapshot);
        Ok(())
    }

    /// Loads again what these files belong to. What they have made unusable stays as it was.
    fn renew(&mut self, changed: &BTreeSet<PathBuf>, at: Instant) {
        let began = Instant::now();
        let Renewal { snapshot, failures } = self.snapshot.renew(changed, &mut self.custody);
        let usable = failures.is_empty();
        let verdict = self.watch.loaded(changed, failures, at);
        for what in verdict.not_yet.iter().take(FOLDER_MESSAGES_MAX) {
            tracing::info!(
                what,
                "a changed file cannot be used yet, the old one stays in use; perhaps more of them are about to change"
            );
        }
        if !verdict.alarms.is_empty() {
            // A folder that was made anew is out of reach, and what cannot be read does not say that.
            let config = &self.snapshot.config;
            let mut problems = self.confinement.check(config).err().unwrap_or_default();
            problems.extend(self.confinement.links_out_of_reach(config));
            if !problems.is_empty() {
                tracing::error!(why = lines(&problems), "files are out of reach");
            }
        }
        for (told, why) in verdict.alarms.iter().enumerate() {
            if told < FOLDER_MESSAGES_MAX {
                tracing::error!(why, "a changed file cannot be used, the old one stays in use");
            }
            self.reloads.count(Trigger::File, false, false, now());
        }
        if !verdict.alarms.is_empty() {
            self.last_reload = Some(LastReload::new(Trigger::File, Some(&lines(&verdict.alarms))));
        }
        let Some(snapshot) = snapshot else {
            // What was wrong is as it was before, which is still in use.
            if usable && !self.reloads.is_good() && !self.watch.is_in_trouble() {
                self.reloads.count(Trigger::File, true, true, now());
                self.last_reload = Some(LastReload::new(Trigger::File, None));
                tracing::info!("changed files are again what is in use");
            }
            return;
        };
        match self.put_in_force(snapshot, None) {
            Ok(()) => {
                let good = !self.watch.is_in_trouble();
                self.reloads.count(Trigger::File, true, good, now());
                if good {
                    self.last_reload = Some(LastReload::new(Trigger::File, None));
                }
                self.expiries.look_again();
                let files: Vec<String> = changed
                    .iter()
                    .take(FILES_TOLD)
                    .map(|file| file.display().to_string())
                    .collect();
                tracing::info!(
                    epoch = self.snapshot.epoch,
                    changed = changed.len(),
                    files = files.join(", "),
                    took_ms = began.elapsed().as_millis() as u64,
                    "changed files are in use"
                );
            }
            Err(why) => {
                self.last_reload = Some(LastReload::new(Trigger::File, Some(&why)));
                tracing::error!(why, "changed files cannot be put in use");
                self.reloads.count(Trigger::File, false, false, now());
            }
        }
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
        let crl = |(listener, list): (&str, &crate::identity::client_auth::RevocationList)| CrlView {
            listener: listener.to_owned(),
            file: list.source.clone(),
            issuer: list.issuer.clone(),
            this_update_unix: list.this_update,
            next_update_unix: list.next_update,
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
                usage: listener.session_cache()?.usage(),
            })
        };
        let connections = |snapshot: &Arc<Snapshot>| {
            let workers = snapshot.connections.iter();
            (snapshot.epoch, workers.map(|counter| counter.value()).sum())
        };
        View {
            workers: self.workers.iter().map(worker).collect(),
            upstreams: self.snapshot.upstreams.iter().map(upstream).collect(),
            certificates: Arc::clone(&self.certificates),
            crls: self.snapshot.revocation_lists().map(crl).collect(),
            stapling: self.stapler.view(),
            key_groups: self.snapshot.key_groups.iter().map(key_group).collect(),
            tokens: self.custody.tokens().iter().map(token).collect(),
            tickets: self.snapshot.tickets.in_use(),
            session_caches: self.snapshot.listeners.iter().filter_map(session_cache).collect(),
            epoch: self.snapshot.epoch,
            connections_by_epoch: self.retired.iter().chain([&self.snapshot]).map(connections).collect(),
            reloads: self.reloads.clone(),
            log_lines_lost: self.lines_lost.value(),
            confinement: self.confinement.in_force(),
            started: self.started,
        }
    }

    fn certificates(&self, within: Option<Duration>) -> InForce {
        let mut inventory = Inventory::of_snapshot(&self.snapshot, &self.stapler.view(), Timestamp::now().0, within);
        if within.is_some() {
            inventory.keep_due();
        }
        inventory.limit(CERTIFICATE_NAMES_SHOWN_MAX);
        InForce {
            epoch: self.snapshot.epoch,
            loaded_at: self.loaded_at,
            last_reload: self.last_reload.clone(),
            inventory,
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
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let changed = self.watch.tick(now);
        if !changed.is_empty() && !self.draining {
            self.renew(&changed, now);
        }
        self.expiries.warn(&self.snapshot, Timestamp::now().0);
        let files = self.watch.due().map(|due| due.saturating_duration_since(now));
        [custody, files].into_iter().flatten().chain([tickets, stapler]).min()
    }

    fn hints(&self) -> Option<BorrowedFd<'_>> {
        self.watch.hints()
    }

    fn hinted(&mut self, now: Instant) {
        self.watch.hinted(now);
    }

    fn reload(&mut self) -> Result<String, String> {
        let result = self.try_reload();
        let good = result.is_ok();
        self.reloads.count(Trigger::Signal, good, good, now());
        self.last_reload = Some(LastReload::new(
            Trigger::Signal,
            result.as_ref().err().map(String::as_str),
        ));
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

fn certificates(snapshot: &Snapshot) -> Arc<[CertificateView]> {
    let certificate = |identity: &Arc<crate::identity::Identity>| {
        let leaf = identity.facts.leaf();
        CertificateView {
            identity: identity.name.to_string(),
            not_before_unix: leaf.not_before,
            not_after_unix: leaf.not_after,
            serial: leaf.serial.clone(),
        }
    };
    snapshot.identities.iter().map(certificate).collect()
}

/// The files that a configuration has watched, as they are before they are read.
fn seen(config: &Config) -> Seen {
    let files = config.global.watch_files.then(|| Snapshot::files(config));
    Seen::now(files.unwrap_or_default())
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
