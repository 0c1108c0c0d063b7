//! OCSP staples, and what came of asking for them.

use std::fmt;

use prometheus_client::encoding::EncodeGaugeValue;
use prometheus_client::registry::Unit;

use super::{Exposition, Family, Labels, View};

/// All staples, and all responses since start.
#[derive(Clone, Debug, Default)]
pub struct StaplingView {
    /// Of identities that get staples, or should.
    pub staples: Vec<StapleView>,
    /// How often each result came of asking a responder.
    pub responses: Vec<(&'static str, u64)>,
}

/// The staple of an identity.
#[derive(Clone, Debug)]
pub struct StapleView {
    /// Name of the identity in the configuration.
    pub identity: String,
    /// What came of asking the last time; nothing when nobody was asked.
    pub result: Option<&'static str>,
    /// Seconds since the responder has known what the staple says (thisUpdate); nothing without a staple.
    pub age: Option<i64>,
    /// End of the staple in seconds since 1970 (nextUpdate).
    pub next_update_unix: Option<i64>,
    /// There is none; said of certificates that demand one.
    pub is_missing: Option<bool>,
}

impl View {
    pub(super) fn encode_stapling(&self, to: &mut Exposition<'_>) -> fmt::Result {
        let staples = &self.stapling.staples;
        to.gauge(of(
            "ringlock_ocsp_staple_age",
            "Time since the responder has known what the OCSP staple of an identity says (thisUpdate)",
            Some(Unit::Seconds),
            staples,
            |staple| staple.age,
        ))?;
        to.gauge(of(
            "ringlock_ocsp_staple_next_update",
            "End of the OCSP staple of an identity (nextUpdate), in Unix time",
            Some(Unit::Seconds),
            staples,
            |staple| staple.next_update_unix,
        ))?;
        to.gauge(of(
            "ringlock_ocsp_must_staple_missing",
            "1 while an identity has no OCSP staple though its certificate demands one (must-staple)",
            None,
            staples,
            |staple| staple.is_missing.map(i64::from),
        ))?;
        let results = staples.iter().filter_map(|staple| {
            let labels = vec![
                ("identity", staple.identity.as_str().into()),
                ("result", staple.result?.into()),
            ];
            Some((labels, 1))
        });
        to.gauge(Family {
            name: "ringlock_ocsp_last_result",
            help: "What came of asking the OCSP responder of an identity the last time",
            unit: None,
            samples: results.collect(),
        })?;
        let responses = self.stapling.responses.iter();
        to.counter(Family {
            name: "ringlock_ocsp_responses",
            help: "What came of asking OCSP responders",
            unit: None,
            samples: responses
                .map(|(result, count)| (vec![("result", (*result).into())], *count))
                .collect(),
        })
    }
}

fn of<'v, V: EncodeGaugeValue>(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    staples: &'v [StapleView],
    value: impl Fn(&StapleView) -> Option<V>,
) -> Family<'v, V> {
    let sample = |staple: &'v StapleView| {
        let labels: Labels<'v> = vec![("identity", staple.identity.as_str().into())];
        Some((labels, value(staple)?))
    };
    Family {
        name,
        help,
        unit,
        samples: staples.iter().filter_map(sample).collect(),
    }
}
