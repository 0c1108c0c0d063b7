//! One client connection: a socket, a TLS session and where it is in its life.
//!
//! `Opening` (connect and handshake) → `Established` → `Closing` (close_notify and FIN are out) → finished.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};
use rustls::{ClientConnection, HandshakeKind};

use crate::args::Offer;
use crate::measure::Times;
use crate::plan::ClientPlan;
use crate::tls::name;
use crate::work::http::ResponseReader;

/// Reads before other connections get their turn: with 256 KiB each this is 1 MiB.
const READS_PER_TURN: usize = 4;

/// A client connection.
pub(crate) struct Connection {
    stream: TcpStream,
    tls: ClientConnection,
    phase: Phase,
    /// True exactly when the peer's FIN was read.
    read_closed: bool,
    /// True exactly when the peer's close_notify was read.
    notified: bool,
    /// True exactly when the peer answered our close with a reset.
    reset: bool,
    /// True exactly when our FIN is out.
    write_closed: bool,
    pub(crate) inbound: Inbound,
    /// When the unit of work in flight should have begun: its latency counts from here.
    pub(crate) unit_due: Instant,
    /// When it did begin, `unit_due <= unit_started`: its timeout counts from here.
    pub(crate) unit_started: Instant,
    /// When the operation in flight counts as timed out; `None`: never.
    pub(crate) deadline: Option<Instant>,
    timeout: Duration,
    offer: Offer,
    /// What the work wants to remember about this connection.
    pub(crate) state: WorkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Established,
    Closing,
}

/// What to do with received plaintext.
pub(crate) enum Inbound {
    /// Count it.
    Count,
    /// Compare it with a message that repeats.
    Match {
        /// The expected bytes.
        message: Arc<[u8]>,
        /// Position of the next expected byte, `at < message.len()`.
        at: usize,
    },
    /// Read responses.
    Http(ResponseReader),
}

/// Per-connection memory of the work, in units of the work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkState {
    /// Bytes of the current unit that have arrived.
    pub(crate) received: usize,
    /// Requests sent.
    pub(crate) requests: u64,
    /// When the unit was done that is not yet counted.
    pub(crate) done: Option<Instant>,
    /// True exactly when the last unit is done and the next one waits for its time.
    pub(crate) resting: bool,
    /// When the unit that is to begin now was due.
    pub(crate) due: Option<Instant>,
}

/// What one call of [`Connection::advance`] brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// The handshake is complete and our Finished was sent (said once).
    pub(crate) established: bool,
    /// Bytes of plaintext that arrived.
    pub(crate) received: usize,
    /// Nothing waits to be sent.
    pub(crate) writable: bool,
    /// The peer closed before we did.
    pub(crate) peer_closed: bool,
    /// Call again without waiting for an event.
    pub(crate) more: bool,
}

/// How a connection ended that was closed in order from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The peer sent close_notify and FIN.
    Orderly,
    /// The peer sent FIN without close_notify.
    Truncated,
    /// The peer reset the connection after our close.
    Reset,
}

/// The TLS parameters of a connection, by their registered names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Negotiated {
    pub(crate) version: String,
    pub(crate) suite: String,
    pub(crate) group: String,
    pub(crate) handshake: String,
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("connection refused")]
    Refused,
    #[error("no free local port; use more --sources")]
    NoLocalPort,
    #[error("reset by the server")]
    Reset,
    #[error("closed before the handshake was complete")]
    ClosedEarly,
    #[error("closed by the server while work was left")]
    ClosedByPeer,
    #[error("alert {0}")]
    Alert(String),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("timed out while {0}")]
    Timeout(&'static str),
    #[error("received other bytes than were sent")]
    Corrupted,
    #[error("HTTP: {0}")]
    Http(String),
    #[error("{0}")]
    Io(io::Error),
}

impl Failure {
    /// The name under which it is counted.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NoLocalPort => "no_local_port",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::ClosedByPeer => "closed_by_peer",
            Self::Alert(_) => "alert",
            Self::Tls(_) => "tls",
            Self::Timeout(_) => "timeout",
            Self::Corrupted => "corrupted",
            Self::Http(_) => "http",
            Self::Io(_) => "io",
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused {
            Self::Refused
        } else if matches!(kind, ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse) {
            Self::NoLocalPort
        } else if is_reset(&error) {
            Self::Reset
        } else if kind == ErrorKind::TimedOut {
            Self::Timeout("connecting")
        } else {
            Self::Io(error)
        }
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        if let rustls::Error::AlertReceived(alert) = error {
            Self::Alert(name(&alert))
        } else {
            Self::Tls(error)
        }
    }
}

