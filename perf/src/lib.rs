//! Load tester for TLS servers: full and resumed handshakes, echoed messages, bulk data and idle connections, with what a unit
//! of each costs the server in CPU time or memory.
//!
//! One thread, one epoll instance, a closed loop: the next unit begins when the last one is done. The parts, from
//! the outside in: [`args`] → `plan` → `work` → `engine` → `connection`; `measure` and [`procfs`] count, [`report`]
//! tells. [`origin`] is the plain-TCP server to put behind the server under test.

pub mod args;
mod connection;
mod cost;
mod engine;
mod error;
mod host;
mod limits;
mod measure;
pub mod origin;
mod plan;
pub mod procfs;
pub mod report;
mod sessions;
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
