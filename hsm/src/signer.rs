//! The signer: obeys the orders of a control connection and serves the channels of workers. A process of its own
//! (`ringlock signer`), or a thread of the gateway.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, RwLock, RwLockWriteGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::User;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, SendFlags, send};
use rustix::process::{Pid, getpid, getppid};
use rustls::SignatureScheme;

use crate::channel::{Channel, Received, Reply};
use crate::loaded::{End, Loaded};
use crate::passing::{self, DESCRIPTORS_MAX};
use crate::pkcs11::Pkcs11Module;
use crate::pool::{Inquiry, Pool};
use crate::protocol::{
    self, Fault, FaultKind, Garbled, KeyNumber, MESSAGE_BYTES_MAX, Order, Reader, Refusal, Report, TokenNumber,
    TokenStatus,
};
use crate::queue::Job;
use crate::remote::Isolation;
use crate::sandbox;
use crate::seat::Key;
use crate::token::Module;

/// How the process ends when calls into the module hang.
pub const HUNG_EXIT_CODE: u8 = 75;

/// What TLS signs is at most some 200 bytes long, a certificate request a few thousand.
const SIGNED_BYTES_MAX: usize = 16 * 1024;

/// Every token's status is told this often, also when nothing has changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a module is kept by threads that leave.
const UNLOAD_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a signer has ended, other than by the end of its control connection.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// Somebody started it by hand.
    #[error(
        "found no connection with the gateway on standard input: this command is a part of ringlock that it starts by itself; use `ringlock run`"
    )]
    NoConnection,
    /// The control connection, or a channel, is not the gateway's.
    #[error(
        "found a connection of process {found}, expected one of the gateway (process {expected}), which starts this command by itself"
    )]
    Stranger {
        /// Who made it.
        found: i32,
        /// Who would be right.
        expected: i32,
    },
    /// It cannot become the user.
    #[error("found that it cannot become user \"{0}\" ({1}), expected to be started as root or as that user")]
    User(String, String),
    /// A system call has failed.
    #[error("{0} failed ({1})")]
    Call(&'static str, Errno),
    /// The process cannot be protected.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    /// An order that is none, or comes at the wrong time.
    #[error("found an order that does not belong here ({0}): gateway and signer are not of the same version")]
    Order(&'static str),
    /// What was ordered could not be loaded.
    #[error("found {0}")]
    Load(Fault),
    /// Calls hang, and nothing but a new process helps.
    #[error("found {0}: it ends, to be started again")]
    Hung(String),
    /// A defect of ours or the module's.
    #[error("a thread has panicked")]
    Panicked,
}

impl From<Garbled> for SignerError {
    fn from(_: Garbled) -> SignerError {
        SignerError::Order("bytes that are no message")
    }
}

/// The command `ringlock signer`: becomes the user, gives up what it does not need, and serves its standard input. `gateway` is the
/// process that it belongs to, when another one has started it.
#[must_use]
pub fn main(user: Option<&str>, gateway: Option<u32>) -> ExitCode {
    match run(user, gateway) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            match error {
                SignerError::Hung(_) => ExitCode::from(HUNG_EXIT_CODE),
                SignerError::NoConnection
                | SignerError::Stranger { .. }
                | SignerError::User(..)
                | SignerError::Call(..)
                | SignerError::Sandbox(_)
                | SignerError::Order(_)
                | SignerError::Load(_)
                | SignerError::Panicked => ExitCode::FAILURE,
            }
        }
    }
}

fn run(user: Option<&str>, gateway: Option<u32>) -> Result<(), SignerError> {
    let control = take_standard_input()?;
    let gateway = gateway_of(&control, gateway)?;
    if let Some(user) = user {
        sandbox::allow_locked_memory();
        become_user(user).map_err(|error| SignerError::User(user.to_owned(), error))?;
    }
    leave_signals_to_the_gateway();
    // Started as /proc/self/exe, it would be called "exe". Fails for no name of up to 15 bytes.
    let _ = rustix::thread::set_name(c"ringlock-signer");
    sandbox::keep_to_itself()?;
    if let Err(why) = sandbox::lock_memory() {
        complain(&why);
    }
    serve_gateway(gateway, control, Isolation::Process, load)
}

