//! What the connections of an attack came to.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Connections are kept for a day at most: as long as an attack.
const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ending {
    /// Which way of the mode it took.
    pub variant: String,
    /// `closed_by_server`, `reset_by_server`, `refused`, `timed_out` (kept for --timeout), `open_at_end`, `reset_by_client`, or what the
    /// mode looks for: `answered`, `resumed`, `full_handshake`, `renegotiated`; else `handshake_failed`, `unreadable`,
    /// `no_local_port`, `no_descriptor`, `io`.
    pub ending: String,
    /// The alert that the server had sent; `encrypted` if nobody can read which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
}

/// Counts of a whole attack.
pub(super) struct Tally {
    /// Connections that were begun.
    pub(super) attempts: u64,
    /// Of which the server took the TCP connection.
    pub(super) connected: u64,
    pub(super) open_most: usize,
    pub(super) endings: BTreeMap<Ending, u64>,
    /// Microseconds from connect to end.
    pub(super) kept: Histogram<u64>,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// KeyUpdates sent, renegotiations asked for.
    pub(super) messages: u64,
    /// How long the attack took.
    pub(super) wall: Duration,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            attempts: 0,
            connected: 0,
            open_most: 0,
            endings: BTreeMap::new(),
            kept: Histogram::new_with_bounds(1, KEPT_MAX.as_micros() as u64, 3)
                .expect("bounds and digits are constants in range"),
            sent: 0,
            received: 0,
            messages: 0,
            wall: Duration::ZERO,
        }
    }

    /// A connection is over.
    pub(super) fn ended(&mut self, variant: &str, ending: &str, alert: Option<String>, kept: Duration) {
        let ending = Ending {
            variant: variant.to_owned(),
            ending: ending.to_owned(),
            alert,
        };
        *self.endings.entry(ending).or_insert(0) += 1;
        self.kept.saturating_record((kept.as_micros() as u64).max(1));
    }
}
