//! What Rust code may not do, and where.

use super::source::RustFile;
use super::{Finding, breaks, check_rust, finding};

/// Files in which `unsafe` may stand. Any other needs a line in ARCHITECTURE.md that names the file and the word.
const UNSAFE_FILES: [&str; 5] = [
    "src/net/uring.rs",
    "src/net/buffer.rs",
    "src/crypto/suspend.rs",
    "src/crypto/multibuffer/library.rs",
    "hsm/faulty/src/entry.rs",
];

/// Folders whose code is given time, bytes and randomness, and never fetches them.
const PURE_TOWERS: [&str; 4] = ["src/proxy", "src/http", "src/tls", "src/identity"];

/// A file that passes the guide of 700 lines holds two subjects; this is where it stops.
const FILE_LINES_MAX: usize = 900;

fn unsafe_has_its_files(file: &RustFile, architecture: &str) -> Vec<Finding> {
    let named = |line: &str| line.contains("unsafe") && line.contains(&format!("`{}`", file.path));
    if UNSAFE_FILES.contains(&file.path.as_str()) || architecture.lines().any(named) {
        return Vec::new();
    }
    let what = "`unsafe` outside its files: find a safe call (rustix, bytemuck, std), or give the reason in \
                ARCHITECTURE.md in a line that names this file and the word unsafe";
    file.code
        .lines_of(&["unsafe"])
        .map(|line| finding(&file.path, line, what))
        .collect()
}

fn unsafe_says_why_it_is_sound(file: &RustFile) -> Vec<Finding> {
    let what = "`unsafe` without its reason: put `// SAFETY: …` above, saying what makes it sound and why safe code will not do";
    let blocks = file
        .code
        .lines_of(&["unsafe", "{"])
        .chain(file.code.lines_of(&["unsafe", "impl"]));
    blocks
        .filter(|&line| !file.comment_above(line).contains("SAFETY:"))
        .map(|line| finding(&file.path, line, what))
        .collect()
}

#[test]
fn unsafe_stands_only_in_its_files_and_says_why() {
    let architecture = std::fs::read_to_string("ARCHITECTURE.md").unwrap_or_default();
    check_rust(|file| unsafe_has_its_files(file, &architecture));
    check_rust(unsafe_says_why_it_is_sound);
}

#[test]
fn the_unsafe_rules_see_a_block_out_of_place_and_one_without_reason() {
    let bare = "fn f() {\n    let x =\n        unsafe { g() };\n}\nunsafe impl Send for X {}\n";
    let good = "fn f() {\n    // SAFETY: g asks for nothing.\n    let x =\n        unsafe { g() };\n}\n";
    let place = |path: &str, architecture: &str| breaks(|file| unsafe_has_its_files(file, architecture), path, bare);
    assert_eq!(place("src/worker.rs", ""), [3, 5]);
    assert_eq!(place("src/worker.rs", "`src/net/sim.rs` holds unsafe code"), [3, 5]);
    assert_eq!(
        place("src/worker.rs", "`src/worker.rs` holds unsafe code because …"),
        [0; 0]
    );
    assert_eq!(place("src/net/uring.rs", ""), [0; 0]);
    assert_eq!(breaks(unsafe_says_why_it_is_sound, "src/net/uring.rs", bare), [3, 5]);
    assert_eq!(breaks(unsafe_says_why_it_is_sound, "src/net/uring.rs", good), [0; 0]);
    assert_eq!(
        breaks(
            |file| unsafe_has_its_files(file, ""),
            "src/a.rs",
            "#![deny(unsafe_code)] // unsafe"
        ),
        [0; 0]
    );
}

