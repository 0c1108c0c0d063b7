//! What the server costs: CPU time, memory and what its threads did, of a set of processes, read from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
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

/// The threads of a set of processes as they were at one moment, and the page faults of the processes until then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Threads {
    /// By thread id, which is unique in the system.
    by_id: BTreeMap<u32, Thread>,
    minor_faults: u64,
    major_faults: u64,
}

/// What one thread has used since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Thread {
    on_cpu: Duration,
    waited: Duration,
    voluntary: u64,
    involuntary: u64,
    cpus: BTreeSet<usize>,
}

/// What threads did between two moments. Threads that ended in between are not in it, but for page faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Times that a thread gave up its CPU because it had to wait for something.
    pub voluntary_switches: u64,
    /// Times that a thread lost its CPU to another thread.
    pub involuntary_switches: u64,
    /// Pages that were mapped without reading them from a disk.
    pub minor_faults: u64,
    /// Pages that were read from a disk.
    pub major_faults: u64,
    /// Threads that used at least [`BUSY_PART`] of what all of them used.
    pub busy_threads: usize,
    /// CPU time of the thread that used most.
    pub busiest: Duration,
    /// Time that threads could have run and had to wait for a CPU, summed over all.
    pub waited: Duration,
    /// The longest such time of one thread.
    pub waited_most: Duration,
    /// CPUs on which the busy threads may run.
    pub cpus: BTreeSet<usize>,
}

/// The part of all CPU time that makes a thread one of those that do the work. Control threads, which may run on any CPU,
/// would otherwise hide where the others are pinned.
pub const BUSY_PART: f64 = 0.1;

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

    /// What their threads have done until now.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn threads(&self) -> Result<Threads, PerfError> {
        let mut all = Threads::default();
        for &pid in &self.pids {
            let stat = stat(pid)?;
            all.minor_faults += stat.minor_faults;
            all.major_faults += stat.major_faults;
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .map_err(|error| process_error(pid, format!("task: {error}")))?;
            let ids = tasks.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
            // A thread may end while the list is read; it then counts as one that ended in between.
            all.by_id
                .extend(ids.filter_map(|id| Some((id, thread(pid, id).ok()??))));
        }
        Ok(all)
    }

    /// Memory in use now. Only root may read that of others' processes, and of those that nobody may dump, as Ringlock's.
    ///
    /// # Errors
    /// When a process has ended or its `smaps_rollup` may not be read.
    pub fn memory(&self) -> Result<Memory, PerfError> {
        let mut sum = Memory::default();
        for &pid in &self.pids {
            let text =
                fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_err(|error| unread_memory(pid, error))?;
            let one = parse_smaps_rollup(&text)
                .ok_or_else(|| process_error(pid, "smaps_rollup lacks Rss, Pss or Private lines".to_owned()))?;
            sum.rss += one.rss;
            sum.pss += one.pss;
            sum.private += one.private;
        }
        Ok(sum)
    }
}

/// Open files of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Open now.
    pub open: u64,
    /// As many as it may have open.
    pub limit: u64,
}

impl Processes {
    /// Open files of the process that is nearest to its limit; `None` when they may not be read.
    pub fn descriptors(&self) -> Option<Descriptors> {
        let all = self.pids.iter().filter_map(|&pid| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
            let limit = parse_descriptor_limit(&read(pid, "limits").ok()?)?;
            Some(Descriptors { open, limit })
        });
        all.min_by_key(|descriptors| descriptors.limit.saturating_sub(descriptors.open))
    }

    /// The value of an environment variable that one of them was started with, if it may be read.
    pub fn environment(&self, name: &str) -> Option<String> {
        self.pids.iter().find_map(|pid| {
            let variables = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let mut values = variables
                .split(|&byte| byte == 0)
                .filter_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            values.next().map(|value| String::from_utf8_lossy(value).into_owned())
        })
    }
}

