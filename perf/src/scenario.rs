//! Scenarios: a run written down. The keys of the TOML file are the flags of its work with `_` for `-`, so a scenario is a
//! command line, and is read as one.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, ValueHint};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::args::{Cli, Command, RunArgs, WORKS};
use crate::error::PerfError;

/// Those that come with the program.
const BUILT_IN: [(&str, &str); 12] = [
    ("bulk-download", include_str!("../scenarios/bulk-download.toml")),
    ("bulk-upload", include_str!("../scenarios/bulk-upload.toml")),
    ("capacity", include_str!("../scenarios/capacity.toml")),
    (
        "client-certificates",
        include_str!("../scenarios/client-certificates.toml"),
    ),
    (
        "connection-per-request",
        include_str!("../scenarios/connection-per-request.toml"),
    ),
    ("echo", include_str!("../scenarios/echo.toml")),
    ("full-handshakes", include_str!("../scenarios/full-handshakes.toml")),
    ("idle-crowd", include_str!("../scenarios/idle-crowd.toml")),
    ("keep-alive", include_str!("../scenarios/keep-alive.toml")),
    ("many-names", include_str!("../scenarios/many-names.toml")),
    ("post-quantum", include_str!("../scenarios/post-quantum.toml")),
    ("returning-clients", include_str!("../scenarios/returning-clients.toml")),
];

/// The keys that are no flags.
const WORK: &str = "work";
const DESCRIPTION: &str = "description";

/// The names of the built-in scenarios, each with its description.
pub fn list() -> String {
    let line = |(name, text): &(&str, &str)| {
        let table = DeTable::parse(text).ok();
        let described = table.as_ref().and_then(|table| entry(table.get_ref(), DESCRIPTION));
        let described = described.and_then(|(_, value)| value.get_ref().as_str());
        format!("{name:24} {}\n", described.unwrap_or_default())
    };
    BUILT_IN.iter().map(line).collect()
}

/// The text of a built-in scenario.
///
/// # Errors
/// When there is none of this name.
pub fn built_in(name: &str) -> Result<&'static str, PerfError> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    found.map(|&(_, text)| text).ok_or_else(|| PerfError::Flag {
        flag: "scenario",
        found: name.to_owned(),
        expected: format!("a TOML file, or one of {}", BUILT_IN.map(|(name, _)| name).join(", ")),
    })
}

/// The work of a scenario, with the flags of the command line, which go before its keys.
///
/// # Errors
/// Names the file and the line that cannot be used, or is clap's own when it is the command line.
pub fn read(args: &RunArgs) -> Result<Command, PerfError> {
    let path = Path::new(&args.scenario);
    let (text, name, folder);
    if path.extension().is_some() || path.components().count() > 1 {
        let read = fs::read_to_string(path);
        text = read.map_err(|error| PerfError::io(format!("read the scenario {}", path.display()), error))?;
        name = path.display().to_string();
        folder = path.parent().unwrap_or(Path::new("."));
    } else {
        text = built_in(&args.scenario)?.to_owned();
        name = format!("{}.toml", args.scenario);
        // Nothing in it is a path.
        folder = Path::new(".");
    }
    Source {
        name: &name,
        text: &text,
        folder,
    }
    .command(&args.flags)
}

struct Source<'a> {
    name: &'a str,
    text: &'a str,
    /// Relative paths are relative to it.
    folder: &'a Path,
}

/// A key of the file as a flag.
struct Key {
    /// With `-`, without the dashes before it.
    flag: String,
    /// As in the file.
    name: String,
    line: usize,
    values: Vec<OsString>,
    /// True exactly when it is a switch that is on.
    switch: bool,
}

