//! Other people's clients resume what they keep: each says so itself, the gateway has counted it, and data gets through.

use std::net::SocketAddr;
use std::path::Path;

use crate::support::*;
use rustls::{HandshakeKind, NamedGroup};

both_drivers!(
    openssl_resumes_with_each_ticket_the_next_time,
    openssl_resumes_with_an_rsa_identity,
    openssl_resumes_after_a_hello_retry_request,
    openssl_resumes_with_the_same_ticket_again,
    openssl_reconnects,
    curl_resumes_in_tls_1_3,
    python_resumes,
    gnutls_resumes,
    rustls_resumes,
    rustls_resumes_after_a_hello_retry_request,
    nginx_as_a_client_resumes,
    a_connection_kept_idle_brings_its_ticket_before_any_data,
);

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// A first connection, and `times` more, each with the session that the one before has left.
#[track_caller]
fn resume_in_a_row(gateway: &Gateway, flags: &[&str], times: usize) {
    let file = gateway.folder().join("session.pem");
    let saved = file.to_str().unwrap();
    let said = s_client_echo(gateway, &[flags, &["-sess_out", saved]].concat());
    assert!(said.contains("New, TLSv1."), "{said}");
    for _ in 0..times {
        let before = SavedSession::read(&file).ticket();
        let said = s_client_echo(gateway, &[flags, &["-sess_in", saved, "-sess_out", saved]].concat());
        assert!(said.contains("Reused, TLSv1."), "{said}");
        let after = SavedSession::read(&file).ticket();
        // In TLS 1.2 a ticket can be used again, and stays until its epoch is over.
        assert_eq!(after != before, said.contains("Reused, TLSv1.3"), "{said}");
    }
}

fn openssl_resumes_with_each_ticket_the_next_time(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for flag in VERSIONS {
        resume_in_a_row(&gateway, &[flag], 4);
    }
    let metrics = assert_resumptions(&gateway, "ticket", 2, 8);
    assert_eq!(
        metrics.count("ringlock_sessions_issued_total", &[("kind", "ticket")]),
        2 + 4
    );
    let by = |version, group| {
        let labels = [("version", version), ("group", group), ("resumption", "resumed")];
        metrics.count("ringlock_handshakes_total", &labels)
    };
    // In TLS 1.3 there is always a new key exchange.
    assert_eq!((by("1.2", "none"), by("1.3", "X25519")), (4, 4));
    let line = gateway.wait_for_line("a resumed connection", |line| line["resumed"] == true);
    assert_eq!(line["not_resumed"], serde_json::Value::Null, "{line}");
    assert_eq!(origin.accepted(), 10);
}

fn openssl_resumes_with_an_rsa_identity(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .no_identities()
        .identity("rsa", &[SITE], KeyKind::Rsa)
        .start();
    for flag in VERSIONS {
        resume_in_a_row(&gateway, &[flag], 2);
    }
    assert_resumptions(&gateway, "ticket", 2, 4);
}

/// The first ClientHello has a share for a group that the gateway lacks.
fn openssl_resumes_after_a_hello_retry_request(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let flags = ["-tls1_3", "-groups", "P-521:X25519"];
    resume_in_a_row(&gateway, &flags, 2);
    let file = gateway.folder().join("session.pem");
    let said = s_client_echo(
        &gateway,
        &[&flags[..], &["-sess_in", file.to_str().unwrap(), "-msg"]].concat(),
    );
    assert_eq!(
        said.matches(", ClientHello").count(),
        2,
        "it was asked to retry: {said}"
    );
    assert!(said.contains("Reused, TLSv1.3"), "{said}");
    assert_resumptions(&gateway, "ticket", 1, 3);
}

/// Tickets are not remembered here, so one that is used twice is accepted twice. Without early data that is harmless: each time there is a
/// new key exchange.
fn openssl_resumes_with_the_same_ticket_again(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for flag in VERSIONS {
        let file = gateway.folder().join("session.pem");
        let saved = file.to_str().unwrap();
        s_client_echo(&gateway, &[flag, "-sess_out", saved]);
        for _ in 0..3 {
            let said = s_client_echo(&gateway, &[flag, "-sess_in", saved]);
            assert!(said.contains("Reused, TLSv1."), "{said}");
        }
    }
    assert_resumptions(&gateway, "ticket", 2, 6);
}

fn openssl_reconnects(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let said = run(
        "openssl",
        &s_client_arguments(&gateway, &["-tls1_2", "-reconnect"]),
        b"",
    )
    .ok()
    .text();
    assert_eq!(said.matches("Reused, TLSv1.2").count(), 5, "{said}");
    assert_resumptions(&gateway, "ticket", 1, 5);
}

