//! The control side, on the main thread: signals, reload, drain, the admin server, systemd. Nothing here touches a
//! connection, so an asynchronous runtime with one thread is welcome here, and here only.

pub mod admin;
pub mod certs;
pub mod demo;
pub mod hardware;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod ocsp;
pub mod profile;
pub mod table;

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::admin::{Admin, Readiness, Sources, Status};
use self::certs::InForce;
use self::log::Logging;
use self::metrics::View;
use self::profile::Signalled;
use crate::limits::FILES_HINTS_INTERVAL;

/// What the control side controls: the gateway with its workers.
pub trait Service {
    /// Counters and names, for whoever looks.
    fn view(&self) -> View;

    /// The certificates in force. What ends `within` this time is expiring, and only that is told; without one everything.
    fn certificates(&self, within: Option<Duration>) -> InForce;

    /// What it is doing now. Asked at least once a second, fifty times while it starts or drains.
    fn condition(&self) -> Condition;

    /// Looks after what needs it, and says when it wants to be called again, if that is sooner than once a second.
    fn tick(&mut self, now: Instant) -> Option<Duration>;

    /// What the kernel tells of files: something to read, whose content does not matter, is to be answered by [`Service::hinted`].
    fn hints(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Files may have changed.
    fn hinted(&mut self, _now: Instant) {}

    /// Loads the configuration again and puts it in force; returns what changed in one line.
    ///
    /// # Errors
    ///
    /// Why not, for the operator. What was in force then still is.
    fn reload(&mut self) -> Result<String, String>;

    /// Stops accepting; connections that are open go on.
    fn drain(&mut self);

    /// How long a drain may take.
    fn drain_timeout(&self) -> Duration;

    /// Ends every connection that is still open, and returns when the workers have ended. Called exactly once, last.
    fn stop_now(&mut self);
}

/// What a [`Service`] is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Some worker does not accept connections yet.
    Starting,
    /// Connections are accepted or, after [`Service::drain`], finished.
    Running,
    /// Drained: no connection is open, and none will be.
    Finished,
    /// It cannot go on: a worker has ended.
    Failed(String),
}

/// Runs the service until a signal or a failure ends it. SIGTERM and SIGINT drain, a second one ends at once; SIGHUP
/// reloads; SIGUSR1 reopens the log file; SIGUSR2 begins and ends a profile. The exit code tells a failure of the service from an orderly end.
///
/// # Errors
///
/// When the runtime or a signal handler cannot be set up. The service is stopped then, too.
pub fn run<S: Service + 'static>(mut service: S, admin: Option<Admin>, logging: &mut Logging) -> io::Result<ExitCode> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            service.stop_now();
            return Err(error);
        }
    };
    let control = Rc::new(RefCell::new(Control::new(service)));
    let ended = tokio::task::LocalSet::new().block_on(&runtime, supervise(&control, admin, logging));
    notify(&[NotifyState::Stopping]);
    control.borrow_mut().service.stop_now();
    // Without waiting for names that are being looked up.
    runtime.shutdown_background();
    ended
}

/// How often the service is asked for its condition when nothing is expected to change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// And while it starts or drains.
const CHANGE_INTERVAL: Duration = Duration::from_millis(20);