impl Source<'_> {
    fn command(&self, flags: &[OsString]) -> Result<Command, PerfError> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let line = error.span().map_or(1, |span| self.line(span.start));
            self.refuse(line, error.message())
        })?;
        let table = table.into_inner();
        let work = self.work(&table)?;
        let cli = Cli::command();
        let command = cli.find_subcommand(&work).expect("`work` has found it");
        let given: Vec<&Arg> = given(flags, command).collect();
        let mut line = vec![OsString::from("ringlock-perf"), work.clone().into()];
        let mut keys = Vec::new();
        for (name, value) in &table {
            let name_text = name.get_ref().as_ref();
            if name_text == WORK || name_text == DESCRIPTION {
                continue;
            }
            let line_number = self.line(name.span().start);
            let flag = name_text.replace('_', "-");
            let Some(arg) = find(command, &flag) else {
                return Err(self.unknown(name_text, line_number, &flag, command));
            };
            let key = self.key(name_text, line_number, value, arg)?;
            if is_overridden(arg, &given, command) {
                continue;
            }
            let dashed = format!("--{}", key.flag);
            if key.switch {
                line.push(dashed.into());
            } else {
                for value in &key.values {
                    let mut flag = OsString::from(format!("{dashed}="));
                    flag.push(value);
                    line.push(flag);
                }
            }
            keys.push(key);
        }
        line.extend(flags.iter().cloned());
        let matches = Cli::command().try_get_matches_from(line);
        match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
            Ok(cli) => Ok(cli.command),
            Err(error) => Err(self.explain(error, &keys)),
        }
    }

    fn work(&self, table: &DeTable<'_>) -> Result<String, PerfError> {
        let expected = format!("expected one of {}", WORKS.join(", "));
        let Some((key, value)) = entry(table, WORK) else {
            return Err(self.refuse(1, &format!("`{WORK}` is missing, {expected}")));
        };
        let line = self.line(key.span().start);
        let work = value.get_ref().as_str().filter(|work| WORKS.contains(work));
        let refuse = || self.refuse(line, &format!("{WORK}: found {}, {expected}", shown(value.get_ref())));
        work.map(str::to_owned).ok_or_else(refuse)
    }

    fn key(&self, name: &str, line: usize, value: &Spanned<DeValue<'_>>, arg: &Arg) -> Result<Key, PerfError> {
        let is_path = arg.get_value_hint() == ValueHint::AnyPath;
        let is_switch = !arg.get_action().takes_values();
        let mut key = Key {
            flag: arg.get_long().unwrap_or(name).to_owned(),
            name: name.to_owned(),
            line,
            values: Vec::new(),
            switch: false,
        };
        let plain = |value: &DeValue<'_>| match value {
            DeValue::String(text) if is_path => Some(self.folder.join(text.as_ref()).into_os_string()),
            DeValue::String(text) => Some(text.to_string().into()),
            DeValue::Integer(number) => Some(number.to_string().into()),
            DeValue::Float(number) => Some(number.as_str().to_owned().into()),
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
        };
        let refuse = |found: &DeValue<'_>| {
            let expected = if is_switch {
                "true or false"
            } else if matches!(arg.get_action(), ArgAction::Append) {
                "text, a number, or a list of them that is not empty"
            } else {
                "text or a number"
            };
            self.refuse(line, &format!("{name}: found {}, expected {expected}", shown(found)))
        };
        let value = value.get_ref();
        if is_switch {
            key.switch = value.as_bool().ok_or_else(|| refuse(value))?;
        } else if let Some(values) = value.as_array().filter(|values| !values.is_empty()) {
            for value in values.iter() {
                let value = value.get_ref();
                key.values.push(plain(value).ok_or_else(|| refuse(value))?);
            }
        } else {
            key.values.push(plain(value).ok_or_else(|| refuse(value))?);
        }
        Ok(key)
    }

    /// With the flag that clap finds the nearest.
    fn unknown(&self, name: &str, line: usize, flag: &str, command: &clap::Command) -> PerfError {
        let only = command.clone().no_binary_name(true);
        let error = only.try_get_matches_from([format!("--{flag}=")]).err();
        let nearest = error
            .as_ref()
            .and_then(|error| text_of(error, ContextKind::SuggestedArg));
        let expected = nearest.map_or_else(
            || "remove it, or see the flags of its work".to_owned(),
            |flag| {
                let flag = flag.trim_start_matches('-').split([' ', '=']).next();
                format!(
                    "expected `{}` (the nearest)",
                    flag.unwrap_or_default().replace('-', "_")
                )
            },
        );
        self.refuse(line, &format!("{name}: unknown key, {expected}"))
    }

    /// An error of the command line that the scenario became, told of the line that it came from.
    fn explain(&self, error: clap::Error, keys: &[Key]) -> PerfError {
        let key = text_of(&error, ContextKind::InvalidArg).and_then(|invalid| {
            let flag = invalid.trim_start_matches('-').split(['=', ' ']).next()?;
            keys.iter().find(|key| key.flag == flag)
        });
        let Some(key) = key else {
            return PerfError::CommandLine(error);
        };
        let rendered = error.to_string();
        let first = rendered.lines().next().unwrap_or_default();
        let problem = first.strip_prefix("error: ").unwrap_or(first);
        self.refuse(key.line, &format!("{}: {problem}", key.name))
    }

    fn refuse(&self, line: usize, problem: &str) -> PerfError {
        PerfError::Scenario {
            file: self.name.to_owned(),
            line,
            problem: problem.to_owned(),
        }
    }

    /// Of a position in the text, counted from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|&&byte| byte == b'\n').count()
    }
}

