//! Processes of the gateway, as the kernel sees them.

use std::fs;

use super::python;

/// The processes whose parent this one is, those that have ended left out.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|&id| stat(id).is_some_and(|(state, of)| of == parent && state != 'Z'))
        .collect()
}

/// State and parent of a process; nothing when it has ended.
fn stat(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in parentheses, and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// What a process was started with: its arguments, separated by spaces.
pub(crate) fn command_line(process: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{process}/cmdline")).unwrap()).replace('\0', " ")
}

/// The environment that a process was started with.
pub(crate) fn environment(process: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{process}/environ")).unwrap()).into_owned()
}

/// Real user of a process.
pub(crate) fn user(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
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
