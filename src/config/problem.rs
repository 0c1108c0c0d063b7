//! What is wrong with a file, where, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Text that others have written, in quotes, on one line, and of at most so many characters.
#[must_use]
pub fn quoted(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A place in the text of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// In bytes of the text.
    pub span: Range<usize>,
}

/// The text of a file, in which places are looked up.
pub(super) struct Text {
    text: String,
    /// Where each line but the first begins, in bytes, ascending.
    line_starts: Vec<usize>,
}

impl Text {
    pub(super) fn new(text: &str) -> Self {
        Text {
            text: text.to_owned(),
            line_starts: text.match_indices('\n').map(|(newline, _)| newline + 1).collect(),
        }
    }

    /// The place of these bytes; what lies beyond the end is taken for the end.
    pub(super) fn position(&self, span: Range<usize>) -> Position {
        let start = self.text.floor_char_boundary(span.start);
        let lines_before = self.line_starts.partition_point(|&line_start| line_start <= start);
        let line_start = lines_before.checked_sub(1).map_or(0, |index| self.line_starts[index]);
        Position {
            line: 1 + lines_before,
            column: 1 + self.text[line_start..start].chars().count(),
            span: start..self.text.floor_char_boundary(span.end).max(start),
        }
    }
}

/// Something for which a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where in it; `None` when it concerns the file itself.
    pub position: Option<Position>,
    /// The key as an operator would call it, such as `listener "edge": tls.alpn[0]` or `global.workers`; empty when
    /// it concerns the file or its syntax.
    pub key: String,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// A problem of the file itself: it cannot be read, say.
    pub(super) fn of_file(file: &Path, found: String, expected: &str, remedy: &str) -> Self {
        Problem {
            file: file.to_owned(),
            position: None,
            key: String::new(),
            found,
            expected: expected.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    /// The message without its place: `found …, expected …; remedy`.
    #[must_use]
    pub fn message(&self) -> String {
        format!("found {}, expected {}; {}", self.found, self.expected, self.remedy)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position.as_ref(), &self.key)?;
        f.write_str(&self.message())
    }
}

impl std::error::Error for Problem {}

/// Something that is legal and probably not what was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub position: Option<Position>,
    /// As in [`Problem::key`].
    pub key: String,
    /// What was found, and what follows from it.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Warning {
    /// The message without its place: `what; remedy`.
    #[must_use]
    pub fn message(&self) -> String {
        format!("{}; {}", self.what, self.remedy)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position.as_ref(), &self.key)?;
        f.write_str(&self.message())
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, file: &Path, position: Option<&Position>, key: &str) -> fmt::Result {
    write!(f, "{}:", file.display())?;
    if let Some(position) = position {
        write!(f, "{}:", position.line)?;
    }
    f.write_str(" ")?;
    if !key.is_empty() {
        write!(f, "{key}: ")?;
    }
    Ok(())
}

/// Everything for which a configuration is refused: never empty, in the order of the file. One line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `None` when there are none.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by_key(|problem| problem.position.as_ref().map(|position| position.span.start));
        (!problems.is_empty()).then_some(Problems(problems))
    }

    /// In the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// In the order of the file.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Where each key of a configuration stands, and which files it names, so that what is found out later (a certificate that does not fit its
/// key, an address that cannot be bound) is reported with file and line too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub(super) file: PathBuf,
    pub(super) positions: BTreeMap<String, Position>,
    pub(super) files: Vec<(String, PathBuf)>,
}

impl Places {
    /// The file that was read; empty for a configuration that came from none.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The files and folders that the gateway's process reads or writes, each with its key: what signers read is not among them.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files.iter().map(|(key, path)| (key.as_str(), path.as_path()))
    }

    /// Where `key` stands, which is as in [`Problem::key`]; the table's place when the key was left out.
    #[must_use]
    pub fn position(&self, key: &str) -> Option<&Position> {
        self.positions.get(key).or_else(|| {
            let table = key.rfind([':', '.']).map(|end| &key[..end])?;
            self.position(table)
        })
    }

    /// A problem at `key`, which is as in [`Problem::key`].
    pub fn problem(
        &self,
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        let key = key.into();
        Problem {
            file: self.file.clone(),
            position: self.position(&key).cloned(),
            key,
            found: found.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        }
    }

    /// A warning at `key`, which is as in [`Problem::key`].
    pub fn warning(&self, key: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Warning {
        let key = key.into();
        Warning {
            file: self.file.clone(),
            position: self.position(&key).cloned(),
            key,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
