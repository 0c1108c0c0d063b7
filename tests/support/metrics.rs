//! The exposition of metrics, read.

use std::collections::BTreeMap;

/// All samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    samples: Vec<Sample>,
    text: String,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads OpenMetrics text.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let sample = |line: &str| parse_sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"));
        Metrics {
            samples: lines.map(sample).collect(),
            text: text.to_owned(),
        }
    }

    /// The text that was read.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Sum of the samples with this full name (`…_total` for counters) and at least these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// The sum as a whole number. The metric must be there.
    #[track_caller]
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        assert!(self.has(name, labels), "no {name} with {labels:?} in\n{}", self.text);
        self.sum(name, labels) as u64
    }

    /// There is such a sample.
    pub(crate) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.find(name, labels).next().is_some()
    }

    /// Connections ended, by cause; those that never happened are left out.
    pub(crate) fn ended(&self) -> BTreeMap<String, u64> {
        let mut ended = BTreeMap::new();
        for sample in self.find("ringlock_connections_ended_total", &[]) {
            if sample.value > 0.0 {
                *ended.entry(sample.labels["cause"].clone()).or_default() += sample.value as u64;
            }
        }
        ended
    }

    fn find<'m>(&'m self, name: &'m str, labels: &'m [(&str, &str)]) -> impl Iterator<Item = &'m Sample> {
        self.samples.iter().filter(move |sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|found| found == value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

/// `name{label="value",…} number`
fn parse_sample(line: &str) -> Option<Sample> {
    let (head, value) = line.rsplit_once(' ')?;
    let (name, list) = match head.split_once('{') {
        Some((name, list)) => (name, list.strip_suffix('}')?),
        None => (head, ""),
    };
    let mut labels = BTreeMap::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => text.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => text.push(other),
            }
        };
        labels.insert(label.to_owned(), text);
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}
