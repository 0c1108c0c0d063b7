//! The gateway's side of key custody: starts signers, watches them, starts them again, and opens keys in them. Belongs to the control
//! thread, which calls [`Custody::tick`]; what workers need of it are channels.

mod key;
mod link;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use self::key::challenge;
pub use self::key::{ExaminedKey, OpenedKey, Trial};
use self::link::{Link, Received};
use crate::launcher::{LauncherProcess, RemoteChild};
use crate::protocol::{
    Breaker, Fault, FaultKind, KeyDescription, KeyNumber, KeyPlace, Order, Report, TokenNumber, TokenStatus,
};
use crate::remote::{Group, GroupSpec, Isolation, KeyHandle, SignerNumber, SignerSpec, Token, TokenSpec};
use crate::sandbox;
use crate::uri::ObjectMatch;

/// A signer that has just been started may take this long to load its module: those of network HSMs connect meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a signer is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// One that has not answered for this long is ended and started again.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before a signer is started again: none after a long life, then this, doubled with each end.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause: what had to be repaired serves again soon after.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(4);

/// A signer that lived this long has not failed at its start.
const LONG_LIFE: Duration = Duration::from_secs(1);

/// How long a signer whose connection was closed may take to end by itself.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A question about keys is answered within a signature's time for each proof, and this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Proofs of one key: RSA has six schemes.
const PROOFS_MAX: u32 = 6;

/// What runs a signer.
#[derive(Debug)]
pub enum Launched {
    /// A process.
    Process(std::process::Child),
    /// A process that another one has started for this one.
    Through(RemoteChild),
    /// A thread of this process, which cannot be ended.
    Thread,
}

impl Launched {
    /// How it has ended; nothing while it runs.
    fn try_wait(&mut self) -> Option<String> {
        match self {
            Launched::Process(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(status.to_string()),
                Err(error) => Some(error.to_string()),
            },
            Launched::Through(child) => child.try_wait().map(str::to_owned),
            Launched::Thread => Some("it is not waited for".to_owned()),
        }
    }

    fn kill(&mut self) {
        match self {
            Launched::Process(child) => {
                // Both fail only when it has ended by itself; a process that is killed does not linger.
                let _ = child.kill();
                let _ = child.wait();
            }
            Launched::Through(child) => child.kill(),
            Launched::Thread => {}
        }
    }
}

/// Starts signers. The descriptor is the signer's end of its control connection.
pub type Launcher = Box<dyn FnMut(&SignerSpec, OwnedFd) -> io::Result<Launched>>;

/// A worker's end of a new channel to a signer. It takes the place of an earlier one to the same signer.
#[derive(Debug)]
pub struct NewChannel {
    /// Position of the worker.
    pub worker: usize,
    /// To whom.
    pub signer: SignerNumber,
    /// A stream socket.
    pub socket: OwnedFd,
}

/// Gives channels to their workers.
pub type Receiver = Box<dyn FnMut(NewChannel)>;

/// See the module.
pub struct Custody {
    launcher: Launcher,
    workers: usize,
    signers: Vec<Signer>,
    groups: Vec<Weak<Group>>,
    groups_made: u32,
    numbers: u32,
    /// Where channels go; `None`: they wait in `channels`.
    receiver: Option<Receiver>,
    channels: Vec<NewChannel>,
    /// Processes whose connection has been closed.
    leaving: Vec<(Launched, Instant)>,
}

struct Signer {
    number: SignerNumber,
    spec: SignerSpec,
    tokens: Vec<(Weak<Token>, TokenNumber)>,
    keys: Vec<(Weak<KeyHandle>, KeyNumber)>,
    life: Life,
    restarts: Arc<AtomicU64>,
    /// Ends in a row that came soon after the start.
    short_lives: u32,
}

enum Life {
    /// Nobody needs it.
    Absent,
    Up(Box<Up>),
    /// It has ended, and is started again then.
    Down {
        until: Instant,
        fault: Fault,
    },
}

