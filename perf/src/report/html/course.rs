//! A long course of a run, in fewer pieces.

use super::draw::POINTS_MAX;
use crate::report::Interval;

/// At most [`POINTS_MAX`] intervals: so many neighbours as it takes become one.
pub(super) fn thinned(series: &[Interval]) -> Vec<Interval> {
    match series.len().div_ceil(POINTS_MAX) {
        0 | 1 => series.to_vec(),
        together => series.chunks(together).map(combined).collect(),
    }
}

/// Counts are summed, shares and costs are means by their weights. Of the median it is the mean of the medians by units;
/// of the 99th percentile and the longest, the worst.
fn combined(neighbours: &[Interval]) -> Interval {
    let sum = |value: fn(&Interval) -> f64| neighbours.iter().map(value).sum::<f64>();
    let worst = |value: fn(&Interval) -> Option<f64>| neighbours.iter().filter_map(value).reduce(f64::max);
    Interval {
        at_s: neighbours.last().map_or(0.0, |last| last.at_s),
        length_s: sum(|one| one.length_s),
        units: sum(|one| one.units),
        bytes: neighbours.iter().fold(0, |sum, one| sum.saturating_add(one.bytes)),
        errors: neighbours.iter().fold(0, |sum, one| sum.saturating_add(one.errors)),
        p50_us: mean(neighbours, |one| one.p50_us, |one| one.units),
        p99_us: worst(|one| one.p99_us),
        max_us: worst(|one| one.max_us),
        server_cpu_share: mean(neighbours, |one| one.server_cpu_share, |one| one.length_s),
        server_cpu_us_per_unit: mean(neighbours, |one| one.server_cpu_us_per_unit, |one| one.units),
        client_cpu_share: mean(neighbours, |one| Some(one.client_cpu_share), |one| one.length_s).unwrap_or(0.0),
    }
}

/// Of those that have the value; the plain mean where there is no weight.
fn mean(
    neighbours: &[Interval],
    value: impl Fn(&Interval) -> Option<f64>,
    weight: fn(&Interval) -> f64,
) -> Option<f64> {
    let present: Vec<_> = neighbours
        .iter()
        .filter_map(|one| Some((value(one)?, weight(one))))
        .collect();
    let weights: f64 = present.iter().map(|(_, weight)| weight).sum();
    let weighted: f64 = present.iter().map(|(value, weight)| value * weight).sum();
    let plain: f64 = present.iter().map(|(value, _)| value).sum::<f64>() / present.len() as f64;
    (!present.is_empty()).then_some(if weights > 0.0 { weighted / weights } else { plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(at_s: f64, units: f64, p50_us: Option<f64>) -> Interval {
        Interval {
            at_s,
            length_s: 1.0,
            units,
            errors: 1,
            p50_us,
            p99_us: p50_us,
            client_cpu_share: 0.5,
            ..Interval::default()
        }
    }

    #[test]
    fn a_short_course_is_left_as_it_is() {
        let series = [interval(1.0, 5.0, None), interval(2.0, 7.0, Some(3.0))];
        assert_eq!(thinned(&series), series);
    }

    #[test]
    fn a_long_course_keeps_its_sums_its_end_and_its_worst() {
        let mut series: Vec<_> = (1..=1_500)
            .map(|second| interval(f64::from(second), 2.0, Some(10.0)))
            .collect();
        series[1_000].p99_us = Some(900.0);
        let thin = thinned(&series);
        assert_eq!(thin.len(), 500);
        assert_eq!(thin.iter().map(|one| one.units).sum::<f64>(), 3_000.0);
        assert_eq!(thin.iter().map(|one| one.errors).sum::<u64>(), 1_500);
        assert_eq!(thin.last().unwrap().at_s, 1_500.0);
        assert!(thin.iter().any(|one| one.p99_us == Some(900.0)));
        assert!(
            thin.iter()
                .all(|one| one.p50_us == Some(10.0) && one.client_cpu_share == 0.5 && one.length_s == 3.0)
        );
    }

    #[test]
    fn medians_weigh_as_much_as_their_units() {
        let both = combined(&[
            interval(1.0, 30.0, Some(10.0)),
            interval(2.0, 10.0, Some(50.0)),
            interval(3.0, 9.0, None),
        ]);
        assert_eq!(both.p50_us, Some(20.0));
        assert_eq!(combined(&[interval(1.0, 0.0, None)]).p50_us, None);
    }
}
