//! The program from outside: its exit status, and what it prints and writes when.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use ringlock::timestamp::Timestamp;
use ringlock_perf::args::Io;

use crate::relay::{Fault, Relay};
use crate::{drive, origin};

fn program(arguments: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringlock-perf"));
    program.args(arguments.split_whitespace());
    program
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_flag_that_cannot_be_used_is_exit_status_1_and_help_is_0() {
    let latin = OsStr::from_bytes(b"caf\xe9");
    let scenario = "run full-handshakes --insecure --target 127.0.0.1:1";
    for (mut program, told) in [
        (program("handshake --no-such"), "--no-such"),
        (program("handshake --connections many"), "--connections"),
        (program(""), "Usage"),
        (program(&format!("{scenario} --no-such")), "--no-such"),
        (
            program("origin --listen 127.0.0.1:0 --mode echo --bytes 5"),
            "--bytes: found `5`",
        ),
    ] {
        let (status, printed, complained) = said(&program.output().unwrap());
        assert_eq!((status, printed.as_str()), (Some(1), ""), "{complained}");
        assert!(complained.contains(told), "{complained}");
    }
    assert_eq!(program("scenarios").arg(latin).status().unwrap().code(), Some(1));
    for help in ["--help", "handshake --help", "--version"] {
        let (status, printed, complained) = said(&program(help).output().unwrap());
        assert_eq!((status, complained.as_str()), (Some(0), ""), "{help}");
        assert!(printed.contains("ringlock-perf"), "{printed}");
    }
}

#[test]
fn a_page_that_cannot_be_opened_is_said_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("no-such").join("page.html");
    let relay = Relay::start("127.0.0.1:1", Fault::None);
    let mut run = program(&format!("handshake --target {} --insecure --html", relay.address));
    let (status, printed, complained) = said(&run.arg(page).output().unwrap());
    assert_eq!((status, printed.as_str()), (Some(1), ""));
    assert!(
        complained.contains("--html: found `") && complained.contains("no-such"),
        "{complained}"
    );
    assert_eq!(relay.finish().handshakes, 0);
}

#[test]
fn a_result_is_printed_even_if_its_page_cannot_be_written() {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let flags = format!(
        "handshake --target {} --insecure --warmup 0s --connections 1 --count 2 --duration 30s --json",
        relay.address
    );
    let (status, printed, complained) = said(&program(&format!("{flags} --html /dev/full")).output().unwrap());
    assert_eq!(status, Some(1), "{complained}");
    assert!(complained.contains("write /dev/full"), "{complained}");
    let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert!(result["units"].as_f64().unwrap() >= 2.0, "{printed}");

    // An argument that is no UTF-8 is no reason to lose a result.
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join(OsStr::from_bytes(b"caf\xe9.html"));
    let (status, printed, complained) = said(&program(&format!("{flags} --html")).arg(&page).output().unwrap());
    assert_eq!(status, Some(0), "{complained}");
    assert!(printed.contains("caf\u{fffd}.html"), "{printed}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("<!DOCTYPE html>"));
    relay.finish();
    origin.finish();
}

#[test]
fn a_run_is_dated_by_its_begin() {
    let origin = origin("discard", &[]);
    let relay = Relay::start(&origin.address, Fault::None);
    let before = Timestamp::now();
    let report = drive(Io::Auto, &relay, "handshake --connections 1 --duration 2s").unwrap();
    let latest = Timestamp(Timestamp::now().0 - 2);
    let began = report.setting.began;
    // Times of one length are in the order of their text.
    assert!(before.to_string() <= began && began <= latest.to_string(), "{began}");
    relay.finish();
    origin.finish();
}
