//! What holds for every text file of the repository: it is finished, and it works on another machine.

use super::{Finding, finding, lines_of, report, tracked_texts};

/// Written in two halves, here and below, so that this file keeps its own rules.
const MARKERS: [&str; 3] = [concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];
const REGISTRY_HOSTS: [&str; 12] = [
    concat!("static.", "crates.io"),
    concat!("index.", "crates.io"),
    concat!("/", "/crates.io"),
    concat!("static.", "rust-lang.org"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("deb.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("npm", "js.org"),
    concat!("proxy.", "golang.org"),
    concat!("index", "-url"),
    concat!("replace", "-with"),
];
const PRIVATE_FOLDERS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
const CRATES_INDEX: &str = concat!("\"registry+https", "://github.com/rust-lang/crates.io-index\"");

fn text_is_finished_and_portable(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut add = |what: String| findings.push(finding(path, number, what));
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if let Some(marker) = line.split(|c| !is_word(c)).find(|word| MARKERS.contains(word)) {
            add(format!(
                "`{marker}`: do it, or open an issue and write down why it is as it is"
            ));
        }
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(**host)) {
            add(format!(
                "`{host}`: name the package and let the user's own settings say where it comes from"
            ));
        }
        for folder in PRIVATE_FOLDERS {
            let mut starts = line.match_indices(folder).map(|(at, _)| line[..at].chars().next_back());
            if starts.any(|before| !before.is_some_and(|c| is_word(c) || "./-})~*".contains(c))) {
                add(format!(
                    "`{folder}…` exists on one machine: write a path relative to the repository or a temporary folder"
                ));
            }
        }
        if path.ends_with("Cargo.lock")
            && line
                .strip_prefix("source = ")
                .is_some_and(|source| source != CRATES_INDEX)
        {
            add("not from the crates.io index: a mirror or a git dependency has crept in, restore the source".into());
        }
    }
    findings
}

#[test]
fn tracked_files_hold_no_markers_registry_hosts_or_private_paths() {
    let findings = tracked_texts()
        .iter()
        .flat_map(|(path, text)| text_is_finished_and_portable(path, text))
        .collect();
    report(findings);
}

#[test]
fn the_text_rule_sees_markers_hosts_and_private_paths() {
    let lines = |path: &str, text: &str| lines_of(&text_is_finished_and_portable(path, text));
    assert_eq!(lines("a.md", &format!("fine\n// {}: later\n", MARKERS[0])), [2]);
    assert_eq!(lines("a.md", &format!("mktemp a.{}{}", MARKERS[1], MARKERS[1])), [0; 0]);
    for host in REGISTRY_HOSTS {
        assert_eq!(lines("scripts/setup", &format!("curl https:{host}/a")), [1], "{host}");
    }
    for folder in PRIVATE_FOLDERS {
        assert_eq!(
            lines("a.rs", &format!("const A: &str = \"{folder}a\";")),
            [1],
            "{folder}"
        );
        assert_eq!(lines("a.sh", &format!("ls {folder}a")), [1], "{folder}");
        assert_eq!(
            lines("a.sh", &format!("ls $a{folder}a ./b{folder}a")),
            [0; 0],
            "{folder}"
        );
    }
    let mirror = CRATES_INDEX.replace("github.com", "mirror.example");
    assert_eq!(
        lines("Cargo.lock", &format!("source = {CRATES_INDEX}\nsource = {mirror}\n")),
        [2]
    );
}

fn scripts_stop_at_the_first_failure(path: &str, text: &str, executable: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if text.starts_with("#!") && !executable {
        findings.push(finding(
            path,
            1,
            "starts with #! but cannot be executed: `git update-index --chmod=+x`",
        ));
    }
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("#!") && first.ends_with("bash") && !text.lines().any(|line| line == "set -euo pipefail") {
        findings.push(finding(
            path,
            1,
            "a script goes on after a failure: add a line `set -euo pipefail`",
        ));
    }
    findings
}

#[test]
fn scripts_can_be_executed_and_stop_at_the_first_failure() {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = |path: &str| std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o100 != 0);
    let texts = tracked_texts();
    let check = |(path, text): &(String, String)| scripts_stop_at_the_first_failure(path, text, executable(path));
    report(
        texts
            .iter()
            .filter(|(path, _)| !path.ends_with(".rs"))
            .flat_map(check)
            .collect(),
    );
}

#[test]
fn the_script_rule_sees_a_script_that_goes_on_after_a_failure() {
    let good = "#!/usr/bin/env bash\nset -euo pipefail\n";
    let lines = |text: &str, executable| lines_of(&scripts_stop_at_the_first_failure("scripts/a", text, executable));
    assert_eq!(lines(good, true), [0; 0]);
    assert_eq!(lines(good, false), [1]);
    assert_eq!(lines("#!/usr/bin/env bash\n# set -euo pipefail\n", true), [1]);
    assert_eq!(lines("plain text", false), [0; 0]);
}

#[test]
fn the_toolchain_is_named_exactly() {
    let text = std::fs::read_to_string("rust-toolchain.toml").expect("the repository has a rust-toolchain.toml");
    assert!(
        text.lines().any(|line| line == "channel = \"1.95.0\""),
        "rust-toolchain.toml:1: write `channel = \"1.95.0\"`: a shorter version does not resolve where nothing can be downloaded"
    );
}
