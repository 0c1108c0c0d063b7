//! What an attack costs the server.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::PerfError;
use crate::procfs::{CpuTime, Processes};

/// How often memory is read for its peak.
const SAMPLE: Duration = Duration::from_millis(100);

/// CPU time and memory of the server, summed over its processes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerCost {
    /// CPU time during the attack, seconds.
    pub cpu_s: f64,
    /// CPU time by wall time: 1.0 is one CPU busy all the time.
    pub cpu_share: f64,
    /// The same while the witness was alone.
    pub cpu_share_before: f64,
    /// Microseconds of CPU time per attempt, without what the witness alone took.
    pub cpu_us_per_attempt: f64,
    /// Resident bytes before the attack, after the witness had been served.
    pub rss_before: u64,
    /// Highest resident bytes of those read during the attack.
    pub rss_most: u64,
    /// Resident bytes after the attack, after the witness had been served once more.
    pub rss_after: u64,
    /// (`rss_most` - `rss_before`) / connections that were open at a time.
    pub rss_bytes_per_connection: f64,
}

/// Clocks and memory of the server, read in the course of a run.
pub(super) struct Meter {
    processes: Processes,
    last: (Instant, CpuTime),
    cpu_share_before: f64,
    rss_before: u64,
    rss_most: u64,
    sampled: Instant,
    attack: (Duration, Duration),
}

impl Meter {
    /// Starts before the baseline.
    pub(super) fn start(processes: Processes) -> Result<Self, PerfError> {
        let now = Instant::now();
        Ok(Self {
            last: (now, processes.cpu_time()?),
            cpu_share_before: 0.0,
            rss_before: 0,
            rss_most: 0,
            sampled: now,
            attack: (Duration::ZERO, Duration::ZERO),
            processes,
        })
    }

    /// The attack begins.
    pub(super) fn attack_begins(&mut self) -> Result<(), PerfError> {
        let (cpu, wall) = self.lap()?;
        self.cpu_share_before = share(cpu, wall);
        self.rss_before = self.processes.memory()?.rss;
        self.rss_most = self.rss_before;
        Ok(())
    }

    /// Looks at the memory, when it is time to.
    pub(super) fn sample(&mut self) -> Result<(), PerfError> {
        if self.sampled.elapsed() >= SAMPLE {
            self.sampled = Instant::now();
            self.rss_most = self.rss_most.max(self.processes.memory()?.rss);
        }
        Ok(())
    }

    /// The attack is over; its connections may still be open.
    pub(super) fn attack_ends(&mut self) -> Result<(), PerfError> {
        self.attack = self.lap()?;
        self.rss_most = self.rss_most.max(self.processes.memory()?.rss);
        Ok(())
    }

    /// At the end of the run.
    pub(super) fn finish(self, attempts: u64, open_most: usize) -> Result<ServerCost, PerfError> {
        let (cpu, wall) = self.attack;
        let of_attack = (cpu.as_secs_f64() - self.cpu_share_before * wall.as_secs_f64()).max(0.0);
        let grown = self.rss_most.saturating_sub(self.rss_before);
        Ok(ServerCost {
            cpu_s: cpu.as_secs_f64(),
            cpu_share: share(cpu, wall),
            cpu_share_before: self.cpu_share_before,
            cpu_us_per_attempt: of_attack * 1e6 / attempts.max(1) as f64,
            rss_before: self.rss_before,
            rss_most: self.rss_most,
            rss_after: self.processes.memory()?.rss,
            rss_bytes_per_connection: grown as f64 / open_most.max(1) as f64,
        })
    }

    /// CPU and wall time since the last call.
    fn lap(&mut self) -> Result<(Duration, Duration), PerfError> {
        let now = (Instant::now(), self.processes.cpu_time()?);
        let (at, used) = std::mem::replace(&mut self.last, now);
        Ok((now.1.since(used).total, now.0.duration_since(at)))
    }
}

fn share(cpu: Duration, wall: Duration) -> f64 {
    if wall.is_zero() {
        0.0
    } else {
        cpu.as_secs_f64() / wall.as_secs_f64()
    }
}
