//! One client connection: its TLS session, what it has to send, and where it is in its life. The engine has its socket.
//!
//! `Opening` (connect and handshake) → `Established` → `Closing` (close_notify and FIN are out) → finished.

use std::io::{self, BufRead, IoSlice, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlock::buffers::{Outbox, SendBuffer, SendPool, Sink};
use ringlock::error::IoError;
use rustls::{CipherSuite, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion};

use crate::args::Offer;
use crate::measure::Times;
use crate::plan::ClientPlan;
use crate::socket::{Cause, start_connect};
use crate::tls::name;
use crate::work::http::ResponseReader;

/// A client connection.
pub(crate) struct Connection {
    tls: ClientConnection,
    /// Sealed and not yet sent.
    outbox: Outbox,
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
    /// True exactly when the server has closed it at rest, as it may: the one in its place is opened after a pause.
    pub(crate) closed_at_rest: bool,
    /// When the unit that is to begin now was due.
    pub(crate) due: Option<Instant>,
}

/// What is new on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// The handshake is complete; our Finished goes with what the work queues now (said once).
    pub(crate) established: bool,
    /// Bytes of plaintext that arrived.
    pub(crate) received: usize,
    /// Nothing that the work has queued waits to be sent.
    pub(crate) writable: bool,
    /// The peer closed before we did.
    pub(crate) peer_closed: bool,
    /// It said so by close_notify: nobody has cut what it sent.
    pub(crate) notified: bool,
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

/// The TLS parameters of a connection, by their registered numbers: names would cost every handshake a few allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Negotiated {
    version: u16,
    suite: u16,
    /// A resumed TLS 1.2 handshake exchanges no keys.
    group: Option<u16>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Full,
    FullWithHelloRetryRequest,
    Resumed,
}

impl Negotiated {
    /// For example `TLSv1_3`.
    pub(crate) fn version(&self) -> String {
        name(&ProtocolVersion::from(self.version))
    }

    /// For example `TLS13_AES_128_GCM_SHA256`.
    pub(crate) fn suite(&self) -> String {
        name(&CipherSuite::from(self.suite))
    }

    /// For example `X25519`, or `none`.
    pub(crate) fn group(&self) -> String {
        self.group
            .map_or_else(|| "none".to_owned(), |group| name(&NamedGroup::from(group)))
    }

    /// As [`HandshakeKind`] has it.
    pub(crate) fn handshake(&self) -> String {
        name(&self.kind)
    }
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
        match Cause::of(&error) {
            Cause::Refused => Self::Refused,
            Cause::NoLocalPort => Self::NoLocalPort,
            Cause::Reset => Self::Reset,
            Cause::TimedOut => Self::Timeout("connecting"),
            Cause::NoDescriptor | Cause::Other => Self::Io(error),
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

impl From<IoError> for Failure {
    fn from(error: IoError) -> Self {
        io::Error::from_raw_os_error(error.0).into()
    }
}

impl Connection {
    /// Starts connecting, from `source` if there is one, and queues the ClientHello. It was `due` to start then. The socket
    /// takes what is to be sent at once, and sends it when it is connected.
    pub(crate) fn open(
        plan: &ClientPlan,
        source: Option<Ipv4Addr>,
        inbound: Inbound,
        due: Instant,
        now: Instant,
    ) -> Result<(Self, OwnedFd), Failure> {
        let socket = start_connect(plan.target, source)?;
        let persona = plan.personas.draw();
        let mut tls = ClientConnection::new(persona.tls.clone(), persona.server_name.clone())?;
        // The work bounds what it queues; it fills only when nothing is waiting.
        tls.set_buffer_limit(None);
        let connection = Self {
            tls,
            outbox: Outbox::default(),
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
        };
        Ok((connection, socket))
    }

    /// The unit in flight, done now.
    pub(crate) fn times(&self, done: Instant) -> Times {
        Times {
            due: self.unit_due,
            started: self.unit_started,
            done,
        }
    }

    /// When the unit was due that has begun and is not done, if there is one.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        let waits = match self.phase {
            Phase::Opening => true,
            Phase::Established => !self.state.resting && self.state.done.is_none(),
            Phase::Closing => false,
        };
        waits.then_some(self.unit_due)
    }

    /// By what the session was resumed that the connection offered, if it was.
    pub(crate) fn resumed_by(&self) -> Option<Offer> {
        self.is_resumed().then_some(self.offer)
    }