/// curl keeps sessions for as long as it runs. In TLS 1.2 it takes no tickets.
fn curl_resumes_in_tls_1_3(io: Io) {
    let origin = closing_http_origin();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
    let (resolve, url) = (format!("{SITE}:{port}:{ip}"), format!("https://{SITE}:{port}/"));
    let fixed = [
        "--silent",
        "--show-error",
        "--fail",
        "--verbose",
        "--tlsv1.3",
        "--cacert",
    ];
    let target = [ca.to_str().unwrap(), "--resolve", &resolve, &url, &url, &url];
    let got = run("curl", &[&fixed[..], &target].concat(), b"").ok();
    assert_eq!(got.stdout, "a page".repeat(3));
    assert_eq!(got.stderr.matches("SSL re-using session ID").count(), 2, "{got:#?}");
    assert_eq!(origin.accepted(), 3, "each request has a connection of its own");
    assert_resumptions(&gateway, "ticket", 1, 2);
}

/// Answers each connection with a page, and closes it.
fn closing_http_origin() -> Origin {
    Origin::saying("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\na page")
}

fn python_resumes(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let script = r#"
import socket, ssl, sys
ip, port, name, ca, version = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
session = None
for _ in range(4):
    plain = socket.create_connection((ip, int(port)), timeout=30)
    with context.wrap_socket(plain, server_hostname=name, session=session) as tls:
        tls.sendall(b"there and back")
        assert tls.recv(64) == b"there and back"
        print(tls.version(), tls.session_reused)
        session = tls.session
        # Sends close_notify, and fails unless it gets one.
        tls.unwrap()
"#;
    let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let ca = gateway.ca.file();
    for (name, version) in [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")] {
        let said = python(script, &[&ip, &port, SITE, ca.to_str().unwrap(), name]);
        let expected: Vec<String> = ["False", "True", "True", "True"]
            .iter()
            .map(|reused| format!("{version} {reused}"))
            .collect();
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    }
    assert_resumptions(&gateway, "ticket", 2, 6);
}

fn gnutls_resumes(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let ca = gateway.ca.file();
    for priority in ["NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.3"] {
        let trust = ["--x509cafile", ca.to_str().unwrap(), "--verify-hostname", SITE];
        let resume = ["--resume", "--waitresumption", "--priority", priority];
        let target = ["--sni-hostname", SITE, "--port", &port, &ip];
        let mut client = Program::start("gnutls-cli", &[&trust[..], &resume, &target].concat());
        client.wait_for("*** This is a resumed session");
        client.send(b"there and back\n");
        client.wait_for("there and back");
        client.finish().ok();
    }
    assert_resumptions(&gateway, "ticket", 2, 2);
}

fn rustls_resumes(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        let client = client.keeps_sessions();
        assert_eq!(handshake_kind(&client), HandshakeKind::Full);
        for _ in 0..4 {
            assert_eq!(handshake_kind(&client), HandshakeKind::Resumed);
        }
    }
    assert_resumptions(&gateway, "ticket", 2, 8);
}

fn rustls_resumes_after_a_hello_retry_request(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .tls("groups = [\"secp256r1\"]")
        .start();
    let groups = [NamedGroup::X25519, NamedGroup::secp256r1];
    let client = Client::new(&gateway).groups(&groups).tls13().keeps_sessions();
    assert_eq!(handshake_kind(&client), HandshakeKind::FullWithHelloRetryRequest);
    for _ in 0..2 {
        assert_eq!(handshake_kind(&client), HandshakeKind::Resumed);
    }
    assert_resumptions(&gateway, "ticket", 1, 2);
}

fn nginx_as_a_client_resumes(io: Io) {
    let origin = closing_http_origin();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (target, ca) = (gateway.address, gateway.ca.file());
    for version in ["TLSv1.2", "TLSv1.3"] {
        let address = free_address();
        let nginx = Balancer::nginx(&nginx_before(target, address, &ca, version), address);
        for _ in 0..4 {
            let got = run("curl", &["--silent", "--fail", &format!("http://{address}/")], b"").ok();
            assert_eq!(got.stdout, "a page");
        }
        drop(nginx);
    }
    assert_resumptions(&gateway, "ticket", 2, 6);
}

fn nginx_before(target: SocketAddr, address: SocketAddr, ca: &Path, version: &str) -> String {
    let ca = ca.display();
    format!(
        "http {{ server {{ listen {address}; location / {{
             proxy_pass https://{target};
             proxy_ssl_session_reuse on; proxy_ssl_server_name on; proxy_ssl_name {SITE};
             proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_protocols {version};
         }} }} }}"
    )
}

/// Nothing has to be sent for the ticket to come.
fn a_connection_kept_idle_brings_its_ticket_before_any_data(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let file = gateway.folder().join("session.pem");
    let saved = file.to_str().unwrap();
    for flag in VERSIONS {
        let _ = std::fs::remove_file(&file);
        let client = Program::start("openssl", &s_client_arguments(&gateway, &[flag, "-sess_out", saved]));
        eventually("the ticket", || {
            std::fs::metadata(&file).ok().filter(|found| found.len() > 0)
        });
        client.finish().ok();
        let said = s_client_echo(&gateway, &[flag, "-sess_in", saved]);
        assert!(said.contains("Reused, TLSv1."), "{said}");
    }
    assert_resumptions(&gateway, "ticket", 2, 2);
}
