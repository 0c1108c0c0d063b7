//! Counters of one worker: written by that worker alone, read by anybody. Rendered in `control/`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Cause, ClientRefusal, HandshakeFailure};
use crate::limits::LANES;

/// A counter or gauge with one writer, so adding is a plain load and store.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Subtracts `n` (gauges). Only the owning worker may call this.
    pub fn sub(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Replaces the value (gauges). Only the owning worker may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value, from any thread.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// TLS versions in metrics, by index.
pub const VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// Cipher suites in metrics, by index.
pub const SUITES: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Key exchange groups in metrics, by index.
pub const GROUPS: [&str; 5] = ["X25519MLKEM768", "X25519", "secp256r1", "secp384r1", NO_GROUP];
/// A session of TLS 1.2 is resumed without a key exchange.
pub const NO_GROUP: &str = "none";
/// Kinds of handshake in metrics, by index.
pub const RESUMPTION: [&str; 2] = ["full", "resumed"];

/// What was negotiated, as positions in [`VERSIONS`], [`SUITES`], [`GROUPS`] and [`RESUMPTION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Position in [`VERSIONS`].
    pub version: u8,
    /// Position in [`SUITES`].
    pub suite: u8,
    /// Position in [`GROUPS`].
    pub group: u8,
    /// Position in [`RESUMPTION`].
    pub resumption: u8,
}

/// How a session is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// By the client, in a ticket.
    Ticket,
    /// Here, in a cache.
    Session,
}

impl SessionKind {
    /// In metrics, by position.
    pub const LABELS: [&str; 2] = ["ticket", "session"];
}

/// Why a session that a client wanted to resume was not, so that there was a full handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    /// A ticket of somebody else, or from before a restart; a session that is not in the cache.
    Unknown,
    /// It is too old.
    Expired,
    /// It was issued under another policy: another listener, other clients that are trusted, another identity.
    Policy,
    /// The client was looked up in other revocation lists.
    Crl,
    /// The client's certificate, or a list that it was looked up in, has expired meanwhile.
    ClientCertificate,
    /// It has been changed, or cut off.
    Corrupt,
    /// It was for another name or cipher suite.
    Parameters,
}

impl Declined {
    /// In metrics, by position.
    pub const LABELS: [&str; 7] = [
        "unknown",
        "expired",
        "policy",
        "crl",
        "client_certificate",
        "corrupt",
        "parameters",
    ];
}

/// What became of sessions in one handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumptions {
    /// Tickets that the client got.
    pub tickets_issued: u8,
    /// Sessions put into the cache.
    pub sessions_stored: u8,
    /// A session was resumed.
    pub accepted: Option<SessionKind>,
    /// The client wanted to resume one, and none was.
    pub declined: Option<(SessionKind, Declined)>,
}

const HANDSHAKE_KINDS: usize = VERSIONS.len() * SUITES.len() * GROUPS.len() * RESUMPTION.len();

