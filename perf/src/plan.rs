//! Arguments made legal: resolved, bounded and with everything built that connections share.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::args::{ClientArgs, CostArgs};
use crate::error::PerfError;
use crate::tls::client_config;

/// A run always ends by itself; this is the longest it may be asked to take.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// As many as file descriptors can be had on a generous machine.
const CONNECTIONS_MAX: usize = 1_000_000;

/// More than one thread can begin, even on the fastest machine.
const RATE_MAX: u32 = 1_000_000;

/// A probe is no load.
const PROBE_RATE_MAX: u32 = 10_000;

/// One source address has about 28,000 ephemeral ports; fewer per address keep the kernel's search for a free one short.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// File descriptors that are not connections: epoll, standard streams, files being read.
const DESCRIPTORS_SPARE: u64 = 64;

/// What all connections of a run have in common.
pub(crate) struct ClientPlan {
    pub(crate) target: SocketAddr,
    pub(crate) server_name: ServerName<'static>,
    pub(crate) tls: Arc<ClientConfig>,
    /// Local addresses, used in turn; empty: the system chooses.
    pub(crate) sources: Vec<Ipv4Addr>,
    /// 0 < connections
    pub(crate) connections: usize,
    /// Units begun per second, 0 < rate; `None`: the next one begins when one is done.
    pub(crate) rate: Option<u32>,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) timeout: Duration,
    pub(crate) errors_max: u64,
    pub(crate) cost: CostArgs,
    /// Established connections beside the work.
    pub(crate) probe: Option<Arc<ClientPlan>>,
}

impl ClientPlan {
    /// Checks the flags, pins the thread, raises the descriptor limit, resolves the target, reads the CA.
    pub(crate) fn new(args: &ClientArgs, connections: usize, rate: Option<u32>) -> Result<Self, PerfError> {
        if connections == 0 || connections > CONNECTIONS_MAX {
            return Err(flag("--connections", &connections, &format!("1 to {CONNECTIONS_MAX}")));
        }
        if let Some(rate) = rate
            && !(1..=RATE_MAX).contains(&rate)
        {
            return Err(flag("--rate", &rate, &format!("1 to {RATE_MAX}")));
        }
        if args.duration.is_zero() || args.duration > DURATION_MAX {
            return Err(flag(
                "--duration",
                &format!("{:?}", args.duration),
                "more than 0 and at most 24h",
            ));
        }
        if args.warmup > DURATION_MAX {
            return Err(flag("--warmup", &format!("{:?}", args.warmup), "at most 24h"));
        }
        if args.timeout.is_zero() || args.timeout > DURATION_MAX {
            return Err(flag(
                "--timeout",
                &format!("{:?}", args.timeout),
                "more than 0 and at most 24h",
            ));
        }
        let target = resolve(&args.target)?;
        let server_name = ServerName::try_from(args.server_name.clone())
            .map_err(|_| flag("--server-name", &args.server_name, "a DNS name or an IP address"))?;
        let tls = Arc::new(client_config(args)?);
        let sources = sources(args.sources, target, connections)?;
        if let Some(cpu) = args.cpu {
            pin(cpu)?;
        }
        let probe = args
            .cost
            .probe_established
            .map(|count| Self::of_probe(args, count))
            .transpose()?;
        let probed = probe.as_ref().map_or(0, |probe| probe.connections);
        raise_descriptor_limit((connections + probed) as u64 + DESCRIPTORS_SPARE)?;
        Ok(Self {
            target,
            server_name,
            tls,
            sources,
            connections,
            rate,
            warmup: args.warmup,
            duration: args.duration,
            timeout: args.timeout,
            errors_max: args.errors_max.max(1),
            cost: args.cost.clone(),
            probe,
        })
    }
}

/// Pins the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), PerfError> {
    let refused = || flag("--cpu", &cpu, "the number of a CPU that this process may use");
    if cpu >= CpuSet::MAX_CPU {
        return Err(refused());
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(|_| refused())
}