    /// Decrypts what has arrived. Returns the number of plaintext bytes.
    pub(crate) fn received(&mut self, mut ciphertext: &[u8]) -> Result<usize, Failure> {
        let mut received = 0;
        while !ciphertext.is_empty() {
            // Nothing counts after the peer's close_notify, and rustls then takes nothing.
            if self.tls.read_tls(&mut ciphertext)? == 0 {
                break;
            }
            let state = self.tls.process_new_packets()?;
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

    /// The peer's FIN has arrived.
    pub(crate) fn received_end(&mut self) {
        self.read_closed = true;
    }

    /// A receive or a send has failed. That is a way to end for a connection that is closing.
    pub(crate) fn io_failed(&mut self, error: IoError) -> Result<(), Failure> {
        let failure = Failure::from(error);
        if self.phase == Phase::Closing && matches!(failure, Failure::Reset) {
            self.reset = true;
            return Ok(());
        }
        Err(failure)
    }

    /// What is new, with `received` bytes of plaintext.
    pub(crate) fn news(&mut self, received: usize) -> Result<Progress, Failure> {
        let mut progress = Progress {
            received,
            ..Progress::default()
        };
        match self.phase {
            Phase::Opening if !self.tls.is_handshaking() => {
                self.phase = Phase::Established;
                self.deadline = None;
                progress.established = true;
                progress.writable = true;
            }
            Phase::Opening if self.read_closed => return Err(Failure::ClosedEarly),
            Phase::Opening => {}
            Phase::Established => progress.writable = self.outbox.queued() == 0,
            Phase::Closing => {}
        }
        progress.peer_closed = self.phase == Phase::Established && (self.notified || self.read_closed);
        progress.notified = self.notified;
        Ok(progress)
    }

    /// True when the handshake is complete and closing has not begun.
    pub(crate) fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Queues plaintext; the engine sends it.
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

    /// The next bytes to send; none while others are being sent.
    pub(crate) fn take_outgoing(&mut self, pool: &mut SendPool) -> Option<SendBuffer> {
        while self.tls.wants_write() {
            let written = self.tls.write_tls(&mut Appended(self.outbox.sink(pool)));
            written.expect("appending to memory does not fail");
        }
        self.outbox.take()
    }

    /// `sent` bytes of what was taken are on their way.
    pub(crate) fn returned(&mut self, buffer: SendBuffer, sent: usize, pool: &mut SendPool) {
        self.outbox.returned(buffer, sent, pool);
    }

    /// Gives back the memory of what is not sent any more.
    pub(crate) fn forget_outgoing(&mut self, pool: &mut SendPool) {
        self.outbox.clear(pool);
    }

    /// Everything queued has been sent.
    pub(crate) fn all_sent(&self) -> bool {
        self.outbox.queued() == 0
    }

    /// Something may still arrive.
    pub(crate) fn wants_receive(&self) -> bool {
        !self.read_closed && !self.reset
    }

    /// It is time for our FIN: said once, when close_notify is out.
    pub(crate) fn take_fin(&mut self) -> bool {
        let due = self.phase == Phase::Closing && !self.write_closed && !self.reset && self.all_sent();
        self.write_closed |= due;
        due
    }

    /// Queues close_notify; FIN follows when everything is sent.
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

    /// The parameters, once the handshake is complete.
    pub(crate) fn negotiated(&self) -> Option<Negotiated> {
        Some(Negotiated {
            version: self.tls.protocol_version()?.into(),
            suite: self.tls.negotiated_cipher_suite()?.suite().into(),
            group: self
                .tls
                .negotiated_key_exchange_group()
                .map(|group| group.name().into()),
            kind: match self.tls.handshake_kind()? {
                HandshakeKind::Full => Kind::Full,
                HandshakeKind::FullWithHelloRetryRequest => Kind::FullWithHelloRetryRequest,
                HandshakeKind::Resumed => Kind::Resumed,
            },
        })
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

/// Appends what rustls has sealed, all records at once.
struct Appended<'a>(Sink<'a>);

impl Write for Appended<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = parts.iter().map(|part| part.len()).sum();
        let mut space = self.0.space(length);
        for part in parts {
            let (here, rest) = space.split_at_mut(part.len());
            here.copy_from_slice(part);
            space = rest;
        }
        self.0.commit(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

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
