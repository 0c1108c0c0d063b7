//! Client certificates: who is refused and why, and the revocation lists that they are looked up in.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::registry::Unit;

use super::{Exposition, Family, Labels, View};
use crate::error::ClientRefusal;

/// A revocation list in use.
#[derive(Clone, Debug)]
pub struct CrlView {
    /// Name of the listener whose clients are looked up in it.
    pub listener: String,
    /// The file that it is from.
    pub file: String,
    /// The CA that it is of.
    pub issuer: String,
    /// When it was made, seconds since 1970.
    pub this_update_unix: i64,
    /// When the next one is due, seconds since 1970.
    pub next_update_unix: i64,
}

impl View {
    /// Summed over the workers: which one has refused a client says nothing.
    pub(super) fn encode_clients(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let refused = |reason: usize| -> u64 {
            let counters = self
                .workers
                .iter()
                .map(|worker| &worker.metrics.clients_refused[reason]);
            counters.map(crate::metrics::Counter::value).sum()
        };
        to.counter(Family {
            name: "ringlock_client_certificates_refused",
            help: "Clients refused for the certificates that they have shown, or for want of one, by reason",
            unit: None,
            samples: (0..)
                .zip(ClientRefusal::LABELS)
                .map(|(position, reason)| (vec![("reason", reason.into())], refused(position)))
                .collect(),
        })?;
        to.gauge(self.of_lists(
            "ringlock_crl_next_update",
            "When a revocation list of clients expires, in Unix time",
            |list| list.next_update_unix,
        ))?;
        to.gauge(self.of_lists(
            "ringlock_crl_this_update",
            "When a revocation list of clients was made, in Unix time",
            |list| list.this_update_unix,
        ))
    }

    /// A CA may have several lists in one file, each for other certificates: the first to end counts.
    fn of_lists(&self, name: &'static str, help: &'static str, time: fn(&CrlView) -> i64) -> Family<'_, i64> {
        let mut earliest: BTreeMap<[&str; 3], i64> = BTreeMap::new();
        for list in &self.crls {
            let earliest = earliest
                .entry([&list.listener, &list.file, &list.issuer])
                .or_insert(i64::MAX);
            *earliest = time(list).min(*earliest);
        }
        let labels = |values: [&'_ str; 3]| -> Labels<'static> {
            let named = ["listener", "file", "issuer"].into_iter().zip(values);
            named.map(|(name, value)| (name, value.to_owned().into())).collect()
        };
        Family {
            name,
            help,
            unit: Some(Unit::Seconds),
            samples: earliest.into_iter().map(|(key, time)| (labels(key), time)).collect(),
        }
    }
}