/// The control connection. What a module finds on standard input afterwards is nothing.
pub(crate) fn take_standard_input() -> Result<OwnedFd, SignerError> {
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|_| SignerError::NoConnection)?;
    socket_peercred(&control).map_err(|_| SignerError::NoConnection)?;
    let nothing = std::fs::File::open("/dev/null").map_err(|_| SignerError::NoConnection)?;
    rustix::stdio::dup2_stdin(&nothing).map_err(|error| SignerError::Call("dup2", error))?;
    Ok(control)
}

pub(crate) fn become_user(name: &str) -> Result<(), String> {
    let user = User::from_name(name).map_err(|error| error.to_string())?;
    let user = user.ok_or("there is no such user")?;
    sandbox::become_user(&user, None).map_err(|error| error.to_string())
}

/// Terminals and service managers signal the whole group. The gateway decides what becomes of that, and closes the connection when
/// the signer is to end.
pub(crate) fn leave_signals_to_the_gateway() {
    let signals = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ];
    let set: SigSet = signals.into_iter().collect();
    set.thread_block().expect("these signals can be blocked");
}

/// Loads what the gateway has ordered.
///
/// # Errors
/// The module cannot be loaded.
pub fn load(module: Option<&Path>) -> Result<Box<dyn Module>, Fault> {
    match module {
        None => Ok(Box::new(crate::files::Files::default())),
        Some(path) => Ok(Box::new(Pkcs11Module::load(path)?)),
    }
}

/// One line for whoever reads the log. The process has no subscriber: what it says goes to the gateway's standard error.
pub(crate) fn complain(text: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("signer: {text}");
    } else {
        // At once, as the gateway writes there, too. Nobody is left to tell when standard error is closed.
        let _ = std::io::stderr().write_all(format!("ringlock signer: {text}\n").as_bytes());
    }
}

/// Serves a control connection on a thread of the gateway.
pub fn on_thread(control: OwnedFd) {
    if let Err(error) = serve(control, Isolation::Thread, load) {
        complain(&error.to_string());
    }
}

/// Serves a control connection until its other end is closed.
///
/// # Errors
/// The connection is not the gateway's or says what it must not, nothing can be loaded, or calls into the module hang.
pub fn serve(
    control: OwnedFd,
    isolation: Isolation,
    load: impl FnOnce(Option<&Path>) -> Result<Box<dyn Module>, Fault>,
) -> Result<(), SignerError> {
    serve_gateway(gateway_of(&control, None)?, control, isolation, load)
}

fn serve_gateway(
    gateway: Pid,
    control: OwnedFd,
    isolation: Isolation,
    load: impl FnOnce(Option<&Path>) -> Result<Box<dyn Module>, Fault>,
) -> Result<(), SignerError> {
    let mut control = Control::new(control);
    let Some(loaded) = begin(&mut control, isolation, load)? else {
        return Ok(());
    };
    let mut signer = Signer {
        gateway,
        loaded,
        keys: Arc::default(),
        tokens: BTreeMap::new(),
        channels: Vec::new(),
    };
    let outcome = signer.serve(&mut control);
    signer.stop();
    signer.unload();
    outcome
}

/// Who may command: the process that started this one, or the one that it names, or this one itself when it is a thread of the gateway.
pub(crate) fn gateway_of(control: &OwnedFd, named: Option<u32>) -> Result<Pid, SignerError> {
    let peer = socket_peercred(control).map_err(|_| SignerError::NoConnection)?.pid;
    let named = named.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let expected = named.or_else(getppid);
    if Some(peer) == expected || (named.is_none() && peer == getpid()) {
        return Ok(peer);
    }
    Err(SignerError::Stranger {
        found: peer.as_raw_pid(),
        expected: expected.map_or(0, Pid::as_raw_pid),
    })
}

