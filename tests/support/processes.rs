//! What the system tells of the gateway's process and of those that it starts.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use super::{Gateway, Token, eventually, python};

/// One line of the list of processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// Who started it, or took it over.
    pub(crate) parent: u32,
    /// It has ended, and nobody has asked how.
    pub(crate) zombie: bool,
    /// Its command line, words separated by spaces.
    pub(crate) command: String,
}

/// Every process that there is.
pub(crate) fn processes() -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    // One that ends meanwhile is none.
    pids.filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut behind_name = stat.rsplit_once(") ")?.1.split(' ');
    let state = behind_name.next()?;
    let parent = behind_name.next()?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = command.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    Some(Process {
        pid,
        parent,
        zombie: state == "Z",
        command: words.join(" ").trim_end().to_owned(),
    })
}

/// The gateway's signers, those that have ended and have not been waited for among them. They are children of the process that starts them.
pub(crate) fn children(gateway: &Gateway) -> Vec<Process> {
    let mut all = processes();
    let launcher = all.iter().find(|process| is_launcher(process, gateway.pid()));
    let launcher = launcher.map(|process| process.pid);
    all.retain(|process| Some(process.parent) == launcher);
    all
}

/// The process that starts signers for the gateway.
#[track_caller]
pub(crate) fn launcher(gateway: &Gateway) -> u32 {
    let all = processes();
    let found = all.iter().find(|process| is_launcher(process, gateway.pid()));
    found.expect("a gateway that runs has one").pid
}

fn is_launcher(process: &Process, gateway: u32) -> bool {
    process.parent == gateway && process.command.contains(" signer-launcher")
}

/// The gateway's signers that live.
pub(crate) fn signers(gateway: &Gateway) -> Vec<u32> {
    let all = children(gateway).into_iter();
    all.filter(|process| !process.zombie)
        .map(|process| process.pid)
        .collect()
}

/// The processes whose parent this one is, those that have ended left out.
pub(crate) fn living_children(parent: u32) -> Vec<u32> {
    let all = processes().into_iter();
    all.filter(|process| process.parent == parent && !process.zombie)
        .map(|process| process.pid)
        .collect()
}

/// What a process was started with: its arguments, separated by spaces. Nothing when it has ended meanwhile.
pub(crate) fn command_line(pid: u32) -> String {
    process(pid).map(|process| process.command).unwrap_or_default()
}

/// The environment that a process was started with.
pub(crate) fn environment(process: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{process}/environ")).unwrap()).into_owned()
}

/// Real user of a process.
#[track_caller]
pub(crate) fn user(process: u32) -> u32 {
    status(process, "Uid:").unwrap()
}

/// Memory of a process that cannot reach swap, in KiB.
#[track_caller]
pub(crate) fn locked_kib(process: u32) -> u32 {
    status(process, "VmLck:").unwrap()
}

/// The first number behind this word.
fn status(process: u32, word: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether one of these is anywhere in the memory that a process can write to. Needs root.
#[track_caller]
pub(crate) fn memory_holds(process: u32, any_of: &[Vec<u8>]) -> bool {
    const SCAN: &str = r#"
import sys
process, *wanted = sys.argv[1:]
wanted = [bytes.fromhex(text) for text in wanted]
found = 0
with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as memory:
    for line in maps:
        words = line.split()
        start, end = (int(address, 16) for address in words[0].split("-"))
        # The rings of io_uring and the kernel's own pages are no memory of the process.
        if not words[1].startswith("rw") or "io_uring" in line or "[v" in line:
            continue
        memory.seek(start)
        try:
            mapping = memory.read(end - start)
        except OSError:
            continue
        found += any(text in mapping for text in wanted)
print(found > 0)
"#;
    let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let arguments: Vec<String> = [process.to_string()]
        .into_iter()
        .chain(any_of.iter().map(hex))
        .collect();
    python(SCAN, &arguments).trim() == "True"
}

/// Whether this kernel has memory that only its process can read (memfd_secret).
pub(crate) fn has_secret_memory() -> bool {
    const TRY: &str = "import ctypes; print(ctypes.CDLL(None).syscall(447, 0) >= 0)";
    python(TRY, &[] as &[&str]).trim() == "True"
}

/// The process that has loaded this token's module. There has to be one soon.
#[track_caller]
pub(crate) fn signer(gateway: &Gateway, token: &dyn Token) -> u32 {
    let module = token.module().display().to_string();
    eventually("a signer", || {
        let mut all = children(gateway).into_iter();
        Some(all.find(|process| process.command.contains(&module))?.pid)
    })
}

/// Whether a process of this id lives, zombies not counted.
pub(crate) fn is_alive(pid: u32) -> bool {
    process(pid).is_some_and(|process| !process.zombie)
}

/// Waits until a process has ended.
#[track_caller]
pub(crate) fn wait_for_end(pid: u32) {
    eventually(&format!("process {pid} to end"), || (!is_alive(pid)).then_some(()));
}

/// Ends a process by SIGKILL.
#[track_caller]
pub(crate) fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Open descriptors of a process.
#[track_caller]
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Waits until the gateway has no more descriptors than it had before, and no children that have ended.
#[track_caller]
pub(crate) fn wait_until_nothing_is_left(gateway: &Gateway, descriptors_before: usize) {
    eventually("no descriptor too many", || {
        (descriptors(gateway.pid()) <= descriptors_before).then_some(())
    });
    eventually("no zombie", || {
        children(gateway).iter().all(|child| !child.zombie).then_some(())
    });
}
