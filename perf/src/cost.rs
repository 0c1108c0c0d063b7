//! What is metered around a measuring window: clocks and counters of the server, of its origin, of this client and of the
//! machine.

use std::time::{Duration, Instant};

use crate::args::CostArgs;
use crate::error::PerfError;
use crate::host::{Host, HostChange};
use crate::procfs::{Activity, CpuTime, Memory, Processes, Threads};

/// The processes that a run looks at. Those of the server are looked for anew for each window: workers come and go.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    args: CostArgs,
    own: Processes,
}

impl Watched {
    /// # Errors
    /// When a process that was named does not run.
    pub(crate) fn new(args: &CostArgs) -> Result<Self, PerfError> {
        let watched = Self {
            args: args.clone(),
            own: Processes::find(&[std::process::id()], false)?,
        };
        watched.server()?;
        watched.origin()?;
        Ok(watched)
    }

    /// The server's processes as they are now, if any were named.
    pub(crate) fn server(&self) -> Result<Option<Processes>, PerfError> {
        found(&self.args.server_pid, self.args.server_children)
    }

    /// The server's memory now; taken before connections are opened, and with them standing. It is no error of most works that
    /// it may not be read: [`crate::report::Report::set_server_memory`] tells why.
    ///
    /// # Errors
    /// As [`Processes::memory`].
    pub(crate) fn server_memory(&self) -> Result<Option<Memory>, PerfError> {
        self.server()?.as_ref().map(Processes::memory).transpose()
    }

    /// True when system calls are to be counted after the window.
    pub(crate) fn counts_system_calls(&self) -> bool {
        self.args.syscalls
    }

    fn origin(&self) -> Result<Option<Processes>, PerfError> {
        found(&self.args.origin_pid, false)
    }
}

fn found(pids: &[u32], children: bool) -> Result<Option<Processes>, PerfError> {
    if pids.is_empty() {
        return Ok(None);
    }
    Processes::find(pids, children).map(Some)
}

/// What processes used in a window.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) processes: Processes,
    pub(crate) cpu: CpuTime,
    pub(crate) activity: Activity,
}

/// The resources used in the measuring window.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) wall: Duration,
    pub(crate) client: Used,
    /// `None` when no server process was named.
    pub(crate) server: Option<Used>,
    /// `None` when no process of the origin was named.
    pub(crate) origin: Option<Used>,
    pub(crate) host: HostChange,
}

/// Clocks and counters read at the start of a window.
pub(crate) struct Meter {
    host: Host,
    client: Before,
    server: Option<Before>,
    origin: Option<Before>,
    started: Instant,
}

struct Before {
    processes: Processes,
    threads: Threads,
    cpu: CpuTime,
}

impl Meter {
    /// Opens the window. CPU clocks are read last and, by [`Meter::stop`], first: reading the rest is not in the figures.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn start(watched: &Watched) -> Result<Self, PerfError> {
        let server = watched.server()?;
        let host = Host::read(listener(server.as_ref()));
        let mut meter = Self {
            host,
            client: Before::read(watched.own.clone())?,
            server: server.map(Before::read).transpose()?,
            origin: watched.origin()?.map(Before::read).transpose()?,
            started: Instant::now(),
        };
        let sides = [meter.origin.as_mut(), meter.server.as_mut(), Some(&mut meter.client)];
        for side in sides.into_iter().flatten() {
            side.cpu = side.processes.cpu_time()?;
        }
        meter.started = Instant::now();
        Ok(meter)
    }

    /// Closes the window.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn stop(self) -> Result<Window, PerfError> {
        let wall = self.started.elapsed();
        let client = self.client.processes.cpu_time()?;
        let cpu = |side: &Option<Before>| side.as_ref().map(|side| side.processes.cpu_time()).transpose();
        let (server, origin) = (cpu(&self.server)?, cpu(&self.origin)?);
        let listener = listener(self.server.as_ref().map(|server| &server.processes));
        let used =
            |side: Option<Before>, cpu: Option<CpuTime>| side.zip(cpu).map(|(side, cpu)| side.used(cpu)).transpose();
        Ok(Window {
            wall,
            client: self.client.used(client)?,
            server: used(self.server, server)?,
            origin: used(self.origin, origin)?,
            host: Host::read(listener).since(&self.host),
        })
    }
}

impl Before {
    fn read(processes: Processes) -> Result<Self, PerfError> {
        Ok(Self {
            threads: processes.threads()?,
            cpu: CpuTime::default(),
            processes,
        })
    }

    fn used(self, cpu: CpuTime) -> Result<Used, PerfError> {
        Ok(Used {
            cpu: cpu.since(self.cpu),
            activity: self.processes.threads()?.since(&self.threads),
            processes: self.processes,
        })
    }
}

/// A process that shares its network namespace with the sockets that listen.
fn listener(server: Option<&Processes>) -> Option<u32> {
    server?.pids().first().copied()
}

#[cfg(test)]
mod tests {
    use nix::time::ClockId;

    use super::*;

    fn watched(line: &[&str]) -> Result<Watched, PerfError> {
        use clap::Parser;

        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            cost: CostArgs,
        }
        let line = std::iter::once("ringlock-perf").chain(line.iter().copied());
        Watched::new(&Line::parse_from(line).cost)
    }

    #[test]
    fn a_window_has_what_client_server_and_origin_used() {
        let own = std::process::id().to_string();
        let watched = watched(&["--server-pid", &own, "--origin-pid", &own]).unwrap();
        assert!(!watched.counts_system_calls());
        let meter = Meter::start(&watched).unwrap();
        let busy = Duration::from_millis(20);
        let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
        let end = Duration::from(clock.now().unwrap()) + busy;
        while Duration::from(clock.now().unwrap()) < end {}
        std::thread::sleep(Duration::from_millis(2));
        let window = meter.stop().unwrap();
        assert!(window.wall >= busy + Duration::from_millis(2));
        for used in [Some(&window.client), window.server.as_ref(), window.origin.as_ref()] {
            let used = used.unwrap();
            assert!(used.cpu.total >= busy, "{used:?}");
            assert!(used.activity.voluntary_switches >= 1, "{used:?}");
            assert!(used.activity.busiest >= busy / 2, "{used:?}");
            assert!(!used.activity.cpus.is_empty(), "{used:?}");
        }
        assert!(watched.server_memory().unwrap().unwrap().rss > 0);
    }

    #[test]
    fn without_processes_only_the_client_is_metered_and_a_wrong_one_is_named() {
        let nobody = watched(&[]).unwrap();
        let window = Meter::start(&nobody).unwrap().stop().unwrap();
        assert!(window.server.is_none() && window.origin.is_none());
        assert!(nobody.server_memory().unwrap().is_none());
        for flag in ["--server-pid", "--origin-pid"] {
            let error = watched(&[flag, "4294967294"]).unwrap_err().to_string();
            assert!(error.contains("4294967294"), "{error}");
        }
    }
}
