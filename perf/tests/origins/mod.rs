//! The origin when there is too little of something.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::origin;

const PATIENCE: Duration = Duration::from_secs(60);

/// Descriptors of the process.
const DESCRIPTORS: usize = 20;

#[test]
fn an_origin_without_descriptors_serves_the_next_when_others_have_ended() {
    let limited = format!("ulimit -n {DESCRIPTORS}; exec \"$0\" origin --listen 127.0.0.1:0 --mode echo");
    let mut program = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_ringlock-perf")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(program.stderr.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    let address = said.trim().strip_prefix("listening on ").unwrap();
    let mut connections: Vec<TcpStream> = (0..2 * DESCRIPTORS)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let answered = |connection: &mut TcpStream| {
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(b"x").unwrap();
        connection.read_exact(&mut [0]).unwrap();
    };
    answered(&mut connections[0]);
    let mut late = connections.pop().unwrap();
    drop(connections);
    answered(&mut late);
    drop(late);
    kill_process(Pid::from_child(&program), Signal::TERM).unwrap();
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["accepted"], 2 * DESCRIPTORS, "{report}");
    assert!(report["accept_pauses"].as_u64().unwrap() > 0, "{report}");
}

/// What the process has had at most, in bytes.
fn memory_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
}

#[test]
fn many_requests_in_one_piece_are_answered_without_keeping_the_answers() {
    const REQUESTS: u64 = 300;
    const BYTES: u64 = 1 << 20;
    let origin = origin("http", &["--bytes", "1MiB"]);
    let before = memory_peak();
    let mut client = TcpStream::connect(&origin.address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
        .write_all("GET / HTTP/1.1\r\n\r\n".repeat(REQUESTS as usize).as_bytes())
        .unwrap();
    let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
    while read < REQUESTS * BYTES {
        let length = client.read(&mut buffer).unwrap();
        assert!(length > 0, "closed after {read} bytes");
        read += length as u64;
    }
    let grown = memory_peak() - before;
    assert!(grown < REQUESTS * BYTES / 3, "{grown} bytes more");
    drop(client);
    let counts = origin.finish();
    let answer = counts.sent / REQUESTS;
    assert!(
        counts.sent.is_multiple_of(REQUESTS) && (BYTES..BYTES + 1024).contains(&answer),
        "{counts:?}"
    );
}
