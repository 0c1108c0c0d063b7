//! How a run went along its time, its rates and its quantiles: what plots are drawn from.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::rounded;

/// Quantiles of a [`Percentile`] list: dense where tails are.
const QUANTILES: [f64; 20] = [
    0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999,
    0.99999, 1.0,
];

/// One quantile of the latency of a unit, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Percentile {
    /// 0 to 1.
    pub quantile: f64,
    /// From when the unit was due.
    pub latency_us: f64,
    /// From when it began. The same in a closed loop.
    pub service_us: f64,
}

/// One piece of the measuring window, a second as a rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Interval {
    /// Its end, seconds since the window began.
    pub at_s: f64,
    /// Its length, seconds.
    pub length_s: f64,
    /// Units done.
    pub units: f64,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Connections failed.
    pub errors: u64,
    /// Median latency of its units, microseconds; absent when there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// Longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_us: Option<f64>,
    /// The server's CPU time by wall time, when --server-pid was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_share: Option<f64>,
    /// The server's CPU time per unit, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_unit: Option<f64>,
    /// The client's CPU time by wall time.
    pub client_cpu_share: f64,
}

/// Units that had begun and were not done when the window ended. They are in no latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Unanswered {
    /// How many.
    pub units: u64,
    /// How long the first of them had waited since it was due, microseconds.
    pub longest_us: f64,
}

impl Unanswered {
    pub(crate) fn add(&mut self, other: Self) {
        self.units += other.units;
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}

/// One rate of a ramp or of a search for the capacity. Where the run was given up, its figures are 0.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Step {
    /// Units asked for per second.
    pub rate_per_s: f64,
    /// Units done per second.
    pub done_per_s: f64,
    /// Latency from when a unit was due, microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Connections failed.
    pub errors: u64,
    /// The server's CPU time per unit, microseconds, when --server-pid was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_unit: Option<f64>,
    /// The server's CPU time by wall time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_share: Option<f64>,
    /// The client's CPU time by wall time.
    pub client_cpu_share: f64,
    /// Why the step does not hold; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The result of a search for the capacity.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Capacity {
    /// The highest rate that held; 0 when none did.
    pub rate_per_s: f64,
    /// The bound on the 99th percentile, microseconds.
    pub p99_max_us: f64,
    /// Why the next higher rate did not hold; absent when the search ended at its upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<String>,
}

/// The quantiles of both latencies, nanoseconds in.
pub(super) fn percentiles(latency: &Histogram<u64>, service: &Histogram<u64>) -> Vec<Percentile> {
    if latency.is_empty() {
        return Vec::new();
    }
    let at = |histogram: &Histogram<u64>, quantile| rounded(histogram.value_at_quantile(quantile) as f64 / 1e3);
    let one = |&quantile: &f64| Percentile {
        quantile,
        latency_us: at(latency, quantile),
        service_us: at(service, quantile),
    };
    QUANTILES.iter().map(one).collect()
}