/// Obeys the first order. `None`: the gateway has gone.
fn begin(
    control: &mut Control,
    isolation: Isolation,
    load: impl FnOnce(Option<&Path>) -> Result<Box<dyn Module>, Fault>,
) -> Result<Option<Arc<Loaded>>, SignerError> {
    let (module, sandboxed) = loop {
        match control.next_order()? {
            Some(Order::Load { module, sandbox }) => break (module, sandbox),
            Some(Order::Ping(number)) => control.report(&Report::Pong(number)),
            Some(
                Order::Token { .. }
                | Order::Key { .. }
                | Order::Certificates { .. }
                | Order::Forget(_)
                | Order::Close(_)
                | Order::Channel,
            ) => return Err(SignerError::Order("the first one loads")),
            None if control.ended => return Ok(None),
            None => control.wait(None, None)?,
        }
    };
    let outcome = load(module.as_deref()).and_then(|module| {
        if sandboxed && isolation == Isolation::Process {
            let refused = |error: sandbox::SandboxError| Fault::new(FaultKind::Signer, error.to_string());
            sandbox::refuse_system_calls().map_err(refused)?;
        }
        Ok(module)
    });
    control.report(&Report::Loaded(
        outcome
            .as_ref()
            .map(|module| module.description())
            .map_err(Fault::clone),
    ));
    match outcome {
        Ok(module) => {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            let bell = bell.map_err(|error| SignerError::Call("eventfd", error))?;
            Ok(Some(Arc::new(Loaded::new(module, isolation, bell))))
        }
        Err(fault) => {
            control.flush_for(STATUS_INTERVAL)?;
            Err(SignerError::Load(fault))
        }
    }
}

/// Keys that channels may ask for.
type Announced = BTreeMap<KeyNumber, (Arc<Pool>, Arc<Key>)>;

struct Signer {
    gateway: Pid,
    loaded: Arc<Loaded>,
    keys: Arc<RwLock<Announced>>,
    tokens: BTreeMap<TokenNumber, Token>,
    channels: Vec<Weak<Channel>>,
}

struct Token {
    pool: Arc<Pool>,
    told: Option<(TokenStatus, Instant)>,
}

impl Signer {
    fn serve(&mut self, control: &mut Control) -> Result<(), SignerError> {
        loop {
            while let Some(order) = control.next_order()? {
                self.obey(order, control)?;
            }
            for token in self.tokens.values() {
                token.pool.watch();
            }
            let (reports, end) = self.loaded.collect();
            // First, so that whoever hears an answer knows what it has done to the token, such as that the PIN is refused.
            self.tell_statuses(control);
            for report in &reports {
                control.report(report);
            }
            control.flush()?;
            match end {
                Some(End::Hung(what)) => return Err(SignerError::Hung(what)),
                Some(End::Panicked) => return Err(SignerError::Panicked),
                None if control.ended => return Ok(()),
                None => control.wait(Some(self.loaded.bell()), Some(self.pause()))?,
            }
        }
    }

    /// Often enough to see in time that a call hangs.
    fn pause(&self) -> Duration {
        let shortest = self.tokens.values().map(|token| token.pool.timeout() / 8).min();
        shortest.map_or(STATUS_INTERVAL, |pause| {
            pause.clamp(Duration::from_millis(5), Duration::from_millis(250))
        })
    }