impl Connection {
    /// Starts connecting, from `source` if there is one, and queues the ClientHello. It was `due` to start then.
    pub(crate) fn open(
        plan: &ClientPlan,
        source: Option<Ipv4Addr>,
        inbound: Inbound,
        due: Instant,
        now: Instant,
    ) -> Result<Self, Failure> {
        let stream = start_connect(plan.target, source)?;
        let persona = plan.personas.draw();
        let mut tls = ClientConnection::new(persona.tls.clone(), persona.server_name.clone())?;
        // The work bounds what it queues; it fills only when nothing is waiting.
        tls.set_buffer_limit(None);
        Ok(Self {
            stream,
            tls,
            phase: Phase::Opening,
            read_closed: false,
            notified: false,
            reset: false,
            write_closed: false,
            inbound,
            unit_due: due,
            unit_started: now,
            deadline: Some(now + plan.timeout),
            state: WorkState::default(),
            offer: persona.offer,
            timeout: plan.timeout,
        })
    }

    /// The unit in flight, done now.
    pub(crate) fn times(&self, done: Instant) -> Times {
        Times {
            due: self.unit_due,
            started: self.unit_started,
            done,
        }
    }

    /// By what the session was resumed that the connection offered, if it was.
    pub(crate) fn resumed_by(&self) -> Option<Offer> {
        self.is_resumed().then_some(self.offer)
    }

