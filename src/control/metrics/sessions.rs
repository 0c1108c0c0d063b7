//! Resumption: tickets, session caches, and why sessions were not resumed.

use std::fmt;

use prometheus_client::registry::Unit;

use super::{Exposition, Family, Labels, View};
use crate::metrics::{Counter, Declined, SessionKind, WorkerMetrics};
use crate::tls::session_cache::Usage;

/// The session cache of a listener.
#[derive(Clone, Debug)]
pub struct SessionCacheView {
    /// Name of the listener.
    pub listener: String,
    /// What is in it.
    pub usage: Usage,
}

impl View {
    /// Summed over the workers: sessions are resumed on any of them.
    pub(super) fn encode_sessions(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let sum = |counter: &dyn Fn(&WorkerMetrics) -> &Counter| -> u64 {
            self.workers.iter().map(|worker| counter(&worker.metrics).value()).sum()
        };
        let issued = [
            sum(&|metrics| &metrics.tickets_issued),
            sum(&|metrics| &metrics.sessions_stored),
        ];
        to.counter(Family {
            name: "ringlock_sessions_issued",
            help: "Sessions that clients can resume: tickets issued, sessions put into a cache",
            unit: None,
            samples: SessionKind::LABELS.into_iter().map(kind).zip(issued).collect(),
        })?;
        let accepted = |kind: usize| sum(&|metrics| &metrics.resumptions_accepted[kind]);
        to.counter(Family {
            name: "ringlock_sessions_accepted",
            help: "Sessions resumed",
            unit: None,
            samples: SessionKind::LABELS
                .into_iter()
                .map(kind)
                .zip((0..).map(accepted))
                .collect(),
        })?;
        let mut declined = Vec::new();
        for (position, label) in SessionKind::LABELS.into_iter().enumerate() {
            for (cause, name) in Declined::LABELS.into_iter().enumerate() {
                let mut labels = kind(label);
                labels.push(("cause", name.into()));
                declined.push((labels, sum(&|metrics| &metrics.resumptions_declined[position][cause])));
            }
        }
        to.counter(Family {
            name: "ringlock_sessions_declined",
            help: "Sessions that clients wanted to resume and could not, so that there was a full handshake, by cause",
            unit: None,
            samples: declined,
        })?;
        to.gauge(Family {
            name: "ringlock_ticket_epoch",
            help: "Epoch that session tickets are sealed in: Unix time divided by rotation",
            unit: None,
            samples: vec![(vec![], u64::from(self.tickets.epoch))],
        })?;
        to.gauge(Family {
            name: "ringlock_ticket_secrets",
            help: "Secrets whose session tickets are accepted: one, and those it has replaced lately",
            unit: None,
            samples: vec![(vec![], self.tickets.secrets as u64)],
        })?;
        self.encode_session_caches(to)
    }

    fn encode_session_caches(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let of = |name, help, unit, value: fn(&Usage) -> u64| Family {
            name,
            help,
            unit,
            samples: self
                .session_caches
                .iter()
                .map(|cache| (vec![("listener", cache.listener.as_str().into())], value(&cache.usage)))
                .collect(),
        };
        to.gauge(of(
            "ringlock_session_cache_entries",
            "Sessions in the cache of a listener",
            None,
            |usage| usage.entries as u64,
        ))?;
        to.gauge(of(
            "ringlock_session_cache",
            "Memory of the sessions in the cache of a listener",
            Some(Unit::Bytes),
            |usage| usage.bytes as u64,
        ))?;
        to.gauge(of(
            "ringlock_session_cache_limit",
            "Memory that the sessions in the cache of a listener may take",
            Some(Unit::Bytes),
            |usage| usage.capacity as u64,
        ))?;
        to.counter(of(
            "ringlock_session_cache_evictions",
            "Sessions that made room for others in the cache of a listener",
            None,
            |usage| usage.evicted,
        ))
    }
}

fn kind(label: &'static str) -> Labels<'static> {
    vec![("kind", label.into())]
}