/// The soft limit; `None` also for `unlimited`.
fn parse_descriptor_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
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

impl Threads {
    /// What was done between `earlier` and `self` by the threads that live now.
    pub fn since(&self, earlier: &Self) -> Activity {
        let unknown = Thread::default();
        let used: Vec<Thread> = self
            .by_id
            .iter()
            .map(|(id, now)| now.since(earlier.by_id.get(id).unwrap_or(&unknown)))
            .collect();
        let total: Duration = used.iter().map(|thread| thread.on_cpu).sum();
        let busy: Vec<&Thread> = used
            .iter()
            .filter(|thread| !thread.on_cpu.is_zero() && thread.on_cpu >= total.mul_f64(BUSY_PART))
            .collect();
        Activity {
            voluntary_switches: used.iter().map(|thread| thread.voluntary).sum(),
            involuntary_switches: used.iter().map(|thread| thread.involuntary).sum(),
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            busy_threads: busy.len(),
            busiest: used.iter().map(|thread| thread.on_cpu).max().unwrap_or_default(),
            waited: used.iter().map(|thread| thread.waited).sum(),
            waited_most: used.iter().map(|thread| thread.waited).max().unwrap_or_default(),
            cpus: busy.iter().flat_map(|thread| &thread.cpus).copied().collect(),
        }
    }
}

impl Thread {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            on_cpu: self.on_cpu.saturating_sub(earlier.on_cpu),
            waited: self.waited.saturating_sub(earlier.waited),
            voluntary: self.voluntary.saturating_sub(earlier.voluntary),
            involuntary: self.involuntary.saturating_sub(earlier.involuntary),
            cpus: self.cpus.clone(),
        }
    }
}

fn thread(pid: u32, id: u32) -> Result<Option<Thread>, PerfError> {
    let status = read(pid, &format!("task/{id}/status"))?;
    // Some kernels keep no times of waiting; a thread then seems never to wait.
    let schedstat = read(pid, &format!("task/{id}/schedstat")).unwrap_or_default();
    Ok(parse_thread(&status, &schedstat))
}

/// `schedstat` holds nanoseconds on a CPU, nanoseconds waiting for one, and time slices.
fn parse_thread(status: &str, schedstat: &str) -> Option<Thread> {
    let value = |wanted: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
        Some(line.trim())
    };
    let mut times = schedstat
        .split_ascii_whitespace()
        .map(|field| field.parse().map(Duration::from_nanos));
    let mut time = || times.next().and_then(Result::ok).unwrap_or_default();
    Some(Thread {
        on_cpu: time(),
        waited: time(),
        voluntary: value("voluntary_ctxt_switches")?.parse().ok()?,
        involuntary: value("nonvoluntary_ctxt_switches")?.parse().ok()?,
        cpus: parse_cpus(value("Cpus_allowed_list")?)?,
    })
}

