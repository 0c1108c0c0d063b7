//! The figures of runs side by side: which ones there are, in what unit, how they relate to those of the first run, and
//! which is the better one.

use super::numbers::{count, figure, time_unit};
use super::{Report, Unit};

/// Below this difference none is called the better one.
const DIFFERENCE_LEAST: f64 = 0.01;

/// One figure of all runs.
pub(super) struct Figure {
    pub(super) name: String,
    /// Empty for counts.
    pub(super) unit: String,
    /// One for each run; `None` where a run does not have it.
    pub(super) cells: Vec<Option<Cell>>,
}

/// A figure of one run.
pub(super) struct Cell {
    pub(super) text: String,
    /// To the first run's; `None` for the first run, and where that is 0.
    pub(super) ratio: Option<String>,
    /// No other run's is better, and there is one that is worse.
    pub(super) best: bool,
}

/// Which of two is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
    Neither,
}

/// What a value is.
enum Kind {
    /// Microseconds.
    Time,
    /// A part of one.
    Share,
    /// A number of these.
    Number(String),
    /// A number of what the name says.
    Count,
}

type Value = fn(&Report) -> Option<f64>;

/// What is compared, in the order in which it is shown. Figures that no run has are left out.
pub(super) fn figures(runs: &[&Report]) -> Vec<Figure> {
    let Some(first) = runs.first() else { return Vec::new() };
    let open_loop = runs.iter().any(|run| run.open_loop.is_some());
    let latency = |name: &str| match open_loop {
        true => format!("{name}, from when it was due"),
        false => name.to_owned(),
    };
    let (unit, units) = (first.unit, units(first.unit));
    let per_second = || Kind::Number(format!("{units}/s"));
    let bytes = || Kind::Number("bytes".to_owned());
    // A table is easier to read in lines.
    #[rustfmt::skip]
    let rows: Vec<(String, Kind, Better, Value)> = vec![
        ("Capacity".into(), per_second(), Better::Higher, |run| Some(run.capacity.as_ref()?.rate_per_s)),
        ("Rate".into(), per_second(), Better::Higher, |run| Some(run.rate_per_s)),
        ("Rate asked for".into(), per_second(), Better::Neither, |run| Some(f64::from(run.open_loop.as_ref()?.rate_per_s))),
        (latency("Latency, mean"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.mean)),
        (latency("Latency, p50"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.p50)),
        (latency("Latency, p90"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.p90)),
        (latency("Latency, p99"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.p99)),
        (latency("Latency, p99.9"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.p999)),
        (latency("Latency, longest"), Kind::Time, Better::Lower, |run| Some(run.latency_us?.max)),
        ("Service time, p50".into(), Kind::Time, Better::Lower, |run| Some(run.service_us?.p50)),
        ("Service time, p99".into(), Kind::Time, Better::Lower, |run| Some(run.service_us?.p99)),
        (format!("Server CPU per {unit}"), Kind::Time, Better::Lower, |run| Some(run.server.as_ref()?.cpu_us_per_unit)),
        (format!("Server system calls per {unit}"), Kind::Number(String::new()), Better::Lower, |run| Some(run.server.as_ref()?.system_calls.as_ref()?.per_unit)),
        (format!("Server context switches per {unit}, it waited"), Kind::Number(String::new()), Better::Lower, |run| Some(run.server.as_ref()?.context_switches_per_unit.voluntary)),
        (format!("Server context switches per {unit}, it was preempted"), Kind::Number(String::new()), Better::Lower, |run| Some(run.server.as_ref()?.context_switches_per_unit.involuntary)),
        ("Server CPU in use".into(), Kind::Share, Better::Neither, |run| Some(run.server.as_ref()?.cpu_share)),
        ("Established connections, p99 alone".into(), Kind::Time, Better::Lower, |run| Some(run.probe_established.as_ref()?.alone.p99)),
        ("Established connections, p99 beside the work".into(), Kind::Time, Better::Lower, |run| Some(run.probe_established.as_ref()?.beside.p99)),
        ("Client CPU in use".into(), Kind::Share, Better::Neither, |run| Some(run.client.cpu_share)),
        (format!("Client CPU per {unit}"), Kind::Time, Better::Neither, |run| Some(run.client.cpu_us_per_unit)),
        ("Memory per connection (PSS)".into(), bytes(), Better::Lower, |run| Some(memory(run)?.0)),
        ("Memory per connection (RSS)".into(), bytes(), Better::Lower, |run| Some(memory(run)?.1)),
        ("Memory per connection (private)".into(), bytes(), Better::Lower, |run| Some(run.idle.as_ref()?.memory.as_ref()?.private_per_connection)),
        ("Connections lost while held".into(), Kind::Count, Better::Lower, |run| Some(run.idle.as_ref()?.lost as f64)),
        ("Resumed handshakes".into(), Kind::Share, Better::Neither, resumed),
        ("Due and not started".into(), Kind::Count, Better::Lower, |run| Some(run.open_loop.as_ref()?.not_started as f64)),
        ("Begun late, all connections busy".into(), Kind::Count, Better::Lower, |run| Some(run.open_loop.as_ref()?.held as f64)),
        ("Begun late by the client, p99".into(), Kind::Time, Better::Neither, |run| Some(run.open_loop.as_ref()?.late_p99_us)),
        ("Failed connections".into(), Kind::Count, Better::Lower, |run| Some(failed(run) as f64)),
        (format!("Measured {units}"), Kind::Count, Better::Neither, |run| Some(run.units)),
        ("Connections at a time".into(), Kind::Count, Better::Neither, |run| Some(run.connections as f64)),
        ("Measured for".into(), Kind::Time, Better::Neither, |run| Some(run.duration_s * 1e6)),
    ];
    let row = |(name, kind, better, value): (String, Kind, Better, Value)| {
        let values: Vec<_> = runs
            .iter()
            .map(|run| value(run).filter(|value| value.is_finite()))
            .collect();
        let largest = values.iter().flatten().copied().reduce(f64::max)?;
        let shown = match kind {
            Kind::Count => count,
            Kind::Time | Kind::Share | Kind::Number(_) => figure,
        };
        let (unit, divisor) = match kind {
            Kind::Time => {
                let (unit, divisor) = time_unit(largest);
                (unit.to_owned(), divisor)
            }
            Kind::Share => ("%".to_owned(), 0.01),
            Kind::Number(unit) => (unit, 1.0),
            Kind::Count => (String::new(), 1.0),
        };
        Some(Figure {
            name,
            unit,
            cells: cells(&values, better, |value| shown(value / divisor)),
        })
    };
    rows.into_iter().filter_map(row).collect()
}

