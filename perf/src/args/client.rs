//! What every client needs: whom to connect to, as whom, with what TLS, for how long.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::cost::CostArgs;
use super::values::{CpuList, Weighted, parse_duration};

/// The flags that all works have.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Address of the server under test, host:port.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// Name sent as SNI and checked in the certificate; or several with weights: a.example=3,b.example=1.
    #[arg(
        long,
        value_name = "NAME[=WEIGHT],…",
        value_delimiter = ',',
        default_value = "localhost"
    )]
    pub server_name: Vec<Weighted<String>>,
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
    /// Folder with a certificate per client: NAME.pem or NAME.crt with the chain, and the key in it or in NAME.key. Each
    /// connection shows one of them.
    #[arg(long, value_name = "DIR", conflicts_with = "client_cert")]
    pub client_certs: Option<PathBuf>,
    /// What is looked at beside the work.
    #[command(flatten)]
    pub cost: CostArgs,
    /// Threads (default: one, or one for each of --cpu).
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Pin the threads to these CPUs, in turn: 1 or 0-3,8.
    #[arg(long, value_name = "LIST")]
    pub cpu: Option<CpuList>,
    /// How to wait for the network: io_uring where the kernel allows it, else epoll, if it is `auto`.
    #[arg(long, value_enum, default_value = "auto")]
    pub io: Io,
    /// How long to measure.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long to run before measuring.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// TLS version to offer, 1.2 or 1.3; or both with weights: 1.3=9,1.2=1.
    #[arg(
        long,
        value_name = "VERSION[=WEIGHT],…",
        value_delimiter = ',',
        default_value = "1.3"
    )]
    pub tls: Vec<Weighted<TlsVersion>>,
    /// Key exchange groups to offer, in this order: X25519, secp256r1, secp384r1, X25519MLKEM768, or `any`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "X25519")]
    pub group: Vec<String>,
    /// IANA names of the cipher suites to offer, in this order, `aes128` for the version's AES-128-GCM suites, or `any`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "aes128")]
    pub suite: Vec<String>,
    /// Signature schemes to accept from the server, by their IANA names, or `any`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "any")]
    pub signature_scheme: Vec<String>,
    /// Application protocols to offer (ALPN): h2,http/1.1.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub alpn: Vec<String>,
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
    /// Of what is drawn by weights: the same seed draws the same.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Write the report as a page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A line on standard error every second (default: when that is a terminal).
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: Progress,
}

/// The driver of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// io_uring where it can be had, else epoll.
    Auto,
    /// io_uring, or an error.
    #[value(name = "io_uring")]
    IoUring,
    /// epoll.
    Epoll,
}

/// Whether a line tells how the run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// On a terminal.
    Auto,
    /// Also into files and pipes.
    Always,
    /// Not at all.
    Never,
}

/// The TLS version a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 only.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

impl FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            other => Err(format!("unknown version `{other}`, expected 1.2 or 1.3")),
        }
    }
}

/// What a connection offers to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offer {
    /// Nothing: a full handshake.
    Full,
    /// A ticket; in TLS 1.2 a session id, if that is all the server gives.
    Ticket,
    /// A session id, and no ticket is asked for: TLS 1.2. Connections over TLS 1.3 beside them offer a ticket.
    SessionId,
}

impl FromStr for Offer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "ticket" => Ok(Self::Ticket),
            "session-id" => Ok(Self::SessionId),
            other => Err(format!("unknown kind `{other}`, expected full, ticket or session-id")),
        }
    }
}
