//! Host names, and the names by which the tables of the file refer to each other.

use std::fmt;
use std::net::IpAddr;

use super::NamePattern;
use super::keys::NAME_PATTERN;
use super::nearest::suggestion;
use super::read::{At, Item, Refusal, Report, Table, parsed, shown};

/// Most characters of the name of a listener, identity, upstream, token or group: it labels metrics.
const NAME_CHARS_MAX: usize = 64;

/// The `name` of a table.
pub(super) fn name(report: &mut Report, item: Item<'_>) -> Option<String> {
    let expected = item.kind.expected();
    parsed(|text| match name_trouble(text) {
        Some(remedy) => Err(Refusal::new(expected, remedy)),
        None => Ok(text.to_owned()),
    })(report, item)
}

/// What to do about a name that is none.
pub(super) fn name_trouble(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("fill it in")
    } else if text.chars().count() > NAME_CHARS_MAX {
        Some("shorten it")
    } else if text.chars().any(char::is_control) {
        Some("remove the control characters")
    } else {
        None
    }
}

/// The names of one kind of table, in file order, whether or not the tables are otherwise right: so that one problem
/// does not make every reference to its table another.
pub(super) struct Names {
    /// "identity"
    list: &'static str,
    /// Name and place of each table, and whether something refers to it.
    entries: Vec<(String, At, bool)>,
}

impl Names {
    pub(super) fn new(list: &'static str) -> Self {
        Names {
            list,
            entries: Vec::new(),
        }
    }

    /// Reads the key `name` of `table`, which no earlier table may have.
    pub(super) fn define(&mut self, table: &mut Table<'_, '_>) -> Option<String> {
        let name = table.read("name", name);
        let at = table.at("name");
        let Some(name) = name else {
            // Its place in the list stays occupied, so that indexes remain those of the file.
            self.entries.push((String::new(), at, true));
            return None;
        };
        let first = self
            .entries
            .iter()
            .find(|(other, _, _)| *other == name)
            .map(|(_, first, _)| first.clone());
        if let Some(first) = first {
            let line = table.report.line(&first);
            table.report.refuse(
                &at,
                format!("{}, the name of another {} in line {line}", shown(&name), self.list),
                "a name of its own",
                "rename one of the two",
            );
            return None;
        }
        self.entries.push((name.clone(), at, false));
        Some(name)
    }

    /// Position of the table that `name` refers to.
    pub(super) fn resolve(&mut self, report: &mut Report, at: &At, name: &str) -> Option<usize> {
        if let Some(index) = self.entries.iter().position(|(other, _, _)| other == name) {
            self.entries[index].2 = true;
            return Some(index);
        }
        let names: Vec<&str> = self
            .entries
            .iter()
            .map(|(name, _, _)| name.as_str())
            .filter(|n| !n.is_empty())
            .collect();
        let expected = match names.as_slice() {
            [] => format!("the name of an [[{}]], of which there is none", self.list),
            names => suggestion(name, names, &format!("name of an [[{}]]", self.list)),
        };
        let remedy = format!("correct the name, or add an [[{}]] with it", self.list);
        report.refuse(at, shown(name), expected, remedy);
        None
    }

    /// Warns of every table that nothing refers to.
    pub(super) fn warn_unused(&self, report: &mut Report) {
        for (_, at, used) in &self.entries {
            if !used {
                let what = format!("no listener uses this {}", self.list);
                report.warn(at, what, "refer to it from a [[listener]], or remove it");
            }
        }
    }
}

/// A name that clients ask for, or a wildcard.
pub(super) fn name_pattern(report: &mut Report, at: &At, text: &str) -> Option<NamePattern> {
    parse_pattern(text)
        .map_err(|remedy| report.refuse(at, shown(text), NAME_PATTERN, remedy))
        .ok()
}

fn parse_pattern(text: &str) -> Result<NamePattern, String> {
    let pattern = match text.strip_prefix("*.") {
        Some(parent) => host_name(parent).map(NamePattern::Wildcard),
        None if text == "*" => {
            return Err("every name that no route takes goes to the listener's upstream: set that".to_owned());
        }
        None => host_name(text).map(NamePattern::Exact),
    };
    let pattern = pattern.map_err(|what| {
        if text.contains('*') {
            "let the wildcard be the whole leftmost label and nothing else".to_owned()
        } else if !text.is_ascii() {
            "write it as punycode (xn--…), as it is sent in SNI".to_owned()
        } else if text.ends_with('.') {
            "remove the dot at its end".to_owned()
        } else if text.contains(':') {
            "remove the port: SNI has none".to_owned()
        } else {
            format!("correct it: {what}")
        }
    })?;
    let (NamePattern::Exact(name) | NamePattern::Wildcard(name)) = &pattern;
    if name.parse::<IpAddr>().is_ok() {
        // RFC 6066 section 3: "Literal IPv4 and IPv6 addresses are not permitted in "HostName"".
        return Err("write a name: clients send no SNI for an IP address".to_owned());
    }
    Ok(pattern)
}

