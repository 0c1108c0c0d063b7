//! What the server used, as the report tells it.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Report, Unit, quotient, ratio, rounded};
use crate::cost::Used;
use crate::error::PerfError;
use crate::procfs;
use crate::syscalls::Counted;

/// System calls that the text names; the rest is in the JSON.
const CALLS_SHOWN: usize = 6;

/// What the server used in the window.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Server {
    /// Microseconds of CPU time per unit.
    pub cpu_us_per_unit: f64,
    /// CPU time by wall time: 1.0 is one CPU busy all the time.
    pub cpu_share: f64,
    /// The part of the CPU time spent in user space, 0 to 1, in clock-tick resolution (10 ms).
    #[serde(default)]
    pub user_part: f64,
    /// How often its threads gave up or lost their CPU; threads that ended in the window are not counted.
    #[serde(default)]
    pub context_switches_per_unit: ContextSwitches,
    /// Page faults, of all its threads.
    #[serde(default)]
    pub page_faults_per_unit: PageFaults,
    /// With --syscalls, when a tool could count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_calls: Option<SystemCalls>,
    /// Of works with standing connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ServerMemory>,
}

/// Context switches per unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ContextSwitches {
    /// A thread waited for something.
    pub voluntary: f64,
    /// A thread lost its CPU to another.
    pub involuntary: f64,
}

/// Page faults per unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct PageFaults {
    /// Without reading from a disk.
    pub minor: f64,
    /// With it.
    pub major: f64,
}

/// System calls, counted in a window of their own after the measuring window.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SystemCalls {
    /// Calls per unit.
    pub per_unit: f64,
    /// The same by name; `other` is all that the tool has no name for.
    pub by_name: BTreeMap<String, f64>,
    /// What counted: `perf stat` or `strace -c`.
    pub tool: String,
    /// Units done while it counted.
    pub units: f64,
}

/// The server's memory without connections and with them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct ServerMemory {
    /// Before the first connection was opened.
    pub before: Memory,
    /// At the end of the window.
    pub end: Memory,
    /// The difference by the number of connections.
    pub per_connection: MemoryPerConnection,
}

/// Memory summed over the server's processes, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Memory {
    /// Resident pages; those that several processes share are in it several times.
    pub rss: u64,
    /// Resident pages, shared ones divided by the number of their users.
    pub pss: u64,
}

/// Bytes for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct MemoryPerConnection {
    /// Of `rss`.
    pub rss: f64,
    /// Of `pss`.
    pub pss: f64,
}

impl Server {
    pub(super) fn new(used: &Used, units: f64, wall: Duration) -> Self {
        let (cpu, activity) = (used.cpu, &used.activity);
        let per_unit = |count: u64| rounded(quotient(count as f64, units));
        Self {
            cpu_us_per_unit: rounded(quotient(cpu.total.as_secs_f64() * 1e6, units)),
            cpu_share: rounded(ratio(cpu.total, wall)),
            user_part: rounded(ratio(cpu.user, cpu.user + cpu.system)),
            context_switches_per_unit: ContextSwitches {
                voluntary: per_unit(activity.voluntary_switches),
                involuntary: per_unit(activity.involuntary_switches),
            },
            page_faults_per_unit: PageFaults {
                minor: per_unit(activity.minor_faults),
                major: per_unit(activity.major_faults),
            },
            system_calls: None,
            memory: None,
        }
    }
}

impl Report {
    /// The server's memory before the first connection and with `connections` of them standing, or a warning why it is not
    /// known.
    pub(crate) fn set_server_memory(
        &mut self,
        before: Result<Option<procfs::Memory>, PerfError>,
        end: Result<Option<procfs::Memory>, PerfError>,
        connections: usize,
    ) {
        let both = before.and_then(|before| Ok(before.zip(end?)));
        match (&mut self.server, both) {
            (Some(server), Ok(Some((before, end)))) => {
                server.memory = Some(ServerMemory::new(before, end, connections));
            }
            (Some(_) | None, Ok(_)) => {}
            (_, Err(why)) => self
                .warnings
                .push(format!("The server's memory is not in this report: {why}")),
        }
    }

