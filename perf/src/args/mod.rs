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
use crate::error::PerfError;
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

/// The commands that measure, as they are typed.
pub(crate) const WORKS: [&str; 6] = ["handshake", "resume", "echo", "http", "bulk", "idle"];

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

/// What does not go with --find-capacity, nor with its own flags: one of these on the command line overrides a scenario's.
const WITHOUT_SEARCH: [&str; 3] = ["rate", "ramp", "think_time"];

/// How much load, for works whose units can have a rate.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Handshakes in flight, or standing connections with one message or request in flight each; in an open loop (--rate,
    /// --ramp, --find-capacity) at most.
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
    #[arg(long, conflicts_with_all = WITHOUT_SEARCH)]
    pub find_capacity: bool,
    /// The bound on the 99th percentile of the latency for --find-capacity.
    #[arg(
        long,
        default_value = "50ms",
        value_parser = parse_duration,
        requires = "find_capacity",
        conflicts_with_all = WITHOUT_SEARCH
    )]
    pub p99_max: Duration,
    /// Where --find-capacity begins, units per second.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        requires = "find_capacity",
        conflicts_with_all = WITHOUT_SEARCH
    )]
    pub rate_min: u32,
    /// Where it ends at the latest.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200_000,
        requires = "find_capacity",
        conflicts_with_all = WITHOUT_SEARCH
    )]
    pub rate_max: u32,
    /// Stop when this many units are measured, if that is before --duration.
    #[arg(long)]
    pub count: Option<u64>,
    /// How long a connection rests between two units, in a closed loop.
    #[arg(long, value_parser = parse_duration, conflicts_with_all = ["rate", "ramp"])]
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
    /// those that earlier connections were given. With both versions, connections over TLS 1.3 offer a ticket where those
    /// over TLS 1.2 offer a session id.
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
#[command(mut_arg("duration", |arg| arg.requires("probe_established").help("How long --probe-established is alone at first")))]
#[command(mut_arg("warmup", |arg| arg.default_value("0s").value_parser(parse_no_warmup).hide(true)))]
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
    /// In mode `send`: end each connection after this many bytes (default: never). In mode `http`: bytes of an answer's body
    /// (default: 64). The other modes have no use for it.
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

impl OriginArgs {
    /// Refuses what the mode has no use for.
    ///
    /// # Errors
    /// Names the flag.
    pub fn check(&self) -> Result<(), PerfError> {
        match (self.mode, self.bytes) {
            (OriginMode::Send | OriginMode::Http, _) | (_, None) => Ok(()),
            (OriginMode::Echo | OriginMode::Discard | OriginMode::Close, Some(bytes)) => Err(PerfError::Flag {
                flag: "--bytes",
                found: bytes.to_string(),
                expected: "--mode send or http with it; leave it out in the other modes".to_owned(),
            }),
        }
    }
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

/// Idle connections have no warm-up; what is passed to all works may say so.
fn parse_no_warmup(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Ok(Duration::ZERO),
        _ => Err("idle connections have no warm-up, expected 0s or no --warmup".to_owned()),
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
        let command = Cli::command();
        for work in WORKS {
            assert!(command.find_subcommand(work).is_some(), "{work}");
        }
        command.debug_assert();
    }

    fn refused(line: &str) -> Option<String> {
        let line = format!("ringlock-perf {line}");
        let parsed = Cli::try_parse_from(line.split(' '));
        parsed.err().map(|error| error.to_string())
    }

    #[test]
    fn flags_that_would_change_nothing_are_refused_by_name() {
        for (line, with) in [
            ("echo --p99-max 5ms", "--find-capacity"),
            ("echo --rate-min 5", "--find-capacity"),
            ("handshake --rate-max 500", "--find-capacity"),
            ("handshake --rate 5 --rate-max 500", "--rate-max"),
            ("echo --probe-rate 5", "--probe-established"),
            ("idle --duration 5s", "--probe-established"),
            ("idle --warmup 5s", "--warmup"),
        ] {
            let error = refused(&format!("{line} --target a:1 --insecure")).unwrap_or_else(|| panic!("{line}"));
            assert!(error.contains(with), "{line}: {error}");
        }
        for line in [
            "echo --rate 5",
            "echo --find-capacity --p99-max 5ms --rate-min 5 --rate-max 50",
            "echo --probe-established 1 --probe-rate 5",
            "idle --warmup 0s",
            "idle --probe-established 1 --duration 5s",
        ] {
            assert_eq!(refused(&format!("{line} --target a:1 --insecure")), None, "{line}");
        }
    }

    #[test]
    fn an_origin_has_bytes_only_in_modes_that_use_them() {
        for (mode, legal) in [
            ("echo", false),
            ("discard", false),
            ("close", false),
            ("send", true),
            ("http", true),
        ] {
            let line = format!("ringlock-perf origin --listen 127.0.0.1:0 --mode {mode}");
            let check = |line: &str| {
                let Command::Origin(args) = Cli::parse_from(line.split(' ')).command else {
                    panic!("origin is a command")
                };
                args.check().map_err(|error| error.to_string())
            };
            assert_eq!(check(&line), Ok(()));
            let checked = check(&format!("{line} --bytes 5"));
            assert_eq!(checked.is_ok(), legal, "{mode}");
            assert!(checked.err().is_none_or(|error| error.contains("--bytes: found `5`")));
        }
    }
}
