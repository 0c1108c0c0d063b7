//! One line for each connection that ended, with everything that an operator asks for, and nothing that is secret.

use crate::support::*;

use std::collections::BTreeSet;
use std::io::Write;

use rustix::process::Signal;
use rustls::NamedGroup;
use serde_json::Value;

both_drivers!(
    a_connection_is_one_line_with_every_field,
    failures_have_a_cause_in_plain_words,
    only_failures_are_logged_where_only_failures_are_wanted,
    nothing_is_logged_where_nothing_is_wanted,
    a_share_of_the_good_ends_is_logged,
    odd_bytes_in_the_name_break_no_line,
    the_log_file_is_reopened,
    no_secret_is_logged,
);

fn a_connection_is_one_line_with_every_field(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls("alpn = [\"h2\"]").start();
    let mut client = Client::new(&gateway)
        .alpn(&["h2"])
        .groups(&[NamedGroup::X25519])
        .connect();
    client.send(&pattern(1000));
    client.receive(1000);
    let peer = client.stream.local_addr().unwrap().to_string();
    assert!(client.finish().is_empty());
    let line = gateway.wait_for_cause("finished");
    for (field, value) in [
        ("level", "INFO".into()),
        ("listener", "edge".into()),
        ("peer", Value::from(peer)),
        ("sni", SITE.into()),
        ("alpn", "h2".into()),
        ("version", "1.3".into()),
        ("group", "X25519".into()),
        ("resumed", false.into()),
        ("upstream", origin.address().to_string().into()),
        ("received", 1000.into()),
        ("sent", 1000.into()),
        ("cause_label", "finished".into()),
        ("fault", "none".into()),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["suite"].as_str().unwrap().starts_with("TLS_"), "{line}");
    assert!(line["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
    let at = line["timestamp"].as_str().unwrap();
    assert!(at.len() >= 20 && at.ends_with('Z') && at.contains('T'), "{line}");
    let log = gateway.stop();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
    assert_eq!(log.matches("\"message\":\"connection\"").count(), 1, "{log}");
}

#[track_caller]
fn expect_cause(gateway: &Gateway, cause: &str, label: &str, fault: &str) {
    let line = gateway.wait_for_cause(cause);
    assert_eq!(line["cause_label"], label, "{line}");
    assert_eq!(line["fault"], fault, "{line}");
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
}

fn failures_have_a_cause_in_plain_words(io: Io) {
    let gateway = Setup::new(io, &[free_address()]).tls("groups = [\"X25519\"]").start();
    let address = gateway.address.to_string();
    let openssl = |more: &[&str]| {
        let mut arguments = vec!["s_client", "-connect", &address, "-servername", SITE];
        arguments.extend(more);
        run("openssl", &arguments, b"")
    };
    openssl(&["-tls1", "-cipher", "ALL:@SECLEVEL=0"]);
    expect_cause(&gateway, "client offers only TLS 1.0", "handshake", "peer");
    assert!(
        Client::new(&gateway)
            .groups(&[NamedGroup::secp384r1])
            .try_connect()
            .is_err()
    );
    expect_cause(&gateway, "no shared group", "handshake", "peer");
    // No CA is trusted, and both the alert inside TLS 1.3 and the plain one of TLS 1.2 are understood.
    for version in ["-tls1_3", "-tls1_2"] {
        let before = count(&gateway, "peer sent unknown_ca");
        openssl(&[
            version,
            "-verify_return_error",
            "-no-CAfile",
            "-no-CApath",
            "-no-CAstore",
        ]);
        eventually("the alert in the log", || {
            (count(&gateway, "peer sent unknown_ca") > before).then_some(())
        });
    }
    expect_cause(&gateway, "peer sent unknown_ca", "handshake", "peer");
    let mut stream = gateway.connect_tcp();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    read_alert(&mut stream);
    drop(stream);
    expect_cause(&gateway, "client speaks plain HTTP to a TLS port", "handshake", "peer");
    drop(gateway.connect_tcp());
    expect_cause(
        &gateway,
        "client closed before it sent anything",
        "closed_before_hello",
        "none",
    );
    let mut stream = gateway.connect_tcp();
    stream.write_all(&Hello::new(0x0303).record()[..20]).unwrap();
    drop(stream);
    expect_cause(
        &gateway,
        "client closed during the handshake",
        "closed_in_handshake",
        "peer",
    );
    Client::new(&gateway).connect().receive_to_end();
    expect_cause(
        &gateway,
        "no upstream server accepted a connection",
        "upstream_unreachable",
        "upstream",
    );
    let line = gateway.wait_for_cause("no upstream server accepted a connection");
    assert_eq!(line["level"], "WARN", "somebody has to act: {line}");
}

fn count(gateway: &Gateway, cause: &str) -> usize {
    gateway.log_lines().iter().filter(|line| line["cause"] == cause).count()
}

fn only_failures_are_logged_where_only_failures_are_wanted(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nconnections = \"failures\"")
        .start();
    exchange(&gateway);
    drop(gateway.connect_tcp());
    gateway.wait_until_quiet();
    let mut stream = gateway.connect_tcp();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    read_alert(&mut stream);
    drop(stream);
    gateway.wait_for_cause("client speaks plain HTTP to a TLS port");
    let log = gateway.stop();
    assert_eq!(log.matches("\"message\":\"connection\"").count(), 1, "{log}");
}

fn nothing_is_logged_where_nothing_is_wanted(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nconnections = \"off\"")
        .start();
    exchange(&gateway);
    let mut stream = gateway.connect_tcp();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    read_alert(&mut stream);
    drop(stream);
    gateway.wait_until_quiet();
    let log = gateway.stop();
    assert!(!log.contains("\"message\":\"connection\""), "{log}");
    assert!(log.contains("\"drained\""), "the life of the gateway is logged: {log}");
}

