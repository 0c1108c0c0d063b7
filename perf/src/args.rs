//! The command line. Everything here is as typed; `plan` makes it legal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use crate::cost::CostArgs;

/// Load tester for TLS servers: drives full and resumed handshakes, echoed messages, bulk data or idle connections and
/// reports what each unit of work costs the server in CPU time or memory.
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
    /// Full TLS handshakes without resumption: connect, handshake, orderly close.
    Handshake(HandshakeArgs),
    /// Resumed TLS handshakes with one byte there and back: each connection offers a session that the server gave to an
    /// earlier one (needs an echoing origin). Fails when more than a few are not resumed.
    Resume(HandshakesArgs),
    /// Messages sent and waited for, over connections that stay open (needs an echoing origin).
    Echo(EchoArgs),
    /// Download or upload over connections that stay open.
    Bulk(BulkArgs),
    /// Opens connections, holds them, and measures the server's memory.
    Idle(IdleArgs),
    /// A cheap plain-TCP origin to put behind the server under test; SIGTERM ends it and prints its counts.
    Origin(OriginArgs),
}

/// What every client needs.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Address of the server under test, host:port.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// Name sent as SNI and checked in the certificate.
    #[arg(long, default_value = "localhost")]
    pub server_name: String,
    /// PEM file with the trust anchors.
    #[arg(long, value_name = "FILE", required_unless_present = "insecure")]
    pub ca: Option<PathBuf>,
    /// Check neither certificate nor signature. That is half of the client's work in a handshake, so it helps to make
    /// the server the limit.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// PEM chain, leaf first, to show when the server asks for a certificate.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// PEM private key of --client-cert.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// What is looked at beside the work.
    #[command(flatten)]
    pub cost: CostArgs,
    /// Pin this client to one CPU.
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    /// How long to measure.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// TLS version to offer.
    #[arg(long, value_enum, default_value = "1.3")]
    pub tls: TlsVersion,
    /// Key exchange group to offer: X25519, secp256r1, secp384r1, X25519MLKEM768, or `any`.
    #[arg(long, default_value = "X25519")]
    pub group: String,
    /// IANA name of the only cipher suite to offer, `aes128` for the version's AES-128-GCM suites, or `any`.
    #[arg(long, default_value = "aes128")]
    pub suite: String,
    /// How long one connect, handshake, exchange or close may take.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Spread connections over this many source addresses 127.0.0.1, 127.0.0.2, … (loopback targets only;
    /// default: as many as the ports need; 0: let the system choose).
    #[arg(long, value_name = "N")]
    pub sources: Option<u8>,
    /// Give up after this many failed connections.
    #[arg(long, default_value_t = 1000)]
    pub errors_max: u64,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `ringlock-perf resume`, and what `ringlock-perf handshake` has in common with it
#[derive(Clone, Debug, Args)]
pub struct HandshakesArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Handshakes in flight; with --rate at most.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Begin this many handshakes per second, whether or not earlier ones are done (an open loop). Latencies then count from
    /// when each was due. Without it the next one begins when one is done.
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// Stop when this many handshakes are measured, if that is before --duration.
    #[arg(long)]
    pub count: Option<u64>,
}

/// `ringlock-perf handshake`
#[derive(Clone, Debug, Args)]
pub struct HandshakeArgs {
    /// How many, and how.
    #[command(flatten)]
    pub handshakes: HandshakesArgs,
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
    /// Connections, each with one message in flight; with --rate at most one.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Begin this many messages over all connections per second, whether or not earlier ones are done (an open loop). Latencies then count from
    /// when each was due. Without it the next one begins when one is done.
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// Stop when this many messages are measured, if that is before --duration.
    #[arg(long)]
    pub count: Option<u64>,
    /// Bytes per message.
    #[arg(long, default_value = "1KiB", value_parser = parse_size)]
    pub size: usize,
}

/// `ringlock-perf bulk`
#[derive(Clone, Debug, Args)]
pub struct BulkArgs {
    /// The common flags.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Connections.
    #[arg(long, default_value_t = 16)]
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
    #[arg(long, default_value_t = 5000)]
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
    /// In mode `send`: end each connection after this many bytes (default: never).
    #[arg(long, value_parser = parse_size)]
    pub bytes: Option<usize>,
    /// Stop by itself after this time.
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Pin to one CPU.
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
}

/// The TLS version a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsVersion {
    /// TLS 1.2 only.
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3 only.
    #[value(name = "1.3")]
    Tls13,
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
}

/// Reads "10s", "250ms", "2m"; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds_per_unit = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`, expected ms, s, m or h")),
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no duration, expected for example 10s or 250ms"))?;
    Duration::try_from_secs_f64(value * seconds_per_unit).map_err(|error| error.to_string())
}

/// Reads "1024", "64KiB", "10MB" as bytes.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text);
    let scale: usize = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => {
            return Err(format!(
                "unknown unit `{other}`, expected B, KiB, MiB, GiB, kB, MB or GB"
            ));
        }
    };
    let value: usize = number
        .parse()
        .map_err(|_| format!("`{text}` is no size, expected for example 1024 or 64KiB"))?;
    value.checked_mul(scale).ok_or_else(|| format!("`{text}` is too large"))
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-1s").is_err());
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert!(parse_size("1XB").is_err());
        assert!(parse_size("99999999999999GiB").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
