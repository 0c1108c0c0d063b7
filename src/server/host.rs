//! What this machine and this process may do: processors, drivers, users, descriptors.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, User};
use ringlock_hsm::custody::{self, Launcher, launcher_through};
use ringlock_hsm::launcher::{LauncherProcess, Whom};
use ringlock_hsm::{sandbox, signer};

use super::confine;
use crate::config::{
    AdminAddress, Config, Crypto, Io, Isolation, MadeAhead, Multibuffer, Places, Problem, TokenConfig, Warning, Workers,
};
use crate::crypto::batch::Engine;
use crate::crypto::cpu::{Mask, Processor, is_virtual};
use crate::crypto::multibuffer;
use crate::crypto::pool::Ahead;
use crate::net::uring::UringDriver;

/// Which driver the workers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// [`UringDriver`]
    Uring,
    /// [`crate::net::epoll::EpollDriver`]
    Epoll,
}

impl DriverKind {
    /// As in the configuration and the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DriverKind::Uring => "io_uring",
            DriverKind::Epoll => "epoll",
        }
    }
}

/// What the workers will be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One worker on each of these processors.
    pub cpus: Vec<usize>,
    /// What they work with.
    pub equipment: Equipment,
}

/// What workers work with.
#[derive(Clone, Debug)]
pub struct Equipment {
    /// Their driver.
    pub driver: DriverKind,
    /// Why that driver.
    pub reason: String,
    /// What computes for handshakes.
    pub engine: Arc<Engine>,
    /// Why that one.
    pub engine_reason: String,
}

/// Finds out what this machine has for these settings, which stand at `places`.
///
/// # Errors
/// What is asked for by name and is not there.
pub fn equipment(io: Io, crypto: &Crypto, places: &Places) -> Result<Equipment, Vec<Problem>> {
    let driver = choose_driver(io).map_err(|refusal| refusal.at(places, "global.io"));
    let engine = choose_engine(crypto).map_err(|refusal| refusal.at(places, "crypto.multibuffer"));
    match (driver, engine) {
        (Ok((driver, reason)), Ok((engine, engine_reason))) => Ok(Equipment {
            driver,
            reason,
            engine: Arc::new(engine),
            engine_reason,
        }),
        (driver, engine) => Err(driver.err().into_iter().chain(engine.err()).collect()),
    }
}

/// What this machine does to every gateway that runs on it, and probably should not.
#[must_use]
pub fn warnings(config: &Config) -> Vec<Warning> {
    let mask = Mask::from_environment().map(|mask| {
        let key = format!("environment variable {}", Mask::VARIABLE);
        let remedy = "unset it: it is for tests, and cryptography becomes slow";
        config.places.warning(key, mask.effect(Processor::detect()), remedy)
    });
    mask.into_iter().collect()
}

/// Finds out what this machine will do for `config`.
///
/// # Errors
/// Everything that it cannot do.
pub fn plan(config: &Config) -> Result<Plan, Vec<Problem>> {
    let cpus = check(config);
    match (cpus, equipment(config.global.io, &config.crypto, &config.places)) {
        (Ok(cpus), Ok(equipment)) => Ok(Plan { cpus, equipment }),
        (cpus, equipment) => Err(cpus.err().into_iter().chain(equipment.err()).flatten().collect()),
    }
}

/// Whether this machine has what `config` asks for, its equipment left out: a gateway that runs keeps what it has, and may have given up
/// looking for another. Returns the processors of the workers.
///
/// # Errors
/// Everything that it does not have.
pub fn check(config: &Config) -> Result<Vec<usize>, Vec<Problem>> {
    let mut problems = Vec::new();
    let cpus = choose_cpus(&config.global.workers)
        .map_err(|refusal| problems.push(refusal.at(&config.places, "global.workers")));
    if let Err(problem) = confine::group(config) {
        problems.push(problem);
    }
    let mut keep = |key: &str, refusal: Refusal| problems.push(refusal.at(&config.places, key));
    if let Some(user) = &config.global.user
        && let Err(refusal) = find_user(user)
    {
        keep("global.user", refusal);
    }
    let socket = match &config.global.admin {
        Some(AdminAddress::Unix(path)) => Some(path.as_path()),
        Some(AdminAddress::Tcp(_)) | None => None,
    };
    for (key, file) in [
        ("global.log.file", config.global.log.file.as_deref()),
        ("global.admin", socket),
    ] {
        if let Some(Err(refusal)) = file.map(check_folder) {
            keep(key, refusal);
        }
    }
    for listener in &config.listeners {
        if let Some(name) = &listener.congestion_control
            && let Err(refusal) = check_congestion_control(name)
        {
            keep(&format!("listener \"{}\": congestion_control", listener.name), refusal);
        }
    }
    match cpus {
        Ok(cpus) if problems.is_empty() => Ok(cpus),
        Ok(_) | Err(()) => Err(problems),
    }
}