    fn obey(&mut self, order: Order, control: &mut Control) -> Result<(), SignerError> {
        match order {
            Order::Load { .. } => return Err(SignerError::Order("it has loaded already")),
            Order::Ping(number) => control.report(&Report::Pong(number)),
            Order::Token { token, settings } => match self.tokens.get_mut(&token) {
                Some(known) => {
                    known.pool.renew(settings);
                    // The gateway takes it for one of which nothing is known, and hears of it also if it is as it was.
                    known.told = None;
                }
                None => {
                    let pool = Pool::start(&self.loaded, settings);
                    self.tokens.insert(token, Token { pool, told: None });
                }
            },
            Order::Key {
                key,
                token,
                place,
                challenge,
            } => {
                let pool = self.pool(token)?;
                let key = Arc::new(Key::new(key, place));
                pool.add_key(Arc::clone(&key));
                self.announced()
                    .insert(key.number, (Arc::clone(&pool), Arc::clone(&key)));
                pool.inquire(Inquiry::Key { key, challenge });
            }
            Order::Certificates {
                question,
                token,
                object,
            } => {
                self.pool(token)?.inquire(Inquiry::Certificates { question, object });
            }
            Order::Forget(key) => {
                let forgotten = self.announced().remove(&key);
                if let Some((pool, _)) = forgotten {
                    pool.forget(key);
                }
            }
            Order::Close(token) => {
                if let Some(token) = self.tokens.remove(&token) {
                    self.announced().retain(|_, (pool, _)| !Arc::ptr_eq(pool, &token.pool));
                    token.pool.end();
                }
            }
            Order::Channel => {
                let socket = control.descriptors.pop_front();
                self.add_channel(socket.ok_or(SignerError::Order("a channel without its descriptor"))?)?;
            }
        }
        Ok(())
    }

    fn pool(&self, token: TokenNumber) -> Result<Arc<Pool>, SignerError> {
        let token = self.tokens.get(&token);
        Ok(Arc::clone(&token.ok_or(SignerError::Order("an unknown token"))?.pool))
    }

