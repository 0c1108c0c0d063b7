//! Numbers and texts as people read them.

/// Longest text of a report that is shown whole, in characters.
const TEXT_MAX: usize = 2_000;

/// Three significant digits or all of the integer, with thousands apart.
pub(super) fn figure(value: f64) -> String {
    if value.abs() >= 999.5 {
        return grouped(value);
    }
    let decimals = match value.abs() {
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// A number of things, which has no decimals as a rule.
pub(super) fn count(value: f64) -> String {
    if value.fract() == 0.0 {
        grouped(value)
    } else {
        figure(value)
    }
}

/// For the ticks of an axis: as short as it goes.
pub(super) fn short(value: f64) -> String {
    let (scaled, suffix) = match value.abs() {
        size if size >= 1e15 => return format!("{value:.0e}"),
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = format!("{scaled:.4}");
    format!("{}{suffix}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// The unit that suits a time of so many microseconds, and how many of them it has.
pub(super) fn time_unit(largest_us: f64) -> (&'static str, f64) {
    match largest_us {
        largest if largest >= 1e6 => ("s", 1e6),
        largest if largest >= 1e3 => ("ms", 1e3),
        _ => ("µs", 1.0),
    }
}

/// A time in microseconds, in the unit that suits it.
pub(super) fn time(us: f64) -> String {
    let (unit, divisor) = time_unit(us);
    format!("{} {unit}", figure(us / divisor))
}

/// What others have written, without what would do something to a terminal or turn the text around.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if acts(c) && c != '\n' { '\u{fffd}' } else { c })
        .collect()
}

/// What others have written, bounded.
pub(super) fn clipped(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Control characters, and those that change the direction of what stands around them.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn grouped(value: f64) -> String {
    if value.abs() >= 1e15 {
        return format!("{value:.2e}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_thousands_apart() {
        let shown = [0.0, 0.456_7, 9.994, 12.34, 99.96, 123.4, 999.6, 1_234_567.8, -4_321.0].map(figure);
        assert_eq!(
            shown,
            [
                "0",
                "0.46",
                "9.99",
                "12.3",
                "100",
                "123",
                "1,000",
                "1,234,568",
                "-4,321"
            ]
        );
        assert_eq!(figure(1e300), "1.00e300");
        assert_eq!([0.0, 64.0, 12_345.0, 0.5].map(count), ["0", "64", "12,345", "0.50"]);
    }

    #[test]
    fn ticks_are_short() {
        let shown = [0.0, 0.5, 0.25, 2_000.0, 12_500.0, 3e6, 2e9, 1e20].map(short);
        assert_eq!(shown, ["0", "0.5", "0.25", "2000", "12.5k", "3M", "2G", "1e20"]);
    }

    #[test]
    fn what_acts_on_a_terminal_or_turns_text_around_is_replaced() {
        assert_eq!(
            printable("a\u{1b}[2J\u{0}\u{202e}b\u{2067}\u{7f}\u{9b}é\n"),
            "a�[2J��b���é\n"
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "é".repeat(TEXT_MAX);
        assert_eq!(clipped(&text), text);
        assert_eq!(clipped(&(text.clone() + "é")), text + "…");
    }
}
