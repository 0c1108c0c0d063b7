//! Why a connection ended, who is at fault, and what follows from that: one table for log level and metric.

use std::fmt;
use std::sync::Arc;

use rustls::{AlertDescription, OtherError};

/// Who has to act on a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody: an orderly end.
    None,
    /// The client.
    Peer,
    /// The server behind us.
    Upstream,
    /// Key custody.
    Key,
    /// Whoever runs this gateway.
    Operator,
    /// A defect of ours.
    Us,
}

impl Fault {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::Peer => "peer",
            Fault::Upstream => "upstream",
            Fault::Key => "key",
            Fault::Operator => "operator",
            Fault::Us => "us",
        }
    }
}

/// Why a private key has not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFailure {
    /// As many handshakes wait for the token as may.
    #[error("as many handshakes wait for its token as may")]
    Full,
    /// The token, or whoever asks it, was too slow.
    #[error("no answer from its token in time")]
    Late,
    /// The token cannot be used, and has not come back in time.
    #[error("its token cannot be used at present")]
    Down,
    /// The token's signature is wrong, and so was another.
    #[error("its token signs wrongly")]
    Wrong,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl KeyFailure {
    /// One of each.
    pub const ALL: [KeyFailure; 5] = [
        KeyFailure::Full,
        KeyFailure::Late,
        KeyFailure::Down,
        KeyFailure::Wrong,
        KeyFailure::Failed(String::new()),
    ];

    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            KeyFailure::Full => "key_queue_full",
            KeyFailure::Late => "key_timeout",
            KeyFailure::Down => "key_unavailable",
            KeyFailure::Wrong => "key_wrong_signature",
            KeyFailure::Failed(_) => "key",
        }
    }
}

impl From<KeyFailure> for rustls::Error {
    fn from(failure: KeyFailure) -> rustls::Error {
        rustls::Error::Other(OtherError(Arc::new(failure)))
    }
}

/// Why a handshake failed, in terms an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The first bytes are no TLS record; `true` when they look like plain HTTP.
    NotTls {
        /// They begin with an HTTP method.
        plain_http: bool,
    },
    /// The ClientHello is longer than [`crate::limits::CLIENT_HELLO_BYTES_MAX`].
    HelloTooLarge,
    /// The ClientHello cannot be parsed.
    MalformedHello,
    /// The best version offered (wire value) is below the listener's minimum, or none that it has.
    VersionTooOld {
        /// Highest version offered, as on the wire (0x0301 is TLS 1.0).
        offered: u16,
    },
    /// `strict_sni` and no identity has this name, or no name was sent.
    UnknownName,
    /// No named group in common.
    NoSharedGroup,
    /// No cipher suite in common.
    NoSharedSuite,
    /// ALPN was offered and nothing matches.
    NoSharedAlpn,
    /// No certificate fits the client's signature schemes.
    NoSuitableCertificate,
    /// A certificate is required and none was sent, or the one that was sent is not acceptable.
    ClientCertificate(String),
    /// The peer ended the handshake with this alert.
    PeerAlert(AlertDescription),
    /// The key could not sign.
    Key(KeyFailure),
    /// What the peer sent breaks the protocol; rustls' words.
    Protocol(String),
}

impl HandshakeFailure {
    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            HandshakeFailure::NotTls { plain_http: true } => "plain_http",
            HandshakeFailure::NotTls { plain_http: false } => "not_tls",
            HandshakeFailure::HelloTooLarge => "hello_too_large",
            HandshakeFailure::MalformedHello => "malformed_hello",
            HandshakeFailure::VersionTooOld { .. } => "version_too_old",
            HandshakeFailure::UnknownName => "unknown_name",
            HandshakeFailure::NoSharedGroup => "no_shared_group",
            HandshakeFailure::NoSharedSuite => "no_shared_suite",
            HandshakeFailure::NoSharedAlpn => "no_shared_alpn",
            HandshakeFailure::NoSuitableCertificate => "no_suitable_certificate",
            HandshakeFailure::ClientCertificate(_) => "client_certificate",
            HandshakeFailure::PeerAlert(_) => "peer_alert",
            HandshakeFailure::Key(why) => why.label(),
            HandshakeFailure::Protocol(_) => "protocol",
        }
    }

    /// Every label, for metrics that start at zero. The order is [`HandshakeFailure::index`]'s.
    pub const LABELS: [&'static str; 18] = [
        "plain_http",
        "not_tls",
        "hello_too_large",
        "malformed_hello",
        "version_too_old",
        "unknown_name",
        "no_shared_group",
        "no_shared_suite",
        "no_shared_alpn",
        "no_suitable_certificate",
        "client_certificate",
        "peer_alert",
        "key",
        "key_queue_full",
        "key_timeout",
        "key_unavailable",
        "key_wrong_signature",
        "protocol",
    ];

    /// Position of the label in [`HandshakeFailure::LABELS`].
    #[must_use]
    pub fn index(&self) -> usize {
        let label = self.label();
        Self::LABELS
            .iter()
            .position(|&l| l == label)
            .expect("LABELS has every label; a unit test compares them")
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeFailure::NotTls { plain_http: true } => f.write_str("client speaks plain HTTP to a TLS port"),
            HandshakeFailure::NotTls { plain_http: false } => f.write_str("client does not speak TLS"),
            HandshakeFailure::HelloTooLarge => {
                write!(
                    f,
                    "ClientHello is longer than {} bytes",
                    crate::limits::CLIENT_HELLO_BYTES_MAX
                )
            }
            HandshakeFailure::MalformedHello => f.write_str("ClientHello is malformed"),
            HandshakeFailure::VersionTooOld { offered } => match offered {
                0x0300 => f.write_str("client offers only SSL 3.0"),
                0x0301 => f.write_str("client offers only TLS 1.0"),
                0x0302 => f.write_str("client offers at most TLS 1.1"),
                0x0303 => f.write_str("client offers at most TLS 1.2"),
                0x0304 => f.write_str("client offers only TLS 1.3"),
                other => write!(f, "client offers no version of ours (its best is 0x{other:04x})"),
            },
            HandshakeFailure::UnknownName => f.write_str("no identity has the name the client asked for (strict_sni)"),
            HandshakeFailure::NoSharedGroup => f.write_str("no shared group"),
            HandshakeFailure::NoSharedSuite => f.write_str("no shared cipher suite"),
            HandshakeFailure::NoSharedAlpn => f.write_str("no shared application protocol (ALPN)"),
            HandshakeFailure::NoSuitableCertificate => {
                f.write_str("no certificate fits the client's signature schemes")
            }
            HandshakeFailure::ClientCertificate(why) => f.write_str(why),
            HandshakeFailure::PeerAlert(alert) => write!(f, "peer sent {}", alert_name(*alert)),
            HandshakeFailure::Key(why) => write!(f, "the private key could not be used: {why}"),
            HandshakeFailure::Protocol(why) => f.write_str(why),
        }
    }
}

