//! What is looked at beside the work: processes, system calls, established connections.

use clap::Args;

/// What is looked at beside the work itself.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CostArgs {
    /// Process ids of the server, to measure its CPU time, memory and context switches.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Count all descendants of the --server-pid processes too.
    #[arg(long, requires = "server_pid")]
    pub server_children: bool,
    /// Process ids of the server's origin, to tell when it was the limit.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub origin_pid: Vec<u32>,
    /// Count the server's system calls, after the measuring window, for two seconds or --duration. Uses perf or strace,
    /// whichever may.
    #[arg(long, requires = "server_pid")]
    pub syscalls: bool,
    /// Also open this many connections, send messages of 64 bytes over them, and tell how long their echo takes, first alone and
    /// then beside the work (needs an echoing origin).
    #[arg(long, value_name = "N")]
    pub probe_established: Option<usize>,
    /// Messages per second over all connections of --probe-established.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "probe_established")]
    pub probe_rate: u32,
    /// Where the connections of --probe-established go (default: --target).
    #[arg(long, value_name = "HOST:PORT", requires = "probe_established")]
    pub probe_target: Option<String>,
}
