//! Documents: whoever follows a link arrives, and every page can be found.

use super::{Finding, finding, report, tracked_texts};
use std::collections::BTreeSet;

/// Relative links of a Markdown file and file paths in its inline code, outside fenced blocks: line, target, whether
/// it is a link.
fn references(text: &str) -> Vec<(usize, String, bool)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (index, piece) in line.split('`').enumerate() {
            if index % 2 == 1 {
                let folders = [
                    "src/", "hsm/", "perf/", "tests/", "benches/", "scripts/", "docs/", "fuzz/",
                ];
                let plain = piece.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
                let is_file = piece.rsplit('/').next().is_some_and(|name| name.contains('.'));
                if plain && is_file && folders.iter().any(|folder| piece.starts_with(folder)) {
                    found.push((number, piece.to_owned(), false));
                }
            }
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number, target.to_owned(), true));
            }
        }
    }
    found
}

/// The path that a link in `document` leads to, relative to the root of the repository.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn documents_lead_somewhere(documents: &[(String, String)], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut linked = BTreeSet::new();
    for (path, text) in documents {
        for (line, target, is_link) in references(text) {
            let resolved = if is_link {
                resolve(path, &target)
            } else {
                target.clone()
            };
            if !exists(&resolved) {
                findings.push(finding(
                    path,
                    line,
                    format!("`{target}` is not there: correct the path or take it out"),
                ));
            }
            if is_link && (path == "README.md" || path == "docs/README.md") {
                linked.insert(resolved);
            }
        }
    }
    let has_readme = documents.iter().any(|(path, _)| path == "README.md");
    for (path, _) in documents
        .iter()
        .filter(|(path, _)| has_readme && path.starts_with("docs/"))
    {
        if !linked.contains(path) {
            findings.push(finding(
                path,
                1,
                "nobody finds this page: link it from README.md or docs/README.md",
            ));
        }
    }
    findings
}

#[test]
fn documents_are_linked_and_their_links_resolve() {
    let documents: Vec<_> = tracked_texts()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".md"))
        .collect();
    report(documents_lead_somewhere(&documents, |path| {
        std::path::Path::new(path).exists()
    }));
}

#[test]
fn the_document_rule_sees_dead_links_and_lost_pages() {
    let readme =
        "[a](docs/a.md#how) `src/gone.rs` [b](docs/gone.md)\n```\n[c](nowhere.md)\n```\n[d](https://example.com)\n";
    let page = "[up](../README.md)\n[beside](b.md)\n";
    let documents = [("README.md", readme), ("docs/a.md", page), ("docs/lost.md", "")];
    let documents = documents.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let there = ["README.md", "docs/a.md", "docs/lost.md"];
    let findings = documents_lead_somewhere(&documents, |path| there.contains(&path));
    let places: Vec<_> = findings
        .iter()
        .map(|finding| (finding.path.as_str(), finding.line))
        .collect();
    assert_eq!(
        places,
        [
            ("README.md", 1),
            ("README.md", 1),
            ("docs/a.md", 2),
            ("docs/lost.md", 1)
        ]
    );
}
