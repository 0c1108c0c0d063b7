//! Axes: which range of values one shows, where each value is, and which ticks are labelled.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::report::numbers::{short, time_unit};

/// About as many ticks as find room beside each other.
const TICKS: f64 = 6.0;

/// Latencies that differ by more than this are shown on a logarithmic scale.
const LINEAR_MOST: f64 = 20.0;

/// What can be shown at all: reports come from files, and ten to the power of 300 has no place on a plot.
const VALUE_MOST: f64 = 1e14;

/// An axis from 0 to less than this would have no labels that differ.
const VALUE_LEAST: f64 = 1e-3;

/// What a logarithmic scale shows in place of zero, in the unit of the axis.
const LOG_LEAST: f64 = 1e-3;

/// Nines of the last quantile that is shown, and as many decades.
const NINES_MOST: f64 = 7.0;

/// How far apart values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
    /// Quantiles: 0, 0.9, 0.99 and 0.999 are as far apart from each other.
    Tail,
}

/// One axis of a chart.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows, with the unit.
    pub(super) title: String,
    scale: Scale,
    /// Values are divided by this.
    divisor: f64,
    /// Positions of the ends, `low < high`.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Positions with their labels.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to a little more than the largest value.
    pub(super) fn linear(title: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        Self::linear_in(title.into(), 1.0, largest(values))
    }

    /// Times in microseconds, in the unit that suits them; logarithmic where they are far apart. `what` comes before
    /// the unit.
    pub(super) fn time(what: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().map(bounded).collect();
        let most = largest(values.iter().copied());
        let (unit, divisor) = time_unit(most);
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let least = positive.fold(most, f64::min).max(LOG_LEAST * divisor);
        if most <= least * LINEAR_MOST {
            return Self::linear_in(format!("{what}, {unit}"), divisor, most);
        }
        let (low, high, ticks) = log_axis((least / divisor).log10(), (most / divisor).log10());
        Self {
            title: format!("{what}, {unit} (logarithmic)"),
            scale: Scale::Log,
            divisor,
            low,
            high,
            ticks,
        }
    }

    /// Quantiles up to that of the longest of so many units.
    pub(super) fn tail(units: f64) -> Self {
        let high = bounded(units).max(10.0).log10().min(NINES_MOST);
        let mut ticks = vec![
            (0.0, "0".to_owned()),
            (2f64.log10(), "50".to_owned()),
            (1.0, "90".to_owned()),
            (2.0, "99".to_owned()),
        ];
        let nines = |count: usize| (count as f64, format!("99.{}", "9".repeat(count - 2)));
        ticks.extend((3..=NINES_MOST as usize).map(nines));
        ticks.retain(|(position, _)| *position <= high);
        Self {
            title: "percentile".into(),
            scale: Scale::Tail,
            divisor: 1.0,
            low: 0.0,
            high,
            ticks,
        }
    }

    /// Where a value is, between `low` and `high`.
    pub(super) fn position(&self, value: f64) -> f64 {
        let value = bounded(value) / self.divisor;
        let position = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(LOG_LEAST).log10(),
            Scale::Tail => -(1.0 - value).max(10f64.powf(-NINES_MOST)).log10(),
        };
        position.clamp(self.low, self.high)
    }

    fn linear_in(title: String, divisor: f64, most: f64) -> Self {
        let most = most / divisor;
        let most = if most > VALUE_LEAST { most } else { 1.0 };
        let step = round_step(most / TICKS);
        let steps = (most / step).ceil().max(1.0);
        let tick = |number: usize| {
            let position = number as f64 * step;
            (position, short(position))
        };
        Self {
            title,
            scale: Scale::Linear,
            divisor,
            low: 0.0,
            high: steps * step,
            ticks: (0..=steps as usize).map(tick).collect(),
        }
    }
}

/// How plotters sees it: as the range of its positions.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, position: &f64, (first, last): (i32, i32)) -> i32 {
        let part = (position - self.low) / (self.high - self.low);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(position, _)| *position).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(position: &f64) -> String {
        short(*position)
    }

    fn format_ext(&self, position: &f64) -> String {
        let tick = self.ticks.iter().find(|(at, _)| at == position);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// What a plot can show of a value.
pub(super) fn bounded(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, VALUE_MOST)
    }
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(bounded).fold(0.0, f64::max)
}

