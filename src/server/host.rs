//! What this machine and this process may do: processors, drivers, users, descriptors.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, initgroups, setgid, setuid};

use crate::config::{Config, Io, Workers};
use crate::net::uring::UringDriver;

/// Something that the configuration asks for and this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// The key that asks for it, as `global.io`.
    pub key: String,
    /// What was found, what was expected, what to do.
    pub what: String,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One worker on each of these processors.
    pub cpus: Vec<usize>,
    /// Their driver.
    pub driver: DriverKind,
    /// Why that driver, for the log.
    pub reason: String,
}

/// Finds out what this machine will do for `config`.
///
/// # Errors
/// Everything that it cannot do.
pub fn plan(config: &Config) -> Result<Plan, Vec<HostError>> {
    let mut errors = Vec::new();
    let mut keep = |key: String, what: String| errors.push(HostError { key, what });
    let cpus = choose_cpus(&config.global.workers).unwrap_or_else(|what| {
        keep("global.workers".into(), what);
        Vec::new()
    });
    let (driver, reason) = choose_driver(config.global.io).unwrap_or_else(|what| {
        keep("global.io".into(), what);
        (DriverKind::Epoll, String::new())
    });
    if let Some(user) = &config.global.user
        && let Err(what) = find_user(user)
    {
        keep("global.user".into(), what);
    }
    for listener in &config.listeners {
        if let Some(name) = &listener.congestion_control
            && let Err(what) = check_congestion_control(name)
        {
            keep(format!("listener \"{}\": congestion_control", listener.name), what);
        }
    }
    if errors.is_empty() {
        Ok(Plan { cpus, driver, reason })
    } else {
        Err(errors)
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

fn choose_cpus(workers: &Workers) -> Result<Vec<usize>, String> {
    let allowed = allowed_cpus();
    match workers {
        Workers::Auto => Ok(allowed),
        Workers::Count(count) if count.get() <= allowed.len() => Ok(allowed[..count.get()].to_vec()),
        Workers::Count(count) => Err(format!(
            "found {count}, expected at most {}: this process may run on processors {allowed:?} only, and more workers than processors only cost; lower the number or use \"auto\"",
            allowed.len()
        )),
        Workers::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            None => Ok(cpus.clone()),
            Some(cpu) => Err(format!(
                "found processor {cpu}, expected only processors this process may run on, {allowed:?}; change the list or the process's affinity"
            )),
        },
    }
}

fn choose_driver(io: Io) -> Result<(DriverKind, String), String> {
    if io == Io::Epoll {
        return Ok((DriverKind::Epoll, "configured".into()));
    }
    match (UringDriver::new(), io) {
        (Ok(_), _) => Ok((DriverKind::Uring, "the kernel has what is needed".into())),
        (Err(error), Io::Auto) => Ok((
            DriverKind::Epoll,
            format!("io_uring is not usable: {}", explain(&error)),
        )),
        (Err(error), Io::IoUring | Io::Epoll) => Err(format!(
            "found \"io_uring\", which is not usable here: {}; use \"auto\" or \"epoll\", or give this process io_uring",
            explain(&error)
        )),
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

fn check_congestion_control(name: &str) -> Result<(), String> {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    match std::fs::read_to_string(path) {
        Ok(available) if !available.split_whitespace().any(|one| one == name) => Err(format!(
            "found \"{name}\", expected one that the kernel has loaded: {}; load it (modprobe tcp_{name}) or leave the key out",
            available.trim()
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn find_user(name: &str) -> Result<User, String> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!(
            "found \"{name}\", expected a user of this machine; create it (useradd --system {name})"
        )),
        Err(error) => Err(format!("cannot look up \"{name}\": {error}")),
    }
}

/// Becomes `name`, for good.
///
/// # Errors
/// The user is unknown, or this process may not become it.
pub fn become_user(name: &str) -> Result<(), HostError> {
    let error = |what: String| HostError {
        key: "global.user".into(),
        what,
    };
    let user = find_user(name).map_err(error)?;
    if Uid::effective() == user.uid {
        return Ok(());
    }
    let login = std::ffi::CString::new(user.name.clone()).expect("a user's name holds no NUL");
    let changed = initgroups(&login, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid));
    changed.map_err(|e| {
        error(format!(
            "cannot become \"{name}\": {e}; start as root, or as \"{name}\" itself"
        ))
    })?;
    assert!(
        Uid::effective() == user.uid && Gid::effective() == user.gid,
        "the kernel said that it did"
    );
    Ok(())
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
        assert!(error.contains("found 100000") && error.contains("\"auto\""), "{error}");
        let error = choose_cpus(&Workers::Cpus(vec![99_999])).unwrap_err();
        assert!(error.contains("found processor 99999"), "{error}");
    }

    #[test]
    fn auto_is_every_allowed_processor() {
        assert_eq!(choose_cpus(&Workers::Auto).unwrap(), allowed_cpus());
        assert!(!allowed_cpus().is_empty());
    }

    #[test]
    fn an_unknown_user_and_an_unknown_congestion_control_say_what_to_do() {
        assert!(find_user("no-such-user-here").unwrap_err().contains("useradd"));
        assert!(check_congestion_control("no-such").unwrap_err().contains("modprobe"));
    }
}
