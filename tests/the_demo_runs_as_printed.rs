//! `ringlock` without an argument: what it prints works as printed, and it leaves nothing behind.

use crate::support::*;

use std::net::TcpListener;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// One test, so that two demos do not look for a port at the same time.
#[test]
fn the_lines_that_the_demo_prints_work_and_ctrl_c_ends_it() {
    // Whether we hold it or somebody else does: the port is taken.
    let taken = TcpListener::bind("127.0.0.1:8443");
    let demo = Program::start(env!("CARGO_BIN_EXE_ringlock"), &[] as &[&str]);
    demo.wait_for("Ctrl-C");
    let banner = demo.text();
    assert!(banner.contains("Ringlock") && banner.contains("TLS"), "{banner}");
    let lines: Vec<&str> = banner.lines().map(str::trim).collect();
    let curl: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("curl ")).collect();
    let openssl = lines.iter().find(|line| line.starts_with("openssl s_client "));
    let openssl = openssl.unwrap_or_else(|| panic!("{banner}"));
    assert!(!banner.contains(":8443"), "that port is taken: {banner}");

    let folder: PathBuf = curl[0]
        .split_whitespace()
        .find(|word| word.ends_with("/ca.pem"))
        .map(|word| PathBuf::from(word).parent().unwrap().to_owned())
        .unwrap_or_else(|| panic!("{banner}"));
    assert!(folder.is_dir());

    eventually("the first line to work", || {
        let ran = run("bash", &["-c", curl[0]], b"");
        ran.stdout.contains("Hello from behind Ringlock").then_some(())
    });
    for line in &curl {
        let ran = run("bash", &["-c", &format!("{line} --fail --silent --show-error")], b"").ok();
        assert_eq!(ran.stderr, "", "{line}");
    }
    let ran = run("bash", &["-c", openssl], b"").ok();
    assert!(ran.stdout.contains("Verify return code: 0 (ok)"), "{ran:?}");
    let metrics = lines
        .iter()
        .find_map(|line| line.strip_prefix("metrics "))
        .unwrap()
        .trim();
    let ran = run("curl", &["--fail", "--silent", metrics], b"").ok();
    let read = Exposition::parse(&ran.stdout, Format::Prometheus).unwrap();
    assert!(read.sum("ringlock_handshakes_total", &[]) >= 3.0);
    let ready = lines
        .iter()
        .find_map(|line| line.strip_prefix("ready? "))
        .unwrap()
        .trim();
    run("curl", &["--fail", "--silent", ready], b"").ok().says("serving");

    let pid = Pid::from_raw(i32::try_from(demo.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ran = demo.finish();
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(!folder.exists(), "its folder goes with it");
    drop(taken);
}
