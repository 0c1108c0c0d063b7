//! Reads TOML tables against the table of keys. Every problem is noted and reading goes on: a reader that noted one
//! returns `None`, and whoever builds a value from several reads them all before giving up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, Kind, Presence, Section};
use super::nearest::{nearest, suggestion};
use super::problem::{Places, Position, Problem, Text, Warning, quoted};

/// Most characters of a value that a message repeats.
const FOUND_CHARS_MAX: usize = 60;

/// Most entries of a list of strings: each is compared with all others.
const LIST_ENTRIES_MAX: usize = 4096;

/// A key, by the name an operator would call it, and its bytes in the text.
#[derive(Clone, Debug)]
pub(super) struct At {
    pub(super) key: String,
    pub(super) span: Range<usize>,
}

/// What has been found out about a file so far.
pub(super) struct Report {
    file: PathBuf,
    text: Text,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
    positions: BTreeMap<String, Position>,
    files: Vec<(String, PathBuf)>,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        Report {
            file: file.to_owned(),
            text: Text::new(text),
            problems: Vec::new(),
            warnings: Vec::new(),
            positions: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// Notes a problem.
    pub(super) fn refuse(
        &mut self,
        at: &At,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            file: self.file.clone(),
            position: Some(self.text.position(at.span.clone())),
            key: at.key.clone(),
            found: found.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        });
    }

    /// Notes a problem with a value of which nothing else is to be said than what its kind expects.
    pub(super) fn refuse_value(&mut self, item: &Item<'_>, remedy: impl Into<String>) {
        self.refuse(&item.at, describe(&item.value), item.kind.expected(), remedy);
    }

    /// Notes a warning.
    pub(super) fn warn(&mut self, at: &At, what: impl Into<String>, remedy: impl Into<String>) {
        self.warnings.push(Warning {
            file: self.file.clone(),
            position: Some(self.text.position(at.span.clone())),
            key: at.key.clone(),
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    /// Line of the first byte of a span.
    pub(super) fn line(&self, at: &At) -> usize {
        self.text.position(at.span.clone()).line
    }

    /// `path`, taken from the folder of the file when it is relative.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Notes that this process reads or writes this file, or folder.
    pub(super) fn note_file(&mut self, at: &At, path: &Path) {
        self.files.push((at.key.clone(), path.to_owned()));
    }

    /// Problems, warnings (both in the order of the file), and where the keys are.
    pub(super) fn into_parts(mut self) -> (Vec<Problem>, Vec<Warning>, Places) {
        self.warnings
            .sort_by_key(|warning| warning.position.as_ref().map(|position| position.span.start));
        (
            self.problems,
            self.warnings,
            Places {
                file: self.file,
                positions: self.positions,
                files: self.files,
            },
        )
    }

    fn note_position(&mut self, at: &At) {
        self.positions
            .insert(at.key.clone(), self.text.position(at.span.clone()));
    }
}

/// The value of a key, from the file or by default.
pub(super) struct Item<'t> {
    pub(super) at: At,
    pub(super) kind: &'static Kind,
    pub(super) value: DeValue<'t>,
}

/// A table of the file that is being read. Keys are taken out of it; what is left at the end is unknown.
pub(super) struct Table<'r, 't> {
    pub(super) report: &'r mut Report,
    at: At,
    /// What comes before the name of a key in messages: `listener "edge": ` or `global.`.
    prefix: String,
    section: &'static Section,
    entries: DeTable<'t>,
    spans: BTreeMap<&'static str, Range<usize>>,
    taken: Vec<&'static str>,
}

/// Reads the whole file by `read`.
pub(super) fn root<'t, T>(
    report: &mut Report,
    entries: Spanned<DeTable<'t>>,
    read: impl FnOnce(&mut Table<'_, 't>) -> Option<T>,
) -> Option<T> {
    let at = At {
        key: String::new(),
        span: 0..0,
    };
    Table::read_all(report, at, String::new(), &keys::ROOT, entries.into_inner(), read)
}

