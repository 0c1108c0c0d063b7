//! Arguments made legal: resolved, bounded and with everything built that connections share.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use ringlock::config;
use ringlock::server::host::{DriverKind, choose_driver};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::args::{ClientArgs, CostArgs, Io, LoadArgs, Offer, Weighted};
use crate::error::PerfError;
use crate::personas::Personas;

/// A run always ends by itself; this is the longest it may be asked to take.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// As many as file descriptors can be had on a generous machine.
const CONNECTIONS_MAX: usize = 1_000_000;

/// More than the threads of any machine.
const THREADS_MAX: usize = 1024;

/// More than the cores of a large machine can begin.
pub(crate) const RATE_MAX: u32 = 1_000_000;

/// A probe is no load.
const PROBE_RATE_MAX: u32 = 10_000;

/// One source address has about 28,000 ephemeral ports; fewer per address keep the kernel's search for a free one short.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// File descriptors that are not connections: the driver's, standard streams, files being read.
pub(crate) const DESCRIPTORS_SPARE: u64 = 64;

/// What all connections of a run have in common.
pub(crate) struct ClientPlan {
    pub(crate) target: SocketAddr,
    pub(crate) personas: Personas,
    pub(crate) io: DriverKind,
    /// 0 < threads <= connections
    pub(crate) threads: usize,
    /// What threads are pinned to, in turn; empty: the system chooses.
    pub(crate) cpus: Vec<usize>,
    /// Local addresses, used in turn; empty: the system chooses.
    pub(crate) sources: Vec<Ipv4Addr>,
    /// 0 < connections
    pub(crate) connections: usize,
    /// Units begun per second, 0 < rate; `None`: the next one begins when one is done.
    pub(crate) rate: Option<f64>,
    /// Between two units of a connection.
    pub(crate) think_time: Option<Duration>,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) timeout: Duration,
    pub(crate) errors_max: u64,
    pub(crate) cost: CostArgs,
    /// Established connections beside the work.
    pub(crate) probe: Option<Arc<ClientPlan>>,
    pub(crate) seed: u64,
    /// A line tells each second how it goes.
    pub(crate) progress: bool,
}

impl ClientPlan {
    /// Checks the flags, raises the descriptor limit, resolves the target, reads certificates and keys.
    pub(crate) fn new(args: &ClientArgs, connections: usize, mix: &[Weighted<Offer>]) -> Result<Self, PerfError> {
        if connections == 0 || connections > CONNECTIONS_MAX {
            return Err(PerfError::flag(
                "--connections",
                connections,
                format!("1 to {CONNECTIONS_MAX}"),
            ));
        }
        for (name, time, least) in [
            ("--duration", args.duration, Duration::from_nanos(1)),
            ("--warmup", args.warmup, Duration::ZERO),
            ("--timeout", args.timeout, Duration::from_nanos(1)),
        ] {
            if time < least || time > DURATION_MAX {
                let more = if least.is_zero() { "" } else { "more than 0 and " };
                return Err(PerfError::flag(name, format!("{time:?}"), format!("{more}at most 24h")));
            }
        }
        let cpus = args.cpu.as_ref().map_or_else(Vec::new, |list| list.0.clone());
        let threads = args.threads.unwrap_or(cpus.len().clamp(1, connections));
        if threads == 0 || threads > THREADS_MAX.min(connections) {
            let most = THREADS_MAX.min(connections);
            return Err(PerfError::flag(
                "--threads",
                threads,
                format!("1 to {most}, as many as there are connections at most"),
            ));
        }
        let target = resolve(&args.target)?;
        let probe = args
            .cost
            .probe_established
            .map(|count| Self::of_probe(args, count))
            .transpose()?;
        let probed = probe.as_ref().map_or(0, |probe| probe.connections);
        let plan = Self {
            target,
            personas: Personas::new(args, mix, connections)?,
            io: driver(args.io)?,
            threads,
            cpus,
            sources: sources(args.sources, target, connections)?,
            connections,
            rate: None,
            think_time: None,
            warmup: args.warmup,
            duration: args.duration,
            timeout: args.timeout,
            errors_max: args.errors_max.max(1),
            cost: args.cost.clone(),
            probe,
            seed: args.seed,
            progress: args.progress.is_wanted(),
        };
        raise_descriptor_limit((connections + threads + probed) as u64 + DESCRIPTORS_SPARE)?;
        Ok(plan)
    }

    /// A plan for works whose units can have a rate.
    pub(crate) fn with_load(args: &ClientArgs, load: &LoadArgs, mix: &[Weighted<Offer>]) -> Result<Self, PerfError> {
        let mut plan = Self::new(args, load.connections, mix)?;
        for (name, rate) in [
            ("--rate", load.rate),
            ("--ramp", load.ramp.map(|ramp| ramp.from.max(ramp.to))),
            ("--rate-min", Some(load.rate_min)),
            ("--rate-max", Some(load.rate_max)),
        ] {
            if let Some(rate) = rate
                && !(1..=RATE_MAX).contains(&rate)
            {
                return Err(PerfError::flag(name, rate, format!("1 to {RATE_MAX}")));
            }
        }
        if load.find_capacity && load.rate_min > load.rate_max {
            let expected = format!("at most --rate-max ({})", load.rate_max);
            return Err(PerfError::flag("--rate-min", load.rate_min, expected));
        }
        plan.rate = load.rate.map(f64::from);
        plan.think_time = load.think_time.filter(|time| !time.is_zero());
        Ok(plan)
    }