/// What the pure towers may not name, and what takes its place.
const IMPURE: [(&[&str], &str); 24] = [
    (&["TcpStream"], "emit an `Output`: the driver owns the sockets"),
    (&["TcpListener"], "emit an `Output`: the driver owns the sockets"),
    (&["UdpSocket"], "emit an `Output`: the driver owns the sockets"),
    (&["UnixStream"], "emit an `Output`: the driver owns the sockets"),
    (&["UnixListener"], "emit an `Output`: the driver owns the sockets"),
    (&["OwnedFd"], "a session has a `Side`, only drivers have descriptors"),
    (&["RawFd"], "a session has a `Side`, only drivers have descriptors"),
    (
        &["std", "fs"],
        "take the bytes as an argument: whoever builds the snapshot reads the files",
    ),
    (
        &["std", "thread"],
        "emit an operation: server and control start the threads",
    ),
    (&["std", "env"], "take the setting from the snapshot"),
    (
        &["std", "process"],
        "return an error: the caller decides about the process",
    ),
    (&["Instant", "now"], "take `now: Instant` as an argument"),
    (&["SystemTime", "now"], "take the time as an argument"),
    (&["UnixTime", "now"], "take the time as an argument"),
    (&["SystemRandom"], "take the provider's random source from `crypto`"),
    (&["OsRng"], "take the provider's random source from `crypto`"),
    (&["rand"], "take the provider's random source from `crypto`"),
    (&["getrandom"], "take the provider's random source from `crypto`"),
    (&["RandomState"], "its order changes from run to run: use a BTreeMap"),
    (&["tokio"], "only `control` may use tokio"),
    (&["mio"], "only drivers talk to the kernel"),
    (&["io_uring"], "only drivers talk to the kernel"),
    (&["rustix"], "only drivers talk to the kernel"),
    (&["libc"], "only drivers talk to the kernel"),
];

fn sessions_fetch_nothing(file: &RustFile) -> Vec<Finding> {
    if !in_pure_tower(&file.path) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for path in file.code.paths.iter().filter(|path| !file.code.is_test(path.line)) {
        for (name, instead) in IMPURE {
            if path.segments.windows(name.len()).any(|found| found == name) {
                findings.push(finding(
                    &file.path,
                    path.line,
                    format!("`{}` in a pure tower: {instead}", name.join("::")),
                ));
            }
        }
    }
    findings
}

/// Clippy resolves what text cannot (aliases, method calls), so each tower switches its lint on.
fn towers_switch_the_lint_on(file: &RustFile) -> Vec<Finding> {
    let attribute = "#![cfg_attr(not(test), deny(clippy::disallowed_methods))]";
    let is_root = PURE_TOWERS
        .iter()
        .any(|tower| file.path == format!("{tower}/mod.rs") || file.path == format!("{tower}.rs"));
    if !is_root || file.text.lines().any(|line| line == attribute) {
        return Vec::new();
    }
    vec![finding(
        &file.path,
        1,
        format!("a pure tower starts with `{attribute}`, below its docs"),
    )]
}

fn in_pure_tower(path: &str) -> bool {
    PURE_TOWERS.iter().any(|tower| {
        path.strip_prefix(tower)
            .is_some_and(|rest| rest.starts_with(['/', '.']))
    })
}

#[test]
fn sessions_name_no_socket_file_thread_clock_or_random_source() {
    check_rust(sessions_fetch_nothing);
    check_rust(towers_switch_the_lint_on);
}

#[test]
fn the_purity_rules_see_what_a_session_fetches() {
    let impure = |path: &str, text: &str| breaks(sessions_fetch_nothing, path, text);
    assert_eq!(
        impure(
            "src/proxy/session.rs",
            "fn f() {\n    let now = std::time::Instant::now();\n}"
        ),
        [2]
    );
    assert_eq!(
        impure(
            "src/http/mod.rs",
            "use std::{\n    fmt,\n    net::{SocketAddr, TcpStream},\n    fs,\n};"
        ),
        [3, 4]
    );
    assert_eq!(impure("src/identity/mod.rs", "use std::thread;"), [1]);
    assert_eq!(
        impure("src/tls/tickets.rs", "let r = aws_lc_rs::rand::SystemRandom::new();"),
        [1, 1]
    );
    assert_eq!(impure("src/tls/records.rs", "rustix::net::send();"), [1]);
    assert_eq!(impure("src/tls.rs", "type S = UnixStream;"), [1]);

    assert_eq!(impure("src/crypto/suspend.rs", "rustix::mm::madvise();"), [0; 0]);
    assert_eq!(impure("src/net/epoll.rs", "std::time::Instant::now();"), [0; 0]);
    assert_eq!(
        impure(
            "src/proxy/relay.rs",
            "/// Not Instant::now().\nuse std::net::SocketAddr;"
        ),
        [0; 0]
    );
    let in_test = "#[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}\nfn g() { Instant::now(); }";
    assert_eq!(impure("src/proxy/relay.rs", in_test), [5]);

    let lint = |path: &str, text: &str| breaks(towers_switch_the_lint_on, path, text);
    assert_eq!(lint("src/tls/mod.rs", "//! TLS.\n\nmod a;\n"), [1]);
    assert_eq!(
        lint(
            "src/tls/mod.rs",
            "//! TLS.\n#![cfg_attr(not(test), deny(clippy::disallowed_methods))]\n"
        ),
        [0; 0]
    );
    assert_eq!(lint("src/tls/records.rs", "//! Records."), [0; 0]);
}