impl<'r, 't> Table<'r, 't> {
    fn read_all<T>(
        report: &'r mut Report,
        at: At,
        prefix: String,
        section: &'static Section,
        entries: DeTable<'t>,
        read: impl FnOnce(&mut Table<'r, 't>) -> Option<T>,
    ) -> Option<T> {
        let mut spans = BTreeMap::new();
        report.note_position(&at);
        for (name, value) in entries.iter() {
            if let Some(key) = section.key(name.get_ref()) {
                // A table's span covers its header; one that only has children has none of its own.
                let span = if value.span().is_empty() {
                    name.span()
                } else {
                    value.span()
                };
                report.note_position(&At {
                    key: format!("{prefix}{}", key.name),
                    span: span.clone(),
                });
                spans.insert(key.name, span);
            }
        }
        let mut table = Table {
            report,
            at,
            prefix,
            section,
            entries,
            spans,
            taken: Vec::new(),
        };
        let value = read(&mut table);
        table.refuse_leftovers();
        debug_assert!(
            section.keys.iter().all(|key| table.taken.contains(&key.name)),
            "every legal key of {:?} is read",
            table.at.key
        );
        value
    }

    /// Where the table itself is.
    pub(super) fn own_place(&self) -> At {
        self.at.clone()
    }

    /// Where the value of the key `name` is; the table's place when the key is absent.
    pub(super) fn at(&self, name: &'static str) -> At {
        let span = self.spans.get(name).cloned().unwrap_or_else(|| self.at.span.clone());
        At {
            key: format!("{}{name}", self.prefix),
            span,
        }
    }

