//! The command line of `ringlock-perf attack`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::args::parse_duration;

/// `ringlock-perf attack`
#[derive(Clone, Debug, Args)]
pub struct AttackArgs {
    /// What the connections do.
    #[arg(value_enum)]
    pub mode: Mode,
    /// Address of your own server, host:port. Anything but loopback needs --i-own.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// The host of --target, once more: you say that it is yours and that you may attack it.
    #[arg(long, value_name = "HOST")]
    pub i_own: Option<String>,
    /// Only this variant of the mode; without it all of them take turns.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Connections at a time.
    #[arg(long, default_value_t = 100)]
    pub connections: usize,
    /// Connections in all; the attack ends when they have ended.
    #[arg(long, default_value_t = 1_000_000)]
    pub connections_max: u64,
    /// Open at most this many connections per second; without it the next one is opened when one has ended.
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// How long to attack, at most 24h.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long one connection is kept at most.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// In slow-hello: the time between two bytes; without it 100ms.
    #[arg(long, value_parser = parse_duration)]
    pub pause: Option<Duration>,
    /// Name sent as SNI. Neither certificate nor signature is checked.
    #[arg(long, default_value = "localhost")]
    pub server_name: String,
    /// Process ids of the server, to measure its CPU time and memory.
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// Count all descendants of the --server-pid processes too.
    #[arg(long, requires = "server_pid")]
    pub server_children: bool,
    /// Connections per second of the well-behaved client beside the attack; 0: there is none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub witness_rate: u32,
    /// What a connection of the well-behaved client may take.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub witness_timeout: Duration,
    /// Fail (exit status 2) when the well-behaved client's p99 is longer during the attack; without it p99 is reported only.
    #[arg(long, value_parser = parse_duration)]
    pub witness_p99_max: Option<Duration>,
    /// How long the well-behaved client is alone, before and once more after the attack.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub baseline: Duration,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the connections of an attack do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Send half of a ClientHello, then nothing.
    StalledHello,
    /// Send a ClientHello byte by byte.
    SlowHello,
    /// Send a ClientHello, read the server's flight, never answer.
    HalfOpen,
    /// After a TLS 1.3 handshake: nothing but KeyUpdates, each of which asks for one in return.
    KeyUpdate,
    /// A ClientHello of many KiB in many records, and some with absurd lengths.
    HugeHello,
    /// One recorded ClientHello with a session ticket, from all connections.
    TicketReplay,
    /// After a TLS 1.2 handshake: one ClientHello after the other.
    Renegotiation,
    /// RST in the middle of the handshake.
    Reset,
}

impl Mode {
    /// As it is typed.
    pub fn name(self) -> String {
        let value = self
            .to_possible_value()
            .expect("no mode is left out of the command line");
        value.get_name().to_owned()
    }

    /// What a server must do for the mode to begin.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Mode::KeyUpdate => "a handshake of TLS 1.3 with AES that asks for no client certificate",
            Mode::Renegotiation => "a handshake of TLS 1.2 with AES-GCM that asks for no client certificate",
            Mode::StalledHello
            | Mode::SlowHello
            | Mode::HalfOpen
            | Mode::HugeHello
            | Mode::TicketReplay
            | Mode::Reset => "a server that takes connections",
        }
    }

    /// Ways to do it, which the connections take in turn.
    pub fn variants(self) -> &'static [&'static str] {
        match self {
            Mode::StalledHello | Mode::SlowHello => &["hello"],
            Mode::HalfOpen | Mode::TicketReplay => &["tls13", "tls12"],
            Mode::KeyUpdate => &["updates", "with-data"],
            Mode::HugeHello => &[
                "many-records",
                "one-byte-records",
                "absurd-message",
                "absurd-record",
                "absurd-vector",
            ],
            Mode::Renegotiation => &["tls12"],
            Mode::Reset => &["connected", "half-hello", "hello", "answered"],
        }
    }
}
