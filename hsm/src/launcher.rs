//! Starts signers for a gateway that starts no programs any more and has given up being root: the process `ringlock signer-launcher`, and
//! the gateway's end of its connection with it.
//!
//! The process loads nothing and listens to nobody but the gateway. It stays root only where signers have users of their own, and they become
//! nobody but those that were configured when it was started: a gateway that has been taken over gains no others by it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::signer::{self, SignerError};
use crate::{passing, sandbox};

/// The longest message: a path and a name.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// It does nothing that takes long. One that does not answer is not waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked whether the process has ended, when it is to, and how long that may take.
const LEAVE_LOOK: Duration = Duration::from_millis(2);
const LEAVE_LOOKS_MAX: u32 = 500;

/// What the gateway asks for. Each is answered before the next.
#[derive(Debug, Serialize, Deserialize)]
enum Wish {
    /// A signer of its own number, with the descriptor that comes with this as its control connection.
    Start {
        number: u32,
        /// None: whom the process is.
        user: Option<String>,
        /// For whoever looks at the list of processes.
        module: Option<PathBuf>,
    },
    /// Whether it still runs.
    Look(u32),
    /// That it ends now.
    Kill(u32),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Runs,
    /// How.
    Ended(String),
    Refused(String),
}

/// The process, as the gateway has it. It ends when this is dropped.
#[derive(Debug)]
pub struct LauncherProcess {
    /// Closed once something has gone wrong: a late answer would be taken for another one.
    socket: RefCell<Option<OwnedFd>>,
    child: Child,
    numbers: Cell<u32>,
}

/// Whom the process becomes, and whom the signers that it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whom {
    /// It becomes this user first. None: it stays whom it is.
    pub process: Option<String>,
    /// Signers may stay whom the process is.
    pub itself: bool,
    /// Signers may become these users.
    pub users: Vec<String>,
}

/// A signer that the process has started.
#[derive(Debug)]
pub struct RemoteChild {
    launcher: Rc<LauncherProcess>,
    number: u32,
    /// How it has ended, once that is known.
    ended: Option<String>,
}

impl LauncherProcess {
    /// Starts it. If it is to stay root, this process has to be root, and may become another user afterwards.
    ///
    /// # Errors
    /// There are not enough descriptors or processes.
    pub fn start(whom: &Whom) -> io::Result<LauncherProcess> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("signer-launcher");
        if let Some(user) = &whom.process {
            command.arg("--user").arg(user);
        }
        if whom.itself {
            command.arg("--itself");
        }
        command.args(&whom.users).stdin(theirs).stdout(Stdio::null());
        Ok(LauncherProcess {
            socket: RefCell::new(Some(socket)),
            child: command.spawn()?,
            numbers: Cell::new(0),
        })
    }

    /// Starts a signer with this control connection.
    ///
    /// # Errors
    /// The user is none of those that it was started for, or it cannot be reached or start processes.
    pub fn launch(
        self: &Rc<Self>,
        user: Option<String>,
        module: Option<PathBuf>,
        control: OwnedFd,
    ) -> io::Result<RemoteChild> {
        let number = self.numbers.replace(self.numbers.get() + 1);
        match self.ask(&Wish::Start { number, user, module }, Some(control))? {
            Answer::Runs => Ok(RemoteChild {
                launcher: Rc::clone(self),
                number,
                ended: None,
            }),
            Answer::Ended(why) | Answer::Refused(why) => Err(io::Error::other(why)),
        }
    }

    fn ask(&self, wish: &Wish, descriptor: Option<OwnedFd>) -> io::Result<Answer> {
        let mut socket = self.socket.borrow_mut();
        let answer = match &*socket {
            Some(socket) => send(socket, wish, descriptor.as_ref()).and_then(|()| receive(socket)),
            None => Ok(None),
        };
        if let Ok(Some((answer, _))) = answer {
            return Ok(answer);
        }
        *socket = None;
        let why = answer.err().map_or_else(String::new, |error| format!(" ({error})"));
        Err(io::Error::other(format!(
            "the process that starts signers is gone{why}: restart the gateway"
        )))
    }
}

impl Drop for LauncherProcess {
    fn drop(&mut self) {
        drop(self.socket.take());
        // It may be root's, and signals may be out of reach, so it is not killed from here.
        for _ in 0..LEAVE_LOOKS_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LEAVE_LOOK);
        }
    }
}

