//! Durations and sizes: a whole number and a unit.

use std::time::Duration;

use toml::de::DeValue;

use super::keys::Kind;
use super::read::{Item, Refusal, Report, parsed};

/// Each unit and its milliseconds.
pub(super) const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Each unit of sizes and its bytes.
pub(super) const SIZE_UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const DAY: Duration = Duration::from_secs(86_400);

/// Longest duration: a year of 365 days. Longer ones are typing errors.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A duration; zero only where its kind has a meaning for it.
pub(super) fn duration(report: &mut Report, item: Item<'_>) -> Option<Duration> {
    let Kind::Duration { zero } = *item.kind else {
        panic!("{:?} is a duration", item.at)
    };
    duration_that(report, item, |duration| {
        let fits = zero || !duration.is_zero();
        fits.then_some(()).ok_or("write how long it may take")
    })
}

/// A duration of whole seconds, up to the days of its kind.
pub(super) fn whole_seconds(report: &mut Report, item: Item<'_>) -> Option<Duration> {
    let Kind::WholeSeconds { max } = *item.kind else {
        panic!("{:?} is a duration of whole seconds", item.at)
    };
    duration_that(report, item, |duration| {
        let is_whole = duration.subsec_nanos() == 0 && !duration.is_zero();
        let fits = is_whole && duration.as_secs() <= max * DAY.as_secs();
        fits.then_some(()).ok_or("write a duration in that range")
    })
}

/// A duration that `fits`; otherwise that says what to do.
fn duration_that(
    report: &mut Report,
    item: Item<'_>,
    fits: impl FnOnce(Duration) -> Result<(), &'static str>,
) -> Option<Duration> {
    if matches!(item.value, DeValue::Integer(_) | DeValue::Float(_)) {
        report.refuse_value(
            &item,
            "write it with its unit in double quotes, such as \"10s\" for seconds",
        );
        return None;
    }
    let expected = item.kind.expected();
    parsed(|text| {
        let duration = parse(text).and_then(|duration| fits(duration).map(|()| duration));
        duration.map_err(|remedy| Refusal::new(&expected, remedy))
    })(report, item)
}

/// A size in bytes between the bounds of its kind; `Some(None)` for "off".
pub(super) fn off_or_size(report: &mut Report, item: Item<'_>) -> Option<Option<usize>> {
    let Kind::OffOrSize { min, max } = *item.kind else {
        panic!("{:?} is a size", item.at)
    };
    let expected = item.kind.expected();
    parsed(|text| {
        if text == "off" {
            return Ok(None);
        }
        let bytes = parse_size(text).map_err(|remedy| Refusal::new(&expected, remedy))?;
        let in_range = Some(bytes).filter(|bytes| (min..=max).contains(bytes));
        let size = in_range.and_then(|bytes| usize::try_from(bytes).ok());
        size.map(Some)
            .ok_or_else(|| Refusal::new(&expected, "write a size in that range"))
    })(report, item)
}

/// As it is written in the file.
pub(super) fn shown_size(bytes: u64) -> String {
    let fits = |&&(_, unit_bytes): &&(&str, u64)| bytes >= unit_bytes && bytes.is_multiple_of(unit_bytes);
    let (unit, unit_bytes) = SIZE_UNITS.iter().rev().find(fits).unwrap_or(&SIZE_UNITS[0]);
    format!("{}{unit}", bytes / unit_bytes)
}

fn parse_size(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "write a whole number and one of the units B, KiB, MiB, GiB, TiB";
    number_and_unit(text, &SIZE_UNITS).ok_or(FORM)?.ok_or(FORM)
}

/// What a number and one of the units amount to; `Some(None)` when that is too much for 64 bits.
fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<Option<u64>> {
    let unit_start = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_start);
    let (_, worth) = units.iter().find(|&&(name, _)| name == unit)?;
    if number.is_empty() {
        return None;
    }
    let number = number.parse::<u64>().ok();
    Some(number.and_then(|number| number.checked_mul(*worth)))
}

/// A duration.
///
/// # Errors
/// The remedy when `text` is none.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "write a whole number and one of the units ms, s, m, h, d";
    const TOO_LONG: &str = "write at most \"365d\"";
    let ms = number_and_unit(text, &UNITS).ok_or(FORM)?.ok_or(TOO_LONG)?;
    Some(Duration::from_millis(ms))
        .filter(|&duration| duration <= LONGEST)
        .ok_or(TOO_LONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_counts() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(parse("365d"), Ok(LONGEST));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1B"), Ok(1));
        assert_eq!(parse_size("3TiB"), Ok(3 << 40));
        for text in [
            "64",
            "64MB",
            "64mib",
            "MiB",
            "1.5GiB",
            "-1B",
            "1 B",
            "99999999999999999TiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["64MiB", "1B", "1025KiB", "3TiB"] {
            assert_eq!(shown_size(parse_size(text).unwrap()), text);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "10", "s", "10x", "1.5s", "-1s", " 1s", "1 s", "1s ", "1m30s", "10S", "٣s",
        ] {
            assert_eq!(
                parse(text),
                Err("write a whole number and one of the units ms, s, m, h, d"),
                "{text}"
            );
        }
        for text in ["366d", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse(text), Err("write at most \"365d\""), "{text}");
        }
    }
}