/// Why this machine does not do what a setting asks for.
#[derive(Debug)]
pub struct Refusal {
    /// What was asked for, and what is wrong with it here.
    pub found: String,
    /// What would be possible.
    pub expected: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    pub(super) fn at(self, places: &Places, key: &str) -> Problem {
        places.problem(key, self.found, self.expected, self.remedy)
    }
}

/// The processors that the kernel lets this process run on.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        // Machines with more processors than the set can say: the count is right as long as none is forbidden.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).collect(),
    }
}

fn choose_cpus(workers: &Workers) -> Result<Vec<usize>, Refusal> {
    let allowed = allowed_cpus();
    let refusal = |found, expected, remedy: &str| {
        Err(Refusal {
            found,
            expected,
            remedy: remedy.into(),
        })
    };
    match workers {
        Workers::Auto => Ok(allowed),
        Workers::Count(count) if count.get() <= allowed.len() => Ok(allowed[..count.get()].to_vec()),
        Workers::Count(count) => refusal(
            format!("{count} workers"),
            format!("at most one for each processor that this process may run on, {allowed:?}"),
            "lower the number, or use \"auto\": more workers than processors only cost",
        ),
        Workers::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            None => Ok(cpus.clone()),
            Some(cpu) => refusal(
                format!("processor {cpu}"),
                format!("only processors that this process may run on, {allowed:?}"),
                "change the list, or the affinity that the process is started with",
            ),
        },
    }
}

/// The driver that `io` means on this machine, and why.
///
/// # Errors
/// io_uring is asked for by name and not usable.
pub fn choose_driver(io: Io) -> Result<(DriverKind, String), Refusal> {
    if io == Io::Epoll {
        return Ok((DriverKind::Epoll, "configured".into()));
    }
    match (UringDriver::new(), io) {
        (Ok(_), _) => Ok((DriverKind::Uring, "the kernel has what is needed".into())),
        (Err(error), Io::Auto) => Ok((
            DriverKind::Epoll,
            format!("io_uring is not usable: {}", explain(&error)),
        )),
        (Err(error), Io::IoUring | Io::Epoll) => Err(Refusal {
            found: format!("\"io_uring\", which is not usable: {}", explain(&error)),
            expected: "a kernel from 6.1 on that lets this process use io_uring".into(),
            remedy: "use \"auto\" or \"epoll\"".into(),
        }),
    }
}

fn choose_engine(crypto: &Crypto) -> Result<(Engine, String), Refusal> {
    let ahead = match crypto.made_ahead {
        MadeAhead::On => Ahead::ALL,
        MadeAhead::Auto => Ahead {
            key_pairs: true,
            setups: !is_virtual(),
        },
        MadeAhead::Off => Ahead::NOTHING,
    };
    let inline = || Engine::inline(false).making_ahead(ahead);
    let path = match &crypto.multibuffer {
        Multibuffer::Off => return Ok((inline(), "configured".into())),
        Multibuffer::Auto => None,
        Multibuffer::Library(path) => Some(path.as_path()),
    };
    match (multibuffer::Multibuffer::load(path), path) {
        (Ok(library), _) => {
            let reason = format!("{} is usable", library.path().display());
            Ok((Engine::with_library(library).making_ahead(ahead), reason))
        }
        (Err(error), None) => Ok((inline(), error.to_string())),
        (Err(error), Some(path)) => Err(Refusal {
            found: format!("\"{}\": {error}", path.display()),
            expected: "a libcrypto_mb that this processor can use".into(),
            remedy: "use scripts/setup-multibuffer to get one, or write \"auto\" or \"off\"".into(),
        }),
    }
}

fn explain(error: &std::io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "forbidden, as containers do by default and kernel.io_uring_disabled does",
        Some(libc::ENOSYS) => "the kernel has none, or the container forbids it",
        Some(libc::EINVAL) => "the kernel is older than 6.1",
        Some(libc::ENOMEM) => "no memory may be locked; raise the limit (ulimit -l)",
        Some(_) | None => "no ring could be made",
    };
    format!("{hint} ({error})")
}

fn check_congestion_control(name: &str) -> Result<(), Refusal> {
    // What cannot be read cannot be checked: binding then says what the kernel thinks of the name.
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let available = std::fs::read_to_string(path).unwrap_or_else(|_| name.to_owned());
    if available.split_whitespace().any(|one| one == name) {
        return Ok(());
    }
    Err(Refusal {
        found: format!("\"{name}\""),
        expected: format!("one that the kernel has loaded: {}", available.trim()),
        remedy: format!("load it (modprobe tcp_{name}), or leave the key out"),
    })
}

/// A file that is made when it is missing needs a directory that is there.
fn check_folder(file: &Path) -> Result<(), Refusal> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    Err(Refusal {
        found: format!("{}, whose directory is not there", file.display()),
        expected: "a file in a directory that exists".into(),
        remedy: format!(
            "make the directory (mkdir -p {}), or correct the path",
            folder.display()
        ),
    })
}

