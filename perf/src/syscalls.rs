//! How often the server calls the kernel, counted by a program that may look: `perf stat`, which counts in the kernel, or
//! `strace -c`, which stops the server at each call. Both disturb, so they count in a window of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::PerfError;
use crate::procfs::Processes;

/// How long calls are counted. Long enough for thousands of units; a server that strace slows is not slow for long.
pub(crate) const WINDOW: Duration = Duration::from_secs(2);

/// How long a tool may take to attach, and to leave: perf needs up to a second until the kernel has let go of its events.
const TOOL_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the kernel lists what perf can count by name.
const TRACEPOINTS: [&str; 2] = [
    "/sys/kernel/tracing/events/syscalls",
    "/sys/kernel/debug/tracing/events/syscalls",
];

/// Calls that perf counts by name: those of servers. Each name costs at each switch of threads, so it is not all 360; what
/// is called apart from these is `other`.
const NAMES: [&str; 38] = [
    "accept",
    "accept4",
    "bind",
    "clock_nanosleep",
    "close",
    "connect",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "fcntl",
    "futex",
    "getpeername",
    "getpid",
    "getrandom",
    "getsockname",
    "getsockopt",
    "io_uring_enter",
    "ioctl",
    "madvise",
    "mmap",
    "munmap",
    "openat",
    "poll",
    "ppoll",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "sched_yield",
    "sendfile64",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socket",
    "splice",
    "write",
    "writev",
];

/// What calls without a name of their own are counted as.
const OTHER: &str = "other";

/// A program that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// Counts in the kernel.
    PerfStat,
    /// Stops the server at each call.
    Strace,
}

impl Tool {
    /// The cheapest first.
    const ALL: [Self; 2] = [Self::PerfStat, Self::Strace];

    /// As the report names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PerfStat => "perf stat",
            Self::Strace => "strace -c",
        }
    }

    fn command(self, pids: &[u32]) -> Result<Command, String> {
        let pids = pids.iter().map(u32::to_string);
        Ok(match self {
            Self::PerfStat => {
                let mut perf = Command::new("perf");
                // Events wait for the order to count, which is confirmed on standard output.
                perf.args(["stat", "-x", "\t", "--delay=-1", "--control=fd:0,1"]).args([
                    "-e",
                    &events()?,
                    "-p",
                    &pids.collect::<Vec<_>>().join(","),
                ]);
                perf
            }
            Self::Strace => {
                let mut strace = Command::new("strace");
                strace.args(["-c", "-f"]);
                pids.for_each(|pid| {
                    strace.args(["-p", &pid]);
                });
                strace
            }
        })
    }
}

/// Calls that were counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) tool: Tool,
    pub(crate) calls: u64,
    /// Those that were called at all.
    pub(crate) by_name: BTreeMap<String, u64>,
}

/// Counts calls of `processes` while `keep_working` goes on with the work for the time it is given; it returns how many
/// units were done meanwhile, which come back with the calls. The inner error says why no tool could count.
///
/// # Errors
/// When the work fails.
pub(crate) fn count(
    processes: &Processes,
    window: Duration,
    mut keep_working: impl FnMut(Duration) -> Result<f64, PerfError>,
) -> Result<Result<(Counted, f64), String>, PerfError> {
    let mut refusals = Vec::new();
    for tool in Tool::ALL {
        match Counter::attach(tool, processes.pids()) {
            Ok(mut counter) => {
                let units = keep_working(window)?;
                return Ok(counter.stop().map(|counted| (counted, units)));
            }
            Err(refusal) => refusals.push(format!("{}: {refusal}", tool.name())),
        }
    }
    Ok(Err(refusals.join("; ")))
}

/// A tool that counts.
struct Counter {
    tool: Tool,
    child: Child,
    answers: Said,
    messages: Said,
}

impl Counter {
    /// Returns when the tool counts. What it says when it may not is the error.
    fn attach(tool: Tool, pids: &[u32]) -> Result<Self, String> {
        let mut child = tool
            .command(pids)?
            // Numbers and messages are read.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("does not start ({error})"))?;
        let answers = Said::by(child.stdout.take().expect("standard output is a pipe"));
        let messages = Said::by(child.stderr.take().expect("standard error is a pipe"));
        let mut counter = Self {
            tool,
            child,
            answers,
            messages,
        };
        let attached = match tool {
            Tool::PerfStat => counter.order("enable"),
            Tool::Strace => counter.wait_attached(pids.len()),
        };
        attached.map(|()| counter)
    }

    /// Ends the count and the tool.
    fn stop(&mut self) -> Result<Counted, String> {
        if self.tool == Tool::PerfStat {
            self.order("disable")?;
        }
        self.interrupt();
        let text = self.messages.rest();
        let counted = match self.tool {
            Tool::PerfStat => parse_perf(&text),
            Tool::Strace => parse_strace(&text),
        };
        let (calls, by_name) = counted.ok_or_else(|| format!("its result cannot be read: {}", one_line(&text)))?;
        Ok(Counted {
            tool: self.tool,
            calls,
            by_name,
        })
    }

