//! What the admin server tells: metrics that a scraper can read and that add up, health, readiness, version.

use crate::support::*;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use rustls::{CipherSuite, NamedGroup};

both_drivers!(
    both_formats_are_exact,
    connections_add_up,
    handshakes_are_counted_by_what_was_negotiated,
    failures_are_counted_by_cause_and_fault,
    bytes_are_counted_on_both_sides,
    a_dead_server_is_seen,
    the_version_names_driver_and_workers,
);

fn scrape(gateway: &Gateway, accept: &str, format: Format) -> (Exposition, String) {
    let stream = TcpStream::connect(gateway.admin).unwrap();
    let (head, body) = raw_request(stream, "/metrics", accept);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let read = Exposition::parse(&body, format).unwrap_or_else(|what| panic!("{what}\n{body}"));
    (read, head)
}

fn both_formats_are_exact(io: Io) {
    let origin = Origin::echo();
    // Two names of one address: one server, and one series.
    let port = origin.address().port();
    let servers = [
        origin.address().to_string(),
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
    ];
    let gateway = Setup::new(io, &servers).workers(2).start();
    exchange(&gateway);
    let (prometheus, head) = scrape(&gateway, "", Format::Prometheus);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let (open, head) = scrape(
        &gateway,
        "Accept: application/openmetrics-text; version=1.0.0\r\n",
        Format::OpenMetrics,
    );
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    for read in [&prometheus, &open] {
        assert_eq!(
            read.count("ringlock_connections_accepted_total", &[]),
            2,
            "one for each worker"
        );
        let drivers = read.label_values("ringlock_worker_info", "driver");
        assert_eq!(drivers.into_iter().collect::<Vec<_>>(), [io.name()]);
        assert_eq!(
            read.count("ringlock_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
            1
        );
        assert!(read.sum("process_open_fds", &[]) > 3.0);
        assert!(read.sum("process_resident_memory_bytes", &[]) > 1e6);
    }
    assert_eq!(prometheus.types["ringlock_connections_accepted_total"], "counter");
    assert_eq!(open.types["ringlock_connections_accepted"], "counter");
}

fn connections_add_up(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .workers(2)
        .listener("connections_max = 3")
        .start();
    let open: Vec<Connection> = (0..3).map(|_| Client::new(&gateway).connect()).collect();
    for _ in 0..4 {
        assert!(Client::new(&gateway).try_connect().is_err(), "it is shed");
    }
    let metrics = gateway.metrics();
    let value = |name: &str| metrics.count(name, &[]);
    assert_eq!(value("ringlock_connections_accepted_total"), 7);
    assert_eq!(value("ringlock_connections_shed_total"), 4);
    assert_eq!(value("ringlock_connections_live"), 3);
    assert_eq!(value("ringlock_connections_ended_total"), 0);
    assert_eq!(value("ringlock_upstream_server_connections"), 3);
    for connection in open {
        assert!(connection.finish().is_empty());
    }
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.ended().into_iter().collect::<Vec<_>>(),
        [("finished".to_owned(), 3)]
    );
    assert_eq!(metrics.count("ringlock_upstream_server_connected_total", &[]), 3);
}

fn handshakes_are_counted_by_what_was_negotiated(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let kinds = [
        (
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            NamedGroup::X25519,
            "1.3",
            "TLS_AES_128_GCM_SHA256",
            "X25519",
        ),
        (
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            NamedGroup::secp384r1,
            "1.3",
            "TLS_CHACHA20_POLY1305_SHA256",
            "secp384r1",
        ),
        (
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            NamedGroup::secp256r1,
            "1.2",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "secp256r1",
        ),
    ];
    for (round, (suite, group, ..)) in kinds.iter().enumerate() {
        for _ in 0..=round {
            let client = Client::new(&gateway).suites(&[*suite]).groups(&[*group]);
            let client = if round == 2 { client.tls12() } else { client.tls13() };
            assert!(client.connect().finish().is_empty());
        }
    }
    let metrics = gateway.wait_until_quiet();
    for (round, (_, _, version, suite, group)) in kinds.iter().enumerate() {
        let labels = [
            ("version", *version),
            ("suite", *suite),
            ("group", *group),
            ("resumption", "full"),
        ];
        assert_eq!(
            metrics.count("ringlock_handshakes_total", &labels),
            round as u64 + 1,
            "{labels:?}"
        );
    }
    assert_eq!(metrics.count("ringlock_handshakes_total", &[]), 6, "and no others");
    let operations = metrics.count("ringlock_crypto_operations_total", &[]);
    assert!(
        operations >= 3,
        "one at least for each handshake of TLS 1.3: {operations}"
    );
}