/// Token sequences that may not stand in shipped code, or (`true`) in tests either, and what takes their place.
const UNWELCOME: [(&[&str], bool, &str); 5] = [
    (
        &[".", "unwrap", "(", ")"],
        false,
        "say why it holds: `expect(\"why\")`, or return the error",
    ),
    (
        &[".", "unwrap_err", "(", ")"],
        false,
        "say why it holds: `expect_err(\"why\")`, or return the error",
    ),
    (
        &["todo", "!"],
        true,
        "write it, or leave the feature out and refuse it by name",
    ),
    (
        &["unimplemented", "!"],
        true,
        "write it, or leave the feature out and refuse it by name",
    ),
    (
        &["dbg", "!"],
        true,
        "use `tracing` in the program and an assertion in a test",
    ),
];

fn nothing_unwelcome(file: &RustFile) -> Vec<Finding> {
    let shipped = file.is_shipped();
    let mut findings = Vec::new();
    for (tokens, in_tests_too, instead) in UNWELCOME {
        for line in file.code.lines_of(tokens) {
            if in_tests_too || (shipped && !file.code.is_test(line)) {
                findings.push(finding(&file.path, line, format!("`{}`: {instead}", tokens.concat())));
            }
        }
    }
    findings
}

fn files_hold_one_subject(file: &RustFile) -> Vec<Finding> {
    let lines = file.text.lines().count();
    if !file.is_shipped() || lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    let what =
        format!("{lines} lines: a file of more than 700 holds two subjects, at {FILE_LINES_MAX} it has to be parted");
    vec![finding(&file.path, lines, what)]
}

#[test]
fn shipped_code_neither_unwraps_nor_leaves_gaps() {
    check_rust(nothing_unwelcome);
    check_rust(files_hold_one_subject);
}

#[test]
fn the_shape_rules_see_unwraps_gaps_and_long_files() {
    let shape = |path: &str, text: &str| breaks(nothing_unwelcome, path, text);
    assert_eq!(shape("src/a.rs", "fn f() {\n    g()\n        .unwrap();\n}"), [3]);
    assert_eq!(shape("hsm/src/a.rs", "fn f() { g().unwrap_err(); }"), [1]);
    assert_eq!(
        shape("tests/a.rs", "fn f() { g().unwrap(); todo!() }"),
        [1],
        "only the second"
    );
    assert_eq!(
        shape("src/a.rs", "fn f() { unimplemented!(\"later\") }\nfn g() { dbg!(1); }"),
        [1, 2]
    );
    assert_eq!(
        shape(
            "src/a.rs",
            "#[test]\nfn f() { g().unwrap(); }\nfn h() { g().unwrap(); }"
        ),
        [3]
    );
    assert_eq!(
        shape(
            "src/a.rs",
            "// g().unwrap()\nfn f() { g().unwrap_or(1); let todo = \"dbg!(\"; }"
        ),
        [0; 0]
    );

    let lines = |path: &str, count: usize| breaks(files_hold_one_subject, path, &"\n".repeat(count));
    assert_eq!(lines("src/a.rs", 901), [901]);
    assert_eq!(lines("src/a.rs", 900), [0; 0]);
}
