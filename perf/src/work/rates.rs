//! One run, or several at different rates: a ramp, or the search for the highest rate that holds.

use std::time::Duration;

use crate::args::LoadArgs;
use crate::error::PerfError;
use crate::plan::ClientPlan;
use crate::report::{Capacity, Report, Step};

/// The share of what was due that has to be done for a rate to hold; less is a server, or a client, that falls behind.
const DONE_MIN: f64 = 0.97;

/// The search ends when the lowest rate that did not hold is at most this much above the highest that did.
const PRECISION: f64 = 0.05;

/// How far the search goes up at once.
const GROWTH: f64 = 2.0;

/// Runs at the rates that the flags ask for. With several the report is that of the last one that held (of the first, if none did) with all steps.
///
/// # Errors
/// As `run`.
pub(super) fn run(
    load: &LoadArgs,
    plan: &mut ClientPlan,
    run: impl Fn(&ClientPlan) -> Result<Report, PerfError>,
) -> Result<Report, PerfError> {
    let mut at = |rate: f64| {
        plan.rate = Some(rate);
        run(plan)
    };
    if let Some(ramp) = load.ramp {
        let mut steps = Steps::new(None);
        for rate in ramp.rates() {
            steps.add(f64::from(rate), at(f64::from(rate))?);
        }
        return Ok(steps.finish(None));
    }
    if load.find_capacity {
        return find_capacity(load, at);
    }
    run(plan)
}

fn find_capacity(load: &LoadArgs, mut at: impl FnMut(f64) -> Result<Report, PerfError>) -> Result<Report, PerfError> {
    let mut steps = Steps::new(Some(load.p99_max));
    let mut capacity = Capacity {
        rate_per_s: 0.0,
        p99_max_us: load.p99_max.as_secs_f64() * 1e6,
        limited_by: None,
    };
    let mut search = Search::new(f64::from(load.rate_min), f64::from(load.rate_max));
    while let Some(rate) = search.next() {
        let report = match at(rate) {
            Ok(report) => report,
            // Too many errors are an answer, unless there has been no other.
            Err(PerfError::GaveUp(why)) if !steps.is_empty() => {
                search.tell(rate, false);
                capacity.limited_by = Some(why);
                continue;
            }
            Err(error) => return Err(error),
        };
        let refused = steps.add(rate, report);
        search.tell(rate, refused.is_none());
        if let Some(why) = refused {
            capacity.limited_by = Some(why);
        } else {
            capacity.rate_per_s = rate;
        }
    }
    if search.ended_at_top() {
        capacity.limited_by = None;
    }
    Ok(steps.finish(Some(capacity)))
}

/// Doubles the rate until it does not hold, then halves the distance.
struct Search {
    top: f64,
    /// The highest rate that held.
    held: Option<f64>,
    /// The lowest rate that did not.
    refused: Option<f64>,
    first: f64,
}

impl Search {
    fn new(first: f64, top: f64) -> Self {
        Self {
            top,
            held: None,
            refused: None,
            first,
        }
    }

    fn next(&self) -> Option<f64> {
        match (self.held, self.refused) {
            (None, None) => Some(self.first),
            // Nothing below the first rate is tried.
            (None, Some(_)) => None,
            (Some(held), None) => (held < self.top).then(|| (held * GROWTH).min(self.top)),
            (Some(held), Some(refused)) => {
                (refused > held * (1.0 + PRECISION)).then(|| ((held + refused) / 2.0).round())
            }
        }
    }

    fn tell(&mut self, rate: f64, held: bool) {
        if held {
            self.held = Some(rate);
        } else {
            self.refused = Some(rate);
        }
    }

    fn ended_at_top(&self) -> bool {
        self.refused.is_none()
    }
}

/// What the runs so far gave.
struct Steps {
    p99_max: Option<Duration>,
    steps: Vec<Step>,
    /// The first report, and then the last that held.
    report: Option<Report>,
}

impl Steps {
    fn new(p99_max: Option<Duration>) -> Self {
        Self {
            p99_max,
            steps: Vec::new(),
            report: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Says why the rate does not hold, if it does not, and what is most doubtful about that.
    fn add(&mut self, rate: f64, report: Report) -> Option<String> {
        let refused = refusal(&report, rate, self.p99_max);
        let latency = report.latency_us;
        let step = Step {
            rate_per_s: rate,
            done_per_s: report.rate_per_s,
            p50_us: latency.map_or(0.0, |latency| latency.p50),
            p99_us: latency.map_or(0.0, |latency| latency.p99),
            p999_us: latency.map_or(0.0, |latency| latency.p999),
            errors: report.errors.values().map(|error| error.count).sum(),
            server_cpu_us_per_unit: report.server.as_ref().map(|server| server.cpu_us_per_unit),
            server_cpu_share: report.server.as_ref().map(|server| server.cpu_share),
            client_cpu_share: report.client.cpu_share,
            refused: refused.clone(),
        };
        self.steps.push(step);
        let told = refused.map(|why| match report.warnings.first() {
            Some(warning) => format!("{why}. {warning}"),
            None => why,
        });
        if told.is_none() || self.report.is_none() {
            self.report = Some(report);
        }
        told
    }

    fn finish(self, capacity: Option<Capacity>) -> Report {
        let mut report = self.report.expect("a ramp or a search has a first step");
        report.steps = self.steps;
        report.capacity = capacity;
        report
    }
}

/// Why a rate does not hold.
fn refusal(report: &Report, rate: f64, p99_max: Option<Duration>) -> Option<String> {
    if let Some((kind, error)) = report.errors.iter().next() {
        return Some(format!("{} connections failed: {kind} ({})", error.count, error.first));
    }
    if report.rate_per_s < DONE_MIN * rate {
        return Some(format!("{:.0} of {rate:.0} units/s were done", report.rate_per_s));
    }
    let p99_us = report.latency_us.map_or(0.0, |latency| latency.p99);
    let most = p99_max?;
    (p99_us > most.as_secs_f64() * 1e6).then(|| format!("p99 {:.1} ms is above {most:?}", p99_us / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(first: f64, top: f64, holds: impl Fn(f64) -> bool) -> (Vec<f64>, Search) {
        let mut search = Search::new(first, top);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            tried.push(rate);
            assert!(tried.len() < 100, "it ends: {tried:?}");
            search.tell(rate, holds(rate));
        }
        (tried, search)
    }

    #[test]
    fn the_highest_rate_that_holds_is_found_to_a_twentieth() {
        for limit in [101.0, 150.0, 3_333.0, 70_000.0] {
            let (_, found) = search(100.0, 200_000.0, |rate| rate <= limit);
            let held = found.held.unwrap();
            assert!(
                held <= limit && limit <= held * (1.0 + PRECISION) + 1.0,
                "{held} of {limit}"
            );
        }
    }

    #[test]
    fn a_search_ends_at_its_top_and_where_the_first_rate_does_not_hold() {
        let (tried, found) = search(100.0, 500.0, |_| true);
        assert_eq!(tried, [100.0, 200.0, 400.0, 500.0]);
        assert!(found.ended_at_top());
        let (tried, found) = search(100.0, 500.0, |_| false);
        assert_eq!(tried, [100.0]);
        assert_eq!(found.held, None);
    }
}