fn entry<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<(&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn text_of(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        Some(_) | None => None,
    }
}

/// A flag by its name without dashes, or by another of its names.
fn find<'c>(command: &'c clap::Command, flag: &str) -> Option<&'c Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(flag) || arg.get_all_aliases().unwrap_or_default().contains(&flag))
}

/// What the command line says itself.
fn given<'c>(flags: &[OsString], command: &'c clap::Command) -> impl Iterator<Item = &'c Arg> {
    flags.iter().filter_map(|flag| find(command, &long_name(flag)?))
}

fn long_name(flag: &OsStr) -> Option<String> {
    let flag = flag.to_str()?.strip_prefix("--")?;
    Some(flag.split('=').next()?.to_owned())
}

/// The command line says this flag, or one that does not go with it.
fn is_overridden(arg: &Arg, given: &[&Arg], command: &clap::Command) -> bool {
    let conflicts = |one: &Arg, other: &Arg| {
        let found = command.get_arg_conflicts_with(one);
        found.iter().any(|conflict| conflict.get_id() == other.get_id())
    };
    given
        .iter()
        .any(|given| given.get_id() == arg.get_id() || conflicts(given, arg) || conflicts(arg, given))
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(values) if values.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::personas::Personas;

    fn source(text: &str, flags: &[&str]) -> Result<Command, String> {
        let source = Source {
            name: "mine.toml",
            text,
            folder: Path::new("/etc/load"),
        };
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        source.command(&flags).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_flags_and_the_command_line_goes_first() {
        let text = "work = \"handshake\"\ntarget = \"a:1\"\nca = \"ca.pem\"\nrate = 100\nexchange = true\nexpect_close = false\n\
                    server_name = [\"x.example=3\", \"y.example\"]\n";
        let read = |flags: &[&str]| {
            let Command::Handshake(args) = source(text, flags).unwrap() else {
                panic!("the work is handshake")
            };
            args
        };
        let plain = read(&[]);
        let client = &plain.handshakes.client;
        assert_eq!((client.target.as_str(), plain.handshakes.load.rate), ("a:1", Some(100)));
        assert_eq!(client.ca.as_deref(), Some(Path::new("/etc/load/ca.pem")));
        assert!(plain.exchange && !plain.expect_close);
        assert_eq!(client.server_name.len(), 2);
        assert_eq!(client.server_name[0].weight, 3);
        let other = read(&[
            "--find-capacity",
            "--insecure",
            "--server-name",
            "z.example",
            "--target=b:2",
        ]);
        let client = &other.handshakes.client;
        assert!(other.handshakes.load.find_capacity && other.handshakes.load.rate.is_none());
        assert!(client.insecure && client.ca.is_none());
        assert_eq!((client.server_name.len(), client.target.as_str()), (1, "b:2"));
    }

    #[test]
    fn what_goes_only_with_an_overridden_key_goes_with_it() {
        let capacity = built_in("capacity").unwrap();
        for flags in [["--rate", "5"], ["--ramp", "1..5/2"], ["--think-time", "5ms"]] {
            let common = ["--target", "a:1", "--insecure"];
            let Command::Handshake(args) = source(capacity, &[&common[..], &flags[..]].concat()).unwrap() else {
                panic!("the work is handshake")
            };
            assert!(!args.handshakes.load.find_capacity, "{flags:?}");
        }
        let other_name = "work = \"echo\"\nconcurrency = 7\n";
        let Command::Echo(args) = source(other_name, &["--target", "a:1", "--insecure"]).unwrap() else {
            panic!("the work is echo")
        };
        assert_eq!(args.load.connections, 7);
    }

    #[test]
    fn the_documented_scenario_is_legal() {
        let docs = include_str!("../../docs/perf.md");
        let example = docs.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let Command::Handshake(args) = source(example.unwrap(), &["--target", "a:1", "--insecure"]).unwrap() else {
            panic!("the work is handshake")
        };
        let personas = Personas::new(&args.handshakes.client, &args.mix, 1);
        assert!(personas.is_ok(), "{:?}", personas.err());
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let begin = "work = \"echo\"\ntarget = \"a:1\"\ninsecure = true\n";
        for (text, told) in [
            ("target = \"a:1\"\n".to_owned(), "mine.toml:1: `work` is missing"),
            (
                "\nwork = \"eco\"\n".to_owned(),
                "mine.toml:2: work: found \"eco\", expected one of handshake",
            ),
            ("work = 5\n".to_owned(), "mine.toml:1: work: found 5"),
            (
                format!("{begin}conections = 5\n"),
                "mine.toml:4: conections: unknown key, expected `connections` (the nearest)",
            ),
            (format!("{begin}mix = \"full\"\n"), "mine.toml:4: mix: unknown key"),
            (
                format!("{begin}duration = \"5 parsecs\"\n"),
                "mine.toml:4: duration: invalid value '5 parsecs'",
            ),
            (
                format!("{begin}rate = \"fast\"\n"),
                "mine.toml:4: rate: invalid value 'fast'",
            ),
            (format!("{begin}rate = 5\nramp = \"1..2/2\"\n"), "cannot be used with"),
            (
                format!("{begin}tls = [[\"1.2\"]]\n"),
                "mine.toml:4: tls: found a list, expected text",
            ),
            (
                format!("{begin}conections = false\n"),
                "mine.toml:4: conections: unknown key, expected `connections` (the nearest)",
            ),
            (format!("{begin}no_such = []\n"), "mine.toml:4: no_such: unknown key"),
            (format!("{begin}help = true\n"), "mine.toml:4: help: unknown key"),
            (
                format!("{begin}rate = true\n"),
                "mine.toml:4: rate: found true, expected text or a number",
            ),
            (
                format!("{begin}tls = false\n"),
                "mine.toml:4: tls: found false, expected text, a number, or a list",
            ),
            (
                format!("{begin}tls = []\n"),
                "mine.toml:4: tls: found an empty list, expected text, a number, or a list of them that is not empty",
            ),
            (
                format!("{begin}find_capacity = \"yes\"\n"),
                "mine.toml:4: find_capacity: found \"yes\", expected true or false",
            ),
            (
                format!("{begin}find_capacity = []\n"),
                "mine.toml:4: find_capacity: found an empty list, expected true or false",
            ),
            (format!("{begin}p99_max = \"5ms\"\n"), "--find-capacity"),
            (
                format!("{begin}[tls]\nversion = 1\n"),
                "mine.toml:4: tls: found a table",
            ),
            (format!("{begin}rate = \n"), "mine.toml:4: "),
            (format!("{begin}rate = 5\nrate = 6\n"), "mine.toml:5: duplicate key"),
            ("work = \"echo\"\n".to_owned(), "--target"),
        ] {
            let error = source(&text, &[]).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn built_in_scenarios_are_legal_and_say_what_they_are() {
        for (name, text) in BUILT_IN {
            let described = text.starts_with("description = \"");
            assert!(described, "{name}: its first line describes it");
            source(text, &["--target", "localhost:1", "--insecure"]).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(list().contains(name));
        }
        assert!(list().contains(
            "capacity                 The highest rate of full handshakes with p99 below 50 ms and no errors\n"
        ));
        assert!(built_in("no-such").unwrap_err().to_string().contains("full-handshakes"));
    }
}