    /// The socket, to register it.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads and writes as much as is possible now.
    ///
    /// `peer_closing`: the event said that the peer has shut down its side; only then a read that does not fill
    /// the buffer is followed by another.
    pub(crate) fn advance(&mut self, peer_closing: bool, buffer: &mut [u8]) -> Result<Progress, Failure> {
        let mut progress = Progress::default();
        self.flush()?;
        for turn in 1..=READS_PER_TURN {
            match self.stream.read(buffer) {
                Ok(0) => {
                    self.read_closed = true;
                    break;
                }
                Ok(length) => {
                    progress.received += self.open_records(&buffer[..length])?;
                    if length < buffer.len() && !peer_closing {
                        break;
                    }
                    progress.more = turn == READS_PER_TURN;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if self.phase == Phase::Closing && error.kind() == ErrorKind::ConnectionReset => {
                    self.reset = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        progress.writable = self.flush()?;
        match self.phase {
            Phase::Opening if !self.tls.is_handshaking() => {
                if progress.writable {
                    self.phase = Phase::Established;
                    self.deadline = None;
                    progress.established = true;
                    progress.peer_closed = self.notified || self.read_closed;
                }
            }
            Phase::Opening if self.read_closed => return Err(Failure::ClosedEarly),
            Phase::Opening => {}
            Phase::Established => progress.peer_closed = self.notified || self.read_closed,
            Phase::Closing => {}
        }
        Ok(progress)
    }

    /// True when the handshake is complete and closing has not begun.
    pub(crate) fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Queues plaintext; [`Connection::flush`] sends it.
    pub(crate) fn queue(&mut self, plaintext: &[u8]) -> Result<(), Failure> {
        self.tls.writer().write_all(plaintext)?;
        Ok(())
    }

    /// Sets what will be expected from now on.
    pub(crate) fn expect(&mut self, inbound: Inbound) {
        self.inbound = inbound;
    }

    /// The repeating message that is expected, if there is one.
    pub(crate) fn expected(&self) -> Option<Arc<[u8]>> {
        match &self.inbound {
            Inbound::Count | Inbound::Http(_) => None,
            Inbound::Match { message, .. } => Some(message.clone()),
        }
    }

    /// Lets the unit that began at `unit_started` time out. Without this an established connection may wait forever.
    pub(crate) fn limit_unit(&mut self) {
        self.deadline = Some(self.unit_started + self.timeout);
    }

    /// Sends what is queued. True when nothing is left.
    pub(crate) fn flush(&mut self) -> Result<bool, Failure> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if self.phase == Phase::Closing && is_reset(&error) => {
                    self.reset = true;
                    return Ok(true);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.phase == Phase::Closing && !self.write_closed && !self.reset {
            match self.stream.shutdown(Shutdown::Write) {
                Ok(()) => self.write_closed = true,
                // The peer's reset came first.
                Err(error) if error.kind() == ErrorKind::NotConnected => self.reset = true,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Queues close_notify; FIN follows when everything is flushed.
    pub(crate) fn begin_close(&mut self, now: Instant) {
        debug_assert!(
            self.phase == Phase::Established,
            "only an established connection closes in order"
        );
        self.tls.send_close_notify();
        self.phase = Phase::Closing;
        self.deadline = Some(now + self.timeout);
    }

    /// How it ended, once both directions are closed.
    pub(crate) fn ending(&self) -> Option<Ending> {
        if self.phase != Phase::Closing {
            return None;
        }
        if self.reset {
            return Some(Ending::Reset);
        }
        (self.read_closed && self.write_closed).then_some(if self.notified {
            Ending::Orderly
        } else {
            Ending::Truncated
        })
    }

    /// What it is doing, for the message of a timeout.
    pub(crate) fn activity(&self) -> &'static str {
        match self.phase {
            Phase::Opening => "connecting or in the handshake",
            Phase::Established => "waiting for data",
            Phase::Closing => "waiting for the server's close",
        }
    }

    /// True when the server has resumed the session that was offered.
    fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The parameters; names are "?" before the handshake is complete.
    pub(crate) fn negotiated(&self) -> Negotiated {
        let unknown = || "?".to_owned();
        Negotiated {
            version: self
                .tls
                .protocol_version()
                .map_or_else(unknown, |version| name(&version)),
            suite: self
                .tls
                .negotiated_cipher_suite()
                .map_or_else(unknown, |suite| name(&suite.suite())),
            group: self
                .tls
                .negotiated_key_exchange_group()
                // A resumed TLS 1.2 handshake exchanges no keys.
                .map_or_else(|| "none".to_owned(), |group| name(&group.name())),
            handshake: self.tls.handshake_kind().map_or_else(unknown, |kind| name(&kind)),
        }
    }

    /// Decrypts what was read. Returns the number of plaintext bytes.
    fn open_records(&mut self, mut ciphertext: &[u8]) -> Result<usize, Failure> {
        let mut received = 0;
        while !ciphertext.is_empty() {
            // Nothing counts after the peer's close_notify, and rustls then takes nothing.
            if self.tls.read_tls(&mut ciphertext)? == 0 {
                break;
            }
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // Tells the server why; whether that succeeds does not change the failure.
                    let _ = self.tls.write_tls(&mut self.stream);
                    return Err(error.into());
                }
            };
            self.notified = state.peer_has_closed();
            let mut left = state.plaintext_bytes_to_read();
            received += left;
            let mut reader = self.tls.reader();
            while left > 0 {
                let chunk = reader.fill_buf()?;
                let length = chunk.len();
                self.inbound.take(chunk)?;
                reader.consume(length);
                left -= length;
            }
        }
        Ok(received)
    }
}

impl Inbound {
    fn take(&mut self, mut chunk: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Count => Ok(()),
            Self::Http(reader) => reader.take(chunk),
            Self::Match { message, at } => {
                while !chunk.is_empty() {
                    let length = chunk.len().min(message.len() - *at);
                    let (now, later) = chunk.split_at(length);
                    if now != &message[*at..*at + length] {
                        return Err(Failure::Corrupted);
                    }
                    chunk = later;
                    *at = (*at + length) % message.len();
                }
                Ok(())
            }
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn start_connect(target: SocketAddr, source: Option<Ipv4Addr>) -> Result<TcpStream, Failure> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).map_err(io::Error::from)?;
    // Otherwise the first application bytes wait for the acknowledgement of Finished.
    sockopt::set_tcp_nodelay(&socket, true).map_err(io::Error::from)?;
    if let Some(source) = source {
        // The port is chosen by connect, which may use one port for many destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true).map_err(io::Error::from)?;
        bind(&socket, &SocketAddrV4::new(source, 0)).map_err(io::Error::from)?;
    }
    match connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from_std(socket.into())),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_matched_across_chunks_and_a_wrong_byte_is_seen() {
        let mut inbound = Inbound::Match {
            message: Arc::from(*b"abcd"),
            at: 0,
        };
        inbound.take(b"abc").unwrap();
        inbound.take(b"dabcda").unwrap();
        assert!(matches!(inbound.take(b"x"), Err(Failure::Corrupted)));
    }

    #[test]
    fn system_errors_are_counted_by_their_cause() {
        let kind = |kind: ErrorKind| Failure::from(io::Error::from(kind)).kind();
        assert_eq!(kind(ErrorKind::ConnectionRefused), "refused");
        assert_eq!(kind(ErrorKind::AddrNotAvailable), "no_local_port");
        assert_eq!(kind(ErrorKind::BrokenPipe), "reset");
        assert_eq!(kind(ErrorKind::PermissionDenied), "io");
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure);
        assert_eq!(Failure::from(alert).to_string(), "alert HandshakeFailure");
    }
}