impl ClientPlan {
    /// The connections of --probe-established: as the others, but for their number, rate and target.
    fn of_probe(args: &ClientArgs, connections: usize) -> Result<Arc<Self>, PerfError> {
        let rate = args.cost.probe_rate;
        if !(1..=PROBE_RATE_MAX).contains(&rate) {
            return Err(flag("--probe-rate", &rate, &format!("1 to {PROBE_RATE_MAX}")));
        }
        let mut args = args.clone();
        args.cost.probe_established = None;
        if let Some(target) = args.cost.probe_target.take() {
            args.target = target;
        }
        let mut plan = Self::new(&args, connections, Some(rate))?;
        // It opens them anew at its leisure, and tells how many failed.
        plan.errors_max = u64::MAX;
        Ok(Arc::new(plan))
    }
}

/// Makes room for `needed` open files.
pub(crate) fn raise_descriptor_limit(needed: u64) -> Result<(), PerfError> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let within_hard_limit = Rlimit {
        current: Some(needed),
        maximum: limit.maximum,
    };
    let with_higher_hard_limit = Rlimit {
        current: Some(needed),
        maximum,
    };
    setrlimit(Resource::Nofile, within_hard_limit)
        .or_else(|_| setrlimit(Resource::Nofile, with_higher_hard_limit))
        .map_err(|errno| {
            PerfError::io(
                format!("raise the limit of open files to {needed} (try ulimit -n)"),
                errno,
            )
        })
}

fn resolve(target: &str) -> Result<SocketAddr, PerfError> {
    let failed = |why: &str| flag("--target", &target, &format!("host:port ({why})"));
    let mut addresses = target.to_socket_addrs().map_err(|error| failed(&error.to_string()))?;
    addresses.next().ok_or_else(|| failed("the name has no address"))
}

fn sources(asked: Option<u8>, target: SocketAddr, connections: usize) -> Result<Vec<Ipv4Addr>, PerfError> {
    let loopback = matches!(target, SocketAddr::V4(v4) if v4.ip().is_loopback());
    let count = match asked {
        Some(0) => 0,
        Some(_) if !loopback => return Err(flag("--sources", &target, "a target in 127.0.0.0/8, or --sources 0")),
        Some(count) => usize::from(count),
        // Four even for few connections: short ones leave their ports in TIME_WAIT.
        None if loopback => connections.div_ceil(CONNECTIONS_PER_SOURCE).max(4),
        None => 0,
    };
    Ok((1..=count)
        .filter_map(|last| Some(Ipv4Addr::new(127, 0, 0, u8::try_from(last).ok()?)))
        .collect())
}

fn flag(flag: &'static str, found: &dyn std::fmt::Display, expected: &str) -> PerfError {
    PerfError::Flag {
        flag,
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_follow_the_number_of_connections_and_the_target() {
        let loopback = "127.0.0.1:443".parse().unwrap();
        let remote = "192.0.2.1:443".parse().unwrap();
        assert_eq!(sources(None, loopback, 1).unwrap().len(), 4);
        assert_eq!(sources(None, loopback, 200_000).unwrap().len(), 10);
        assert_eq!(
            sources(Some(2), loopback, 1).unwrap(),
            [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)]
        );
        assert!(sources(None, remote, 1).unwrap().is_empty());
        assert!(
            sources(Some(2), remote, 1)
                .unwrap_err()
                .to_string()
                .contains("--sources")
        );
    }

    #[test]
    fn a_pinned_thread_has_one_cpu_and_one_that_does_not_exist_is_refused() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
            pin(cpu).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert!(now.count() == 1 && now.is_set(cpu));
            assert!(pin(CpuSet::MAX_CPU).unwrap_err().to_string().contains("--cpu"));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_target_without_a_port_is_refused_by_name() {
        let error = resolve("localhost").unwrap_err().to_string();
        assert!(error.contains("--target") && error.contains("host:port"), "{error}");
    }
}