    /// The connections of --probe-established: as the others, but for their number, rate and target.
    fn of_probe(args: &ClientArgs, connections: usize) -> Result<Arc<Self>, PerfError> {
        let rate = args.cost.probe_rate;
        if !(1..=PROBE_RATE_MAX).contains(&rate) {
            return Err(PerfError::flag("--probe-rate", rate, format!("1 to {PROBE_RATE_MAX}")));
        }
        let mut args = args.clone();
        args.threads = Some(1);
        args.cost.probe_established = None;
        if let Some(target) = args.cost.probe_target.take() {
            args.target = target;
        }
        let mut plan = Self::new(
            &args,
            connections,
            &[Weighted {
                value: Offer::Full,
                weight: 1,
            }],
        )?;
        plan.rate = Some(f64::from(rate));
        // It opens them anew at its leisure, and tells how many failed.
        plan.errors_max = u64::MAX;
        Ok(Arc::new(plan))
    }

    /// What one of the threads does of it.
    pub(crate) fn share(&self, thread: usize) -> Self {
        let connections = self.connections / self.threads + usize::from(thread < self.connections % self.threads);
        Self {
            target: self.target,
            personas: self.personas.fork(connections),
            io: self.io,
            threads: 1,
            cpus: self.cpu_of(thread).into_iter().collect(),
            sources: self.sources.clone(),
            connections,
            rate: self.rate.map(|rate| rate / self.threads as f64),
            think_time: self.think_time,
            warmup: self.warmup,
            duration: self.duration,
            timeout: self.timeout,
            errors_max: self.errors_max.div_ceil(self.threads as u64),
            cost: self.cost.clone(),
            probe: None,
            seed: self.seed.wrapping_add(thread as u64),
            progress: false,
        }
    }

    /// When a thread's first unit is due, after that of the run.
    pub(crate) fn offset(&self, thread: usize) -> Duration {
        self.rate
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(thread as f64 / rate))
    }

    /// The CPU of a thread.
    pub(crate) fn cpu_of(&self, thread: usize) -> Option<usize> {
        (!self.cpus.is_empty()).then(|| self.cpus[thread % self.cpus.len()])
    }

    /// Keeps the calling thread on the CPUs of the plan.
    pub(crate) fn stay(&self) -> Result<(), PerfError> {
        if self.cpus.is_empty() {
            return Ok(());
        }
        pin_to(&self.cpus)
    }

    /// Pins the calling thread, which is the only one of this plan, and seeds what it draws.
    pub(crate) fn enter(&self) -> Result<(), PerfError> {
        fastrand::seed(self.seed);
        self.cpu_of(0).map_or(Ok(()), pin)
    }
}

/// What `--io` means on this machine.
fn driver(io: Io) -> Result<DriverKind, PerfError> {
    let chosen = choose_driver(match io {
        Io::Auto => config::Io::Auto,
        Io::IoUring => config::Io::IoUring,
        Io::Epoll => config::Io::Epoll,
    });
    chosen.map(|(kind, _)| kind).map_err(|refusal| {
        let expected = format!("{}; {}", refusal.expected, refusal.remedy);
        PerfError::flag("--io", refusal.found, expected)
    })
}

/// Pins the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), PerfError> {
    pin_to(&[cpu])
}

fn pin_to(cpus: &[usize]) -> Result<(), PerfError> {
    let refused = |cpu: usize| PerfError::flag("--cpu", cpu, "the number of a CPU that this process may use");
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(refused(cpu));
        }
        set.set(cpu);
    }
    // The kernel refuses a set of which it has none.
    sched_setaffinity(None, &set).map_err(|_| refused(cpus[0]))
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
    let failed = |why: &str| PerfError::flag("--target", target, format!("host:port ({why})"));
    let mut addresses = target.to_socket_addrs().map_err(|error| failed(&error.to_string()))?;
    addresses.next().ok_or_else(|| failed("the name has no address"))
}

fn sources(asked: Option<u8>, target: SocketAddr, connections: usize) -> Result<Vec<Ipv4Addr>, PerfError> {
    let loopback = matches!(target, SocketAddr::V4(v4) if v4.ip().is_loopback());
    let count = match asked {
        Some(0) => 0,
        Some(_) if !loopback => {
            return Err(PerfError::flag(
                "--sources",
                target,
                "a target in 127.0.0.0/8, or --sources 0",
            ));
        }
        Some(count) => usize::from(count),
        // Four even for few connections: short ones leave their ports in TIME_WAIT.
        None if loopback => connections.div_ceil(CONNECTIONS_PER_SOURCE).max(4),
        None => 0,
    };
    Ok((1..=count)
        .filter_map(|last| Some(Ipv4Addr::new(127, 0, 0, u8::try_from(last).ok()?)))
        .collect())
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
