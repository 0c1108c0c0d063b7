//! Reloads, and connections by the configuration that they began under.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Unit;

use super::{Exposition, Family, View};
use crate::limits::EPOCHS_SHOWN_MAX;

/// What has asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// A file that has changed.
    File,
}

impl Trigger {
    const LABELS: [&'static str; 2] = ["signal", "file"];
}

/// What came of reloads since start.
#[derive(Clone, Debug)]
pub struct Reloads {
    /// By [`Trigger`].
    succeeded: [u64; Trigger::LABELS.len()],
    failed: [u64; Trigger::LABELS.len()],
    /// Of the last one, or of the start.
    at: SystemTime,
    last_succeeded: bool,
}

impl Reloads {
    /// None yet, since a start at this time.
    #[must_use]
    pub fn new(at: SystemTime) -> Reloads {
        Reloads {
            succeeded: [0; Trigger::LABELS.len()],
            failed: [0; Trigger::LABELS.len()],
            at,
            last_succeeded: true,
        }
    }

    /// Counts one. `good` is whether all that is in force now is what the files hold.
    pub fn count(&mut self, trigger: Trigger, succeeded: bool, good: bool, at: SystemTime) {
        let counts = if succeeded {
            &mut self.succeeded
        } else {
            &mut self.failed
        };
        counts[trigger as usize] += 1;
        self.last_succeeded = good;
        self.at = at;
    }
}

impl View {
    pub(super) fn encode_reloads(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let Reloads {
            succeeded,
            failed,
            at,
            last_succeeded,
        } = &self.reloads;
        let mut samples = Vec::new();
        for (result, counts) in [("succeeded", succeeded), ("failed", failed)] {
            for (trigger, &count) in Trigger::LABELS.into_iter().zip(counts) {
                samples.push((vec![("result", result.into()), ("trigger", trigger.into())], count));
            }
        }
        to.counter(Family {
            name: "ringlock_configuration_reloads",
            help: "Reloads of the configuration, by result and by what has asked for them",
            unit: None,
            samples,
        })?;
        to.gauge(Family {
            name: "ringlock_configuration_last_reload_successful",
            help: "1 if the last reload, or the start, has put in force all that the files hold; 0 if something old is still in use",
            unit: None,
            samples: vec![(vec![], u64::from(*last_succeeded))],
        })?;
        to.gauge(Family {
            name: "ringlock_configuration_last_reload_timestamp",
            help: "When the last reload or the start was, in Unix time",
            unit: Some(Unit::Seconds),
            samples: at
                .duration_since(UNIX_EPOCH)
                .map(|since| (vec![], since.as_secs_f64()))
                .into_iter()
                .collect(),
        })?;
        to.gauge(Family {
            name: "ringlock_connections_by_epoch",
            help: "Connections open, by the number of the configuration that was in force when they were accepted",
            unit: None,
            samples: by_epoch(&self.connections_by_epoch)
                .into_iter()
                .map(|(epoch, count)| (vec![("epoch", epoch.into())], count))
                .collect(),
        })
    }
}

/// The newest epochs that have connections one by one, and the others together.
fn by_epoch(connections: &[(u64, u64)]) -> Vec<(String, u64)> {
    let mut open: Vec<(u64, u64)> = connections.iter().copied().filter(|(_, count)| *count > 0).collect();
    open.sort_unstable_by(|a, b| b.cmp(a));
    let (shown, older) = open.split_at(open.len().min(EPOCHS_SHOWN_MAX));
    let mut samples: Vec<(String, u64)> = shown.iter().map(|(epoch, count)| (epoch.to_string(), *count)).collect();
    if !older.is_empty() {
        samples.push(("older".to_owned(), older.iter().map(|(_, count)| count).sum()));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_epochs_are_shown_together_and_empty_ones_not_at_all() {
        let sample = |epoch: u64| (epoch.to_string(), epoch);
        assert_eq!(by_epoch(&[(1, 0), (2, 2), (3, 0)]), [sample(2)]);
        let many: Vec<(u64, u64)> = (1..=20).map(|epoch| (epoch, epoch)).collect();
        let mut expected: Vec<_> = (5..=20).rev().map(sample).collect();
        expected.push(("older".to_owned(), 1 + 2 + 3 + 4));
        assert_eq!(by_epoch(&many), expected);
    }
}