/// The alert's name as the RFCs write it.
#[must_use]
pub fn alert_name(alert: AlertDescription) -> String {
    let camel = format!("{alert:?}");
    let mut name = String::with_capacity(camel.len() + 4);
    let mut previous_lower = false;
    for c in camel.chars() {
        if c.is_ascii_uppercase() && previous_lower {
            name.push('_');
        }
        previous_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// An error of the kernel, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError(pub i32);

impl IoError {
    /// The operation was cancelled by us.
    pub const CANCELLED: IoError = IoError(libc::ECANCELED);

    /// Out of descriptors, buffers, memory or local ports: nobody's fault but ours, and it may work again later.
    #[must_use]
    pub fn is_exhaustion(self) -> bool {
        matches!(
            self.0,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL
        )
    }
}

impl From<std::io::Error> for IoError {
    fn from(error: std::io::Error) -> Self {
        IoError(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// How a connection ended. Every session ends with exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both directions ended in order.
    Finished,
    /// The peer went away before it sent a ClientHello: a port scan or a health check.
    ClosedBeforeHello,
    /// The drain deadline passed.
    Drained,
    /// The connection has been open for `connection_age_max`.
    ConnectionAge,
    /// The PROXY header was missing, malformed, or too long.
    ProxyHeader(&'static str),
    /// The handshake was not complete in time.
    HandshakeTimeout,
    /// No byte either way for `idle_timeout`.
    IdleTimeout,
    /// A peer took nothing of what was queued for it for `write_timeout`; `true` when that peer is the upstream.
    WriteTimeout {
        /// The stalled peer is the upstream.
        upstream: bool,
    },
    /// The handshake failed.
    Handshake(HandshakeFailure),
    /// The peer closed the connection in the middle of the handshake.
    ClosedInHandshake,
    /// The peer ended its stream without close_notify: what the upstream got may be truncated.
    Truncated,
    /// The peer's connection failed (reset, unreachable).
    PeerReset,
    /// A record after the handshake was not acceptable, and why.
    Record(String),
    /// More KeyUpdates in a second than [`crate::limits::KEY_UPDATES_PER_SECOND_MAX`].
    KeyUpdateFlood,
    /// The connection's keys have protected as much as they may, and TLS 1.2 cannot renew them.
    KeyLimit,
    /// No server of the group accepted a connection.
    UpstreamUnreachable,
    /// The upstream's connection failed.
    UpstreamReset,
    /// No descriptor, memory or local port for a connection to the upstream: limits are too low for what is served.
    Exhausted,
    /// A defect of ours: the text says where.
    Internal(&'static str),
}

impl Cause {
    /// Every label, for metrics that start at zero. The order is [`Cause::index`]'s.
    pub const LABELS: [&'static str; 19] = [
        "finished",
        "closed_before_hello",
        "drained",
        "proxy_header",
        "handshake_timeout",
        "idle_timeout",
        "write_timeout",
        "handshake",
        "closed_in_handshake",
        "truncated",
        "peer_reset",
        "record",
        "key_update_flood",
        "key_limit",
        "upstream_unreachable",
        "upstream_reset",
        "exhausted",
        "internal",
        "connection_age_max",
    ];

    /// Position of the label in [`Cause::LABELS`].
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Cause::Finished => 0,
            Cause::ClosedBeforeHello => 1,
            Cause::Drained => 2,
            Cause::ProxyHeader(_) => 3,
            Cause::HandshakeTimeout => 4,
            Cause::IdleTimeout => 5,
            Cause::WriteTimeout { .. } => 6,
            Cause::Handshake(_) => 7,
            Cause::ClosedInHandshake => 8,
            Cause::Truncated => 9,
            Cause::PeerReset => 10,
            Cause::Record(_) => 11,
            Cause::KeyUpdateFlood => 12,
            Cause::KeyLimit => 13,
            Cause::UpstreamUnreachable => 14,
            Cause::UpstreamReset => 15,
            Cause::Exhausted => 16,
            Cause::Internal(_) => 17,
            Cause::ConnectionAge => 18,
        }
    }

    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Cause::Finished
            | Cause::ClosedBeforeHello
            | Cause::Drained
            | Cause::ConnectionAge
            | Cause::IdleTimeout
            | Cause::KeyLimit => Fault::None,
            Cause::Handshake(HandshakeFailure::Key(_)) => Fault::Key,
            Cause::WriteTimeout { upstream: true } | Cause::UpstreamUnreachable | Cause::UpstreamReset => {
                Fault::Upstream
            }
            Cause::Exhausted => Fault::Operator,
            Cause::Internal(_) => Fault::Us,
            Cause::ProxyHeader(_)
            | Cause::HandshakeTimeout
            | Cause::WriteTimeout { upstream: false }
            | Cause::Handshake(_)
            | Cause::ClosedInHandshake
            | Cause::Truncated
            | Cause::PeerReset
            | Cause::Record(_)
            | Cause::KeyUpdateFlood => Fault::Peer,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Finished => f.write_str("finished"),
            Cause::ClosedBeforeHello => f.write_str("client closed before it sent anything"),
            Cause::Drained => f.write_str("ended by the drain deadline"),
            Cause::ConnectionAge => f.write_str("as old as connection_age_max allows"),
            Cause::ProxyHeader(why) => write!(f, "PROXY header: {why}"),
            Cause::HandshakeTimeout => f.write_str("handshake not complete in time"),
            Cause::IdleTimeout => f.write_str("idle for too long"),
            Cause::WriteTimeout { upstream: true } => f.write_str("upstream reads nothing of what is queued for it"),
            Cause::WriteTimeout { upstream: false } => f.write_str("client reads nothing of what is queued for it"),
            Cause::Handshake(failure) => failure.fmt(f),
            Cause::ClosedInHandshake => f.write_str("client closed during the handshake"),
            Cause::Truncated => f.write_str("client ended its stream without close_notify"),
            Cause::PeerReset => f.write_str("client connection failed"),
            Cause::Record(why) => write!(f, "unacceptable record from the client: {why}"),
            Cause::KeyUpdateFlood => f.write_str("client sent too many KeyUpdates"),
            Cause::KeyLimit => f.write_str("the keys of a TLS 1.2 connection have protected as much as they may"),
            Cause::UpstreamUnreachable => f.write_str("no upstream server accepted a connection"),
            Cause::UpstreamReset => f.write_str("upstream connection failed"),
            Cause::Exhausted => f.write_str(
                "no descriptor, memory or local port for an upstream connection; raise the limits (ulimit -n)",
            ),
            Cause::Internal(place) => write!(f, "internal error in {place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_handshake_failure_has_its_label_in_the_table() {
        let all = [
            HandshakeFailure::NotTls { plain_http: true },
            HandshakeFailure::NotTls { plain_http: false },
            HandshakeFailure::HelloTooLarge,
            HandshakeFailure::MalformedHello,
            HandshakeFailure::VersionTooOld { offered: 0x0301 },
            HandshakeFailure::UnknownName,
            HandshakeFailure::NoSharedGroup,
            HandshakeFailure::NoSharedSuite,
            HandshakeFailure::NoSharedAlpn,
            HandshakeFailure::NoSuitableCertificate,
            HandshakeFailure::ClientCertificate(String::new()),
            HandshakeFailure::PeerAlert(AlertDescription::UnknownCA),
            HandshakeFailure::Key(KeyFailure::Failed(String::new())),
            HandshakeFailure::Key(KeyFailure::Full),
            HandshakeFailure::Key(KeyFailure::Late),
            HandshakeFailure::Key(KeyFailure::Down),
            HandshakeFailure::Key(KeyFailure::Wrong),
            HandshakeFailure::Protocol(String::new()),
        ];
        for (index, failure) in all.iter().enumerate() {
            assert_eq!(failure.index(), index, "{failure:?}");
        }
        assert_eq!(all.len(), HandshakeFailure::LABELS.len());
    }

    #[test]
    fn alerts_have_the_names_of_the_rfc() {
        assert_eq!(alert_name(AlertDescription::UnknownCA), "unknown_ca");
        assert_eq!(alert_name(AlertDescription::BadCertificate), "bad_certificate");
        assert_eq!(alert_name(AlertDescription::CloseNotify), "close_notify");
        assert_eq!(alert_name(AlertDescription::DecryptError), "decrypt_error");
    }
}