    /// System calls that were counted while so many units were done, or why none were.
    pub(crate) fn set_system_calls(&mut self, counted: Result<(Counted, f64), String>) {
        match (&mut self.server, counted) {
            (Some(server), Ok((counted, units))) => server.system_calls = Some(SystemCalls::new(&counted, units)),
            (None, Ok(_)) => {}
            (_, Err(why)) => self
                .warnings
                .push(format!("The server's system calls could not be counted: {why}")),
        }
    }
}

impl SystemCalls {
    /// `counted` while `units` were done.
    pub(crate) fn new(counted: &Counted, units: f64) -> Self {
        let per_unit = |count: u64| rounded(quotient(count as f64, units));
        Self {
            per_unit: per_unit(counted.calls),
            by_name: counted
                .by_name
                .iter()
                .map(|(name, &count)| (name.clone(), per_unit(count)))
                // Calls of the program's own housekeeping, which the work did not cause.
                .filter(|&(_, count)| count > 0.0)
                .collect(),
            tool: counted.tool.name().to_owned(),
            units: rounded(units),
        }
    }
}

impl ServerMemory {
    pub(crate) fn new(before: procfs::Memory, end: procfs::Memory, connections: usize) -> Self {
        let per_connection = |now: u64, before: u64| rounded(quotient(now as f64 - before as f64, connections as f64));
        let told = |memory: procfs::Memory| Memory {
            rss: memory.rss,
            pss: memory.pss,
        };
        Self {
            before: told(before),
            end: told(end),
            per_connection: MemoryPerConnection {
                rss: per_connection(end.rss, before.rss),
                pss: per_connection(end.pss, before.pss),
            },
        }
    }
}

impl Server {
    /// Lines of the text report, each with its margin.
    pub(super) fn lines(&self, unit: Unit, f: &mut Formatter<'_>) -> fmt::Result {
        let user = self.user_part * 100.0;
        let (cpu, share) = (self.cpu_us_per_unit, self.cpu_share * 100.0);
        writeln!(
            f,
            "  server      {cpu:.2} CPU-µs/{unit}, {share:.0} % of a CPU, {user:.0} % of it user"
        )?;
        let ContextSwitches { voluntary, involuntary } = self.context_switches_per_unit;
        let PageFaults { minor, major } = self.page_faults_per_unit;
        writeln!(
            f,
            "              context switches/{unit}: {voluntary} voluntary, {involuntary} not; page faults: {minor} \
             minor, {major} major"
        )?;
        if let Some(calls) = &self.system_calls {
            writeln!(f, "              {calls}")?;
        }
        if let Some(ServerMemory {
            end, per_connection, ..
        }) = &self.memory
        {
            writeln!(
                f,
                "              {:.1} MB resident (pss {:.1}); per connection {:.0} bytes rss, {:.0} pss",
                end.rss as f64 / 1e6,
                end.pss as f64 / 1e6,
                per_connection.rss,
                per_connection.pss
            )?;
        }
        Ok(())
    }
}

impl Display for SystemCalls {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} system calls per unit ({})", self.per_unit, self.tool)?;
        let mut by_name: Vec<(&String, &f64)> = self.by_name.iter().collect();
        by_name.sort_by(|(_, left), (_, right)| right.total_cmp(left));
        for (at, (name, count)) in by_name.iter().take(CALLS_SHOWN).enumerate() {
            write!(f, "{}{name} {count}", if at == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::Tool;

    #[test]
    fn calls_are_told_per_unit_the_most_frequent_first() {
        let counted = Counted {
            tool: Tool::PerfStat,
            calls: 70,
            by_name: [("close", 10), ("recvfrom", 40), ("sendto", 20)]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
        };
        let calls = SystemCalls::new(&counted, 20.0);
        assert_eq!(
            calls.to_string(),
            "3.5 system calls per unit (perf stat): recvfrom 2, sendto 1, close 0.5"
        );
        assert_eq!(SystemCalls::new(&counted, 0.0).per_unit, 0.0);
    }

    #[test]
    fn memory_per_connection_is_the_difference() {
        let memory = |rss, pss| procfs::Memory { rss, pss, private: 0 };
        let told = ServerMemory::new(memory(5_000, 4_000), memory(25_000, 14_000), 10);
        assert_eq!((told.per_connection.rss, told.per_connection.pss), (2_000.0, 1_000.0));
        // A server may give memory back meanwhile.
        assert_eq!(
            ServerMemory::new(memory(20, 20), memory(10, 20), 10).per_connection.rss,
            -1.0
        );
    }
}
