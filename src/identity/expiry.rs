//! When certificates are warned of: late in their lifetime, whatever its length, and again as it goes on.

use super::facts::CertificateFacts;

const DAY: i64 = 24 * 3600;

/// A certificate is warned of when this part of its lifetime is left (a quarter, a twelfth, a thirty-sixth), and no earlier than this. What
/// renews certificates does so when a third is left, or a half of what lives for days: so each of these says that a renewal has failed.
const WARNINGS: [(i64, i64); 3] = [(4, 30 * DAY), (12, 10 * DAY), (36, 3 * DAY)];

/// How near a certificate is to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing is to be said.
    Fresh,
    /// It should have been renewed. It is warned of at each of these stages once, the first is 1.
    Due(usize),
    /// It has expired.
    Expired,
}

/// A period of validity, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub from: i64,
    /// Its last second.
    pub until: i64,
}

impl Validity {
    /// Of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateFacts) -> Validity {
        Validity {
            from: certificate.not_before,
            until: certificate.not_after,
        }
    }

    /// How near the end is at `now`.
    #[must_use]
    pub fn stage(self, now: i64) -> Stage {
        let begun = self.stages().into_iter().filter(|&begin| begin <= now).count();
        match begun {
            0 => Stage::Fresh,
            begun if begun > WARNINGS.len() => Stage::Expired,
            begun => Stage::Due(begun),
        }
    }

    /// When the next stage begins, after `now`.
    #[must_use]
    pub fn next_stage(self, now: i64) -> Option<i64> {
        self.stages().into_iter().find(|&begin| begin > now)
    }

    /// When each stage begins.
    fn stages(self) -> [i64; WARNINGS.len() + 1] {
        let lifetime = self.until.saturating_sub(self.from);
        let mut stages = [self.until.saturating_add(1); WARNINGS.len() + 1];
        for (stage, (fraction, most)) in stages.iter_mut().zip(WARNINGS) {
            *stage = stage.saturating_sub((lifetime / fraction).min(most).max(0));
        }
        stages
    }
}

/// A span of time for people: the largest unit that fits, and whole ones.
#[must_use]
pub fn span(seconds: i64) -> String {
    const HOUR: i64 = 3600;
    let (count, unit) = match seconds {
        ..60 => (seconds, "second"),
        60..HOUR => (seconds / 60, "minute"),
        HOUR..DAY => (seconds / HOUR, "hour"),
        DAY.. => (seconds / DAY, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    #[test]
    fn certificates_are_warned_of_late_in_their_life_whatever_its_length() {
        for (days, hours_left) in [
            (6, [36, 12, 4]),
            (45, [270, 90, 30]),
            (90, [540, 180, 60]),
            (398, [720, 240, 72]),
            (3650, [720, 240, 72]),
        ] {
            let validity = Validity {
                from: 1_800_000_000,
                until: 1_800_000_000 + days * DAY,
            };
            assert_eq!(validity.stage(validity.from), Stage::Fresh, "{days}");
            let mut now = validity.from;
            for (number, hours) in (1..).zip(hours_left) {
                let begin = validity.until - hours * HOUR + 1;
                assert_eq!(validity.next_stage(now), Some(begin), "{days}");
                assert_eq!(validity.stage(begin), Stage::Due(number), "{days}");
                assert!(validity.stage(begin - 1) < Stage::Due(number), "{days}");
                now = begin;
            }
            assert_eq!(validity.stage(validity.until), Stage::Due(3));
            assert_eq!(validity.next_stage(now), Some(validity.until + 1));
            assert_eq!(validity.stage(validity.until + 1), Stage::Expired);
            assert_eq!(validity.next_stage(validity.until + 1), None);
        }
    }

    #[test]
    fn odd_periods_have_an_end_all_the_same() {
        for (from, until) in [(5, 3), (i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (7, 7)] {
            let validity = Validity { from, until };
            assert!(validity.stage(i64::MIN) <= validity.stage(0), "{validity:?}");
            assert!(validity.stages().is_sorted(), "{validity:?}");
        }
    }

    #[test]
    fn spans_are_whole_and_in_the_largest_unit() {
        let spans = [0, 1, 59, 60, 7199, DAY - 1, DAY, 400 * DAY].map(span);
        let expected = [
            "0 seconds",
            "1 second",
            "59 seconds",
            "1 minute",
            "1 hour",
            "23 hours",
            "1 day",
            "400 days",
        ];
        assert_eq!(spans, expected);
    }
}
