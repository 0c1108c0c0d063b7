//! What the server costs: CPU time and memory of a set of processes, read from the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;

use crate::error::PerfError;

/// A fixed set of processes that are measured together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    pids: Vec<u32>,
}

/// CPU time used so far, summed over processes and all their threads, living and ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// From the processes' CPU clocks: nanosecond resolution.
    pub total: Duration,
    /// Time in user space, from `/proc/PID/stat`: resolution of one clock tick, 10 ms as a rule.
    pub user: Duration,
    /// Time in the kernel, from `/proc/PID/stat`, as `user`.
    pub system: Duration,
}

/// Memory in bytes, summed over processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident pages; pages that several processes share are counted in each.
    pub rss: u64,
    /// Resident pages, shared ones divided by the number of their users.
    pub pss: u64,
    /// Pages that only one process maps.
    pub private: u64,
}

impl Processes {
    /// The processes with these ids and, with `children`, all that descend from them now.
    ///
    /// # Errors
    /// When one of `pids` does not run.
    pub fn find(pids: &[u32], children: bool) -> Result<Self, PerfError> {
        let mut found: Vec<u32> = Vec::new();
        for &pid in pids {
            stat(pid)?;
            if !found.contains(&pid) {
                found.push(pid);
            }
        }
        if children {
            add_descendants(&mut found, &parents()?);
        }
        Ok(Self { pids: found })
    }

    /// The process ids, those asked for first.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// CPU time used until now.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn cpu_time(&self) -> Result<CpuTime, PerfError> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let mut sum = CpuTime::default();
        for &pid in &self.pids {
            let clock_failed = |errno: nix::errno::Errno| process_error(pid, format!("CPU clock: {errno}"));
            let raw = i32::try_from(pid).map_err(|_| process_error(pid, "no such process id".to_owned()))?;
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(raw)).map_err(clock_failed)?;
            sum.total += Duration::from(clock.now().map_err(clock_failed)?);
            let stat = stat(pid)?;
            sum.user += ticks(stat.user_ticks, ticks_per_second);
            sum.system += ticks(stat.system_ticks, ticks_per_second);
        }
        Ok(sum)
    }

    /// Memory in use now.
    ///
    /// # Errors
    /// When a process has ended or its `smaps_rollup` may not be read.
    pub fn memory(&self) -> Result<Memory, PerfError> {
        let mut sum = Memory::default();
        for &pid in &self.pids {
            let text = read(pid, "smaps_rollup")?;
            let one = parse_smaps_rollup(&text)
                .ok_or_else(|| process_error(pid, "smaps_rollup lacks Rss, Pss or Private lines".to_owned()))?;
            sum.rss += one.rss;
            sum.pss += one.pss;
            sum.private += one.private;
        }
        Ok(sum)
    }
}

impl CpuTime {
    /// What was used between `earlier` and `self`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
}

fn stat(pid: u32) -> Result<Stat, PerfError> {
    let text = read(pid, "stat")?;
    parse_stat(&text).ok_or_else(|| process_error(pid, format!("unexpected stat line `{}`", text.trim_end())))
}

/// The command name stands in parentheses and may itself hold spaces and parentheses, so fields count from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        user_ticks: fields.get(11)?.parse().ok()?,
        system_ticks: fields.get(12)?.parse().ok()?,
    })
}

fn parse_smaps_rollup(text: &str) -> Option<Memory> {
    let bytes = |wanted: &str| -> Option<u64> {
        text.lines().find_map(|line| {
            let kib = line
                .strip_prefix(wanted)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix("kB")?
                .trim();
            Some(kib.parse::<u64>().ok()? * 1024)
        })
    };
    Some(Memory {
        rss: bytes("Rss")?,
        pss: bytes("Pss")?,
        private: bytes("Private_Clean")? + bytes("Private_Dirty")?,
    })
}

/// The parent of every process that runs now.
fn parents() -> Result<BTreeMap<u32, u32>, PerfError> {
    let entries = fs::read_dir("/proc").map_err(|error| PerfError::io("read /proc", error))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        // A process may end while the list is read; then it is nobody's child any more.
        .filter_map(|pid| Some((pid, stat(pid).ok()?.parent)))
        .collect())
}

fn add_descendants(found: &mut Vec<u32>, parents: &BTreeMap<u32, u32>) {
    let mut next = 0;
    while let Some(&ancestor) = found.get(next) {
        for (&pid, &parent) in parents {
            if parent == ancestor && !found.contains(&pid) {
                found.push(pid);
            }
        }
        next += 1;
    }
}

fn read(pid: u32, file: &str) -> Result<String, PerfError> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| process_error(pid, format!("{file}: {error}")))
}

fn ticks(count: u64, per_second: u64) -> Duration {
    Duration::from_nanos(count.saturating_mul(1_000_000_000) / per_second.max(1))
}

fn process_error(pid: u32, problem: String) -> PerfError {
    PerfError::Process { pid, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_name_with_spaces_and_parentheses() {
        let line = "4711 (a (b) c) S 12 4711 4711 0 -1 4194560 100 0 0 0 250 31 5 6 20 0 3 0 1 2 3\n";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                parent: 12,
                user_ticks: 250,
                system_ticks: 31
            })
        );
        assert_eq!(parse_stat("4711 (short) S 12 1"), None);
        assert_eq!(parse_stat("no parentheses"), None);
    }

    #[test]
    fn memory_is_read_in_bytes_and_incomplete_files_are_refused() {
        let text = "aaaa-bbbb ---p 00000000 00:00 0 [rollup]\nRss:    100 kB\nPss:     60 kB\nPss_Dirty: 7 kB\n\
                    Shared_Clean: 1 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty:  50 kB\nSwap: 0 kB\n";
        let expected = Memory {
            rss: 102_400,
            pss: 61_440,
            private: 55_296,
        };
        assert_eq!(parse_smaps_rollup(text), Some(expected));
        assert_eq!(parse_smaps_rollup("Rss: 1 kB\nPss: 1 kB\n"), None);
    }

    #[test]
    fn descendants_are_found_through_generations_and_once() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (9, 8)]);
        let mut found = vec![2];
        add_descendants(&mut found, &parents);
        assert_eq!(found, [2, 3, 4]);
    }

    #[test]
    fn the_cpu_clock_of_this_process_advances_with_work_done_in_a_thread_that_has_ended() {
        let own = Processes::find(&[std::process::id()], false).unwrap();
        let before = own.cpu_time().unwrap();
        let busy = Duration::from_millis(30);
        std::thread::spawn(move || {
            let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
            while Duration::from(clock.now().unwrap()) < busy {}
        })
        .join()
        .unwrap();
        assert!(own.cpu_time().unwrap().since(before).total >= busy);
    }

    #[test]
    fn memory_of_this_process_grows_with_touched_pages() {
        let own = Processes::find(&[std::process::id()], false).unwrap();
        let before = own.memory().unwrap();
        let pages = vec![1_u8; 16 << 20];
        let after = own.memory().unwrap();
        // Pages of the program itself may turn from private to shared meanwhile, when it is started once more.
        assert!(after.private >= before.private + (12 << 20), "{before:?} {after:?}");
        drop(pages);
    }

    #[test]
    fn a_process_that_does_not_run_is_named() {
        let error = Processes::find(&[u32::MAX - 1], false).unwrap_err().to_string();
        assert!(
            error.contains("4294967294") && error.contains("--server-pid"),
            "{error}"
        );
    }
}
