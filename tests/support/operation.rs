//! What tests of operating the gateway share.

use std::io::{self, Read, Write};
use std::time::Duration;

use rustix::process::Signal;
use rustls::HandshakeKind;

use super::{Client, Connection, End, Gateway, Program, SITE, eventually};

/// What `openssl` is told to connect to the gateway as its clients do: by the site's name, trusting its CA. These flags follow.
pub(crate) fn s_client_arguments(gateway: &Gateway, flags: &[&str]) -> Vec<String> {
    let (address, ca) = (gateway.address.to_string(), gateway.ca.file());
    let fixed = ["s_client", "-connect", &address, "-servername", SITE, "-CAfile"];
    let all = fixed
        .into_iter()
        .chain([ca.to_str().unwrap()])
        .chain(flags.iter().copied());
    all.map(str::to_owned).collect()
}

/// What `openssl` says of a connection to an echoing origin, which succeeds.
#[track_caller]
pub(crate) fn s_client_echo(gateway: &Gateway, flags: &[&str]) -> String {
    let mut client = Program::start("openssl", &s_client_arguments(gateway, flags));
    client.send(b"there and back\n");
    client.wait_for("there and back");
    client.finish().ok().says("Verify return code: 0 (ok)").text()
}

/// A whole connection: handshake, a message to an echoing origin and back, the end both ways.
pub(crate) fn try_exchange(client: &Client<'_>) -> io::Result<()> {
    try_exchange_over(&mut client.try_connect()?)
}

/// The same over a connection whose handshake is complete.
pub(crate) fn try_exchange_over(connection: &mut Connection) -> io::Result<()> {
    let message = b"there and back";
    connection.try_send(message)?;
    let mut back = Vec::new();
    let mut buffer = [0; 64];
    while back.len() < message.len() {
        match connection.read(&mut buffer)? {
            Ok(length) => back.extend_from_slice(&buffer[..length]),
            Err(end) => return Err(io::Error::other(format!("the stream ended: {end:?}"))),
        }
    }
    if back != message {
        return Err(io::Error::other(format!("other bytes came back: {back:?}")));
    }
    connection.tls.send_close_notify();
    connection.flush()?;
    match connection.read(&mut buffer)? {
        Err(End::CloseNotify) => Ok(()),
        Err(end) => Err(io::Error::other(format!("not the end it should be: {end:?}"))),
        Ok(length) => Err(io::Error::other(format!("{length} bytes after the last"))),
    }
}

/// The same, which has to succeed.
#[track_caller]
pub(crate) fn exchange(gateway: &Gateway) {
    if let Err(error) = try_exchange(&Client::new(gateway)) {
        panic!("{error}\n{}", gateway.log());
    }
}

/// A connection in which a message goes there and comes back; how its handshake was done.
#[track_caller]
pub(crate) fn handshake_kind(client: &Client<'_>) -> HandshakeKind {
    let mut connection = client.connect();
    echoes(&mut connection, b"there and back");
    let kind = connection.tls.handshake_kind().expect("the handshake is complete");
    assert!(connection.finish().is_empty());
    kind
}

/// A message goes there and comes back.
#[track_caller]
pub(crate) fn echoes(connection: &mut Connection, message: &[u8]) {
    connection.send(message);
    assert_eq!(connection.receive(message.len()), message);
}

/// Sends SIGHUP, and waits until the new configuration is in force.
#[track_caller]
pub(crate) fn reload(gateway: &Gateway) {
    let before = gateway.metrics().sum("ringlock_configuration_epoch", &[]);
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, "ringlock_configuration_epoch", &[], before + 1.0);
}

/// Waits until a metric has this value.
#[track_caller]
pub(crate) fn wait_for_metric(gateway: &Gateway, name: &str, labels: &[(&str, &str)], value: f64) {
    eventually(&format!("{name}{labels:?} to be {value}"), || {
        (gateway.metrics().sum(name, labels) == value).then_some(())
    });
}

/// User and system time of a process so far, all threads.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let behind_name = stat.rsplit_once(')').expect("the name is in parentheses").1;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|&field| fields[field].parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Sends a GET request with these further header lines (each with its CRLF); returns head and body of the answer.
#[track_caller]
pub(crate) fn raw_request(mut stream: impl Read + Write, path: &str, headers: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head.to_owned(), body.to_owned())
}
