//! What somebody who made a typing error probably meant.

/// The candidate that needs the fewest insertions, deletions, replacements and swaps of neighbours to become `text`,
/// when those are few enough for a typing error: a third of its letters, two from five letters on. Case does not count.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any key; it bounds the work for what may be a pasted file.
    const LONGEST_CHARS: usize = 128;
    if text.chars().count() > LONGEST_CHARS {
        return None;
    }
    let text = text.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&text, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, candidate)| {
            let letters = candidate.chars().count();
            distance
                <= (letters / 3)
                    .max(if letters < 5 { 1 } else { 2 })
                    .min(letters.saturating_sub(1))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `"b" (the nearest name there is)` or, when nothing is near, all of them.
pub(super) fn suggestion(text: &str, candidates: &[&str], what: &str) -> String {
    match nearest(text, candidates.iter().copied()) {
        Some(nearest) => format!("{nearest:?} (the nearest {what})"),
        None => super::keys::alternatives(candidates.to_vec()),
    }
}

/// Optimal string alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_each_kind_of_error_once() {
        assert_eq!(distance("edge", "edge"), 0);
        assert_eq!(distance("edg", "edge"), 1);
        assert_eq!(distance("edgee", "edge"), 1);
        assert_eq!(distance("adge", "edge"), 1);
        assert_eq!(distance("egde", "edge"), 1);
        assert_eq!(distance("", "edge"), 4);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn nearest_takes_the_closest_and_refuses_the_far() {
        assert_eq!(nearest("adress", ["name", "address", "admin"]), Some("address"));
        assert_eq!(
            nearest("IDLE_TIMOUT", ["idle_timeout", "linger_timeout"]),
            Some("idle_timeout")
        );
        assert_eq!(nearest("banana", ["name", "address"]), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"a".repeat(100_000), ["a"]), None);
    }
}
