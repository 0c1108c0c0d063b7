//! The kinds of work. Those with a measuring window share its loop, `steady`.

mod bulk;
mod echo;
mod handshake;
pub(crate) mod http;
mod idle;
mod pace;
mod probe;
mod rates;
mod resume;
mod steady;
mod think;

use std::time::{Duration, Instant};

use ringlock::timestamp::Timestamp;

use crate::args::{Command, Offer, WORKS, Weighted};
use crate::connection::{Connection, Failure, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::report::Report;

/// Connections that offer nothing to resume.
const FULL: [Weighted<Offer>; 1] = [Weighted {
    value: Offer::Full,
    weight: 1,
}];

/// What a kind of work does with its connections. Called by the engine.
pub(crate) trait Work {
    /// An established connection has news. Counts finished units, queues what is to be sent.
    ///
    /// # Errors
    /// Ends the connection and is counted.
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure>;

    /// A connection has been closed in order from our side.
    fn finished(&mut self, connection: &Connection, tally: &mut Tally);
}

/// What is to happen with the connection after [`Work::progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for events.
    Wait,
    /// Call again as soon as what was queued has been sent.
    Again,
    /// The unit is done; the next one begins with [`Engine::resume`], which sets `state.due`.
    Rest,
    /// Close in order.
    Close,
}

/// Runs a client command to its end.
///
/// # Errors
/// When the run could not start or has no result; failed connections are in the report instead.
pub(crate) fn run(command: &Command) -> Result<Report, PerfError> {
    let began = Timestamp::now();
    let mut report = match command {
        Command::Handshake(args) => handshake::run(args),
        Command::Resume(args) => resume::run(args),
        Command::Echo(args) => echo::run(args),
        Command::Bulk(args) => bulk::run(args),
        Command::Idle(args) => idle::run(args),
        Command::Http(args) => http::run(args),
        Command::Run(_) => Err(no_work("run")),
        Command::Scenarios(_) => Err(no_work("scenarios")),
        Command::Origin(_) => Err(no_work("origin")),
        Command::Report(_) => Err(no_work("report")),
        Command::Attack(_) => Err(no_work("attack")),
    }?;
    report.setting.began = began.to_string();
    Ok(report)
}

fn no_work(found: &str) -> PerfError {
    PerfError::Flag {
        flag: "command",
        found: found.to_owned(),
        expected: format!("a work: one of {}", WORKS.join(", ")),
    }
}

/// The time left until `end`; `None` when it has come.
pub(crate) fn remaining(end: Instant) -> Option<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}