async fn supervise<S: Service + 'static>(
    control: &Rc<RefCell<Control<S>>>,
    admin: Option<Admin>,
    logging: &mut Logging,
) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let mut profile = signal(SignalKind::user_defined2())?;
    if let Some(admin) = admin {
        tracing::info!("admin server listens on {admin}");
        let (status, certificates) = (Rc::clone(control), Rc::clone(control));
        let sources = Sources {
            status: Box::new(move || status.borrow().status()),
            certificates: Box::new(move |within| certificates.borrow().service.certificates(within)),
        };
        tokio::task::spawn_local(async move {
            if let Err(error) = admin.serve(Rc::new(sources)).await {
                tracing::error!(error = %error, "the admin server ended");
            }
        });
    }
    let hints = control.borrow().service.hints().map(|fd| fd.try_clone_to_owned());
    // It is no pipe, and is read like one.
    let hints = hints.transpose()?.map(pipe::Receiver::from_owned_fd_unchecked);
    let hints = hints.transpose()?;
    let mut hinted = false;
    let mut profiles = Signalled::new(logging.file());
    // Half of what systemd asks for, as its manual advises.
    let watchdog = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
    loop {
        let mut pause = control.borrow().pause(watchdog);
        if hinted {
            // Of many hints one is enough: this thread does not wake up for each of them.
            pause = pause.min(FILES_HINTS_INTERVAL);
        }
        let event = tokio::select! {
            event = ask_for(&mut terminate, Event::Stop) => event,
            event = ask_for(&mut interrupt, Event::Stop) => event,
            event = ask_for(&mut hangup, Event::Reload) => event,
            event = ask_for(&mut reopen, Event::ReopenLog) => event,
            event = ask_for(&mut profile, Event::Profile) => event,
            event = hint(hints.as_ref()), if !hinted => event,
            () = tokio::time::sleep(pause) => Event::Tick,
        };
        hinted = matches!(event, Event::Hint);
        if matches!(event, Event::ReopenLog) {
            match logging.reopen() {
                Ok(()) => tracing::info!("log file reopened"),
                Err(error) => tracing::error!(error = %error, "the log file stays the old one"),
            }
        }
        if matches!(event, Event::Profile) {
            profiles.toggle();
        }
        profiles.end_if_overdue();
        // No await below: the borrow ends before the admin server can ask.
        if let Some(code) = control.borrow_mut().handle(event, Instant::now()) {
            return Ok(code);
        }
        if watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

async fn ask_for(signal: &mut Signal, event: Event) -> Event {
    match signal.recv().await {
        Some(()) => event,
        // The runtime has gone, and this future with it.
        None => std::future::pending().await,
    }
}

async fn hint(hints: Option<&pipe::Receiver>) -> Event {
    if let Some(hints) = hints {
        while hints.readable().await.is_ok() {
            match hints.try_read(&mut [0; 4096]) {
                Ok(_) => return Event::Hint,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
    std::future::pending().await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    ReopenLog,
    /// SIGUSR2.
    Profile,
    /// Files of the service may have changed.
    Hint,
    /// Time to look at the service.
    Tick,
}

/// The life of the process as a state machine: events and the time in, calls to the service and an exit code out.
struct Control<S> {
    service: S,
    phase: Phase,
    /// As the service asked for.
    tick: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not all workers accept yet.
    Starting,
    /// All do, and systemd has been told.
    Serving,
    /// [`Service::drain`] has been called.
    Draining {
        /// When patience ends.
        deadline: Instant,
    },
}

impl<S: Service> Control<S> {
    fn new(service: S) -> Control<S> {
        Control {
            service,
            phase: Phase::Starting,
            tick: Some(Duration::ZERO),
        }
    }

    fn status(&self) -> Status {
        let readiness = match (self.service.condition(), self.phase) {
            (Condition::Failed(why), _) => Readiness::Failed(why),
            (_, Phase::Draining { .. }) | (Condition::Finished, _) => Readiness::Draining,
            (Condition::Starting, _) | (_, Phase::Starting) => Readiness::Starting,
            (Condition::Running, Phase::Serving) => Readiness::Serving,
        };
        Status {
            readiness,
            view: self.service.view(),
        }
    }

    /// How long to wait for a signal before the next [`Event::Tick`].
    fn pause(&self, watchdog: Option<Duration>) -> Duration {
        let interval = match self.phase {
            Phase::Starting | Phase::Draining { .. } => CHANGE_INTERVAL,
            Phase::Serving => WATCH_INTERVAL,
        };
        [watchdog, self.tick]
            .into_iter()
            .flatten()
            .fold(interval, Duration::min)
    }

    /// `Some` when the process should end: the service is then still to be stopped.
    fn handle(&mut self, event: Event, now: Instant) -> Option<ExitCode> {
        match event {
            Event::Stop => return self.stop(now),
            Event::Reload => self.reload(),
            Event::Hint => self.service.hinted(now),
            Event::ReopenLog | Event::Profile | Event::Tick => {}
        }
        self.tick = self.service.tick(now);
        self.look(now)
    }

    fn stop(&mut self, now: Instant) -> Option<ExitCode> {
        match self.phase {
            Phase::Starting | Phase::Serving => {
                let timeout = self.service.drain_timeout();
                let open = self.open_connections();
                tracing::info!(open, timeout_ms = timeout.as_millis() as u64, "draining");
                notify(&[
                    NotifyState::Stopping,
                    NotifyState::Status(&format!("draining {open} connections")),
                ]);
                self.service.drain();
                self.phase = Phase::Draining {
                    deadline: now + timeout,
                };
                None
            }
            Phase::Draining { .. } => {
                tracing::warn!(open = self.open_connections(), "asked to stop again: ending at once");
                Some(ExitCode::SUCCESS)
            }
        }
    }

    fn reload(&mut self) {
        if let Phase::Draining { .. } = self.phase {
            tracing::warn!("not reloading: draining");
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(error = %error, "no monotonic clock for systemd"),
        }
        let status = match self.service.reload() {
            Ok(changed) => {
                tracing::info!(changed, "configuration reloaded");
                "serving; reloaded".to_owned()
            }
            Err(why) => {
                tracing::error!(why, "the configuration was not reloaded, the old one stays in force");
                format!("serving; the last reload failed: {why}")
            }
        };
        // A line end would begin another assignment.
        notify(&[NotifyState::Ready, NotifyState::Status(&status.replace('\n', " "))]);
    }

    fn look(&mut self, now: Instant) -> Option<ExitCode> {
        match (self.service.condition(), self.phase) {
            (Condition::Failed(why), _) => {
                tracing::error!(why, "the gateway cannot go on");
                notify(&[NotifyState::Status(&format!("failed: {}", why.replace('\n', " ")))]);
                Some(ExitCode::FAILURE)
            }
            (Condition::Finished, _) => {
                tracing::info!("drained");
                Some(ExitCode::SUCCESS)
            }
            (_, Phase::Draining { deadline }) if now >= deadline => {
                let open = self.open_connections();
                tracing::warn!(open, "drain_timeout has passed: ending what is still open");
                Some(ExitCode::SUCCESS)
            }
            (Condition::Running, Phase::Starting) => {
                self.phase = Phase::Serving;
                let workers = self.service.view().workers.len();
                tracing::info!(workers, "serving");
                notify(&[
                    NotifyState::Ready,
                    NotifyState::Status(&format!("serving with {workers} workers")),
                ]);
                None
            }
            (Condition::Starting | Condition::Running, _) => None,
        }
    }

    fn open_connections(&self) -> u64 {
        self.service
            .view()
            .workers
            .iter()
            .map(|worker| worker.metrics.live.value())
            .sum()
    }
}

/// Tells systemd, where it listens. Nothing depends on the answer.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(error = %error, "systemd was not notified");
    }
}

#[cfg(test)]
mod tests;