    /// Tells perf something and waits until it has done it.
    fn order(&mut self, order: &str) -> Result<(), String> {
        let stdin = self.child.stdin.as_mut().expect("standard input is a pipe");
        let told = writeln!(stdin, "{order}").is_ok();
        if told && self.answers.until(|text| text.contains("ack")).1 {
            return Ok(());
        }
        self.interrupt();
        Err(one_line(&self.messages.rest()))
    }

    fn wait_attached(&mut self, processes: usize) -> Result<(), String> {
        let (said, attached) = self
            .messages
            .until(|text| text.matches(" attached").count() >= processes);
        if attached { Ok(()) } else { Err(one_line(&said)) }
    }

    fn interrupt(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; it is not waited for yet, so the id is still its own.
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

impl Drop for Counter {
    /// Nothing stays attached to the server: both tools detach when they are interrupted, and the kernel does it for one
    /// that has to be killed.
    fn drop(&mut self) {
        self.interrupt();
        let end = Instant::now() + TOOL_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program says, read by a thread of its own until it ends: strace tells each new thread of the server, and a pipe that
/// nobody empties would stop it, and with it the server.
struct Said(Receiver<Vec<u8>>);

impl Said {
    fn by(mut pipe: impl Read + Send + 'static) -> Self {
        let (tell, said) = channel();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                // Nobody listens when the count is over; the pipe is still emptied.
                let _ = tell.send(piece[..count].to_vec());
            }
        });
        Self(said)
    }

    /// Waits until what comes from now on is enough (true), or there is no more, or it takes too long (false).
    fn until(&self, enough: impl Fn(&str) -> bool) -> (String, bool) {
        let end = Instant::now() + TOOL_TIMEOUT;
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if enough(&text) {
                return (text, true);
            }
            match self.0.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(piece) => bytes.extend(piece),
                Err(_) => return (text, false),
            }
        }
    }

    /// All that comes until its end.
    fn rest(&self) -> String {
        self.until(|_| false).0
    }
}

/// All calls, and those that the kernel can count by name: not every architecture has each.
fn events() -> Result<String, String> {
    let known: BTreeSet<String> = TRACEPOINTS
        .iter()
        .find_map(|folder| fs::read_dir(folder).ok())
        .ok_or_else(|| format!("{} cannot be read (root, or mount -o remount,mode=755)", TRACEPOINTS[0]))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let by_name = NAMES
        .iter()
        .map(|name| format!("sys_enter_{name}"))
        .filter(|event| known.contains(event))
        .map(|event| format!("syscalls:{event}"));
    let all = std::iter::once("raw_syscalls:sys_enter".to_owned());
    Ok(all.chain(by_name).collect::<Vec<_>>().join(","))
}

/// Lines `count TAB unit TAB event TAB …`.
fn parse_perf(text: &str) -> Option<(u64, BTreeMap<String, u64>)> {
    let mut all = None;
    let mut by_name = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (Some(count), Some(event)) = (fields.next(), fields.nth(1)) else {
            continue;
        };
        // Threads that slept the whole time are `<not counted>`.
        let count = count.parse::<u64>().unwrap_or(0);
        if event == "raw_syscalls:sys_enter" {
            all = Some(count);
        } else if let Some(name) = event.strip_prefix("syscalls:sys_enter_")
            && count > 0
        {
            by_name.insert(name.to_owned(), count);
        }
    }
    let all = all?;
    let named: u64 = by_name.values().sum();
    if all > named {
        by_name.insert(OTHER.to_owned(), all - named);
    }
    Some((all.max(named), by_name))
}