fn failures_are_counted_by_cause_and_fault(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"]).tls("groups = [\"X25519\"]").start();
    assert!(
        Client::new(&gateway)
            .groups(&[NamedGroup::secp384r1])
            .try_connect()
            .is_err()
    );
    let hello = Hello::new(0x0301).record();
    for bytes in [hello.as_slice(), b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = gateway.connect_tcp();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        read_alert(&mut stream);
    }
    drop(gateway.connect_tcp());
    // Port 9 (discard) has no server, so this one is established and then ends.
    let mut connection = Client::new(&gateway).connect();
    connection.receive_to_end();
    drop(connection);
    let metrics = gateway.wait_until_quiet();
    for cause in ["no_shared_group", "version_too_old", "plain_http"] {
        let failures = metrics.count("ringlock_handshake_failures_total", &[("cause", cause)]);
        assert_eq!(failures, 1, "{cause}");
    }
    assert_eq!(metrics.count("ringlock_handshake_failures_total", &[]), 3);
    for (cause, fault, count) in [
        ("handshake", "peer", 3),
        ("closed_before_hello", "none", 1),
        ("upstream_unreachable", "upstream", 1),
    ] {
        let labels = [("cause", cause), ("fault", fault)];
        assert_eq!(
            metrics.count("ringlock_connections_ended_total", &labels),
            count,
            "{labels:?}"
        );
    }
    assert_eq!(
        metrics.count("ringlock_connections_ended_total", &[]),
        5,
        "and no others"
    );
}

fn bytes_are_counted_on_both_sides(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut client = Client::new(&gateway).connect();
    let message = pattern(100_000);
    client.send(&message);
    assert!(client.receive(message.len()) == message);
    assert!(client.finish().is_empty());
    let metrics = gateway.wait_until_quiet();
    let bytes = |side, direction| {
        let labels = [("side", side), ("direction", direction)];
        metrics.count("ringlock_transferred_bytes_total", &labels)
    };
    assert_eq!(bytes("upstream", "sent"), 100_000);
    assert_eq!(bytes("upstream", "received"), 100_000);
    for direction in ["received", "sent"] {
        let wire = bytes("downstream", direction);
        assert!(
            (100_000..110_000).contains(&wire),
            "TLS adds a little: {direction} {wire}"
        );
    }
}

fn a_dead_server_is_seen(io: Io) {
    let dead = free_address();
    let gateway = Setup::new(io, &[dead]).start();
    let server = dead.to_string();
    let labels = [("upstream", "app"), ("server", server.as_str())];
    for _ in 0..3 {
        Client::new(&gateway).connect().receive_to_end();
    }
    wait_for_metric(&gateway, "ringlock_upstream_server_ejected_workers", &labels, 1.0);
    let metrics = gateway.metrics();
    assert_eq!(
        metrics.count("ringlock_upstream_server_connect_failures_total", &labels),
        3
    );
    assert_eq!(metrics.count("ringlock_upstream_server_connected_total", &labels), 0);
    let back = Origin::start_at(dead, |mut stream| {
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    eventually("the server to be in favour again", || {
        let _ = try_exchange(&Client::new(&gateway));
        let metrics = gateway.metrics();
        (metrics.sum("ringlock_upstream_server_ejected_workers", &labels) == 0.0).then_some(())
    });
    drop(back);
}

fn the_version_names_driver_and_workers(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"]).start();
    let (code, body) = gateway.ask("/version");
    assert_eq!(code, 200);
    let version: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["driver"], io.name());
    assert_eq!(version["workers"].as_array().map(Vec::len), Some(1));
    assert_eq!(version["epoch"], 1);
    assert_eq!(gateway.ask("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(gateway.ask("/readyz"), (200, "serving\n".to_owned()));
    assert_eq!(gateway.ask("/secret").0, 404);
}

#[test]
fn the_admin_server_can_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new(folder.path());
    ca.issue("site", &[SITE], KeyKind::Ecdsa);
    let config = format!(
        "[global]\nadmin = \"./admin.sock\"\n\n[[listener]]\nname = \"edge\"\naddress = \"{}\"\nidentities = [\"site\"]\n\
         upstream = \"app\"\n\n[[identity]]\nname = \"site\"\ncertificate = \"site.pem\"\nkey = \"site.key\"\n\n\
         [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:9\"]\n",
        free_address()
    );
    let file = folder.path().join("ringlock.toml");
    std::fs::write(&file, config).unwrap();
    let arguments = ["run", "--config", file.to_str().unwrap()];
    let gateway = Program::start(env!("CARGO_BIN_EXE_ringlock"), &arguments);
    gateway.wait_for("serving");
    let socket = folder.path().join("admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "only its owner may ask");
    let (head, body) = raw_request(UnixStream::connect(&socket).unwrap(), "/metrics", "");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Exposition::parse(&body, Format::Prometheus).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(gateway.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    gateway.finish().ok();
    assert!(!socket.exists(), "it goes with the gateway");
}