/// The lower-case form of a host name (letters, digits, hyphens and underscores, RFC 1035 lengths), or what is wrong.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    const LABEL_BYTES_MAX: usize = 63;
    const NAME_BYTES_MAX: usize = 253;
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("a name has at most {NAME_BYTES_MAX} bytes"));
    }
    for label in text.split('.') {
        if label.is_empty() {
            return Err("a label is empty".to_owned());
        }
        if label.len() > LABEL_BYTES_MAX {
            return Err(format!("a label has at most {LABEL_BYTES_MAX} bytes"));
        }
        if let Some(odd) = label
            .chars()
            .find(|&c| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        {
            return Err(format!("a label has the character {odd:?}"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label begins or ends with a hyphen".to_owned());
        }
    }
    Ok(text.to_ascii_lowercase())
}

impl fmt::Display for NamePattern {
    /// As in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamePattern::Exact(name) => f.write_str(name),
            NamePattern::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl NamePattern {
    /// A DNS name as a certificate has it.
    #[must_use]
    pub fn in_certificate(name: &str) -> NamePattern {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => NamePattern::Wildcard(parent.to_owned()),
            None => NamePattern::Exact(name),
        }
    }

    /// Whether every name of `other` is one of this pattern too.
    #[must_use]
    pub fn covers(&self, other: &NamePattern) -> bool {
        match (self, other) {
            (NamePattern::Exact(ours), NamePattern::Exact(theirs)) => ours == theirs,
            (NamePattern::Wildcard(ours), NamePattern::Wildcard(theirs)) => ours == theirs,
            (NamePattern::Wildcard(ours), NamePattern::Exact(theirs)) => {
                theirs.split_once('.').is_some_and(|(_, parent)| parent == ours)
            }
            (NamePattern::Exact(_), NamePattern::Wildcard(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_lower_case_and_of_two_kinds() {
        assert_eq!(
            parse_pattern("API.Example.com"),
            Ok(NamePattern::Exact("api.example.com".into()))
        );
        assert_eq!(
            parse_pattern("*.Example.com"),
            Ok(NamePattern::Wildcard("example.com".into()))
        );
        assert_eq!(parse_pattern("localhost"), Ok(NamePattern::Exact("localhost".into())));
        assert_eq!(
            parse_pattern("xn--bcher-kva.example"),
            Ok(NamePattern::Exact("xn--bcher-kva.example".into()))
        );
    }

    #[test]
    fn patterns_that_are_none_name_the_remedy() {
        let wildcard = "let the wildcard be the whole leftmost label and nothing else";
        for (text, remedy) in [
            (
                "*",
                "every name that no route takes goes to the listener's upstream: set that",
            ),
            ("a*.example.com", wildcard),
            ("*.*.example.com", wildcard),
            ("api.*.com", wildcard),
            ("bücher.example", "write it as punycode (xn--…), as it is sent in SNI"),
            ("example.com.", "remove the dot at its end"),
            ("example.com:443", "remove the port: SNI has none"),
            ("10.0.0.1", "write a name: clients send no SNI for an IP address"),
            ("a..b", "correct it: a label is empty"),
            ("-a.b", "correct it: a label begins or ends with a hyphen"),
            ("a b", "correct it: a label has the character ' '"),
        ] {
            assert_eq!(parse_pattern(text), Err(remedy.to_owned()), "{text}");
        }
        assert_eq!(
            parse_pattern(&"a".repeat(64)),
            Err("correct it: a label has at most 63 bytes".to_owned())
        );
        assert_eq!(
            parse_pattern(&"a.".repeat(127)),
            Err("remove the dot at its end".to_owned())
        );
        assert_eq!(
            parse_pattern(&"ab.".repeat(90)),
            Err("remove the dot at its end".to_owned())
        );
        assert_eq!(
            parse_pattern(&format!("{}a", "ab.".repeat(90))),
            Err("correct it: a name has at most 253 bytes".to_owned())
        );
    }

    #[test]
    fn a_wildcard_covers_exactly_one_label() {
        let wildcard = NamePattern::Wildcard("example.com".into());
        assert!(wildcard.covers(&NamePattern::Exact("a.example.com".into())));
        assert!(!wildcard.covers(&NamePattern::Exact("example.com".into())));
        assert!(!wildcard.covers(&NamePattern::Exact("a.b.example.com".into())));
        assert!(!NamePattern::Exact("a.example.com".into()).covers(&wildcard));
    }
}