    /// Whether the file has the key `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.spans.contains_key(name)
    }

    /// The value of a key that is required or has a default, by `read`. `None` after a problem.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Report, Item<'_>) -> Option<T>,
    ) -> Option<T> {
        let (key, value) = self.take(name);
        let at = self.at(name);
        let value = match (value, &key.presence) {
            (Some(value), _) => value,
            (None, Presence::Default(text)) => default_value(text),
            (None, Presence::Required) => {
                let remedy = format!("add {name:?} to this table");
                self.report.refuse(&at, "nothing", key.kind.expected(), remedy);
                return None;
            }
            (None, Presence::Optional) => panic!("{name} has no value to read when it is absent"),
        };
        read(
            self.report,
            Item {
                at,
                kind: &key.kind,
                value,
            },
        )
    }

    /// The value of a key that may be absent, by `read`. `None` after a problem.
    pub(super) fn read_optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Report, Item<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        let (key, value) = self.take(name);
        assert!(matches!(key.presence, Presence::Optional), "{name} is optional");
        match value {
            None => Some(None),
            Some(value) => read(
                self.report,
                Item {
                    at: self.at(name),
                    kind: &key.kind,
                    value,
                },
            )
            .map(Some),
        }
    }

    /// The table `[name]` by `read`; an absent one is an empty one. `None` after a problem.
    pub(super) fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Table<'_, 't>) -> Option<T>,
    ) -> Option<T> {
        let (key, value) = self.take(name);
        let Kind::Section(section) = key.kind else {
            panic!("{name} is a table")
        };
        let at = self.at(name);
        let value = value.unwrap_or(DeValue::Table(DeTable::new()));
        let DeValue::Table(entries) = value else {
            self.report.refuse(
                &at,
                describe(&value),
                "a table",
                format!("write its keys below the header {}", keys::header(section)),
            );
            return None;
        };
        let prefix = format!("{}.", at.key);
        Table::read_all(self.report, at, prefix, section, entries, read)
    }

    /// The tables `[[name]]`, each by `read`. `None` after a problem.
    pub(super) fn sections<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(&mut Table<'_, 't>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (key, value) = self.take(name);
        let Kind::Sections(section) = key.kind else {
            panic!("{name} is a list of tables")
        };
        let at = self.at(name);
        let required = matches!(key.presence, Presence::Required);
        let entries = match value {
            None => Vec::new(),
            Some(DeValue::Array(entries)) => entries.iter().cloned().collect(),
            Some(other) => {
                let remedy = format!("write each below a header with two brackets: {}", keys::header(section));
                self.report.refuse(&at, describe(&other), "a list of tables", remedy);
                return None;
            }
        };
        if entries.is_empty() && required {
            let remedy = format!("add a [[{name}]] table");
            self.report
                .refuse(&at, "none", format!("at least one [[{name}]]"), remedy);
            return None;
        }
        let mut values = Some(Vec::with_capacity(entries.len()));
        for (index, entry) in entries.into_iter().enumerate() {
            let element = element_name(&at.key, index, section, entry.get_ref());
            let prefix = format!("{element}{}", if section.key("name").is_some() { ": " } else { "." });
            let at = At {
                key: element,
                span: entry.span(),
            };
            let entry = entry.into_inner();
            let value = if let DeValue::Table(entries) = entry {
                Table::read_all(self.report, at, prefix, section, entries, &mut read)
            } else {
                let remedy = format!("write each as {{ {} = … }}", section.keys[0].name);
                self.report.refuse(&at, describe(&entry), "a table", remedy);
                None
            };
            values = values.zip(value).map(|(mut values, value)| {
                values.push(value);
                values
            });
        }
        values
    }

    /// The tables `[name.NAME]` in the order of the file, each by `read`, which is given NAME. `None` after a problem.
    pub(super) fn named<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(&str, &mut Table<'_, 't>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (key, value) = self.take(name);
        let Kind::Named(section) = key.kind else {
            panic!("{name} is a table of tables")
        };
        let at = self.at(name);
        let header = keys::header(section);
        let entries = match value {
            None => DeTable::new(),
            Some(DeValue::Table(entries)) => entries,
            Some(other) => {
                let remedy = format!("write each below a header with its name: {header}");
                self.report.refuse(&at, describe(&other), key.kind.expected(), remedy);
                return None;
            }
        };
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut values = Some(Vec::with_capacity(entries.len()));
        for (name, entry) in entries {
            let inner = At {
                key: format!("{}.{}", at.key, shown_key(name.get_ref())),
                span: if entry.span().is_empty() {
                    name.span()
                } else {
                    entry.span()
                },
            };
            let entry = entry.into_inner();
            let value = if let DeValue::Table(entries) = entry {
                let prefix = format!("{}.", inner.key);
                let read = |table: &mut Table<'_, 't>| read(name.get_ref(), table);
                Table::read_all(self.report, inner, prefix, section, entries, read)
            } else {
                let expected = format!("a table {header}");
                let remedy = "write a name of your choice for the token between keys. and the closing bracket";
                self.report.refuse(&inner, describe(&entry), expected, remedy);
                None
            };
            values = values.zip(value).map(|(mut values, value)| {
                values.push(value);
                values
            });
        }
        values
    }

    fn take(&mut self, name: &'static str) -> (&'static Key, Option<DeValue<'t>>) {
        let key = self
            .section
            .key(name)
            .unwrap_or_else(|| panic!("{name} is in the table of keys"));
        self.taken.push(key.name);
        (key, self.entries.remove(name).map(Spanned::into_inner))
    }

    fn refuse_leftovers(&mut self) {
        for name in std::mem::take(&mut self.entries).into_iter().map(|(name, _)| name) {
            let at = At {
                key: format!("{}{}", self.prefix, shown_key(name.get_ref())),
                span: name.span(),
            };
            let legal: Vec<&str> = self.section.keys.iter().map(|key| key.name).collect();
            let elsewhere = keys::sections()
                .into_iter()
                .find(|(_, section)| section.key(name.get_ref()).is_some());
            let remedy = match elsewhere {
                Some((header, _)) if nearest(name.get_ref(), legal.iter().copied()).is_none() => {
                    format!("move it to {header} or remove it")
                }
                Some(_) | None => "correct its name or remove it".to_owned(),
            };
            self.report.refuse(
                &at,
                "an unknown key",
                suggestion(name.get_ref(), &legal, "legal key"),
                remedy,
            );
        }
    }
}

/// `listener "edge"` or `listener[0]`
fn element_name(list: &str, index: usize, section: &Section, entry: &DeValue<'_>) -> String {
    let name = section
        .key("name")
        .and_then(|_| entry.as_table()?.get("name")?.get_ref().as_str());
    match name {
        Some(name) => format!("{list} {}", shown(name)),
        None => format!("{list}[{index}]"),
    }
}

fn default_value(text: &'static str) -> DeValue<'static> {
    DeValue::parse(text)
        .expect("the table of keys has TOML for defaults; a unit test reads all of them")
        .into_inner()
}

/// A key as TOML writes it, of bounded length.
pub(super) fn shown_key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare && name.len() <= FOUND_CHARS_MAX {
        name.to_owned()
    } else {
        shown(name)
    }
}

/// A string in quotes, of bounded length, on one line.
pub(super) fn shown(text: &str) -> String {
    quoted(text, FOUND_CHARS_MAX)
}

