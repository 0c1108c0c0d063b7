//! The session cache: clients of TLS 1.2 that take no tickets resume by session id, and with `tickets = false` all clients do.

use crate::support::*;
use rustls::HandshakeKind;

both_drivers!(
    openssl_without_tickets_resumes_in_tls_1_2,
    curl_resumes_in_tls_1_2,
    without_tickets_each_session_of_tls_1_3_is_used_once,
    whoever_takes_tickets_takes_no_place,
    sessions_are_resumed_on_any_worker,
    sessions_outlive_a_reload,
);

const CACHE: &str = "session_cache = \"1MiB\"";
const CACHE_ONLY: &str = "tickets = false\nsession_cache = \"1MiB\"";

fn entries(metrics: &Metrics) -> u64 {
    metrics.count("ringlock_session_cache_entries", &[("listener", "edge")])
}

fn stored(metrics: &Metrics) -> u64 {
    metrics.count("ringlock_sessions_issued_total", &[("kind", "session")])
}

fn openssl_without_tickets_resumes_in_tls_1_2(io: Io) {
    let origin = Origin::echo();
    for (number, settings) in [CACHE, CACHE_ONLY].into_iter().enumerate() {
        let gateway = Setup::new(io, &[origin.address()]).tls(settings).start();
        let file = gateway.folder().join("session.pem");
        let saved = file.to_str().unwrap();
        // With `tickets = false` it may ask for one as well.
        let flags = &["-tls1_2", "-no_ticket"][..2 - number];
        let said = s_client_echo(&gateway, &[flags, &["-sess_out", saved]].concat());
        assert!(said.contains("New, TLSv1.2"), "{said}");
        for _ in 0..4 {
            let said = s_client_echo(&gateway, &[flags, &["-sess_in", saved, "-sess_out", saved]].concat());
            assert!(said.contains("Reused, TLSv1.2"), "{said}");
        }
        let metrics = assert_resumptions(&gateway, "session", 1, 4);
        assert_eq!((stored(&metrics), entries(&metrics)), (1, 1));
        assert_eq!(
            metrics.count("ringlock_sessions_issued_total", &[("kind", "ticket")]),
            0
        );
    }
}

/// curl with OpenSSL takes no tickets of TLS 1.2.
fn curl_resumes_in_tls_1_2(io: Io) {
    let origin = Origin::saying("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\na page");
    let gateway = Setup::new(io, &[origin.address()]).tls(CACHE).start();
    let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
    let (resolve, url) = (format!("{SITE}:{port}:{ip}"), format!("https://{SITE}:{port}/"));
    let fixed = ["--silent", "--show-error", "--fail", "--tls-max", "1.2", "--cacert"];
    let target = [ca.to_str().unwrap(), "--resolve", &resolve, &url, &url, &url];
    let got = run("curl", &[&fixed[..], &target].concat(), b"").ok();
    assert_eq!(got.stdout, "a page".repeat(3));
    assert_eq!(origin.accepted(), 3, "each request has a connection of its own");
    assert_resumptions(&gateway, "session", 1, 2);
}

fn without_tickets_each_session_of_tls_1_3_is_used_once(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls(CACHE_ONLY).start();
    let [first, next] = ["first.pem", "next.pem"].map(|name| gateway.folder().join(name).display().to_string());
    s_client_echo(&gateway, &["-tls1_3", "-sess_out", &first]);
    // In a row, each with the one that the connection before has left.
    let said = s_client_echo(&gateway, &["-tls1_3", "-sess_in", &first, "-sess_out", &next]);
    assert!(said.contains("Reused, TLSv1.3"), "{said}");
    for _ in 0..3 {
        let said = s_client_echo(&gateway, &["-tls1_3", "-sess_in", &next, "-sess_out", &next]);
        assert!(said.contains("Reused, TLSv1.3"), "{said}");
    }
    let metrics = assert_resumptions(&gateway, "session", 1, 4);
    assert_eq!((stored(&metrics), entries(&metrics)), (5, 1), "four were used");
    for _ in 0..2 {
        let said = s_client_echo(&gateway, &["-tls1_3", "-sess_in", &first]);
        assert!(said.contains("New, TLSv1.3"), "it was used before: {said}");
    }
    let metrics = assert_handshakes(&gateway, 3, 4);
    assert_eq!(declined(&metrics, "session", "unknown"), 2);
}

fn whoever_takes_tickets_takes_no_place(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls(CACHE).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let client = client.keeps_sessions();
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            assert_eq!(handshake_kind(&client), kind);
        }
    }
    let metrics = assert_resumptions(&gateway, "ticket", 2, 4);
    assert_eq!((stored(&metrics), entries(&metrics)), (0, 0));
}

/// With so many connections each worker has some.
fn sessions_are_resumed_on_any_worker(io: Io) {
    const CONNECTIONS: u64 = 40;
    let origin = Origin::echo();
    for settings in ["", CACHE_ONLY] {
        let gateway = Setup::new(io, &[origin.address()]).workers(2).tls(settings).start();
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            let client = client.keeps_sessions();
            assert_eq!(handshake_kind(&client), HandshakeKind::Full);
            for _ in 1..CONNECTIONS {
                assert_eq!(handshake_kind(&client), HandshakeKind::Resumed);
            }
        }
        let kind = if settings.is_empty() { "ticket" } else { "session" };
        let metrics = assert_resumptions(&gateway, kind, 2, 2 * (CONNECTIONS - 1));
        for worker in ["0", "1"] {
            let accepted = metrics.count("ringlock_connections_accepted_total", &[("worker", worker)]);
            assert!(accepted > 1, "worker {worker} has had {accepted} connections");
        }
    }
}

fn sessions_outlive_a_reload(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).tls(CACHE_ONLY).start();
    let file = |name: &str| gateway.folder().join(name).display().to_string();
    let versions = [("-tls1_2", file("tls12.pem")), ("-tls1_3", file("tls13.pem"))];
    for (version, saved) in &versions {
        s_client_echo(&gateway, &[version, "-sess_out", saved]);
    }
    reload(&gateway);
    assert_eq!(entries(&gateway.metrics()), 2);
    // With another size the cache is another.
    for (version, saved) in &versions {
        let said = s_client_echo(&gateway, &[version, "-sess_in", saved, "-sess_out", saved]);
        assert!(said.contains("Reused, TLSv1."), "{said}");
    }
    assert_resumptions(&gateway, "session", 2, 2);
}