/// All counters of one worker.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// Connections taken from the kernel. accepted = shed + done + live (invariant 8).
    pub accepted: Counter,
    /// Connections refused because of `connections_max`, before anything was allocated.
    pub shed: Counter,
    /// Connections open (gauge).
    pub live: Counter,
    /// accept(2) failures by lack of descriptors or memory.
    pub accept_failures: Counter,
    /// Connections ended, by [`Cause::index`].
    pub done: [Counter; Cause::LABELS.len()],
    /// Handshakes that failed, by [`HandshakeFailure::index`].
    pub handshake_failures: [Counter; HandshakeFailure::LABELS.len()],
    /// Clients refused for their certificates, by [`ClientRefusal`].
    pub clients_refused: [Counter; ClientRefusal::LABELS.len()],
    handshakes: [Counter; HANDSHAKE_KINDS],
    /// Tickets that clients got.
    pub tickets_issued: Counter,
    /// Sessions put into caches.
    pub sessions_stored: Counter,
    /// Sessions resumed, by [`SessionKind`].
    pub resumptions_accepted: [Counter; SessionKind::LABELS.len()],
    /// Sessions that clients wanted to resume and could not, by [`SessionKind`] and [`Declined`].
    pub resumptions_declined: [[Counter; Declined::LABELS.len()]; SessionKind::LABELS.len()],
    /// Certificates of clients that did not fit a PROXY header.
    pub proxy_certificates_left_out: Counter,
    /// Bytes received from clients (TLS).
    pub downstream_received: Counter,
    /// Bytes sent to clients (TLS).
    pub downstream_sent: Counter,
    /// Bytes received from upstreams (plain).
    pub upstream_received: Counter,
    /// Bytes sent to upstreams (plain).
    pub upstream_sent: Counter,
    /// Operations answered through the crypto queue, each computed by itself.
    pub crypto_inline: Counter,
    /// Batches computed, by how many operations each had, less one.
    pub crypto_batches: [Counter; LANES],
    /// What was made ahead and has been used.
    pub made_ahead_used: Counter,
    /// What would have been used, had it been made ahead.
    pub made_ahead_missing: Counter,
    /// What was made ahead and got too old.
    pub made_ahead_expired: Counter,
    /// Turns of the loop.
    pub turns: Counter,
    /// Connection records dropped because the log could not keep up.
    pub log_dropped: Counter,
    /// Bytes of send buffers lent to sessions or the kernel (gauge).
    pub buffer_bytes: Counter,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        WorkerMetrics {
            accepted: Counter::default(),
            shed: Counter::default(),
            live: Counter::default(),
            accept_failures: Counter::default(),
            done: std::array::from_fn(|_| Counter::default()),
            handshake_failures: std::array::from_fn(|_| Counter::default()),
            clients_refused: std::array::from_fn(|_| Counter::default()),
            handshakes: std::array::from_fn(|_| Counter::default()),
            tickets_issued: Counter::default(),
            sessions_stored: Counter::default(),
            resumptions_accepted: std::array::from_fn(|_| Counter::default()),
            resumptions_declined: std::array::from_fn(|_| std::array::from_fn(|_| Counter::default())),
            proxy_certificates_left_out: Counter::default(),
            downstream_received: Counter::default(),
            downstream_sent: Counter::default(),
            upstream_received: Counter::default(),
            upstream_sent: Counter::default(),
            crypto_inline: Counter::default(),
            crypto_batches: std::array::from_fn(|_| Counter::default()),
            made_ahead_used: Counter::default(),
            made_ahead_missing: Counter::default(),
            made_ahead_expired: Counter::default(),
            turns: Counter::default(),
            log_dropped: Counter::default(),
            buffer_bytes: Counter::default(),
        }
    }
}

impl WorkerMetrics {
    /// The counter of completed handshakes of this kind.
    #[must_use]
    pub fn handshakes(&self, kind: Negotiated) -> &Counter {
        let index = ((usize::from(kind.version) * SUITES.len() + usize::from(kind.suite)) * GROUPS.len()
            + usize::from(kind.group))
            * RESUMPTION.len()
            + usize::from(kind.resumption);
        &self.handshakes[index]
    }

    /// Counts what became of sessions in one handshake.
    pub fn count_resumptions(&self, seen: Resumptions) {
        self.tickets_issued.add(u64::from(seen.tickets_issued));
        self.sessions_stored.add(u64::from(seen.sessions_stored));
        if let Some(kind) = seen.accepted {
            self.resumptions_accepted[kind as usize].add(1);
        }
        if let Some((kind, why)) = seen.declined {
            self.resumptions_declined[kind as usize][why as usize].add(1);
        }
    }
}

/// Upper bounds of a histogram's buckets, in microseconds; the last bucket has none.
pub const BUCKETS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By position in [`BUCKETS_US`], then what took longer. Not cumulative.
    pub counts: [Counter; BUCKETS_US.len() + 1],
    /// All together, in microseconds.
    pub sum_us: Counter,
}

impl Histogram {
    /// Something took so long.
    pub fn observe(&self, us: u64) {
        let bucket = BUCKETS_US.partition_point(|&bound| bound < us);
        self.counts[bucket].add(1);
        self.sum_us.add(us);
    }
}

/// Counters of one worker about one group of tokens.
#[derive(Debug, Default)]
pub struct KeyMetrics {
    /// Handshakes that wait for a token to have room (gauge).
    pub waiting: Counter,
    /// Requests that tokens have not answered yet (gauge).
    pub in_flight: Counter,
    /// Signatures made and verified.
    pub signed: Counter,
    /// Requests that failed twice, or that no token may be asked.
    pub failed: Counter,
    /// Requests refused, or dropped for those of another listener, because too many waited.
    pub refused: Counter,
    /// Requests whose time was over, also because no token could be used.
    pub expired: Counter,
    /// Second attempts.
    pub retried: Counter,
    /// Wrong signatures.
    pub wrong: Counter,
    /// From the question to its way out to a token.
    pub wait: Histogram,
    /// What tokens took.
    pub signing: Histogram,
}

/// Counters of one worker about one upstream server.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// Connections open or opening (gauge).
    pub connections: Counter,
    /// Connections established since start.
    pub connected: Counter,
    /// Connection attempts that failed since start.
    pub connect_failures: Counter,
    /// 1 while this worker holds the server for failing and does not choose it (gauge).
    pub ejected: Counter,
}