/// A value as a message shows it.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => shown(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(values) if values.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What a reader of one string says against it; what was found is the string.
pub(super) struct Refusal {
    pub(super) expected: String,
    pub(super) remedy: String,
}

impl Refusal {
    pub(super) fn new(expected: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refusal {
            expected: expected.into(),
            remedy: remedy.into(),
        }
    }
}

/// A string that is not empty, by `parse`.
pub(super) fn parsed<T>(
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
) -> impl FnOnce(&mut Report, Item<'_>) -> Option<T> {
    move |report, item| {
        let DeValue::String(text) = &item.value else {
            report.refuse_value(&item, "write it as one string in double quotes");
            return None;
        };
        if text.is_empty() {
            report.refuse_value(&item, "fill it in");
            return None;
        }
        match parse(text) {
            Ok(value) => Some(value),
            Err(refusal) => {
                report.refuse(&item.at, describe(&item.value), refusal.expected, refusal.remedy);
                None
            }
        }
    }
}

/// A path, resolved against the folder of the file.
pub(super) fn path(report: &mut Report, item: Item<'_>) -> Option<PathBuf> {
    let at = item.at.clone();
    let path = path_of_a_signer(report, item)?;
    report.note_file(&at, &path);
    Some(path)
}

/// The same, of a file that this process does not touch.
pub(super) fn path_of_a_signer(report: &mut Report, item: Item<'_>) -> Option<PathBuf> {
    let expected = item.kind.expected();
    let text = parsed(|text| without_nul(text, &expected))(report, item)?;
    Some(report.resolve(&text))
}

/// Paths, resolved against the folder of the file; each is `what`.
pub(super) fn paths(what: &'static str) -> impl FnOnce(&mut Report, Item<'_>) -> Option<Vec<PathBuf>> {
    list(move |report, at, text| match without_nul(text, what) {
        Ok(text) => {
            let path = report.resolve(&text);
            report.note_file(at, &path);
            Some(path)
        }
        Err(refusal) => {
            report.refuse(at, shown(text), refusal.expected, refusal.remedy);
            None
        }
    })
}

fn without_nul(text: &str, expected: &str) -> Result<String, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::new(expected, "remove the NUL character"));
    }
    Ok(text.to_owned())
}

/// `true` or `false`
pub(super) fn flag(report: &mut Report, item: Item<'_>) -> Option<bool> {
    debug_assert!(matches!(item.kind, Kind::Flag), "{:?} is a flag", item.at);
    let flag = item.value.as_bool();
    if flag.is_none() {
        report.refuse_value(&item, "write true or false without quotes");
    }
    flag
}

/// A whole number within the bounds of its kind.
pub(super) fn count(report: &mut Report, item: Item<'_>) -> Option<u64> {
    let (Kind::Count(max) | Kind::UpTo(max)) = *item.kind else {
        panic!("{:?} is a count", item.at)
    };
    let bounds = u64::from(matches!(item.kind, Kind::Count(_)))..=max;
    match whole_number(&item.value).filter(|number| bounds.contains(number)) {
        Some(number) => Some(number),
        None => {
            report.refuse_value(&item, "write a whole number in that range, without quotes");
            None
        }
    }
}

/// The value when it is a whole number of at most 64 bits.
pub(super) fn whole_number(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A number from 0.0 to 1.0.
pub(super) fn share(report: &mut Report, item: Item<'_>) -> Option<f64> {
    let number: Option<f64> = match (item.value.as_float(), whole_number(&item.value)) {
        (Some(number), _) => number.as_str().parse().ok(),
        (None, Some(0)) => Some(0.0),
        (None, Some(1)) => Some(1.0),
        (None, _) => None,
    };
    match number.filter(|number| (0.0..=1.0).contains(number)) {
        Some(number) => Some(number),
        None => {
            report.refuse_value(&item, "write a share such as 0.01 for one in a hundred, without quotes");
            None
        }
    }
}

/// One of the words of its kind; `values` gives each that is supported its meaning.
pub(super) fn choice<T: Copy>(values: &'static [(&'static str, T)]) -> impl FnOnce(&mut Report, Item<'_>) -> Option<T> {
    move |report, item| {
        let Kind::Word(words) = *item.kind else {
            panic!("{:?} is a word", item.at)
        };
        debug_assert!(
            words
                .iter()
                .filter(|word| !word.later)
                .map(|word| word.text)
                .eq(values.iter().map(|value| value.0)),
            "{:?}: the words that are read are those of the table of keys",
            item.at
        );
        let DeValue::String(text) = &item.value else {
            report.refuse_value(&item, "write one of them in double quotes");
            return None;
        };
        if let Some(&(_, value)) = values.iter().find(|value| value.0 == text) {
            return Some(value);
        }
        let found = describe(&item.value);
        let expected = item.kind.expected();
        if words.iter().any(|word| word.text == text) {
            let remedy = format!("write {expected} until a later version supports it");
            report.refuse(
                &item.at,
                format!("{found}, which is not supported yet"),
                expected,
                remedy,
            );
        } else if let Some(nearest) = nearest(text, values.iter().map(|value| value.0).filter(|word| word.len() > 3)) {
            report.refuse(&item.at, found, expected, format!("{nearest:?} is the nearest"));
        } else {
            report.refuse(
                &item.at,
                found,
                expected,
                "write one of them, or remove the key for the default",
            );
        }
        None
    }
}

