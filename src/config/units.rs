//! Durations: a whole number and a unit.

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

/// Longest duration: a year of 365 days. Longer ones are typing errors.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A duration; zero only where its kind has a meaning for it.
pub(super) fn duration(report: &mut Report, item: Item<'_>) -> Option<Duration> {
    let Kind::Duration { zero } = *item.kind else {
        panic!("{:?} is a duration", item.at)
    };
    if matches!(item.value, DeValue::Integer(_) | DeValue::Float(_)) {
        report.refuse_value(
            &item,
            "write it with its unit in double quotes, such as \"10s\" for seconds",
        );
        return None;
    }
    let expected = item.kind.expected();
    parsed(|text| {
        let duration = parse(text).map_err(|remedy| Refusal::new(&expected, remedy))?;
        if duration.is_zero() && !zero {
            return Err(Refusal::new(&expected, "write how long it may take"));
        }
        Ok(duration)
    })(report, item)
}

/// A duration.
///
/// # Errors
/// The remedy when `text` is none.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "write a whole number and one of the units ms, s, m, h, d";
    const TOO_LONG: &str = "write at most \"365d\"";
    let unit_start = text.find(|c: char| !c.is_ascii_digit()).ok_or(FORM)?;
    let (number, unit) = text.split_at(unit_start);
    let (_, unit_ms) = UNITS.into_iter().find(|&(name, _)| name == unit).ok_or(FORM)?;
    if number.is_empty() {
        return Err(FORM);
    }
    let ms = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_ms))
        .ok_or(TOO_LONG)?;
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