impl RemoteChild {
    /// How it has ended; nothing while it runs.
    pub fn try_wait(&mut self) -> Option<&str> {
        self.ask(&Wish::Look(self.number));
        self.ended.as_deref()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        self.ask(&Wish::Kill(self.number));
    }

    fn ask(&mut self, wish: &Wish) {
        if self.ended.is_none() {
            self.ended = match self.launcher.ask(wish, None) {
                Ok(Answer::Runs) => None,
                Ok(Answer::Ended(how) | Answer::Refused(how)) => Some(how),
                // A signer without its launcher ends by itself when its connection does.
                Err(error) => Some(error.to_string()),
            };
        }
    }
}

/// The command `ringlock signer-launcher`: serves its standard input.
#[must_use]
pub fn main(whom: &Whom) -> ExitCode {
    match serve(whom) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            signer::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn serve(whom: &Whom) -> Result<(), SignerError> {
    let socket = signer::take_standard_input()?;
    let gateway = signer::gateway_of(&socket, None)?;
    // Now, while this process may still be root.
    sandbox::allow_locked_memory();
    if let Some(user) = &whom.process {
        signer::become_user(user).map_err(|error| SignerError::User(user.clone(), error))?;
    }
    signer::leave_signals_to_the_gateway();
    // Fails for no name of up to 15 bytes.
    let _ = rustix::thread::set_name(c"ringlock-launch");
    sandbox::keep_to_itself()?;
    let mut signers: BTreeMap<u32, Child> = BTreeMap::new();
    let failed = |_| SignerError::Order("what the gateway asks of the process that starts signers");
    while let Some((wish, descriptor)) = receive::<Wish>(&socket).map_err(failed)? {
        let answer = match wish {
            Wish::Start { user, .. } if !whom.allows(user.as_deref()) => Answer::Refused(match user {
                Some(user) => format!("user \"{user}\", who was not in the configuration at the start of the gateway"),
                None => "no user, where each signer was to have one at the start of the gateway".to_owned(),
            }),
            Wish::Start { number, user, module } => {
                let mut command = Command::new("/proc/self/exe");
                command.arg("signer");
                if let Some(user) = user {
                    command.arg("--user").arg(user);
                }
                command.arg("--gateway").arg(gateway.as_raw_pid().to_string());
                command.args(module);
                command.stdin(descriptor.map_or_else(Stdio::null, Stdio::from));
                match command.stdout(Stdio::null()).spawn() {
                    Ok(child) => {
                        signers.insert(number, child);
                        Answer::Runs
                    }
                    Err(error) => Answer::Refused(error.to_string()),
                }
            }
            Wish::Look(number) => look(&mut signers, number),
            Wish::Kill(number) => {
                if let Some(child) = signers.get_mut(&number) {
                    // Both fail only when it has ended by itself; a process that is killed does not linger.
                    let _ = child.kill();
                    let _ = child.wait();
                }
                look(&mut signers, number)
            }
        };
        if send(&socket, &answer, None).is_err() {
            break;
        }
    }
    Ok(())
}

impl Whom {
    fn allows(&self, user: Option<&str>) -> bool {
        match user {
            Some(user) => self.users.iter().any(|known| known == user),
            None => self.itself,
        }
    }
}

fn look(signers: &mut BTreeMap<u32, Child>, number: u32) -> Answer {
    let Some(child) = signers.get_mut(&number) else {
        return Answer::Ended("long ago".to_owned());
    };
    let how = match child.try_wait() {
        Ok(None) => return Answer::Runs,
        Ok(Some(status)) => status.to_string(),
        Err(error) => error.to_string(),
    };
    signers.remove(&number);
    Answer::Ended(how)
}

/// Sends one message, whole.
fn send(socket: &OwnedFd, message: &impl Serialize, descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = postcard::to_extend(message, Vec::new()).map_err(io::Error::other)?;
    passing::send(socket, &bytes, descriptor, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message, with its descriptor if it has one. Nothing: the other end is closed.
fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let mut descriptors = Vec::new();
    let length =
        rustix::io::retry_on_intr(|| passing::receive(socket, &mut buffer, &mut descriptors, RecvFlags::empty()))?;
    if length == 0 {
        return Ok(None);
    }
    let descriptor = descriptors.pop();
    let message = postcard::from_bytes(&buffer[..length]).map_err(io::Error::other)?;
    Ok(Some((message, descriptor)))
}
