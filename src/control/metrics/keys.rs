//! What there is to tell of keys that are somewhere else: of the requests of workers, and of tokens.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use ringlock_hsm::protocol::{Breaker, TokenStatus};

use super::{Exposition, Family, Labels, View};
use crate::metrics::{BUCKETS_US, Counter, Histogram, KeyMetrics};

type CounterOf = fn(&KeyMetrics) -> &Counter;

/// Tokens that hold the same keys.
#[derive(Clone, Debug)]
pub struct KeyGroupView {
    /// Their group's name in the configuration, or the token's if it is alone.
    pub name: String,
    /// The counters of each worker.
    pub workers: Vec<Arc<KeyMetrics>>,
}

/// One token.
#[derive(Clone, Debug)]
pub struct TokenView {
    /// Its name in the configuration.
    pub name: String,
    /// How it is.
    pub status: TokenStatus,
    /// How often its signer was started again.
    pub signer_restarts: u64,
}

impl Exposition<'_> {
    /// Histograms of times, by the bounds of [`BUCKETS_US`]. Each sample is of several workers.
    fn times(&mut self, family: Family<'_, Vec<&Histogram>>) -> fmt::Result {
        self.family(family, MetricType::Histogram, |mut encoder, histograms| {
            let bounds = BUCKETS_US.iter().map(|&bound| seconds(bound)).chain([f64::INFINITY]);
            let count = |bucket: usize| histograms.iter().map(|h| h.counts[bucket].value()).sum::<u64>();
            let buckets: Vec<(f64, u64)> = bounds.enumerate().map(|(at, bound)| (bound, count(at))).collect();
            let sum = histograms.iter().map(|h| h.sum_us.value()).sum();
            let all = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(seconds(sum), all, &buckets, None)
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what is lost of 2^53 and more does not matter"
)]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl View {
    pub(super) fn encode_keys(&self, to: &mut Exposition<'_>) -> fmt::Result {
        to.gauge(self.of_groups(
            "ringlock_key_requests_waiting",
            "Handshakes that wait for room at a token",
            |m| &m.waiting,
        ))?;
        to.gauge(self.of_groups(
            "ringlock_key_requests_in_flight",
            "Requests that tokens have not answered yet",
            |m| &m.in_flight,
        ))?;
        let results: [(&'static str, CounterOf); 4] = [
            ("signed", |m| &m.signed),
            ("failed", |m| &m.failed),
            ("refused", |m| &m.refused),
            ("expired", |m| &m.expired),
        ];
        let mut samples = Vec::new();
        for group in &self.key_groups {
            for (result, counter) in results {
                let labels: Labels<'_> = vec![("group", group.name.as_str().into()), ("result", result.into())];
                samples.push((labels, group.sum(counter)));
            }
        }
        to.counter(Family {
            name: "ringlock_key_requests",
            help: "Signatures that handshakes asked tokens for, by what came of it",
            unit: None,
            samples,
        })?;
        to.counter(self.of_groups("ringlock_key_retries", "Second attempts at a signature", |m| &m.retried))?;
        to.counter(self.of_groups(
            "ringlock_key_wrong_signatures",
            "Signatures of tokens that were wrong, and went no further",
            |m| &m.wrong,
        ))?;
        to.times(self.times_of_groups(
            "ringlock_key_wait",
            "Time from a handshake's request to its way out to a token",
            |m| &m.wait,
        ))?;
        to.times(
            self.times_of_groups("ringlock_key_signing", "Time that tokens took for a signature", |m| {
                &m.signing
            }),
        )?;
        self.encode_tokens(to)
    }

    fn encode_tokens(&self, to: &mut Exposition<'_>) -> fmt::Result {
        to.gauge(self.of_tokens("ringlock_token_sessions", "Open sessions", |token| {
            u64::from(token.status.sessions)
        }))?;
        to.gauge(self.of_tokens(
            "ringlock_token_queued",
            "Requests that wait for a session of the token",
            |token| u64::from(token.status.queued),
        ))?;
        to.gauge(self.of_tokens(
            "ringlock_token_pin_refused",
            "1 while the token is not logged in because it has refused the PIN",
            |token| u64::from(token.status.pin_refused),
        ))?;
        let states = [
            (Breaker::Closed, "closed"),
            (Breaker::HalfOpen, "half_open"),
            (Breaker::Open, "open"),
        ];
        let mut samples = Vec::new();
        for token in &self.tokens {
            for (state, name) in states {
                let labels: Labels<'_> = vec![("token", token.name.as_str().into()), ("state", name.into())];
                samples.push((labels, u64::from(token.status.breaker == state)));
            }
        }
        to.gauge(Family {
            name: "ringlock_token_breaker",
            help: "1 for the state that the token's circuit breaker is in; closed: it is used",
            unit: None,
            samples,
        })?;
        let mut samples = Vec::new();
        for token in &self.tokens {
            for (error, count) in &token.status.errors {
                let labels: Labels<'_> = vec![("token", token.name.as_str().into()), ("error", error.as_str().into())];
                samples.push((labels, *count));
            }
        }
        to.counter(Family {
            name: "ringlock_token_errors",
            help: "Errors of the token since its signer's start, by their names in PKCS#11",
            unit: None,
            samples,
        })?;
        to.counter(self.of_tokens(
            "ringlock_token_recoveries",
            "How often the token was opened anew since its signer's start",
            |token| token.status.recoveries,
        ))?;
        to.counter(self.of_tokens(
            "ringlock_signer_restarts",
            "How often the token's signer was started again",
            |token| token.signer_restarts,
        ))
    }

    fn of_groups(&self, name: &'static str, help: &'static str, counter: CounterOf) -> Family<'_, u64> {
        let sample = |group: &'_ KeyGroupView| group.sum(counter);
        Family {
            name,
            help,
            unit: None,
            samples: self
                .key_groups
                .iter()
                .map(|group| (group.labels(), sample(group)))
                .collect(),
        }
    }

    fn times_of_groups(
        &self,
        name: &'static str,
        help: &'static str,
        histogram: fn(&KeyMetrics) -> &Histogram,
    ) -> Family<'_, Vec<&Histogram>> {
        let groups = self.key_groups.iter();
        let samples = groups.map(|group| {
            let histograms = group.workers.iter().map(|metrics| histogram(metrics)).collect();
            (group.labels(), histograms)
        });
        Family {
            name,
            help,
            unit: Some(Unit::Seconds),
            samples: samples.collect(),
        }
    }

    fn of_tokens(&self, name: &'static str, help: &'static str, value: impl Fn(&TokenView) -> u64) -> Family<'_, u64> {
        let labels = |token: &'_ TokenView| vec![("token", token.name.clone().into())];
        Family {
            name,
            help,
            unit: None,
            samples: self.tokens.iter().map(|token| (labels(token), value(token))).collect(),
        }
    }
}

impl KeyGroupView {
    fn labels(&self) -> Labels<'_> {
        vec![("group", self.name.as_str().into())]
    }

    fn sum(&self, counter: CounterOf) -> u64 {
        self.workers.iter().map(|metrics| counter(metrics).value()).sum()
    }
}