    fn announced(&self) -> RwLockWriteGuard<'_, Announced> {
        self.keys.write().expect("nobody panics while holding this lock")
    }

    /// Compared by process, not by user: the gateway may have become another user since it made the control connection.
    fn add_channel(&mut self, socket: OwnedFd) -> Result<(), SignerError> {
        let peer = socket_peercred(&socket).map_err(|error| SignerError::Call("getsockopt(SO_PEERCRED)", error))?;
        if peer.pid != self.gateway {
            return Err(SignerError::Stranger {
                found: peer.pid.as_raw_pid(),
                expected: self.gateway.as_raw_pid(),
            });
        }
        let channel = Channel::new(socket);
        self.channels.retain(|channel| channel.strong_count() > 0);
        self.channels.push(Arc::downgrade(&channel));
        let keys = Arc::clone(&self.keys);
        let reader = thread::Builder::new().name("channel".to_owned());
        let read = move || channel.read(|received| take_requests(&channel, &keys, received));
        // Without a thread the channel is closed, and the gateway makes another one.
        if let Err(error) = reader.spawn(read) {
            complain(&format!("no thread for a worker's channel ({error})"));
        }
        Ok(())
    }

    fn tell_statuses(&mut self, control: &mut Control) {
        let now = Instant::now();
        for (number, token) in &mut self.tokens {
            let status = token.pool.status();
            let due = token
                .told
                .as_ref()
                .is_none_or(|(told, at)| now - *at >= STATUS_INTERVAL || differs(told, &status));
            if due {
                control.report(&Report::Status {
                    token: *number,
                    status: status.clone(),
                });
                token.told = Some((status, now));
            }
        }
    }

    /// Ends every thread that is not in a call that hangs.
    fn stop(&self) {
        for channel in self.channels.iter().filter_map(Weak::upgrade) {
            channel.end();
        }
        self.announced().clear();
        for token in self.tokens.values() {
            token.pool.end();
        }
        for token in self.tokens.values() {
            token.pool.wait_until_left();
        }
    }

    /// Ends the module, which the end of a process does not. Threads let go of it a moment after they have left; one that hangs does not.
    fn unload(self) {
        let loaded = Arc::clone(&self.loaded);
        drop(self);
        let deadline = Instant::now() + UNLOAD_TIMEOUT;
        while Arc::strong_count(&loaded) > 1 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Something has changed besides what changes with every request.
fn differs(told: &TokenStatus, status: &TokenStatus) -> bool {
    let essence = |status: &TokenStatus| (status.breaker, status.sessions, status.recoveries, status.pin_refused);
    essence(told) != essence(status) || told.trouble != status.trouble
}

/// Queues what a worker asks for.
fn take_requests(channel: &Arc<Channel>, keys: &RwLock<Announced>, received: &mut Received<'_>) -> Result<(), Garbled> {
    let now = Instant::now();
    let keys = keys.read().expect("nobody panics while holding this lock");
    while let Some(request) = received.next()? {
        if request.message.len() > SIGNED_BYTES_MAX {
            return Err(Garbled);
        }
        let reply = Reply::new(channel, request.id);
        let Some((pool, key)) = keys.get(&request.key) else {
            reply.refuse(Refusal::Unknown);
            continue;
        };
        let job = Job {
            key: Arc::clone(key),
            scheme: SignatureScheme::from(request.scheme),
            message: request.message.to_vec(),
            deadline: now + Duration::from_micros(u64::from(request.left_us)),
            reply,
        };
        pool.push(job, now);
    }
    Ok(())
}

/// The control connection. It neither waits for the gateway to read nor for whole orders.
struct Control {
    socket: OwnedFd,
    reader: Reader,
    descriptors: VecDeque<OwnedFd>,
    out: Vec<u8>,
    /// The gateway has closed its end.
    ended: bool,
}

impl Control {
    fn new(socket: OwnedFd) -> Control {
        Control {
            socket,
            reader: Reader::default(),
            descriptors: VecDeque::new(),
            out: Vec::new(),
            ended: false,
        }
    }

    /// The next order, as far as one has come.
    fn next_order(&mut self) -> Result<Option<Order>, SignerError> {
        loop {
            if let Some(order) = self.reader.next_message()? {
                return Ok(Some(order));
            }
            if self.ended || !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// Whether something has come.
    fn receive(&mut self) -> Result<bool, SignerError> {
        let mut buffer = [0; 16 * 1024];
        let received = passing::receive(&self.socket, &mut buffer, &mut self.descriptors, RecvFlags::DONTWAIT);
        let length = match received {
            Ok(length) => length,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(SignerError::Call("recvmsg", error)),
        };
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(SignerError::Order("descriptors without orders"));
        }
        self.ended = length == 0;
        self.reader.push(&buffer[..length]);
        Ok(true)
    }

    fn report(&mut self, report: &Report) {
        let start = self.out.len();
        protocol::write(report, &mut self.out);
        if let Report::Certificates { question, .. } = report
            && self.out.len() - start > MESSAGE_BYTES_MAX
        {
            self.out.truncate(start);
            let found = Err(Fault::new(
                FaultKind::Object,
                "more certificates than fit into a message: name one by its label or id",
            ));
            let question = *question;
            protocol::write(&Report::Certificates { question, found }, &mut self.out);
        }
    }

    /// Writes what the gateway takes at the moment.
    fn flush(&mut self) -> Result<(), SignerError> {
        let mut sent = 0;
        while sent < self.out.len() {
            match send(
                &self.socket,
                &self.out[sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(length) => sent += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.ended = true;
                    sent = self.out.len();
                }
                Err(error) => return Err(SignerError::Call("send", error)),
            }
        }
        self.out.drain(..sent);
        Ok(())
    }

    /// Writes all, as far as the gateway takes it in that time.
    fn flush_for(&mut self, patience: Duration) -> Result<(), SignerError> {
        let deadline = Instant::now() + patience;
        self.flush()?;
        while !self.out.is_empty() && Instant::now() < deadline {
            self.wait(None, Some(Duration::from_millis(10)))?;
            self.flush()?;
        }
        Ok(())
    }

    /// Waits until there is something to do, on either of the two.
    fn wait(&self, bell: Option<&OwnedFd>, patience: Option<Duration>) -> Result<(), SignerError> {
        let mut control = PollFlags::IN;
        control.set(PollFlags::OUT, !self.out.is_empty());
        let mut descriptors = vec![PollFd::from_borrowed_fd(self.socket.as_fd(), control)];
        descriptors.extend(bell.map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)));
        let patience = patience.map(|patience| Timespec::try_from(patience).expect("it is short"));
        match poll(&mut descriptors, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(SignerError::Call("poll", error)),
        }
    }
}