/// A list of strings, each by `parse`; none empty, none twice.
pub(super) fn list<T: PartialEq>(
    mut parse: impl FnMut(&mut Report, &At, &str) -> Option<T>,
) -> impl FnOnce(&mut Report, Item<'_>) -> Option<Vec<T>> {
    move |report, item| {
        let (entries, may_be_empty) = match (item.value, item.kind) {
            (DeValue::Array(entries), Kind::Texts { empty, .. }) => (entries, *empty),
            (DeValue::Array(entries), _) => (entries, false),
            (value @ DeValue::String(_), Kind::TextOrTexts(_)) => {
                let item = Item {
                    at: item.at,
                    kind: item.kind,
                    value,
                };
                let at = item.at.clone();
                let text = parsed(|text| Ok(text.to_owned()))(report, item)?;
                return Some(vec![parse(report, &at, &text)?]);
            }
            (value, kind) => {
                let single = matches!(kind, Kind::TextOrTexts(_));
                let remedy = if single {
                    "write it in double quotes"
                } else {
                    "write a list of strings: [\"…\", \"…\"]"
                };
                report.refuse_value(
                    &Item {
                        at: item.at,
                        kind,
                        value,
                    },
                    remedy,
                );
                return None;
            }
        };
        if entries.is_empty() && !may_be_empty {
            report.refuse(&item.at, "an empty list", item.kind.expected(), "name at least one");
            return None;
        }
        if entries.len() > LIST_ENTRIES_MAX {
            let found = format!("{} entries", entries.len());
            report.refuse(
                &item.at,
                found,
                format!("at most {LIST_ENTRIES_MAX}"),
                "shorten the list",
            );
            return None;
        }
        let mut values: Vec<T> = Vec::with_capacity(entries.len());
        let count = entries.len();
        for (index, entry) in entries.iter().enumerate() {
            let at = At {
                key: format!("{}[{index}]", item.at.key),
                span: entry.span(),
            };
            report.note_position(&at);
            let Some(text) = entry.get_ref().as_str().filter(|text| !text.is_empty()) else {
                let remedy = "write a string in double quotes that is not empty";
                report.refuse(&at, describe(entry.get_ref()), item.kind.expected(), remedy);
                continue;
            };
            let Some(value) = parse(report, &at, text) else {
                continue;
            };
            if values.contains(&value) {
                report.refuse(
                    &at,
                    format!("{} a second time", shown(text)),
                    "each entry once",
                    "remove one of the two",
                );
            } else {
                values.push(value);
            }
        }
        (values.len() == count).then_some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_toml() {
        let sections = keys::sections()
            .into_iter()
            .map(|(_, section)| section)
            .chain([&keys::ROOT]);
        let mut defaults = 0;
        for key in sections.flat_map(|section| section.keys) {
            if let Presence::Default(text) = key.presence {
                default_value(text);
                defaults += 1;
            }
        }
        assert!(defaults > 20, "{defaults}");
    }

    #[test]
    fn long_and_odd_values_are_shown_short_and_on_one_line() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        assert_eq!(shown(&"é".repeat(100)), format!("\"{}\"…", "é".repeat(60)));
        assert_eq!(shown_key("a b"), r#""a b""#);
        assert_eq!(shown_key("a-b_1"), "a-b_1");
    }
}