pub(super) fn find_user(name: &str) -> Result<User, Refusal> {
    let found = match User::from_name(name) {
        Ok(Some(user)) => return Ok(user),
        Ok(None) => format!("\"{name}\""),
        Err(error) => format!("\"{name}\", which cannot be looked up ({error})"),
    };
    let remedy = format!("create it (useradd --system {name}), or name another");
    Err(Refusal {
        found,
        expected: "a user of this machine".into(),
        remedy,
    })
}

/// Users that signers become besides the one that the gateway becomes, each once.
#[must_use]
pub fn users_of_signers(config: &Config) -> Vec<String> {
    let tokens = own_users(config).map(|(_, user)| user.clone());
    let users: BTreeSet<String> = tokens.collect();
    users.into_iter().collect()
}

/// Tokens whose signer becomes another user than the gateway.
fn own_users(config: &Config) -> impl Iterator<Item = (&TokenConfig, &String)> {
    let of_process = |token: &&TokenConfig| token.isolation == Isolation::Process;
    let own = |user: &&String| Some(*user) != config.global.user.as_ref();
    let tokens = config.tokens.iter().filter(of_process);
    tokens.filter_map(move |token| Some((token, token.user.as_ref().filter(own)?)))
}

/// Whether signers can become the users that they are to be: of a gateway that runs those that are `known` to what starts them, at the start
/// those that this process can become.
///
/// # Errors
/// For each token, why not.
pub fn check_users_of_signers(config: &Config, known: Option<&[String]>) -> Result<(), Vec<Problem>> {
    let own = Uid::effective();
    let refuse = |(token, name): (&TokenConfig, &String)| {
        let refusal = match (find_user(name), known) {
            (Ok(user), None) if own.is_root() || own == user.uid => return None,
            (Ok(_), Some(known)) if known.contains(name) => return None,
            (Ok(_), _) => Refusal {
                found: format!(
                    "\"{name}\", whom no signer of this process can become: it is not root, or has given that up"
                ),
                expected: "a gateway that was started as root with this user in its configuration, or as that user"
                    .into(),
                remedy: "restart it so, or leave the key out".into(),
            },
            (Err(refusal), _) => refusal,
        };
        Some(refusal.at(&config.places, &token.key("user")))
    };
    let problems: Vec<Problem> = own_users(config).filter_map(refuse).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// What starts signers for a program that keeps what it has.
#[must_use]
pub fn launcher() -> Launcher {
    custody::launcher(signer::on_thread)
}

/// What starts signers for a gateway that is going to give up starting programs: a process that keeps what that takes. It stays root where
/// the gateway is root and signers have users of their own.
///
/// # Errors
/// It cannot be started.
pub fn launcher_process(config: &Config) -> Result<Launcher, Problem> {
    // Now, while this process may still be root.
    sandbox::allow_locked_memory();
    let mut users = users_of_signers(config);
    let user = &config.global.user;
    // One that is not known is told of elsewhere.
    let known = user.clone().filter(|user| find_user(user).is_ok());
    let whom = Whom {
        process: known.filter(|_| users.is_empty()),
        itself: user.is_none(),
        users: {
            users.extend(user.clone());
            users
        },
    };
    let process = LauncherProcess::start(&whom).map_err(|error| {
        Refusal {
            found: format!("no process that starts signers: it cannot be started ({error})"),
            expected: "room for one more process".into(),
            remedy: "check the limits of this process (ulimit -a)".into(),
        }
        .at(&config.places, "global.user")
    })?;
    Ok(launcher_through(process, signer::on_thread))
}

/// Lets this process open as many descriptors as it may, and says how many that is.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    // Fails only where a sandbox forbids it: then the soft limit stays.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_workers_than_processors_are_refused_with_a_remedy() {
        let count = std::num::NonZeroUsize::new(100_000).unwrap();
        let error = choose_cpus(&Workers::Count(count)).unwrap_err();
        assert!(
            error.found == "100000 workers" && error.remedy.contains("\"auto\""),
            "{error:?}"
        );
        let error = choose_cpus(&Workers::Cpus(vec![99_999])).unwrap_err();
        assert_eq!(error.found, "processor 99999");
    }

    #[test]
    fn a_file_needs_its_directory() {
        assert!(check_folder(Path::new("/no-such-directory/ringlock.log")).is_err_and(|r| r.remedy.contains("mkdir")));
        assert!(check_folder(Path::new("/ringlock.log")).is_ok());
        assert!(check_folder(Path::new("ringlock.log")).is_ok());
    }

    #[test]
    fn auto_is_every_allowed_processor() {
        assert_eq!(choose_cpus(&Workers::Auto).unwrap(), allowed_cpus());
        assert!(!allowed_cpus().is_empty());
    }

    #[test]
    fn an_unknown_user_and_an_unknown_congestion_control_say_what_to_do() {
        assert!(find_user("no-such-user-here").unwrap_err().remedy.contains("useradd"));
        assert!(
            check_congestion_control("no-such")
                .unwrap_err()
                .remedy
                .contains("modprobe")
        );
    }
}
