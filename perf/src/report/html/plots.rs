//! Which plots a page has, and what each shows: only those that runs have something for.

use std::collections::BTreeMap;

use super::axis::Axis;
use super::course::thinned;
use super::draw::{Bar, Chart, Ink, Line, Points, Rule, RuleAt, SERIES};
use crate::report::figures::{memory as memory_per_connection, units};
use crate::report::numbers::{count, figure, time};
use crate::report::{Handshakes, Interval, ProbeEstablished, Report, Step};

/// Bars of one plot at most.
const BARS_MAX: usize = 40;

/// Kinds of system calls of one plot at most.
const CALLS_MAX: usize = 8;

/// One of the runs that are compared.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) label: &'a str,
    pub(super) report: &'a Report,
    /// The same for the same label in the whole page.
    pub(super) ink: Ink,
}

/// A plot with what is said of it.
pub(super) struct Plot {
    pub(super) title: String,
    /// How it is to be read.
    pub(super) note: &'static str,
    pub(super) drawing: Drawing,
}

/// What is drawn.
pub(super) enum Drawing {
    Chart(Chart),
    Bars {
        bars: Vec<Bar>,
        /// What the parts of the bars are; empty when they have one.
        key: Vec<(String, Ink)>,
    },
}

/// The plots of runs of one work.
pub(super) fn plots(runs: &[Run<'_>]) -> Vec<Plot> {
    let all = [
        steps(runs),
        percentiles(runs),
        latency_over_time(runs),
        throughput(runs),
        errors(runs),
        failures(runs),
        server_cpu(runs),
        cpu_over_time(runs),
        established(runs),
        system_calls(runs),
        memory(runs),
        handshakes(runs),
    ];
    all.into_iter().flatten().collect()
}

fn steps(runs: &[Run<'_>]) -> Option<Plot> {
    let compared = runs.len() > 1;
    let mut lines = Vec::new();
    let mut refused = Vec::new();
    for run in runs {
        // Where nothing was done there is no latency.
        let done = run.report.steps.iter().filter(|step| step.done_per_s > 0.0);
        let mut steps: Vec<&Step> = done.collect();
        steps.sort_by(|one, other| one.rate_per_s.total_cmp(&other.rate_per_s));
        let line = |label: String, ink: Ink, value: fn(&Step) -> f64| Line {
            label,
            ink,
            values: steps.iter().map(|step| Some((step.rate_per_s, value(step)))).collect(),
            dots: true,
        };
        if steps.is_empty() {
            continue;
        }
        let not_held = steps.iter().filter(|step| step.refused.is_some());
        refused.extend(not_held.map(|step| (step.rate_per_s, step.p99_us)));
        lines.push(line(
            if compared { run.label.to_owned() } else { "p99".into() },
            run.ink,
            |step| step.p99_us,
        ));
        if !compared {
            lines.push(line("p50".into(), Ink::Series(1), |step| step.p50_us));
        }
    }
    let mut rules = Vec::new();
    for capacity in runs.iter().filter_map(|run| run.report.capacity.as_ref()) {
        let bound = format!("bound on p99: {}", time(capacity.p99_max_us));
        if !rules.iter().any(|rule: &Rule| rule.label == bound) {
            rules.push(Rule {
                label: bound,
                ink: Ink::Bound,
                at: RuleAt::Y(capacity.p99_max_us),
            });
        }
        if capacity.rate_per_s > 0.0 && !compared {
            let label = format!("capacity: {}/s", figure(capacity.rate_per_s));
            rules.push(Rule {
                label,
                ink: Ink::Bound,
                at: RuleAt::X(capacity.rate_per_s),
            });
        }
    }
    let points = Points {
        label: "did not hold".into(),
        values: refused,
    };
    let unit = units(runs.first()?.report.unit);
    let title = if rules.is_empty() {
        "Latency by rate"
    } else {
        "Latency by rate, and the capacity"
    };
    let note = "Each dot is a step: the latency, from when a unit was due, at the rate that was asked for.";
    let bounds = rules.iter().filter_map(|rule| match rule.at {
        RuleAt::Y(value) => Some(value),
        RuleAt::X(_) => None,
    });
    let y = Axis::time("latency", values(&lines).chain(bounds));
    let x = Axis::linear(
        format!("{unit}/s asked for"),
        lines.iter().flat_map(|line| &line.values).flatten().map(|(at, _)| *at),
    );
    chart(
        title,
        note,
        Chart {
            x,
            y,
            lines,
            points: vec![points],
            rules,
        },
    )
}

fn percentiles(runs: &[Run<'_>]) -> Option<Plot> {
    let compared = runs.len() > 1;
    let mut lines = Vec::new();
    let mut most = 0.0;
    for run in runs {
        let all = &run.report.percentiles;
        if all.is_empty() {
            continue;
        }
        // The longest of 1,000 units says nothing about a quantile beyond 0.999.
        let last = 1.0 - 1.0 / run.report.units.max(2.0);
        most = f64::max(most, run.report.units);
        let line = |label: String, ink: Ink, value: fn(&crate::report::Percentile) -> f64| {
            let within = all
                .iter()
                .filter(|one| one.quantile < last)
                .map(|one| (one.quantile, value(one)));
            let longest = all
                .iter()
                .filter(|one| one.quantile >= last)
                .map(|one| (last, value(one)));
            let end = longest.reduce(|one, other| (last, one.1.max(other.1)));
            Line {
                label,
                ink,
                values: within.chain(end).map(Some).collect(),
                dots: false,
            }
        };
        let open_loop = all.iter().any(|one| one.latency_us != one.service_us);
        let label = match (compared, open_loop) {
            (true, _) => run.label.to_owned(),
            (false, true) => "from when it was due".into(),
            (false, false) => String::new(),
        };
        lines.push(line(label, run.ink, |one| one.latency_us));
        if open_loop && !compared {
            lines.push(line("service time, from when it began".into(), Ink::Series(1), |one| {
                one.service_us
            }));
        }
    }
    let note = "How long the slowest units took: to the right of 99 is one in a hundred, of 99.9 one in a thousand.";
    let y = Axis::time("latency", values(&lines));
    chart(
        "Latency by percentile",
        note,
        Chart {
            x: Axis::tail(most),
            y,
            lines,
            points: Vec::new(),
            rules: Vec::new(),
        },
    )
}

fn latency_over_time(runs: &[Run<'_>]) -> Option<Plot> {
    let (title, lines) = match runs {
        [run] => {
            let series = thinned(&run.report.series);
            let lines = vec![
                over_time("p50", Ink::Series(0), &series, |one| one.p50_us),
                over_time("p99", Ink::Series(1), &series, |one| one.p99_us),
                over_time("longest", Ink::Series(2), &series, |one| one.max_us),
            ];
            ("Latency over time", lines)
        }
        runs => {
            let line = |run: &Run<'_>| over_time(run.label, run.ink, &thinned(&run.report.series), |one| one.p99_us);
            (
                "99th percentile of the latency over time",
                runs.iter().map(line).collect(),
            )
        }
    };
    let y = Axis::time("latency", values(&lines));
    time_chart(
        title,
        "Of the units that were done in each piece of the measuring window.",
        y,
        lines,
    )
}

fn throughput(runs: &[Run<'_>]) -> Option<Plot> {
    let unit = units(runs.first()?.report.unit);
    let mut lines: Vec<Line> = Vec::new();
    let mut failures = Vec::new();
    for run in runs {
        let series = thinned(&run.report.series);
        let line = over_time(name(runs, run), run.ink, &series, |one| per_second(one.units, one));
        let failing = series.iter().zip(&line.values).filter(|(one, _)| one.errors > 0);
        failures.extend(failing.filter_map(|(_, value)| *value));
        lines.push(line);
    }
    let y = Axis::linear(format!("{unit}/s"), values(&lines));
    let mut plot = time_chart(
        "Throughput over time",
        "Units done, and when connections failed.",
        y,
        lines,
    )?;
    if let Drawing::Chart(chart) = &mut plot.drawing
        && !failures.is_empty()
    {
        chart.points.push(Points {
            label: "connections failed".into(),
            values: failures,
        });
    }
    Some(plot)
}

fn failures(runs: &[Run<'_>]) -> Option<Plot> {
    let failing = |run: &&Run<'_>| run.report.series.iter().any(|one| one.errors > 0);
    let line = |run: &Run<'_>| {
        let series = thinned(&run.report.series);
        over_time(name(runs, run), run.ink, &series, |one| {
            per_second(one.errors as f64, one)
        })
    };
    let lines: Vec<Line> = runs.iter().filter(failing).map(line).collect();
    let y = Axis::linear("failed connections/s", values(&lines));
    time_chart("Failed connections over time", "Runs in which some failed.", y, lines)
}

/// What a run's line is called; a run alone needs no name.
fn name<'a>(runs: &[Run<'_>], run: &Run<'a>) -> &'a str {
    if runs.len() > 1 { run.label } else { "" }
}

fn per_second(number: f64, of: &Interval) -> Option<f64> {
    (of.length_s > 0.0).then(|| number / of.length_s)
}

fn errors(runs: &[Run<'_>]) -> Option<Plot> {
    let mut causes: Vec<&str> = runs
        .iter()
        .flat_map(|run| run.report.errors.keys().map(String::as_str))
        .collect();
    causes.sort_unstable();
    causes.dedup();
    let bar = |(cause, run): (&str, &Run<'_>)| {
        let failed = run.report.errors.get(cause)?.count as f64;
        let label = if runs.len() > 1 {
            format!("{cause}: {}", run.label)
        } else {
            cause.to_owned()
        };
        Some(Bar {
            label,
            figure: count(failed),
            parts: vec![(failed, run.ink)],
        })
    };
    let pairs = causes.iter().flat_map(|cause| runs.iter().map(|run| (*cause, run)));
    bars(
        "Failed connections by cause",
        "Of the whole run, warm-up and closing included.",
        pairs.filter_map(bar).collect(),
    )
}

fn server_cpu(runs: &[Run<'_>]) -> Option<Plot> {
    let unit = runs.first()?.report.unit;
    if let [run] = runs {
        let series = thinned(&run.report.series);
        let line = over_time("", run.ink, &series, |one| one.server_cpu_us_per_unit);
        let y = Axis::time(&format!("CPU per {unit}"), values(std::slice::from_ref(&line)));
        let title = format!("Server CPU per {unit} over time");
        return time_chart(
            title,
            "CPU time of the server's processes by units done.",
            y,
            vec![line],
        );
    }
    let bar = |run: &Run<'_>| {
        let cost = run.report.server.as_ref()?.cpu_us_per_unit;
        Some(Bar {
            label: run.label.to_owned(),
            figure: time(cost),
            parts: vec![(cost, run.ink)],
        })
    };
    bars(
        &format!("Server CPU per {unit}"),
        "Shorter is better.",
        runs.iter().filter_map(bar).collect(),
    )
}

fn cpu_over_time(runs: &[Run<'_>]) -> Option<Plot> {
    let [run] = runs else { return None };
    let series = thinned(&run.report.series);
    let percent = |share: Option<f64>| share.map(|share| share * 100.0);
    let lines = vec![
        over_time("server", Ink::Series(0), &series, |one| percent(one.server_cpu_share)),
        over_time("client", Ink::Series(1), &series, |one| {
            percent(Some(one.client_cpu_share))
        }),
    ];
    let y = Axis::linear("% of one CPU", values(&lines));
    time_chart(
        "CPU in use over time",
        "Where the client is busy all the time, the figures are its own limit.",
        y,
        lines,
    )
}

fn handshakes(runs: &[Run<'_>]) -> Option<Plot> {
    let counted: Vec<_> = runs.iter().map(|run| (run, kinds(run.report))).collect();
    let mut names: Vec<String> = counted.iter().flat_map(|(_, kinds)| kinds.keys().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(SERIES);
    // Each work opens connections; how is of interest where handshakes are the work, or differ.
    if names.len() == 1 && runs.iter().all(|run| run.report.handshakes.is_none()) {
        return None;
    }
    let bar = |(run, kinds): &(&Run<'_>, BTreeMap<String, f64>)| {
        let counts: Vec<f64> = names
            .iter()
            .map(|name| kinds.get(name).copied().unwrap_or(0.0))
            .collect();
        let all: f64 = counts.iter().sum();
        let share = |of: &f64| of / all;
        let percent = |of: &f64| figure(share(of) * 100.0);
        let figure = match names.len() {
            // As many as there is room for.
            1..=3 => format!("{} %", counts.iter().map(percent).collect::<Vec<_>>().join(" / ")),
            _ => count(all),
        };
        let label = if runs.len() > 1 { run.label } else { "all handshakes" }.to_owned();
        let parts = counts
            .iter()
            .enumerate()
            .map(|(number, of)| (share(of), Ink::Series(number)))
            .collect();
        (all > 0.0).then_some(Bar { label, figure, parts })
    };
    let bars: Vec<Bar> = counted.iter().filter_map(bar).take(BARS_MAX).collect();
    let key = names
        .iter()
        .enumerate()
        .map(|(number, name)| (name.clone(), Ink::Series(number)))
        .collect();
    (!bars.is_empty()).then(|| Plot {
        title: "Handshakes by kind".into(),
        note: "Parts of all handshakes, in the order of the key.",
        drawing: Drawing::Bars { bars, key },
    })
}

/// How many handshakes of each kind there were: in the window where handshakes are the work, else in the whole run.
fn kinds(report: &Report) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut add = |name: &str, number: u64| {
        if number > 0 {
            *kinds.entry(name.to_owned()).or_insert(0.0) += number as f64;
        }
    };
    if let Some(Handshakes {
        full,
        resumed,
        by_ticket,
        by_session_id,
    }) = report.handshakes
    {
        add("full", full);
        add("resumed by ticket", by_ticket);
        add("resumed by session id", by_session_id);
        add(
            "resumed",
            resumed.saturating_sub(by_ticket).saturating_sub(by_session_id),
        );
        return kinds;
    }
    for parameters in &report.negotiated {
        let name = match parameters.handshake.as_str() {
            "Full" => "full",
            "FullWithHelloRetryRequest" => "full, after a HelloRetryRequest",
            "Resumed" => "resumed",
            other => other,
        };
        add(name, parameters.count);
    }
    kinds
}

fn memory(runs: &[Run<'_>]) -> Option<Plot> {
    let bar = |label: &str, bytes: f64, ink: Ink| Bar {
        label: label.to_owned(),
        figure: format!("{} bytes", figure(bytes)),
        parts: vec![(bytes, ink)],
    };
    let found = runs
        .iter()
        .filter_map(|run| Some((run, memory_per_connection(run.report)?)));
    let all = match runs {
        [_] => found
            .flat_map(|(_, (pss, rss))| {
                [
                    bar("proportional set size", pss, Ink::Series(0)),
                    bar("resident set size", rss, Ink::Series(1)),
                ]
            })
            .collect(),
        _ => found.map(|(run, (pss, _))| bar(run.label, pss, run.ink)).collect(),
    };
    bars(
        "Server memory per connection",
        "Without the kernel's. Where several runs are compared: the proportional set size.",
        all,
    )
}

fn system_calls(runs: &[Run<'_>]) -> Option<Plot> {
    let title = format!("Server system calls per {}", runs.first()?.report.unit);
    let bar = |label: &str, calls: f64, ink: Ink| Bar {
        label: label.to_owned(),
        figure: figure(calls),
        parts: vec![(calls, ink)],
    };
    let counted = |run: &Run<'_>| {
        run.report
            .server
            .as_ref()
            .and_then(|server| server.system_calls.clone())
    };
    if let [run] = runs {
        let mut calls: Vec<_> = counted(run)?.by_name.into_iter().collect();
        calls.sort_by(|one, other| other.1.total_cmp(&one.1));
        let all = calls.iter().take(CALLS_MAX);
        let all = all.map(|(name, calls)| bar(name, *calls, run.ink)).collect();
        return bars(&title, "The most frequent ones.", all);
    }
    let all = runs
        .iter()
        .filter_map(|run| Some(bar(run.label, counted(run)?.per_unit, run.ink)));
    bars(&title, "Of all kinds.", all.collect())
}

fn established(runs: &[Run<'_>]) -> Option<Plot> {
    let found = runs
        .iter()
        .filter_map(|run| Some((run, run.report.probe_established.as_ref()?)));
    let both = |(run, probe): (&Run<'_>, &ProbeEstablished)| {
        [("alone", probe.alone.p99), ("beside", probe.beside.p99)].map(|(when, p99)| Bar {
            label: if runs.len() > 1 {
                format!("{when}: {}", run.label)
            } else {
                when.to_owned()
            },
            figure: time(p99),
            parts: vec![(p99, run.ink)],
        })
    };
    bars(
        "99th percentile of established connections",
        "Messages over connections that stand, before the work began and beside it.",
        found.flat_map(both).collect(),
    )
}

fn over_time(label: &str, ink: Ink, series: &[Interval], value: impl Fn(&Interval) -> Option<f64>) -> Line {
    let values = series.iter().map(|one| Some((one.at_s, value(one)?))).collect();
    Line {
        label: label.to_owned(),
        ink,
        values,
        dots: false,
    }
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines
        .iter()
        .flat_map(|line| &line.values)
        .flatten()
        .map(|(_, value)| *value)
}

fn time_chart(title: impl Into<String>, note: &'static str, y: Axis, lines: Vec<Line>) -> Option<Plot> {
    let seconds = lines.iter().flat_map(|line| &line.values).flatten().map(|(at, _)| *at);
    let x = Axis::linear("seconds of the measuring window", seconds);
    chart(
        title,
        note,
        Chart {
            x,
            y,
            lines,
            points: Vec::new(),
            rules: Vec::new(),
        },
    )
}

/// Without what it has no values for; `None` when nothing is left.
fn chart(title: impl Into<String>, note: &'static str, mut chart: Chart) -> Option<Plot> {
    chart.lines.retain(|line| line.values.iter().any(Option::is_some));
    chart.points.retain(|points| !points.values.is_empty());
    (!chart.lines.is_empty()).then(|| Plot {
        title: title.into(),
        note,
        drawing: Drawing::Chart(chart),
    })
}

fn bars(title: &str, note: &'static str, mut bars: Vec<Bar>) -> Option<Plot> {
    bars.truncate(BARS_MAX);
    (!bars.is_empty()).then(|| Plot {
        title: title.to_owned(),
        note,
        drawing: Drawing::Bars { bars, key: Vec::new() },
    })
}
