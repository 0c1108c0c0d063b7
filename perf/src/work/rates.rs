//! One run, or several at different rates: a ramp, or the search for the highest rate that holds.

use std::time::Duration;

use crate::args::{LoadArgs, Ramp};
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
    let at = |rate: f64| {
        plan.rate = Some(rate);
        run(plan)
    };
    if let Some(rates) = load.ramp {
        return ramp(rates, at);
    }
    if load.find_capacity {
        return find_capacity(load, at);
    }
    run(plan)
}

fn ramp(rates: Ramp, mut at: impl FnMut(f64) -> Result<Report, PerfError>) -> Result<Report, PerfError> {
    let mut steps = Steps::new(None);
    for rate in rates.rates().map(f64::from) {
        steps.add(rate, at(rate))?;
    }
    steps.finish(None)
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
        let refused = steps.add(rate, at(rate))?;
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
    steps.finish(Some(capacity))
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

    /// Says why the rate does not hold, if it does not, and what is most doubtful about that.
    ///
    /// # Errors
    /// When the run failed; that it was given up is an answer.
    fn add(&mut self, rate: f64, ran: Result<Report, PerfError>) -> Result<Option<String>, PerfError> {
        let report = match ran {
            Ok(report) => report,
            Err(PerfError::GaveUp(why)) => {
                self.steps.push(Step {
                    rate_per_s: rate,
                    refused: Some(why.clone()),
                    ..Step::default()
                });
                return Ok(Some(why));
            }
            Err(error) => return Err(error),
        };
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
        Ok(told)
    }

    /// # Errors
    /// When every run was given up.
    fn finish(self, capacity: Option<Capacity>) -> Result<Report, PerfError> {
        let Some(mut report) = self.report else {
            let why = self.steps.into_iter().find_map(|step| step.refused);
            return Err(PerfError::GaveUp(why.unwrap_or_default()));
        };
        report.steps = self.steps;
        report.capacity = capacity;
        Ok(report)
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
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};

    /// A server that does up to 250 units a second, and above closes its connections.
    fn overloaded(rate: f64) -> Result<Report, PerfError> {
        if rate > 250.0 {
            return Err(PerfError::GaveUp(format!("1000 connections failed at {rate}")));
        }
        let totals = json!({
            "opened": 1, "established": 1, "units": 1, "bytes": 0,
            "closed_in_order": 1, "closed_without_notify": 0, "reset_after_close": 0,
        });
        let report = json!({
            "schema": 1, "work": "echo", "target": "a:1", "connections": 1, "duration_s": 1.0, "unit": "message",
            "units": rate, "rate_per_s": rate, "bytes": 0, "client": {"cpu_us_per_unit": 1.0, "cpu_share": 0.1},
            "negotiated": [], "totals": totals, "errors": {},
        });
        Ok(serde_json::from_value(report).unwrap())
    }

    fn steps(report: &Report) -> Vec<(f64, Option<&str>)> {
        let steps = report.steps.iter();
        steps.map(|step| (step.rate_per_s, step.refused.as_deref())).collect()
    }

    #[test]
    fn a_rate_that_is_given_up_is_a_step_of_a_ramp() {
        let report = ramp("100..500/3".parse().unwrap(), overloaded).unwrap();
        let failed = |rate: f64| (rate, format!("1000 connections failed at {rate}"));
        let (third, fifth) = (failed(300.0), failed(500.0));
        let expected = [
            (100.0, None),
            (third.0, Some(third.1.as_str())),
            (fifth.0, Some(fifth.1.as_str())),
        ];
        assert_eq!(steps(&report), expected);
        assert_eq!(report.rate_per_s, 100.0);
        let text = report.to_string();
        let row = text.lines().find(|line| line.trim_start().starts_with("300"));
        let cells: Vec<&str> = row.unwrap().split_whitespace().collect();
        assert_eq!(cells, ["300", "–", "–", "–", "–", "–", "–", "no"]);
        let downwards = ramp("300..100/3".parse().unwrap(), overloaded).unwrap();
        assert_eq!((downwards.steps.len(), downwards.rate_per_s), (3, 100.0));
        let error = ramp("300..500/2".parse().unwrap(), overloaded).unwrap_err();
        assert_eq!(error.to_string(), "gave up: 1000 connections failed at 300");
        let other = |_| Err(PerfError::NotResumed("no sessions".to_owned()));
        assert!(matches!(
            ramp("1..2/2".parse().unwrap(), other),
            Err(PerfError::NotResumed(_))
        ));
    }

    #[test]
    fn a_rate_that_is_given_up_is_a_step_of_a_search() {
        let load = |flags: &str| {
            let line = format!("ringlock-perf echo --target a:1 --insecure --find-capacity {flags}");
            let Command::Echo(args) = Cli::parse_from(line.split(' ')).command else {
                panic!("echo is a command")
            };
            args.load
        };
        let report = find_capacity(&load("--rate-min 100 --rate-max 400"), overloaded).unwrap();
        let given_up = "1000 connections failed at 400";
        assert!(steps(&report).contains(&(400.0, Some(given_up))), "{:?}", report.steps);
        let capacity = report.capacity.unwrap();
        assert!((235.0..=250.0).contains(&capacity.rate_per_s), "{capacity:?}");
        assert!(
            capacity
                .limited_by
                .is_some_and(|why| why.contains("connections failed"))
        );
        let error = find_capacity(&load("--rate-min 300"), overloaded).unwrap_err();
        assert_eq!(error.to_string(), "gave up: 1000 connections failed at 300");
    }

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
