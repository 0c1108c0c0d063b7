//! The command line. Everything here is as typed; `plan` makes it legal. A scenario's keys are the names of these flags.

pub mod client;
mod cost;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
pub use client::{ClientArgs, Io, Offer, TlsVersion};
pub use cost::CostArgs;
pub use values::{CpuList, Ramp, Weighted, parse_duration, parse_size};

use crate::attack::args::AttackArgs;
use crate::report::command::ReportArgs;

/// Load tester for TLS servers: drives handshakes, messages, HTTP requests, bulk data or idle connections and reports
/// latency, throughput and what each unit of work costs the server.
#[derive(Debug, Parser)]
#[command(name = "ringlock-perf", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The kinds of work, and the origin helper.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A scenario: a TOML file, or the name of a built-in one (see `scenarios`), with flags that override it.
    Run(RunArgs),
    /// Lists the built-in scenarios, or prints one.
    Scenarios(ScenariosArgs),
    /// TLS handshakes, full ones if --mix says nothing else: connect, handshake, orderly close.
    Handshake(HandshakeArgs),
    /// Resumed TLS handshakes with one byte there and back: each connection offers a session that the server gave to an
    /// earlier one (needs an echoing origin). Fails when more than a few are not resumed.
    Resume(HandshakesArgs),
    /// Messages sent and waited for, over connections that stay open (needs an echoing origin).
    Echo(EchoArgs),
    /// HTTP/1.1 requests, over connections that stay open or with a connection each.
    Http(HttpArgs),
    /// Download or upload over connections that stay open.
    Bulk(BulkArgs),
    /// Opens connections, holds them, and measures the server's memory.
    Idle(IdleArgs),
    /// A cheap plain-TCP origin to put behind the server under test; SIGTERM ends it and prints its counts.
    Origin(OriginArgs),
    /// Attacks on your own server, with a well-behaved client beside them that tells whether it survives.
    Attack(AttackArgs),
    /// Results of earlier runs beside each other: as a table, or as an HTML page with plots.
    Report(ReportArgs),
}

/// `ringlock-perf run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// A TOML file, or a built-in name.
    pub scenario: String,
    /// Flags of the scenario's work, which override it: --target HOST:PORT, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub flags: Vec<OsString>,
}

/// `ringlock-perf scenarios`
#[derive(Clone, Debug, Args)]
pub struct ScenariosArgs {
    /// Print this one, to begin one's own with.
    pub name: Option<String>,
}

/// How much load, for works whose units can have a rate.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Handshakes in flight, or standing connections with one message or request in flight each; with --rate at most.
    #[arg(long, visible_alias = "concurrency", default_value_t = 64)]
    pub connections: usize,
    /// Begin this many units per second, whether or not earlier ones are done (an open loop). Latencies then count from
    /// when each was due. Without it the next one begins when one is done.
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// Several rates after each other, --duration each: 1000..8000/8.
    #[arg(long, value_name = "FROM..TO/STEPS", conflicts_with = "rate")]
    pub ramp: Option<Ramp>,
    /// Search the highest rate at which no connection fails and the 99th percentile stays below --p99-max.
    #[arg(long, conflicts_with_all = ["rate", "ramp"])]
    pub find_capacity: bool,
    /// The bound on the 99th percentile of the latency for --find-capacity.
    #[arg(long, default_value = "50ms", value_parser = parse_duration)]
    pub p99_max: Duration,
    /// Where --find-capacity begins, units per second.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub rate_min: u32,
    /// Where it ends at the latest.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub rate_max: u32,
    /// Stop when this many units are measured, if that is before --duration.
    #[arg(long)]
    pub count: Option<u64>,
    /// How long a connection rests between two units, in a closed loop.
    #[arg(long, value_parser = parse_duration, conflicts_with_all = ["rate", "ramp", "find_capacity"])]
    pub think_time: Option<Duration>,
}

