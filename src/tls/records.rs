//! Records: their boundaries, and the record layer after the handshake. rustls makes the keys and renews them
//! ([`KernelConnection`]); what the records say is understood here.

use std::time::{Duration, Instant};

use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ProtocolVersion};

use super::protection::{EXPANSION_BYTES, Protection};
use super::{Opened, Outboxes};
use crate::buffers::Sink;
use crate::error::{Cause, alert_name};
use crate::limits::{KEY_UPDATES_PER_SECOND_MAX, RECORD_BYTES_MAX};

/// Bytes of a record's header: type, version, length.
pub const HEADER_BYTES: usize = 5;
/// Most that one record carries.
pub(super) const FRAGMENT_BYTES: usize = 16 * 1024;

/// What a record carries, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentType(pub(super) u8);

impl ContentType {
    pub(super) const ALERT: ContentType = ContentType(21);
    pub(super) const HANDSHAKE: ContentType = ContentType(22);
    pub(super) const DATA: ContentType = ContentType(23);
}

/// Handshake messages that a client sends after the handshake.
const CLIENT_HELLO: u8 = 1;
const KEY_UPDATE: u8 = 24;

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A record that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// What the peer is told.
    pub(super) alert: AlertDescription,
    /// What the log says of the record.
    pub(super) why: &'static str,
}

impl Violation {
    pub(super) const TOO_LONG: Violation = Violation {
        alert: AlertDescription::RecordOverflow,
        why: "it is longer than any may be",
    };

    const fn unexpected(why: &'static str) -> Violation {
        Violation {
            alert: AlertDescription::UnexpectedMessage,
            why,
        }
    }
}

/// Where the record that starts at `at` ends, if `bytes` has its header and all of it.
#[must_use]
pub fn record_end(bytes: &[u8], at: usize) -> Option<usize> {
    let end = at + HEADER_BYTES + declared(bytes, at)?;
    (end <= bytes.len()).then_some(end)
}

/// The record that starts at `at` says that it is longer than any may be: it is not worth waiting for.
#[must_use]
pub fn is_oversized(bytes: &[u8], at: usize) -> bool {
    declared(bytes, at).is_some_and(|length| HEADER_BYTES + length > RECORD_BYTES_MAX)
}

fn declared(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at + 3..at + 5)?;
    Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// How many bytes `bytes`, which starts at a record, lacks to the end of its last record. Zero when it ends with one.
#[must_use]
pub fn missing(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(end) = record_end(bytes, at) {
        at = end;
    }
    match declared(bytes, at) {
        Some(length) => at + HEADER_BYTES + length - bytes.len(),
        None if at == bytes.len() => 0,
        None => at + HEADER_BYTES - bytes.len(),
    }
}

type Secrets = KernelConnection<ServerConnectionData>;

/// Both directions of a connection after its handshake.
pub(super) struct Records {
    incoming: Protection,
    outgoing: Protection,
    /// What rustls keeps: the secrets that the next keys are made from.
    secrets: Secrets,
    /// Nothing that the client sends is looked at any more.
    incoming_ended: bool,
    /// Nothing is sealed any more: our close_notify or a fatal alert is.
    outgoing_ended: bool,
    dataless: Dataless,
}

/// Records without data: KeyUpdates, for well-behaved peers one in 2^24, and warnings. Each costs more than it looks, so a flood of
/// them is an attack.
#[derive(Default)]
struct Dataless {
    since: Option<Instant>,
    count: u32,
}

impl Dataless {
    /// Counts one; false when there were too many within a second.
    fn admit(&mut self, now: Instant) -> bool {
        match self.since {
            Some(since) if now.saturating_duration_since(since) < Duration::from_secs(1) => self.count += 1,
            Some(_) | None => {
                self.since = Some(now);
                self.count = 1;
            }
        }
        self.count <= KEY_UPDATES_PER_SECOND_MAX
    }
}

/// What a record without data said.
enum Said {
    /// Nothing that ends anything.
    Nothing,
    Close,
    /// The peer has given up, and told why.
    Alert(AlertDescription),
}