/// A table between lines of dashes: `% time`, seconds, usecs/call, calls, errors or nothing, name.
fn parse_strace(text: &str) -> Option<(u64, BTreeMap<String, u64>)> {
    if text.lines().all(|line| line.starts_with("strace: Process ")) {
        // It prints no table when there was nothing to count.
        return text.contains(" detached").then(|| (0, BTreeMap::new()));
    }
    let mut rows = text.lines().skip_while(|line| !line.starts_with("------")).skip(1);
    let mut by_name = BTreeMap::new();
    for row in rows.by_ref().take_while(|line| !line.starts_with("------")) {
        let fields: Vec<&str> = row.split_ascii_whitespace().collect();
        by_name.insert((*fields.last()?).to_owned(), fields.get(3)?.parse().ok()?);
    }
    rows.next()?
        .contains("total")
        .then(|| (by_name.values().sum(), by_name))
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().take(40).collect();
    if words.is_empty() {
        "it says nothing".to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that calls `getppid` and nothing else as fast as it can.
    struct Caller(Child);

    impl Caller {
        fn start() -> Self {
            let script = "import os\nprint('ready', flush=True)\nwhile True: os.getppid()";
            let mut child = Command::new("python3")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let ready = Said::by(child.stdout.take().unwrap()).until(|text| text.contains("ready"));
            assert!(ready.1, "{}", ready.0);
            Self(child)
        }

        fn processes(&self) -> Processes {
            Processes::find(&[self.0.id()], false).unwrap()
        }
    }

    impl Drop for Caller {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn names(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn perf_counts_are_read_and_those_without_a_name_are_the_rest() {
        let text = "Events disabled\nEvents enabled\n62706\t\traw_syscalls:sys_enter\t597690258\t100.00\t\t\n\
                    31324\t\tsyscalls:sys_enter_recvfrom\t596975268\t100.00\t\t\n0\t\tsyscalls:sys_enter_accept\t1\t100.00\t\t\n\
                    31319\t\tsyscalls:sys_enter_sendto\t596855023\t100.00\t\t\n<not counted>\t\tsyscalls:sys_enter_read\t0\t0.00\t\t\n";
        let expected = names(&[("recvfrom", 31_324), ("sendto", 31_319), ("other", 63)]);
        assert_eq!(parse_perf(text), Some((62_706, expected)));
        assert_eq!(parse_perf("event syntax error: 'raw_syscalls:sys_enter'\n"), None);
    }

    #[test]
    fn the_table_of_strace_is_read_with_and_without_errors() {
        let text = "strace: Process 20742 detached\n\
                    % time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    77.90    0.455821          49      9238           recvfrom\n  \
                    1.99    0.011665          12       930       182 futex\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.585123          30     10168       182 total\n";
        assert_eq!(
            parse_strace(text),
            Some((10_168, names(&[("recvfrom", 9_238), ("futex", 930)])))
        );
        assert_eq!(parse_strace("strace: Process 1 detached\n"), Some((0, BTreeMap::new())));
        assert_eq!(
            parse_strace("strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted\n"),
            None
        );
    }

    #[test]
    fn a_process_that_calls_the_kernel_is_counted_by_a_tool_or_it_is_said_why_not() {
        let caller = Caller::start();
        let mut worked = None;
        let result = count(&caller.processes(), Duration::from_millis(200), |time| {
            thread::sleep(time);
            worked = Some(time);
            Ok(10.0)
        });
        match result.unwrap() {
            Ok((counted, units)) => {
                assert_eq!((worked, units), (Some(Duration::from_millis(200)), 10.0));
                assert!(counted.calls > 100, "{counted:?}");
                assert_eq!(counted.by_name.values().sum::<u64>(), counted.calls, "{counted:?}");
            }
            // A machine where neither is installed or permitted.
            Err(why) => assert!(why.contains("perf stat: ") && why.contains("strace -c: "), "{why}"),
        }
    }

    #[test]
    fn each_tool_counts_what_the_process_calls_and_leaves_it_running() {
        let caller = Caller::start();
        for tool in Tool::ALL {
            match Counter::attach(tool, &[caller.0.id()]) {
                Ok(mut counter) => {
                    thread::sleep(Duration::from_millis(200));
                    let counted = counter.stop().unwrap();
                    assert_eq!(counted.tool, tool);
                    // perf has no name for the call in its list, strace knows all.
                    let name = if tool == Tool::PerfStat { OTHER } else { "getppid" };
                    assert!(
                        counted.by_name.get(name).is_some_and(|&count| count > 100),
                        "{counted:?}"
                    );
                }
                // It is not installed or not permitted here.
                Err(why) => assert!(!why.is_empty()),
            }
            let before = caller.processes().cpu_time().unwrap();
            thread::sleep(Duration::from_millis(100));
            let used = caller.processes().cpu_time().unwrap().since(before);
            assert!(!used.total.is_zero(), "it runs on after {}", tool.name());
        }
    }

    #[test]
    fn a_tool_that_cannot_attach_says_why_and_leaves() {
        let gone = Caller::start();
        let processes = gone.processes();
        drop(gone);
        let why = count(&processes, Duration::ZERO, |_| panic!("nothing is to be counted"))
            .unwrap()
            .unwrap_err();
        assert!(why.contains("perf stat: ") && why.contains("strace -c: "), "{why}");
    }

    #[test]
    fn a_tool_that_says_a_lot_while_nobody_asks_is_not_held_up() {
        // More than a pipe takes.
        let mut talker = Command::new("sh")
            .args(["-c", "head -c 300000 /dev/zero >&2"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Said::by(talker.stderr.take().unwrap());
        let end = Instant::now() + TOOL_TIMEOUT;
        while talker.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                talker.kill().unwrap();
                panic!("it waits until somebody reads");
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(said.rest().len(), 300_000);
    }
}
