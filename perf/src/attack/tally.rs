//! What the connections of an attack came to.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::Mode;
use crate::plan::DURATION_MAX;

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

impl Display for Ending {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.variant, self.ending)?;
        self.alert.as_ref().map_or(Ok(()), |alert| write!(f, ", alert {alert}"))
    }
}

/// Counts of a whole attack.
pub(super) struct Tally {
    /// Connections that were begun.
    pub(super) attempts: u64,
    /// Of which the server took the TCP connection.
    pub(super) connected: u64,
    pub(super) open_most: usize,
    pub(super) endings: BTreeMap<Ending, u64>,
    /// Microseconds from connect to end: none is kept for longer than the attack.
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
            kept: Histogram::new_with_bounds(1, DURATION_MAX.as_micros() as u64, 3)
                .expect("bounds and digits are constants in range"),
            sent: 0,
            received: 0,
            messages: 0,
            wall: Duration::ZERO,
        }
    }

    /// Whether any connection came to do what the mode is about.
    pub(super) fn attacked(&self, mode: Mode) -> bool {
        match mode {
            Mode::KeyUpdate | Mode::Renegotiation => self.messages > 0,
            Mode::StalledHello | Mode::SlowHello | Mode::HalfOpen | Mode::HugeHello | Mode::TicketReplay => {
                self.sent > 0
            }
            // Before the RST behind a connect nothing is sent.
            Mode::Reset => self.sent > 0 || self.endings.keys().any(|ending| ending.ending == "reset_by_client"),
        }
    }

    /// How the connections ended, in words.
    pub(super) fn in_words(&self) -> String {
        if self.endings.is_empty() {
            return "no connection, as it ended before the first".to_owned();
        }
        let words = |(ending, count): (&Ending, &u64)| format!("{count} {ending}");
        self.endings.iter().map(words).collect::<Vec<_>>().join("; ")
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
