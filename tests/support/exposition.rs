//! A strict reader of what `/metrics` answers, in both formats. What a scraper might forgive is an error here.

use std::collections::{BTreeMap, BTreeSet};

/// The samples of one scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exposition {
    /// By name and labels, in the labels' order of name.
    samples: BTreeMap<(String, Labels), f64>,
    /// What `# TYPE` said, by the name it said it of.
    pub(crate) types: BTreeMap<String, String>,
}

type Labels = Vec<(String, String)>;

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics text format 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Reads a whole answer; the error names the line.
    pub(crate) fn parse(text: &str, format: Format) -> Result<Exposition, String> {
        let mut read = Exposition::default();
        let body = match format {
            Format::Prometheus => text.strip_suffix('\n').ok_or("no line end at the end")?,
            Format::OpenMetrics => text.strip_suffix("\n# EOF\n").ok_or("no `# EOF` at the end")?,
        };
        let mut family = String::new();
        let mut families = BTreeSet::new();
        for line in body.split('\n') {
            read.line(line, format, &mut family, &mut families)
                .map_err(|what| format!("{what} in line {line:?}"))?;
        }
        Ok(read)
    }

    fn line(
        &mut self,
        line: &str,
        format: Format,
        family: &mut String,
        families: &mut BTreeSet<String>,
    ) -> Result<(), String> {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, name) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let rest = words.next().unwrap_or("");
            check_name(name)?;
            if family != name {
                *family = name.to_owned();
                if !families.insert(name.to_owned()) {
                    return Err(format!("the lines of {name} do not stand together"));
                }
            }
            return match keyword {
                "HELP" if !rest.is_empty() => Ok(()),
                "UNIT" if format == Format::OpenMetrics => Ok(()),
                "TYPE" => {
                    let known: &[&str] = match format {
                        Format::Prometheus => &["counter", "gauge", "histogram"],
                        Format::OpenMetrics => &["counter", "gauge", "histogram", "info"],
                    };
                    if !known.contains(&rest) {
                        return Err(format!("unknown type {rest:?}"));
                    }
                    match self.types.insert(name.to_owned(), rest.to_owned()) {
                        None => Ok(()),
                        Some(_) => Err("a second type".to_owned()),
                    }
                }
                _ => Err("a comment that means nothing".to_owned()),
            };
        }
        let (name, labels, value) = sample(line)?;
        let kind = self.types.get(family.as_str()).ok_or("a sample before its type")?;
        let suffixes: &[&str] = match (format, kind.as_str()) {
            (_, "histogram") => &["_bucket", "_sum", "_count"],
            (Format::OpenMetrics, "counter") => &["_total"],
            (Format::OpenMetrics, "info") => &["_info"],
            (_, _) => &[""],
        };
        if !suffixes.iter().any(|suffix| name == format!("{family}{suffix}")) {
            return Err(format!("a sample of another family than {family}"));
        }
        if ["counter", "histogram"].contains(&kind.as_str()) && (value < 0.0 || value.is_nan()) {
            return Err("a counter below zero, or none at all".to_owned());
        }
        match self.samples.insert((name, labels), value) {
            None => Ok(()),
            Some(_) => Err("a series for the second time".to_owned()),
        }
    }

    /// The sum of all samples of this name that have these labels, whatever others they have.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|(_, value)| value).sum()
    }

    /// How many samples of this name have these labels.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.matching(name, labels).count()
    }

    /// The values that a label of this metric has.
    pub(crate) fn label_values(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.matching(name, &[])
            .flat_map(|(labels, _)| {
                labels
                    .iter()
                    .filter(|(key, _)| key == label)
                    .map(|(_, value)| value.clone())
            })
            .collect()
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a Labels, f64)> {
        let has = |of: &Labels| {
            labels
                .iter()
                .all(|(key, value)| of.iter().any(|(k, v)| k == key && v == value))
        };
        self.samples
            .iter()
            .filter(move |((n, of), _)| n == name && has(of))
            .map(|((_, of), value)| (of, *value))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("the name {name:?}"));
    }
    Ok(())
}

/// `name{label="value",…} value`
fn sample(line: &str) -> Result<(String, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name)?;
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix("{}") {
        rest = inner;
    } else if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, quoted) = rest.split_once("=\"").ok_or("a label without value")?;
            check_name(label)?;
            let (value, behind) = unquote(quoted)?;
            if labels.iter().any(|(known, _)| known == label) {
                return Err(format!("the label {label} twice"));
            }
            labels.push((label.to_owned(), value));
            match behind.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = behind.strip_prefix('}').ok_or("labels without end")?;
                    break;
                }
            }
        }
    }
    let number = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let value = number.parse().map_err(|_| format!("the value {number:?}"))?;
    labels.sort();
    Ok((name.to_owned(), labels, value))
}

/// The value up to its closing quote, and what stands behind that.
fn unquote(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, '\\')) => value.push('\\'),
                Some((_, '"')) => value.push('"'),
                Some((_, 'n')) => value.push('\n'),
                other => return Err(format!("the escape {other:?}")),
            },
            c => value.push(c),
        }
    }
    Err("a label value without end".to_owned())
}