/// CPUs as the kernel lists them: `0-3,8`.
fn parse_cpus(list: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    minor_faults: u64,
    major_faults: u64,
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
        minor_faults: fields.get(7)?.parse().ok()?,
        major_faults: fields.get(9)?.parse().ok()?,
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

fn unread_memory(pid: u32, error: io::Error) -> PerfError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let why = "only root may, or the owner of a process that may be dumped: run as root";
        PerfError::io(format!("read /proc/{pid}/smaps_rollup ({why})"), error)
    } else {
        process_error(pid, format!("smaps_rollup: {error}"))
    }
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
        let line = "4711 (a (b) c) S 12 4711 4711 0 -1 4194560 100 8 3 9 250 31 5 6 20 0 3 0 1 2 3\n";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                parent: 12,
                minor_faults: 100,
                major_faults: 3,
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
    fn a_thread_is_read_with_its_switches_its_times_and_its_cpus() {
        let status = "Name:\tx\nCpus_allowed:\t10f\nCpus_allowed_list:\t0-3,8\nvoluntary_ctxt_switches:\t150\n\
                      nonvoluntary_ctxt_switches:\t545\n";
        let expected = Thread {
            on_cpu: Duration::from_nanos(1_200),
            waited: Duration::from_nanos(300),
            voluntary: 150,
            involuntary: 545,
            cpus: BTreeSet::from([0, 1, 2, 3, 8]),
        };
        assert_eq!(parse_thread(status, "1200 300 7\n"), Some(expected.clone()));
        let without_times = Thread {
            on_cpu: Duration::ZERO,
            waited: Duration::ZERO,
            ..expected
        };
        assert_eq!(parse_thread(status, ""), Some(without_times));
        assert_eq!(parse_thread("Name:\tx\n", "1 2 3"), None);
        assert_eq!(parse_cpus("0-x"), None);
    }

    #[test]
    fn activity_is_of_threads_that_live_and_cpus_of_those_that_work() {
        let thread = |on_cpu, voluntary, cpu| Thread {
            on_cpu: Duration::from_millis(on_cpu),
            waited: Duration::from_millis(on_cpu / 10),
            voluntary,
            involuntary: 1,
            cpus: BTreeSet::from([cpu]),
        };
        let threads = |by_id: &[(u32, Thread)], minor_faults| Threads {
            by_id: by_id.iter().cloned().collect(),
            minor_faults,
            major_faults: 0,
        };
        let before = threads(&[(1, thread(500, 10, 0)), (2, thread(10, 5, 1))], 7);
        // Thread 2 has ended, 3 is new and works, 4 is new and does next to nothing.
        let after = threads(
            &[(1, thread(1_400, 30, 0)), (3, thread(200, 4, 2)), (4, thread(10, 1, 3))],
            9,
        );
        let expected = Activity {
            voluntary_switches: 20 + 4 + 1,
            involuntary_switches: 2,
            minor_faults: 2,
            major_faults: 0,
            busy_threads: 2,
            busiest: Duration::from_millis(900),
            waited: Duration::from_millis(90 + 20 + 1),
            waited_most: Duration::from_millis(90),
            cpus: BTreeSet::from([0, 2]),
        };
        assert_eq!(after.since(&before), expected);
        assert_eq!(before.since(&before).cpus, BTreeSet::new());
    }

    #[test]
    fn a_thread_that_sleeps_gives_up_its_cpu_each_time() {
        let own = Processes::find(&[std::process::id()], false).unwrap();
        let before = own.threads().unwrap();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pages = vec![1_u8; 8 << 20];
        let activity = own.threads().unwrap().since(&before);
        assert!(activity.voluntary_switches >= 20, "{activity:?}");
        assert!(activity.minor_faults + activity.major_faults > 0, "{activity:?}");
        drop(pages);
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
    fn memory_that_may_not_be_read_is_told_apart_from_a_process_that_has_ended() {
        let told = |kind: io::ErrorKind| unread_memory(7, kind.into()).to_string();
        let denied = told(io::ErrorKind::PermissionDenied);
        assert!(
            denied.contains("/proc/7/smaps_rollup") && denied.contains("run as root"),
            "{denied}"
        );
        let ended = told(io::ErrorKind::NotFound);
        assert!(ended.contains("process 7") && !ended.contains("root"), "{ended}");
    }

    #[test]
    fn descriptors_and_environment_of_this_process_are_found() {
        let own = Processes::find(&[std::process::id()], false).unwrap();
        let before = own.descriptors().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(0 < before.open && before.open <= before.limit, "{before:?}");
        drop(file);
        assert_eq!(own.environment("PATH"), std::env::var("PATH").ok());
        assert_eq!(own.environment("PAT"), None);
        let limits = "Limit Soft Limit Hard Limit Units\nMax open files            1024                 524288               files\n";
        assert_eq!(parse_descriptor_limit(limits), Some(1024));
        assert_eq!(parse_descriptor_limit("Max open files unlimited unlimited files"), None);
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
