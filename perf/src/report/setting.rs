//! Where and how a run was measured.

use std::fs;

use ringlock::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// Where and how a run was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Setting {
    /// The name of the scenario, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// The command line.
    pub command: Vec<String>,
    /// Version of ringlock-perf.
    pub version: String,
    /// When it was measured, RFC 3339.
    pub began: String,
    /// Threads of the client.
    pub threads: usize,
    /// `io_uring` or `epoll`.
    pub io: String,
    /// The processor's name.
    pub processor: String,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Release of the kernel.
    pub kernel: String,
}

impl Setting {
    /// This machine, this command, this time.
    pub(crate) fn here() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let uname = rustix::system::uname();
        Self {
            scenario: None,
            command: std::env::args().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began: Timestamp::now().to_string(),
            threads: 1,
            io: String::new(),
            processor: processor.map_or_else(String::new, |(_, name)| name.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.release().to_string_lossy().into_owned(),
        }
    }
}
