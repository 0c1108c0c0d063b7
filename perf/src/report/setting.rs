//! Where and how a run was measured.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::args::CpuList;

/// Where and how a run was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Setting {
    /// The name of the scenario, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// The command line, without the values of headers: they may be secret.
    pub command: Vec<String>,
    /// Version of ringlock-perf.
    pub version: String,
    /// When the run began, RFC 3339.
    pub began: String,
    /// Threads of the client.
    pub threads: usize,
    /// `io_uring` or `epoll`.
    pub io: String,
    /// The processor's name.
    pub processor: String,
    /// CPUs of the machine, whichever of them this process may use.
    pub cpus: usize,
    /// Release of the kernel.
    pub kernel: String,
}

impl Setting {
    /// This machine and this command.
    pub(crate) fn here() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let uname = rustix::system::uname();
        Self {
            scenario: None,
            command: without_secrets(env::args_os()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began: String::new(),
            threads: 1,
            io: String::new(),
            processor: processor.map_or_else(String::new, |(_, name)| name.to_owned()),
            cpus: cpus_online(),
            kernel: uname.release().to_string_lossy().into_owned(),
        }
    }
}

fn cpus_online() -> usize {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let online = online.and_then(|list| list.trim().parse().ok());
    online.map_or_else(
        || thread::available_parallelism().map_or(1, usize::from),
        |CpuList(cpus)| cpus.len(),
    )
}

/// Of a header only the name is shown.
fn without_secrets(line: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut is_header = false;
    let shown = line.map(|word| {
        let word = word.to_string_lossy().into_owned();
        let shown = match word.strip_prefix("--header=") {
            Some(header) => format!("--header={}", header_name(header)),
            None if is_header => header_name(&word),
            None => word.clone(),
        };
        is_header = word == "--header";
        shown
    });
    shown.collect()
}

fn header_name(header: &str) -> String {
    header
        .split_once(':')
        .map_or_else(|| "…".to_owned(), |(name, _)| format!("{name}: …"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::plan::pin;

    #[test]
    fn the_command_line_is_told_without_what_headers_say() {
        let line = [
            "http",
            "--header",
            "Authorization: Bearer abc",
            "--path",
            "/a:b",
            "--header=Cookie:abc",
            "--header",
            "abc",
        ];
        let shown = without_secrets(line.into_iter().map(OsString::from));
        let expected = [
            "http",
            "--header",
            "Authorization: …",
            "--path",
            "/a:b",
            "--header=Cookie: …",
            "--header",
            "…",
        ];
        assert_eq!(shown, expected);
        let latin = OsString::from_vec(b"caf\xe9.pem".to_vec());
        assert_eq!(without_secrets([latin].into_iter()), ["caf\u{fffd}.pem"]);
    }

    #[test]
    fn cpus_are_those_of_the_machine_however_few_this_process_may_use() {
        let listed = fs::read_to_string("/proc/cpuinfo").unwrap();
        let listed = listed.lines().filter(|line| line.starts_with("processor")).count();
        thread::spawn(move || {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu));
            pin(first.unwrap()).unwrap();
            assert_eq!(Setting::here().cpus, listed);
        })
        .join()
        .unwrap();
    }
}
