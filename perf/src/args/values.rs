//! Values of flags that are more than a number or a word.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

/// In one range: more CPUs than any machine has.
const CPUS_MAX: usize = 10_000;

/// One of several, each as likely as its weight: `a=3` is three times as likely as `b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted<T> {
    /// What is chosen.
    pub value: T,
    /// 0 < weight
    pub weight: u32,
}

impl<T: FromStr<Err: ToString>> FromStr for Weighted<T> {
    type Err = String;

    /// Reads `VALUE` or `VALUE=WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (value, weight) = match text.rsplit_once('=') {
            None => (text, 1),
            Some((value, weight)) => {
                let weight = weight.parse().ok().filter(|&weight| weight > 0).ok_or_else(|| {
                    format!("`{weight}` is no weight, expected a whole number from 1, for example {value}=3")
                })?;
                (value, weight)
            }
        };
        let value = value.parse().map_err(|error: T::Err| error.to_string())?;
        Ok(Self { value, weight })
    }
}

/// The CPUs that threads are pinned to, in turn: `0-3,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no list of CPUs, expected for example 1 or 0-3,8");
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
            if last < first || last - first >= CPUS_MAX {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// Rates of a ramp: `1000..8000/8` are eight steps from 1,000 to 8,000 units per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// Of the first step, units per second.
    pub from: u32,
    /// Of the last one.
    pub to: u32,
    /// 2 <= steps
    pub steps: u32,
}

impl FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is no ramp, expected FROM..TO/STEPS with at least 2 steps, for example 1000..8000/8");
        let (range, steps) = text.split_once('/').ok_or_else(bad)?;
        let (from, to) = range.split_once("..").ok_or_else(bad)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
        let ramp = Self {
            from: number(from)?,
            to: number(to)?,
            steps: number(steps)?,
        };
        if ramp.from == 0 || ramp.to == 0 || !(2..=1000).contains(&ramp.steps) {
            return Err(bad());
        }
        Ok(ramp)
    }
}

impl Ramp {
    /// The rates, evenly spaced.
    pub fn rates(self) -> impl Iterator<Item = u32> {
        let (from, to, last) = (f64::from(self.from), f64::from(self.to), f64::from(self.steps - 1));
        (0..self.steps).map(move |step| (from + (to - from) * f64::from(step) / last).round() as u32)
    }
}

/// Reads "10s", "250ms", "2m"; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds_per_unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`, expected us, ms, s, m or h")),
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no duration, expected for example 10s or 250ms"))?;
    Duration::try_from_secs_f64(value * seconds_per_unit).map_err(|error| error.to_string())
}

/// Reads "1024", "64KiB", "10MB" as bytes.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text);
    let scale: usize = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => {
            return Err(format!(
                "unknown unit `{other}`, expected B, KiB, MiB, GiB, kB, MB or GB"
            ));
        }
    };
    let value: usize = number
        .parse()
        .map_err(|_| format!("`{text}` is no size, expected for example 1024 or 64KiB"))?;
    value.checked_mul(scale).ok_or_else(|| format!("`{text}` is too large"))
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("40us"), Ok(Duration::from_micros(40)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-1s").is_err());
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert!(parse_size("1XB").is_err());
        assert!(parse_size("99999999999999GiB").is_err());
    }

    #[test]
    fn weights_follow_an_equals_sign() {
        let name = |text: &str| text.parse::<Weighted<String>>();
        assert_eq!(name("a.example=3").unwrap().weight, 3);
        assert_eq!(name("a.example").unwrap().weight, 1);
        assert!(name("a.example=0").unwrap_err().contains("a.example=3"));
        assert!(name("a.example=many").is_err());
    }

    #[test]
    fn cpus_are_listed_as_the_kernel_lists_them() {
        assert_eq!("0-2,8".parse(), Ok(CpuList(vec![0, 1, 2, 8])));
        assert_eq!("1".parse(), Ok(CpuList(vec![1])));
        for bad in ["", "2-1", "a", "0-", "0-99999999"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ramp_goes_from_one_rate_to_the_other() {
        let ramp: Ramp = "1000..4000/4".parse().unwrap();
        assert_eq!(ramp.rates().collect::<Vec<_>>(), [1000, 2000, 3000, 4000]);
        let down: Ramp = "300..100/3".parse().unwrap();
        assert_eq!(down.rates().collect::<Vec<_>>(), [300, 200, 100]);
        for bad in ["1000", "1..2", "1..2/1", "0..2/2", "1..x/2", "1..2/1001"] {
            assert!(bad.parse::<Ramp>().unwrap_err().contains("FROM..TO/STEPS"), "{bad}");
        }
    }
}