impl Records {
    /// Takes the keys over from rustls, which has completed the handshake and has nothing left to send.
    ///
    /// # Errors
    /// rustls' word; none in a state as above.
    pub(super) fn new(rustls: UnbufferedServerConnection) -> Result<Records, rustls::Error> {
        let (keys, secrets) = rustls.dangerous_into_kernel_connection()?;
        let suite = secrets.negotiated_cipher_suite();
        Ok(Records {
            incoming: Protection::new(keys.rx, suite)?,
            outgoing: Protection::new(keys.tx, suite)?,
            secrets,
            incoming_ended: false,
            outgoing_ended: false,
            dataless: Dataless::default(),
        })
    }

    /// See [`super::Tls::open`].
    pub(super) fn open(&mut self, now: Instant, received: &[u8], outboxes: &mut Outboxes<'_>) -> (usize, Opened) {
        if self.incoming_ended {
            return (received.len(), Opened::Closed);
        }
        let mut used = 0;
        while let Some(end) = record_end(received, used) {
            let opened = match self.open_record(&received[used..end], outboxes) {
                Ok(None) => {
                    used = end;
                    continue;
                }
                Ok(Some(Said::Nothing)) if self.dataless.admit(now) => {
                    used = end;
                    continue;
                }
                Ok(Some(Said::Nothing)) => {
                    self.outgoing_ended = true;
                    Opened::Failed(Cause::KeyUpdateFlood)
                }
                // RFC 8446 section 6.1: what follows a close_notify is ignored.
                Ok(Some(Said::Close)) => Opened::Closed,
                Ok(Some(Said::Alert(alert))) => {
                    self.outgoing_ended = true;
                    Opened::Failed(Cause::Record(format!("peer sent {}", alert_name(alert))))
                }
                Err(violation) => self.fail(violation, outboxes),
            };
            self.incoming_ended = true;
            return (received.len(), opened);
        }
        if is_oversized(received, used) {
            self.incoming_ended = true;
            return (received.len(), self.fail(Violation::TOO_LONG, outboxes));
        }
        (used, Opened::Open)
    }

    /// See [`super::Tls::seal`].
    pub(super) fn seal(&mut self, plain: &[u8], sealed: &mut Sink<'_>) -> Result<(), Cause> {
        if self.outgoing_ended || plain.is_empty() {
            return Ok(());
        }
        // Room for all of them at once: a buffer that grows copies.
        sealed.space(plain.len() + plain.len().div_ceil(FRAGMENT_BYTES) * EXPANSION_BYTES);
        for fragment in plain.chunks(FRAGMENT_BYTES) {
            if self.outgoing.is_worn() {
                if !self.is_tls13() {
                    self.alert(FATAL, AlertDescription::InternalError, sealed);
                    return Err(Cause::KeyLimit);
                }
                self.update_outgoing(sealed)
                    .map_err(|violation| Cause::Internal(violation.why))?;
            }
            self.put(ContentType::DATA, fragment, sealed);
        }
        Ok(())
    }

    /// See [`super::Tls::close_notify`].
    pub(super) fn close_notify(&mut self, sealed: &mut Sink<'_>) {
        self.alert(WARNING, AlertDescription::CloseNotify, sealed);
        self.outgoing_ended = true;
    }

    /// Opens a record; its data goes to the upstream. A record without data says something instead.
    fn open_record(&mut self, record: &[u8], outboxes: &mut Outboxes<'_>) -> Result<Option<Said>, Violation> {
        let mut plain = outboxes.plain.sink(outboxes.pool);
        let space = plain.space(record.len());
        let opened = self.incoming.open(record, space);
        if let Ok((ContentType::DATA, length @ 1..)) = opened {
            plain.commit(length);
            return Ok(None);
        }
        // More than any message that is understood here.
        let mut start = [0; 8];
        start.copy_from_slice(&space[..8]);
        plain.commit(0);
        let (content, length) = opened?;
        let whole = start.get(..length);
        match content {
            ContentType::DATA => Ok(Some(Said::Nothing)),
            ContentType::ALERT => self.on_alert(whole),
            ContentType::HANDSHAKE => self.on_handshake(whole, start[0], &mut outboxes.sealed.sink(outboxes.pool)),
            ContentType(_) => Err(Violation::unexpected(
                "its content type has no place after the handshake",
            )),
        }
    }