/// `ringlock-perf resume`, and what `ringlock-perf handshake` has in common with it
#[derive(Clone, Debug, Args)]
pub struct HandshakesArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// How much.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// `ringlock-perf handshake`
#[derive(Clone, Debug, Args)]
pub struct HandshakeArgs {
    /// How many, and how.
    #[command(flatten)]
    pub handshakes: HandshakesArgs,
    /// What connections offer: full, ticket or session-id, with weights: full=20,ticket=70,session-id=10. Sessions are
    /// those that earlier connections were given.
    #[arg(long, value_name = "KIND[=WEIGHT],…", value_delimiter = ',', default_value = "full")]
    pub mix: Vec<Weighted<Offer>>,
    /// Send one byte after the handshake and wait for it to come back.
    #[arg(long, conflicts_with = "expect_close")]
    pub exchange: bool,
    /// After the handshake wait for the server to close first (an origin in mode `close` makes it).
    #[arg(long)]
    pub expect_close: bool,
}

/// `ringlock-perf echo`
#[derive(Clone, Debug, Args)]
pub struct EchoArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// How much.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Bytes per message.
    #[arg(long, default_value = "1KiB", value_parser = parse_size)]
    pub size: usize,
}

/// `ringlock-perf http`
#[derive(Clone, Debug, Args)]
pub struct HttpArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// How much.
    #[command(flatten)]
    pub load: LoadArgs,
    /// What is asked for.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The method.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// A header of every request, "Name: value"; may be repeated.
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Bytes of the request's body; 0: none.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    pub body: usize,
    /// Close a connection in order after this many requests and open another: 1 is a connection per request; 0: never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub requests_per_connection: u64,
}

/// `ringlock-perf bulk`
#[derive(Clone, Debug, Args)]
pub struct BulkArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Connections.
    #[arg(long, visible_alias = "concurrency", default_value_t = 16)]
    pub connections: usize,
    /// Which way the data goes.
    #[arg(long, value_enum)]
    pub direction: Direction,
    /// Stop when this many bytes are measured over all connections, if that is before --duration.
    #[arg(long, value_parser = parse_size)]
    pub bytes: Option<usize>,
}

/// `ringlock-perf idle`
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Connections to hold.
    #[arg(long, visible_alias = "concurrency", default_value_t = 5000)]
    pub connections: usize,
    /// Handshakes in flight while opening.
    #[arg(long, default_value_t = 64)]
    pub opening: usize,
    /// How long to wait before memory is read.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub settle: Duration,
    /// How long to hold the connections after memory was read.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub hold: Duration,
}

/// `ringlock-perf origin`
#[derive(Clone, Debug, Args)]
pub struct OriginArgs {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// What to do with a connection.
    #[arg(long, value_enum)]
    pub mode: OriginMode,
    /// In mode `send`: end each connection after this many bytes (default: never). In mode `http`: bytes of an answer's body (default: 64).
    #[arg(long, value_parser = parse_size)]
    pub bytes: Option<usize>,
    /// Stop by itself after this time.
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Pin to one CPU.
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
}

/// The way bulk data goes, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the origin to the client.
    Download,
    /// From the client to the origin.
    Upload,
}

/// What the origin does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OriginMode {
    /// Send everything back.
    Echo,
    /// Send as fast as the connection takes it.
    Send,
    /// Read and drop until the peer closes.
    #[value(alias = "accept")]
    Discard,
    /// Close at once.
    Close,
    /// Answer each HTTP/1.1 request, and keep the connection.
    Http,
}

impl LoadArgs {
    /// A unit does not begin by itself when the one before it is done.
    pub fn rests(&self) -> bool {
        let Self {
            rate,
            ramp,
            find_capacity,
            think_time,
            ..
        } = self;
        rate.is_some() || ramp.is_some() || *find_capacity || think_time.is_some_and(|time| !time.is_zero())
    }
}

impl Command {
    /// The flags that all works have; `None` for what is no work.
    pub fn client(&self) -> Option<&ClientArgs> {
        match self {
            Self::Handshake(args) => Some(&args.handshakes.client),
            Self::Resume(args) => Some(&args.client),
            Self::Echo(args) => Some(&args.client),
            Self::Http(args) => Some(&args.client),
            Self::Bulk(args) => Some(&args.client),
            Self::Idle(args) => Some(&args.client),
            Self::Run(_) | Self::Scenarios(_) | Self::Origin(_) | Self::Report(_) | Self::Attack(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
