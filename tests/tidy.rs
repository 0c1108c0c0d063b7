//! The rules of the house as tests. Each rule is a function from one file to what is wrong with it, and every finding
//! names the place and what to write instead. Beside each rule stands a snippet that breaks it: a rule that cannot
//! fail guards nothing.
//!
//! Rules see Rust as tokens, so that comments and strings can say what code may not.

mod code;
mod documents;
mod imports;
mod source;
mod texts;

use source::RustFile;
use std::fmt;

/// Something that a rule objects to: the place, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding {
        path: path.to_owned(),
        line,
        what: what.into(),
    }
}

/// Every text file that git tracks or would add: path from the root, content.
fn tracked_texts() -> Vec<(String, String)> {
    let mut git = std::process::Command::new("git");
    // A checkout that belongs to somebody else (a container's volume) is still the one under test.
    git.args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = git
        .output()
        .expect("git lists the files that the rules are for: install it");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the rules need a git checkout, and `git ls-files` says: {complaint}"
    );
    let paths = String::from_utf8(output.stdout).expect("the paths of this repository are UTF-8");
    // Removed but not yet committed, or not text: nothing to read.
    let read = |path: &str| Some((path.to_owned(), std::fs::read_to_string(path).ok()?));
    paths.split_terminator('\0').filter_map(read).collect()
}

fn check_rust(rule: impl Fn(&RustFile) -> Vec<Finding>) {
    let texts = tracked_texts();
    let files: Vec<_> = texts
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(path, text)| RustFile::new(path, text))
        .collect();
    assert!(
        files.iter().any(|file| file.path == "src/lib.rs"),
        "the rules run at the root of the repository"
    );
    report(files.iter().flat_map(rule).collect());
}

fn report(findings: Vec<Finding>) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(
        lines.is_empty(),
        "{} of the house's rules are broken:\n{}\n",
        lines.len(),
        lines.join("\n")
    );
}

fn lines_of(findings: &[Finding]) -> Vec<usize> {
    findings.iter().map(|finding| finding.line).collect()
}

/// The lines in which `rule` objects to a snippet.
fn breaks(rule: impl Fn(&RustFile) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    lines_of(&rule(&RustFile::new(path.to_owned(), text.to_owned())))
}

/// The files beside `tests/main.rs` that it does not name. They would never run.
fn tests_left_out(main: &str, paths: &[&str]) -> Vec<Finding> {
    let beside = paths.iter().filter_map(|path| {
        let name = path.strip_prefix("tests/")?.strip_suffix(".rs")?;
        (name != "main" && !name.contains('/')).then_some((path, name))
    });
    let lost = beside.filter(|(_, name)| !main.lines().any(|line| line == format!("mod {name};")));
    lost.map(|(path, name)| finding(path, 1, format!("add `mod {name};` to tests/main.rs, or it never runs")))
        .collect()
}

#[test]
fn every_test_file_runs() {
    let texts = tracked_texts();
    let paths: Vec<_> = texts.iter().map(|(path, _)| path.as_str()).collect();
    report(tests_left_out(include_str!("main.rs"), &paths));
}

#[test]
fn the_rule_about_test_files_sees_one_that_is_left_out() {
    let paths = ["tests/main.rs", "tests/a.rs", "tests/b.rs", "tests/a/c.rs", "src/d.rs"];
    let findings = tests_left_out("mod a;\n// mod b;\n", &paths);
    assert_eq!(
        findings,
        [finding(
            "tests/b.rs",
            1,
            "add `mod b;` to tests/main.rs, or it never runs"
        )]
    );
}