fn a_share_of_the_good_ends_is_logged(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nconnections_sample = 0.25")
        .start();
    for _ in 0..16 {
        exchange(&gateway);
    }
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.ended().get("finished"), Some(&16));
    let log = gateway.stop();
    assert_eq!(log.matches("\"message\":\"connection\"").count(), 4, "{log}");
}

/// A server_name extension with these bytes as its host name.
fn server_name(bytes: &[u8]) -> Vec<u8> {
    let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    [&length(bytes.len() + 3)[..], &[0], &length(bytes.len()), bytes].concat()
}

fn odd_bytes_in_the_name_break_no_line(io: Io) {
    let names: [&[u8]; 6] = [
        b"a\n{\"level\":\"ERROR\",\"message\":\"forged\"}\nb",
        b"quote\"comma,back\\slash",
        b"\x1b[31mred\x1b[0m\r\x07",
        b"\xff\xfe\x80",
        b"nul\0nul",
        "u\u{2028}u\u{202e}u".as_bytes(),
    ];
    for format in ["json", "text"] {
        let gateway = Setup::new(io, &["127.0.0.1:9"])
            .log(&format!("format = \"{format}\""))
            .start();
        for name in names {
            let mut stream = gateway.connect_tcp();
            let hello = Hello::new(0x0303).extension(0, server_name(name));
            stream.write_all(&hello.record()).unwrap();
            // The hello may or may not be acceptable; what is logged of it is what this is about.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0);
        }
        gateway.wait_until_quiet();
        let log = gateway.stop();
        let mut ends = 0;
        for line in log.lines() {
            assert!(line.chars().all(|c| !c.is_control()), "a control character in {line:?}");
            if format == "json" {
                let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
                assert_ne!(line["message"], "forged");
                ends += usize::from(line["message"] == "connection");
            } else {
                ends += usize::from(line.contains("cause_label="));
            }
        }
        assert_eq!(ends, names.len(), "one line each: {log}");
    }
}

fn the_log_file_is_reopened(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nfile = \"ringlock.log\"")
        .start();
    let (current, old) = (
        gateway.folder().join("ringlock.log"),
        gateway.folder().join("ringlock.log.1"),
    );
    let ends = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains("\"message\":\"connection\""))
            .count()
    };
    exchange(&gateway);
    eventually("the first line", || (ends(&current) == 1).then_some(()));
    std::fs::rename(&current, &old).unwrap();
    exchange(&gateway);
    eventually("a line in the file that was moved", || (ends(&old) == 2).then_some(()));
    assert!(!current.exists());
    gateway.signal(Signal::USR1);
    eventually("the new file", || current.exists().then_some(()));
    for _ in 0..3 {
        exchange(&gateway);
    }
    eventually("the lines in the new file", || (ends(&current) == 3).then_some(()));
    assert_eq!(ends(&old), 2, "the old file is left alone");
    let text = std::fs::read_to_string(&current).unwrap();
    assert!(text.contains("log file reopened"), "{text}");
    // The directory has gone: the file at hand stays in use.
    let folder = gateway.folder().to_owned();
    std::fs::rename(&current, folder.join("ringlock.log.2")).unwrap();
    std::fs::create_dir(&current).unwrap();
    gateway.signal(Signal::USR1);
    exchange(&gateway);
    eventually("a line where the log is", || {
        (ends(&folder.join("ringlock.log.2")) == 4).then_some(())
    });
    let on_stderr = gateway.stop();
    assert_eq!(on_stderr, "", "the log is in the file");
    let text = std::fs::read_to_string(folder.join("ringlock.log.2")).unwrap_or_default();
    assert!(text.is_empty() || text.contains("stays the old one"), "{text}");
}

fn no_secret_is_logged(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nlevel = \"debug\"")
        .start();
    let secret = std::fs::read_to_string(gateway.folder().join("site.key")).unwrap();
    let pieces: BTreeSet<String> = secret
        .lines()
        .filter(|line| !line.contains("-----"))
        .flat_map(|line| {
            line.as_bytes()
                .chunks(16)
                .map(|part| String::from_utf8(part.to_vec()).unwrap())
        })
        .filter(|part| part.len() == 16)
        .collect();
    assert!(pieces.len() >= 8, "{pieces:?}");
    exchange(&gateway);
    let mut stream = gateway.connect_tcp();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    read_alert(&mut stream);
    drop(stream);
    // The key where the certificate should be, and the other way round.
    for (file, failed) in [("site.pem", 1.0), ("site.key", 2.0)] {
        let right = std::fs::read(gateway.folder().join(file)).unwrap();
        let other = if file == "site.pem" { "site.key" } else { "site.pem" };
        std::fs::copy(gateway.folder().join(other), gateway.folder().join(file)).unwrap();
        gateway.signal(Signal::HUP);
        let labels = [("result", "failed")];
        wait_for_metric(&gateway, "ringlock_configuration_reloads_total", &labels, failed);
        std::fs::write(gateway.folder().join(file), right).unwrap();
    }
    // The key itself as a value of the configuration.
    let one_line = secret.replace('\n', "\\n");
    gateway.edit_config("key = \"site.key\"", &format!("key = \"{one_line}\""));
    gateway.signal(Signal::HUP);
    let labels = [("result", "failed")];
    wait_for_metric(&gateway, "ringlock_configuration_reloads_total", &labels, 3.0);
    let check = ringlock(&["check", "--config", gateway.config_file().to_str().unwrap()]);
    let told = [gateway.metrics().text().to_owned(), check.text(), gateway.stop()].concat();
    for piece in &pieces {
        assert!(!told.contains(piece.as_str()), "a piece of the key, {piece}, in {told}");
    }
}