struct Up {
    link: Link,
    launched: Launched,
    started: Instant,
    /// What the module says of itself, once it is loaded.
    loaded: Option<String>,
    heard: Instant,
    pinged: Instant,
    keys: HashMap<KeyNumber, Result<KeyDescription, Fault>>,
    certificates: HashMap<u64, Result<Vec<Vec<u8>>, Fault>>,
}

impl Custody {
    /// Nothing is started before a token is asked for.
    #[must_use]
    pub fn new(workers: usize, launcher: Launcher) -> Custody {
        Custody {
            launcher,
            workers,
            signers: Vec::new(),
            groups: Vec::new(),
            groups_made: 0,
            numbers: 0,
            receiver: None,
            channels: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// For programs that have no tokens: none is ever there.
    #[must_use]
    pub fn without_signers() -> Custody {
        Custody::new(0, Box::new(|_, _| Err(io::ErrorKind::Unsupported.into())))
    }

    /// Tokens that have refused their PIN are logged in once more, as a new configuration is about to be loaded: that is the operator's
    /// word that the PIN is right.
    pub fn forgive_pins(&mut self) {
        for token in self.tokens().iter().filter(|token| token.status().pin_refused) {
            // A signer that is not up is told when it is started.
            token.set_status(TokenStatus::default());
            if let Life::Up(up) = &mut self.signers[token.signer.0 as usize].life {
                up.link.send(&order_token(token, true));
            }
        }
    }

    /// Tokens that hold the same keys: those in use, where they are as specified, with their signers started.
    pub fn group(&mut self, spec: &GroupSpec) -> Arc<Group> {
        let known = self.groups.iter().filter_map(Weak::upgrade);
        if let Some(group) = known.into_iter().find(|group| group.spec == *spec) {
            return group;
        }
        let tokens = spec.tokens.iter().map(|token| self.token(token)).collect();
        let group = Arc::new(Group {
            number: self.groups_made,
            spec: spec.clone(),
            tokens,
        });
        self.groups_made += 1;
        self.groups.retain(|group| group.strong_count() > 0);
        self.groups.push(Arc::downgrade(&group));
        group
    }

    fn token(&mut self, spec: &TokenSpec) -> Arc<Token> {
        let now = clock();
        let position = match self.signers.iter().position(|signer| signer.spec == spec.signer) {
            Some(position) => position,
            None => {
                let number = u32::try_from(self.signers.len()).expect("a configuration has fewer than 2^32 modules");
                self.signers
                    .push(Signer::new(SignerNumber(number), spec.signer.clone()));
                self.signers.len() - 1
            }
        };
        let signer = &mut self.signers[position];
        let live = signer.tokens.iter().filter_map(|(token, _)| token.upgrade());
        if let Some(token) = live.into_iter().find(|token| token.spec == *spec) {
            return token;
        }
        self.numbers += 1;
        let number = TokenNumber(self.numbers);
        let token = Arc::new(Token::new(
            spec.clone(),
            number,
            signer.number,
            Arc::clone(&signer.restarts),
        ));
        signer.tokens.push((Arc::downgrade(&token), number));
        match &mut signer.life {
            Life::Up(up) => up.link.send(&order_token(&token, true)),
            Life::Absent => self.start(position, now),
            Life::Down { .. } => {}
        }
        token
    }

    /// Finds a key in a token, and has it prove what it can. Waits for that, while all signers are looked after.
    ///
    /// # Errors
    /// It is not found, or cannot sign with what it should, or what it signed is wrong.
    pub fn open(&mut self, token: &Token, place: &KeyPlace) -> Result<OpenedKey, Fault> {
        let key = self.examine(token, place)?;
        let schemes = key.schemes()?;
        Ok(OpenedKey {
            handle: key.handle,
            public: key.public,
            schemes,
            token: key.token,
        })
    }

    /// Finds a key in a token, and has it try what it should be able to. Waits for that, while all signers are looked after.
    ///
    /// # Errors
    /// It is not found, or is none.
    pub fn examine(&mut self, token: &Token, place: &KeyPlace) -> Result<ExaminedKey, Fault> {
        let handle = self.announce(token, place);
        let description = self.wait(token, |up| up.keys.remove(&handle.number))?;
        ExaminedKey::new(handle, description)
    }

    /// Tells the signer of a key, which it looks for when it is asked for signatures. Whether there is one is not waited for.
    pub fn announce(&mut self, token: &Token, place: &KeyPlace) -> Arc<KeyHandle> {
        self.numbers += 1;
        let number = KeyNumber(self.numbers);
        let handle = Arc::new(KeyHandle {
            number,
            token: token.number,
            place: place.clone(),
        });
        let signer = &mut self.signers[token.signer.0 as usize];
        signer.keys.push((Arc::downgrade(&handle), number));
        if let Life::Up(up) = &mut signer.life {
            up.link.send(&order_key(&handle));
        }
        handle
    }

    /// The certificates in a token that fit, in DER. Waits for them, while all signers are looked after.
    ///
    /// # Errors
    /// There are none, or the token cannot be read.
    pub fn certificates(&mut self, token: &Token, object: &ObjectMatch) -> Result<Vec<Vec<u8>>, Fault> {
        self.numbers += 1;
        let question = u64::from(self.numbers);
        if let Life::Up(up) = &mut self.signers[token.signer.0 as usize].life {
            up.link.send(&Order::Certificates {
                question,
                token: token.number,
                object: object.clone(),
            });
        }
        self.wait(token, |up| up.certificates.remove(&question))
    }

    fn wait<T>(&mut self, token: &Token, answer: impl Fn(&mut Up) -> Option<Result<T, Fault>>) -> Result<T, Fault> {
        let deadline = clock() + ANSWER_TIMEOUT + token.spec.settings.timeout * PROOFS_MAX;
        loop {
            let now = clock();
            self.tick(now);
            match &mut self.signers[token.signer.0 as usize].life {
                Life::Up(up) => {
                    if let Some(answer) = answer(up) {
                        return answer;
                    }
                }
                // It ended before it answered, and may well do so again: the operator hears why.
                Life::Down { fault, .. } => return Err(fault.clone()),
                Life::Absent => return Err(Fault::new(FaultKind::Signer, "a signer that is not needed")),
            }
            if now >= deadline {
                return Err(Fault::new(
                    FaultKind::Timeout,
                    format!(
                        "no answer from the signer within {} s",
                        (ANSWER_TIMEOUT + token.spec.settings.timeout * PROOFS_MAX).as_secs()
                    ),
                ));
            }
            link::wait(self.signers.iter().filter_map(Signer::link), Duration::from_millis(20));
        }
    }

    /// From here on channels go to this, as soon as they are made, those that wait first.
    pub fn deliver_channels(&mut self, mut receiver: Receiver) {
        self.take_channels().into_iter().for_each(&mut receiver);
        self.receiver = Some(receiver);
    }

    /// The workers' ends of channels that nobody has received.
    pub fn take_channels(&mut self) -> Vec<NewChannel> {
        std::mem::take(&mut self.channels)
    }

    /// Tokens that are in use, in the order in which they were asked for first.
    #[must_use]
    pub fn tokens(&self) -> Vec<Arc<Token>> {
        let all = self.signers.iter().flat_map(|signer| &signer.tokens);
        let mut tokens: Vec<Arc<Token>> = all.filter_map(|(token, _)| token.upgrade()).collect();
        tokens.sort_by_key(|token| token.number);
        tokens
    }

    /// Hears what signers say, starts again those that have ended, and ends those that are not needed any more. Never waits. To be
    /// called some twenty times a second for as long as there are signers.
    pub fn tick(&mut self, now: Instant) {
        for position in 0..self.signers.len() {
            self.look_after(position, now);
        }
        self.leaving.retain_mut(|(launched, since)| {
            if now >= *since + LEAVE_TIMEOUT {
                launched.kill();
            }
            launched.try_wait().is_none()
        });
    }

    /// There is something to be looked after.
    #[must_use]
    pub fn has_signers(&self) -> bool {
        let needed = |signer: &Signer| !matches!(signer.life, Life::Absent);
        self.signers.iter().any(needed) || !self.leaving.is_empty()
    }

    fn look_after(&mut self, position: usize, now: Instant) {
        let signer = &mut self.signers[position];
        signer.forget_unused();
        if signer.tokens.is_empty() {
            if let Life::Up(up) = std::mem::replace(&mut signer.life, Life::Absent) {
                self.leaving.push((up.launched, now));
            }
            return;
        }
        match &mut signer.life {
            Life::Absent => self.start(position, now),
            Life::Down { until, .. } if *until <= now => {
                signer.restarts.fetch_add(1, Ordering::Relaxed);
                self.start(position, now);
            }
            Life::Down { .. } => {}
            Life::Up(_) => {
                if let Err(fault) = signer.hear(now) {
                    signer.end(fault, now);
                    // After a long life there is no pause.
                    if matches!(signer.life, Life::Down { until, .. } if until <= now) {
                        self.look_after(position, now);
                    }
                }
            }
        }
    }

    fn start(&mut self, position: usize, now: Instant) {
        let signer = &mut self.signers[position];
        match signer.start(&mut self.launcher, self.workers, now) {
            Ok(channels) => {
                let replaced = |channel: &NewChannel| channel.signer == signer.number;
                self.channels.retain(|channel| !replaced(channel));
                match &mut self.receiver {
                    Some(receiver) => channels.into_iter().for_each(receiver),
                    None => self.channels.extend(channels),
                }
            }
            Err(error) => {
                let found = format!("a signer that cannot be started ({error})");
                signer.end(Fault::new(FaultKind::Signer, found), now);
            }
        }
    }
}

impl Drop for Custody {
    /// Signers end when their connections do. Those that do not within a short time are ended.
    fn drop(&mut self) {
        // None is left that might be started again: tokens may still be in use.
        for signer in self.signers.drain(..) {
            if let Life::Up(up) = signer.life {
                self.leaving.push((up.launched, clock()));
            }
        }
        while !self.leaving.is_empty() {
            self.tick(clock());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Signer {
    fn new(number: SignerNumber, spec: SignerSpec) -> Signer {
        Signer {
            number,
            spec,
            tokens: Vec::new(),
            keys: Vec::new(),
            life: Life::Absent,
            restarts: Arc::default(),
            short_lives: 0,
        }
    }

    fn link(&self) -> Option<&Link> {
        match &self.life {
            Life::Up(up) => Some(&up.link),
            Life::Absent | Life::Down { .. } => None,
        }
    }

    /// For people.
    fn name(&self) -> String {
        match &self.spec.module {
            Some(module) => format!("the signer of {}", module.display()),
            None => "the signer of keys in files".to_owned(),
        }
    }

    /// Starts it, and tells it everything at once: it obeys in order, and requests on its channels wait meanwhile.
    fn start(&mut self, launcher: &mut Launcher, workers: usize, now: Instant) -> io::Result<Vec<NewChannel>> {
        let (mut link, theirs) = Link::pair()?;
        link.send(&Order::Load {
            module: self.spec.module.clone(),
            sandbox: self.spec.sandbox,
        });
        for token in self.tokens.iter().filter_map(|(token, _)| token.upgrade()) {
            link.send(&order_token(&token, !token.status().pin_refused));
        }
        for key in self.keys.iter().filter_map(|(key, _)| key.upgrade()) {
            link.send(&order_key(&key));
        }
        let mut channels = Vec::new();
        for worker in 0..workers {
            let (socket, theirs) = link::channel()?;
            link.send_with(&Order::Channel, theirs);
            channels.push(NewChannel {
                worker,
                signer: self.number,
                socket,
            });
        }
        let launched = launcher(&self.spec, theirs)?;
        self.life = Life::Up(Box::new(Up {
            link,
            launched,
            started: now,
            loaded: None,
            heard: now,
            pinged: now,
            keys: HashMap::new(),
            certificates: HashMap::new(),
        }));
        Ok(channels)
    }

    /// Tells it what is not needed any more.
    fn forget_unused(&mut self) {
        let mut orders = Vec::new();
        self.keys.retain(|(key, number)| {
            let used = key.strong_count() > 0;
            if !used {
                orders.push(Order::Forget(*number));
            }
            used
        });
        self.tokens.retain(|(token, number)| {
            let used = token.strong_count() > 0;
            if !used {
                orders.push(Order::Close(*number));
            }
            used
        });
        if let Life::Up(up) = &mut self.life {
            for order in orders {
                up.link.send(&order);
            }
        }
    }

    /// Takes what it has said. An error: it is not to be waited for any longer.
    fn hear(&mut self, now: Instant) -> Result<(), Fault> {
        let Life::Up(up) = &mut self.life else { return Ok(()) };
        let received = up.link.receive();
        loop {
            let report = match up.link.next_report() {
                Ok(Some(report)) => report,
                Ok(None) => break,
                Err(garbled) => {
                    return Err(Fault::new(FaultKind::Signer, format!("{garbled} from the signer")));
                }
            };
            up.heard = now;
            match report {
                Report::Loaded(Ok(description)) => {
                    let module = self.spec.module.as_deref();
                    let module = module.map_or("none", |path| path.to_str().unwrap_or_default());
                    tracing::info!(module, description, isolation = ?self.spec.isolation, "signer started");
                    up.loaded = Some(description);
                }
                Report::Loaded(Err(fault)) => return Err(fault),
                Report::Key { key, found } => {
                    if self.keys.iter().any(|(_, number)| *number == key) {
                        up.keys.insert(key, found);
                    }
                }
                Report::Certificates { question, found } => {
                    up.certificates.insert(question, found);
                }
                Report::Status { token, status } => {
                    let told = self.tokens.iter().find(|(_, number)| *number == token);
                    if let Some(token) = told.and_then(|(token, _)| token.upgrade()) {
                        note_change(&token, &status);
                        token.set_status(status);
                    }
                }
                Report::Pong(_) => {}
            }
        }
        if let Received::End = received {
            return Err(Fault::new(FaultKind::Signer, up.last_words()));
        }
        up.link.flush();
        if now >= up.pinged + PING_INTERVAL {
            up.pinged = now;
            up.link.send(&Order::Ping(0));
        }
        let patience = if up.loaded.is_some() {
            PING_TIMEOUT
        } else {
            START_TIMEOUT
        };
        if now >= up.heard + patience {
            let found = format!("no sign of life from the signer for {} s", patience.as_secs());
            return Err(Fault::new(FaultKind::Signer, found));
        }
        Ok(())
    }

    /// Whatever is left of it is ended, and when it is started again is decided.
    fn end(&mut self, fault: Fault, now: Instant) {
        let lived = match std::mem::replace(&mut self.life, Life::Absent) {
            Life::Up(mut up) => {
                up.launched.kill();
                now.saturating_duration_since(up.started)
            }
            Life::Absent | Life::Down { .. } => Duration::ZERO,
        };
        let pause = if lived >= LONG_LIFE {
            self.short_lives = 0;
            Duration::ZERO
        } else {
            self.short_lives += 1;
            (RESTART_PAUSE_MIN * 2u32.pow((self.short_lives - 1).min(16))).min(RESTART_PAUSE_MAX)
        };
        let pause_ms = pause.as_millis() as u64;
        tracing::error!(pause_ms, why = %fault, "{} has ended and is started again", self.name());
        for token in self.tokens.iter().filter_map(|(token, _)| token.upgrade()) {
            let TokenStatus {
                pin_refused, errors, ..
            } = token.status();
            token.set_status(TokenStatus {
                breaker: Breaker::Open,
                pin_refused,
                errors,
                trouble: Some(fault.found.clone()),
                ..TokenStatus::default()
            });
        }
        self.life = Life::Down {
            until: now + pause,
            fault,
        };
    }
}

impl Up {
    /// How it ended.
    fn last_words(&mut self) -> String {
        if let Launched::Thread = self.launched {
            return "a signer that has ended".to_owned();
        }
        // The connection ends a little before the process does.
        for _ in 0..50 {
            if let Some(how) = self.launched.try_wait() {
                return format!("a signer that has ended ({how})");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        "a signer that has closed its connection".to_owned()
    }
}

fn note_change(token: &Token, status: &TokenStatus) {
    let before = token.status();
    let name = &token.spec.name;
    match (before.breaker, status.breaker) {
        (Breaker::Open | Breaker::HalfOpen, Breaker::Closed) => {
            tracing::info!(token = name, sessions = status.sessions, "token is in use");
        }
        (Breaker::Closed | Breaker::HalfOpen, Breaker::Open) => {
            let why = status.trouble.as_deref().unwrap_or("not told");
            tracing::error!(token = name, why, "token cannot be used");
        }
        (Breaker::Open, Breaker::Open) if before.trouble != status.trouble && status.trouble.is_some() => {
            let why = status.trouble.as_deref().unwrap_or_default();
            tracing::warn!(token = name, why, "token still cannot be used");
        }
        (_, Breaker::Closed | Breaker::HalfOpen | Breaker::Open) => {}
    }
}

fn order_token(token: &Token, login: bool) -> Order {
    let mut settings = token.spec.settings.clone();
    settings.login = login;
    Order::Token {
        token: token.number,
        settings,
    }
}

fn order_key(key: &KeyHandle) -> Order {
    Order::Key {
        key: key.number,
        token: key.token,
        place: key.place.clone(),
        challenge: challenge(key.number),
    }
}

fn clock() -> Instant {
    Instant::now()
}

/// Starts signers as `ringlock signer`, or on threads of this process.
#[must_use]
pub fn launcher(on_thread: fn(OwnedFd)) -> Launcher {
    // Now, while this process may still be root.
    sandbox::allow_locked_memory();
    Box::new(move |spec, control| match spec.isolation {
        Isolation::Thread => on_a_thread(on_thread, control),
        Isolation::Process => {
            let mut command = std::process::Command::new("/proc/self/exe");
            command.arg("signer");
            if let Some(user) = &spec.user {
                command.arg("--user").arg(user);
            }
            command
                .args(&spec.module)
                .stdin(control)
                .stdout(std::process::Stdio::null());
            command.spawn().map(Launched::Process)
        }
    })
}

/// The same, by way of a process: this one may give up starting programs.
#[must_use]
pub fn launcher_through(process: LauncherProcess, on_thread: fn(OwnedFd)) -> Launcher {
    let process = Rc::new(process);
    Box::new(move |spec, control| match spec.isolation {
        Isolation::Thread => on_a_thread(on_thread, control),
        Isolation::Process => {
            let child = process.launch(spec.user.clone(), spec.module.clone(), control)?;
            Ok(Launched::Through(child))
        }
    })
}

fn on_a_thread(body: fn(OwnedFd), control: OwnedFd) -> io::Result<Launched> {
    std::thread::Builder::new()
        .name("signer".into())
        .spawn(move || body(control))?;
    Ok(Launched::Thread)
}
