//! What is known about a connection when it ends: one of these becomes one log line.
//!
//! A worker makes it, asks [`wanted`] first, and pushes it on its bounded queue; `control/log.rs` writes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ConnectionLog, Log, LogLevel};
use crate::error::{Cause, Fault};
use crate::metrics::{Declined, Negotiated};

/// One connection that ended. What was never learned is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRecord {
    /// Name of the listener that accepted it.
    pub listener: Arc<str>,
    /// The client: as told by the PROXY header when there was one, as seen by the kernel otherwise.
    pub peer: Option<SocketAddr>,
    /// The server name (SNI) as the client sent it: not to be trusted.
    pub server_name: Option<Box<str>>,
    /// The application protocol that was negotiated.
    pub alpn: Option<Box<[u8]>>,
    /// Version, suite, group and resumption, once the handshake was complete.
    pub negotiated: Option<Negotiated>,
    /// Why the session that the client wanted to resume was not.
    pub declined: Option<Declined>,
    /// Subject of the client's certificate, as its CA has written it: cut where it is long.
    pub client_subject: Option<String>,
    /// Serial number of the client's certificate in hexadecimal.
    pub client_serial: Option<String>,
    /// Address of the upstream server that was connected.
    pub server: Option<Arc<str>>,
    /// Plaintext bytes from the client to the upstream.
    pub received: u64,
    /// Plaintext bytes from the upstream to the client.
    pub sent: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Why it ended.
    pub cause: Cause,
}

/// The level of the line about a connection that ended for `cause`: who must act decides. What clients do wrong is
/// everyday life of a public port.
#[must_use]
pub fn level(cause: &Cause) -> LogLevel {
    match cause.fault() {
        Fault::None | Fault::Peer => LogLevel::Info,
        Fault::Upstream | Fault::Operator => LogLevel::Warn,
        Fault::Key | Fault::Us => LogLevel::Error,
    }
}

/// Whether a connection that ended for `cause` gets a line. `sample` counts the connections of the worker that ended
/// without a failure: the share `connections_sample` of them is chosen, evenly spread, with no random number.
#[must_use]
pub fn wanted(log: &Log, cause: &Cause, sample: u64) -> bool {
    if level(cause) > log.level {
        return false;
    }
    let failed = cause.fault() != Fault::None;
    match log.connections {
        ConnectionLog::Off => false,
        ConnectionLog::Failures => failed,
        ConnectionLog::All => failed || sampled(log.connections_sample, sample),
    }
}

/// Whether `share * n` passes a whole number between `n` and `n + 1`.
fn sampled(share: f64, n: u64) -> bool {
    // The low 32 bits keep the products exact to far below one.
    let n = (n & u64::from(u32::MAX)) as f64;
    ((n + 1.0) * share).floor() > (n * share).floor()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;
    use crate::error::HandshakeFailure;

    fn log(connections: ConnectionLog, connections_sample: f64) -> Log {
        Log {
            format: LogFormat::Text,
            level: LogLevel::Info,
            file: None,
            connections,
            connections_sample,
        }
    }

    #[test]
    fn the_sample_is_the_share_that_was_asked_for_evenly_spread() {
        for (share, expected) in [(0.0, 0), (0.01, 100), (0.25, 2_500), (0.5, 5_000), (1.0, 10_000)] {
            let log = log(ConnectionLog::All, share);
            let chosen: Vec<u64> = (0..10_000).filter(|&n| wanted(&log, &Cause::Finished, n)).collect();
            assert!(
                chosen.len().abs_diff(expected) <= 1,
                "share {share}: {} chosen",
                chosen.len()
            );
            for pair in chosen.windows(2) {
                assert!(
                    ((pair[1] - pair[0]) as f64 - 1.0 / share).abs() <= 1.0,
                    "share {share}: {pair:?}"
                );
            }
        }
        assert!(wanted(&log(ConnectionLog::All, 1.0), &Cause::Finished, u64::MAX));
    }

    #[test]
    fn failures_are_never_sampled_away() {
        let failure = Cause::Handshake(HandshakeFailure::NoSharedGroup);
        for n in 0..100 {
            assert!(wanted(&log(ConnectionLog::All, 0.0), &failure, n));
            assert!(wanted(&log(ConnectionLog::Failures, 0.0), &failure, n));
            assert!(!wanted(&log(ConnectionLog::Off, 1.0), &failure, n));
            assert!(!wanted(&log(ConnectionLog::Failures, 1.0), &Cause::Finished, n));
        }
    }

    #[test]
    fn a_line_below_the_level_is_not_wanted() {
        let log = Log {
            level: LogLevel::Warn,
            ..log(ConnectionLog::All, 1.0)
        };
        assert!(!wanted(&log, &Cause::Finished, 0));
        assert!(!wanted(&log, &Cause::PeerReset, 0));
        assert!(wanted(&log, &Cause::UpstreamUnreachable, 0));
        assert!(wanted(&log, &Cause::Internal("worker"), 0));
    }
}