    fn on_alert(&self, message: Option<&[u8]>) -> Result<Option<Said>, Violation> {
        let Some(&[level, description]) = message else {
            return Err(Violation {
                alert: AlertDescription::DecodeError,
                why: "it carries an alert that is not two bytes long",
            });
        };
        match (level, AlertDescription::from(description)) {
            (_, AlertDescription::CloseNotify) => Ok(Some(Said::Close)),
            (WARNING, AlertDescription::UserCanceled) => Ok(Some(Said::Nothing)),
            // RFC 8446 section 6.2: whatever the level says.
            (WARNING, _) if !self.is_tls13() => Ok(Some(Said::Nothing)),
            (_, alert) => Ok(Some(Said::Alert(alert))),
        }
    }

    /// `message` is missing when it is too long to be one that is expected; `first` is its first byte.
    fn on_handshake(
        &mut self,
        message: Option<&[u8]>,
        first: u8,
        sealed: &mut Sink<'_>,
    ) -> Result<Option<Said>, Violation> {
        if !self.is_tls13() {
            if first != CLIENT_HELLO || message.is_some_and(<[u8]>::is_empty) {
                return Err(Violation::unexpected(
                    "its handshake message has no place after the handshake",
                ));
            }
            self.alert(WARNING, AlertDescription::NoRenegotiation, sealed);
            return Ok(Some(Said::Nothing));
        }
        match message {
            // The key changes behind it, so nothing may follow in the same record.
            Some(&[KEY_UPDATE, 0, 0, 1, request @ 0..=1]) => {
                self.incoming = self.renewed(KernelConnection::update_rx_secret)?;
                if request == 1 && !self.outgoing_ended {
                    self.update_outgoing(sealed)?;
                }
                Ok(Some(Said::Nothing))
            }
            Some(&[KEY_UPDATE, 0, 0, 1, _]) => Err(Violation {
                alert: AlertDescription::IllegalParameter,
                why: "its KeyUpdate asks for something unknown",
            }),
            Some(_) if first == KEY_UPDATE => Err(Violation::unexpected("its KeyUpdate is not alone and whole")),
            Some(_) | None => Err(Violation::unexpected(
                "its handshake message has no place after the handshake",
            )),
        }
    }

    /// Tells the client that our key changes behind this record, and changes it.
    fn update_outgoing(&mut self, sealed: &mut Sink<'_>) -> Result<(), Violation> {
        self.put(ContentType::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], sealed);
        self.outgoing = self.renewed(KernelConnection::update_tx_secret)?;
        Ok(())
    }

    fn renewed(
        &mut self,
        update: impl FnOnce(&mut Secrets) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>,
    ) -> Result<Protection, Violation> {
        let suite = self.secrets.negotiated_cipher_suite();
        let keys = update(&mut self.secrets).and_then(|keys| Protection::new(keys, suite));
        keys.map_err(|_| Violation {
            alert: AlertDescription::InternalError,
            why: "its key cannot be renewed",
        })
    }

    fn fail(&mut self, violation: Violation, outboxes: &mut Outboxes<'_>) -> Opened {
        self.alert(FATAL, violation.alert, &mut outboxes.sealed.sink(outboxes.pool));
        Opened::Failed(Cause::Record(violation.why.to_owned()))
    }

    /// Seals an alert, unless our direction has ended; a fatal one ends it.
    fn alert(&mut self, level: u8, alert: AlertDescription, sealed: &mut Sink<'_>) {
        if !self.outgoing_ended {
            self.put(ContentType::ALERT, &[level, u8::from(alert)], sealed);
            self.outgoing_ended = level == FATAL;
        }
    }

    fn put(&mut self, content: ContentType, plain: &[u8], sealed: &mut Sink<'_>) {
        let space = sealed.space(plain.len() + EXPANSION_BYTES);
        let written = self.outgoing.seal(content, plain, space);
        sealed.commit(written.expect("the cipher takes what fits into a record"));
    }

    fn is_tls13(&self) -> bool {
        self.secrets.protocol_version() == ProtocolVersion::TLSv1_3
    }
}

#[cfg(test)]
mod tests;