/// Failed connections of all kinds.
fn failed(run: &Report) -> u64 {
    run.errors
        .values()
        .fold(0, |sum, error| sum.saturating_add(error.count))
}

/// A unit's plural.
pub(super) fn units(unit: Unit) -> String {
    match unit {
        Unit::Megabyte => unit.to_string(),
        Unit::Handshake | Unit::Message | Unit::Request | Unit::Connection => format!("{unit}s"),
    }
}

/// Bytes of the server for each connection, where it was measured: proportional and resident set size.
pub(super) fn memory(run: &Report) -> Option<(f64, f64)> {
    let idle = run.idle.as_ref().and_then(|idle| idle.memory.as_ref());
    if let Some(memory) = idle {
        return Some((memory.bytes_per_connection, memory.rss_per_connection));
    }
    let memory = run.server.as_ref()?.memory.as_ref()?.per_connection;
    Some((memory.pss, memory.rss))
}

fn resumed(run: &Report) -> Option<f64> {
    let kinds = run.handshakes?;
    let all = kinds.full.saturating_add(kinds.resumed);
    (all > 0).then(|| kinds.resumed as f64 / all as f64)
}

fn cells(values: &[Option<f64>], better: Better, shown: impl Fn(f64) -> String) -> Vec<Option<Cell>> {
    let present = || values.iter().flatten().copied();
    let (least, most) = (present().fold(f64::INFINITY, f64::min), present().fold(0.0, f64::max));
    let differ = most - least > DIFFERENCE_LEAST * most;
    let base = values.first().copied().flatten();
    let cell = |(at, value): (usize, &Option<f64>)| {
        let value = (*value)?;
        Some(Cell {
            text: shown(value),
            ratio: base
                .filter(|base| at > 0 && *base > 0.0)
                .map(|base| format!("×{}", figure(value / base))),
            best: differ
                && match better {
                    Better::Lower => value == least,
                    Better::Higher => value == most,
                    Better::Neither => false,
                },
        })
    };
    values.iter().enumerate().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(values: &[Option<f64>], better: Better) -> Vec<(String, bool)> {
        let text = |cell: Option<Cell>| {
            cell.map_or_else(
                || ("–".to_owned(), false),
                |cell| (format!("{} {}", cell.text, cell.ratio.unwrap_or_default()), cell.best),
            )
        };
        cells(values, better, figure).into_iter().map(text).collect()
    }

    #[test]
    fn ratios_are_to_the_first_run_and_the_better_one_is_marked() {
        let values = [Some(200.0), None, Some(150.0), Some(300.0)];
        let texts = ["200 ", "–", "150 ×0.75", "300 ×1.50"];
        for (better, best) in [
            (Better::Lower, [false, false, true, false]),
            (Better::Higher, [false, false, false, true]),
            (Better::Neither, [false; 4]),
        ] {
            let expected: Vec<_> = texts.map(str::to_owned).into_iter().zip(best).collect();
            assert_eq!(shown(&values, better), expected);
        }
    }

    #[test]
    fn what_hardly_differs_has_no_better_one() {
        let marks = |values: &[f64]| {
            let values: Vec<_> = values.iter().copied().map(Some).collect();
            shown(&values, Better::Lower).iter().any(|(_, best)| *best)
        };
        assert!(!marks(&[100.0, 100.9]) && marks(&[100.0, 102.0]));
        assert!(!marks(&[0.0, 0.0]) && marks(&[0.0, 3.0]) && !marks(&[5.0]));
    }

    #[test]
    fn a_base_of_zero_has_no_ratios() {
        assert_eq!(
            shown(&[Some(0.0), Some(5.0)], Better::Lower),
            [("0 ".to_owned(), true), ("5.00 ".to_owned(), false)]
        );
    }
}