/// The next of 1, 2, 5, 10, 20, …
fn round_step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * decade >= least);
    factor.unwrap_or(10.0) * decade
}

/// From the one of 1, 2, 5, 10, … at or below `low` to the one at or above `high`. Where these are many, only decades are
/// labelled between the ends.
fn log_axis(low: f64, high: f64) -> (f64, f64, Vec<(f64, String)>) {
    let decades = low.floor() as i32..=high.ceil() as i32;
    let values: Vec<f64> = decades
        .flat_map(|exponent| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(exponent)))
        .collect();
    let near = 1e-9;
    let begin = values
        .iter()
        .rposition(|value| value.log10() <= low + near)
        .unwrap_or(0);
    let end = values.iter().position(|value| value.log10() >= high - near);
    let shown = &values[begin..=end.unwrap_or(values.len() - 1)];
    let every = ((high - low) / TICKS).ceil().max(1.0) as usize;
    let is_decade = |value: &&f64| (value.log10() - value.log10().round()).abs() < near;
    let ticks: Vec<f64> = match high - low {
        few if few <= 2.0 => shown.to_vec(),
        _ => shown.iter().filter(is_decade).step_by(every).copied().collect(),
    };
    let ends = (shown[0].log10(), shown[shown.len() - 1].log10());
    (
        ends.0,
        ends.1,
        ticks.into_iter().map(|value| (value.log10(), short(value))).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn linear_axes_begin_at_zero_and_end_at_a_round_number() {
        let axis = Axis::linear("messages/s", [0.0, 41_000.0, 12.0]);
        assert_eq!(labels(&axis), ["0", "10k", "20k", "30k", "40k", "50k"]);
        assert_eq!((axis.low, axis.high), (0.0, 50_000.0));
        assert_eq!(labels(&Axis::linear("", [])), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn times_have_the_unit_that_suits_them_and_a_logarithmic_scale_when_far_apart() {
        let near = Axis::time("latency", [700.0, 900.0]);
        assert_eq!((near.title.as_str(), near.high), ("latency, µs", 1000.0));
        let far = Axis::time("latency", [700.0, 90_000.0]);
        assert_eq!(far.title, "latency, ms (logarithmic)");
        assert_eq!(labels(&far), ["1", "10", "100"]);
        assert!((10f64.powf(far.low) - 0.5).abs() < 1e-9 && (far.high - 2.0).abs() < 1e-9);
        assert_eq!(far.position(0.0), far.low);
        assert!((far.position(10_000.0) - 1.0).abs() < 1e-9);
        assert_eq!(
            labels(&Axis::time("latency", [700.0, 40_000.0])),
            ["0.5", "1", "2", "5", "10", "20", "50"]
        );
        let widest = Axis::time("latency", [1.0, 1e14]);
        assert_eq!(labels(&widest), ["0.001", "0.1", "10", "1000", "100k", "10M"]);
    }

    #[test]
    fn each_nine_of_a_percentile_has_as_much_room() {
        let axis = Axis::tail(20_000.0);
        assert_eq!(labels(&axis), ["0", "50", "90", "99", "99.9", "99.99"]);
        let at = [0.0, 0.9, 0.99, 0.999].map(|quantile| axis.position(quantile));
        for (position, expected) in at.into_iter().zip([0.0, 1.0, 2.0, 3.0]) {
            assert!((position - expected).abs() < 1e-9, "{position} {expected}");
        }
        assert_eq!(axis.position(1.0), axis.high);
    }

    #[test]
    fn no_value_breaks_an_axis() {
        let odd = [
            f64::NAN,
            f64::INFINITY,
            f64::MAX,
            f64::MIN_POSITIVE,
            -5.0,
            0.0,
            1e-300,
            1e300,
        ];
        for value in odd {
            for other in odd {
                for axis in [
                    Axis::linear("", [value, other]),
                    Axis::time("", [value, other]),
                    Axis::tail(value),
                ] {
                    assert!(
                        axis.low < axis.high && axis.ticks.len() <= 20,
                        "{value} {other} {axis:?}"
                    );
                    assert!(
                        (axis.low..=axis.high).contains(&axis.position(value)),
                        "{value} {other} {axis:?}"
                    );
                }
            }
        }
    }
}
