//! Load tester for TLS servers: full and resumed handshakes, echoed messages, HTTP requests, bulk data and idle connections, with
//! latency, throughput and what a unit of each costs the server.
//!
//! Each thread has connections of its own and an engine that drives them; one more keeps the time. The parts, from
//! the outside in: [`args`] ([`scenario`]s are written-down ones) → `plan` (with `personas`: who connects) → `work` → `engine` →
//! `connection`; `measure` and `course` count what was done, `cost` with [`procfs`] and `syscalls` what it took, `limits` doubts
//! it, [`report`] tells. [`attack`] is apart from them, with a loop of its own. [`origin`] is the plain-TCP server to put behind
//! the server under test.

pub mod args;
pub mod attack;
mod connection;
mod cost;
mod course;
mod engine;
mod error;
mod host;
mod limits;
mod measure;
pub mod origin;
mod personas;
mod plan;
pub mod procfs;
pub mod report;
pub mod scenario;
mod sessions;
mod socket;
mod syscalls;
mod tls;
mod work;

pub use error::PerfError;

/// Runs a client command (not `origin`) to its end.
///
/// # Errors
/// When the run could not start or has no result; failed connections are in the report instead.
pub fn run(command: &args::Command) -> Result<report::Report, PerfError> {
    work::run(command)
}
