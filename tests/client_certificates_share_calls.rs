//! Many clients with certificates at once, other people's clients, those that give up in the middle, and reloads.

use crate::support::multibuffer;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::*;
use rustix::process::Signal;
use rustls::AlertDescription as Alert;
use tempfile::TempDir;

both_drivers!(
    verifications_of_many_clients_share_calls,
    whoever_gives_up_in_the_middle_disturbs_nobody,
    a_client_that_stops_before_its_signature_is_timed_out,
    other_peoples_clients_show_theirs,
    a_session_that_is_resumed_needs_no_certificate_again,
    a_reload_changes_the_ca_for_new_connections,
);

struct Clients {
    root: Authority,
    folder: TempDir,
}

impl Clients {
    fn new() -> Clients {
        let clients = Clients {
            root: Authority::root("clients"),
            folder: TempDir::new().unwrap(),
        };
        std::fs::write(clients.ca(), clients.root.pem()).unwrap();
        clients
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn setup(&self, io: Io, origin: &Origin) -> Setup {
        Setup::new(io, &[origin.address()]).listener(&format!(
            "client_auth = {{ mode = \"required\", ca = {:?} }}",
            self.ca()
        ))
    }
}

/// Clients with the right certificate among some that sign with a key that is not theirs. All of the former and none of the latter
/// get through, and what they ask for is computed together.
fn verifications_of_many_clients_share_calls(io: Io) {
    let Some(library) = multibuffer::library() else { return };
    let origin = Origin::echo();
    let clients = Clients::new();
    // No other operation of these handshakes fits a batch: neither the group nor the identity's key.
    let gateway = clients
        .setup(io, &origin)
        .no_identities()
        .identity("site", &[SITE], KeyKind::Ed25519)
        .tls("groups = [\"secp384r1\"]")
        .more(&format!("[crypto]\nmultibuffer = {library:?}\nmade_ahead = \"off\""))
        .start();
    let engine = gateway.wait_for_line("what computes", |line| line["engine"].is_string());
    assert_eq!(engine["engine"], "in batches of up to eight", "{engine}");
    for kind in [KeyKind::Ecdsa, KeyKind::P384] {
        let below = clients.root.below("below", kind);
        let good = below.client_with(kind, |_| {});
        let stolen = good.clone().signing_as(&below.client_with(kind, |_| {}));
        let batched = |metrics: &Metrics| metrics.count("ringlock_crypto_operations_total", &[("engine", "batch")]);
        let before = batched(&gateway.metrics());
        let refused_before = refused(&gateway);
        let mut rounds = 0;
        eventually("verifications that share a call", || {
            rounds += 1;
            std::thread::scope(|scope| {
                for number in 0..24 {
                    let client = Client::new(&gateway);
                    let client = if number % 2 == 0 {
                        client.tls12()
                    } else {
                        client.tls13()
                    };
                    let (good, stolen) = (&good, &stolen);
                    scope.spawn(move || {
                        if number % 6 == 5 {
                            assert_eq!(client.shows(stolen).refused_after_its_flight(), Alert::DecryptError);
                        } else {
                            try_exchange(&client.shows(good)).unwrap();
                        }
                    });
                }
            });
            (batched(&gateway.metrics()) > before + 8).then_some(())
        });
        gateway.wait_until_quiet();
        assert_eq!(refused(&gateway), refused_before + 4 * rounds);
    }
}

fn refused(gateway: &Gateway) -> u64 {
    gateway
        .metrics()
        .count("ringlock_handshake_failures_total", &[("cause", "client_certificate")])
}

/// Hang up while their certificates are verified, reset, or stop in the middle of their flight.
fn whoever_gives_up_in_the_middle_disturbs_nobody(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let library = multibuffer::library().map_or("off".to_owned(), |path| path.display().to_string());
    let gateway = clients
        .setup(io, &origin)
        .more(&format!("[crypto]\nmultibuffer = {library:?}"))
        .start();
    let shown = clients.root.below("below", KeyKind::Ecdsa).client();
    std::thread::scope(|scope| {
        for number in 0..40 {
            let client = Client::new(&gateway).shows(&shown).fragments(400);
            let client = if number % 8 < 4 { client.tls12() } else { client.tls13() };
            scope.spawn(move || {
                if number % 4 == 0 {
                    for _ in 0..4 {
                        try_exchange(&client).unwrap();
                    }
                    return;
                }
                let mut connection = client.open();
                let flight = last_flight(&mut connection);
                match number % 4 {
                    1 => connection.stream.write_all(&flight).unwrap(),
                    2 => connection.stream.write_all(&flight[..flight.len() / 2]).unwrap(),
                    _ => connection.stream.write_all(&flight[..flight.len() - 1]).unwrap(),
                }
                if number % 3 == 0 {
                    connection.reset();
                } else {
                    std::thread::sleep(Duration::from_millis(number % 5));
                    drop(connection);
                }
            });
        }
    });
    gateway.wait_until_quiet();
    try_exchange(&Client::new(&gateway).shows(&shown)).unwrap();
}

/// Up to the flight with the certificates, which is given and not sent.
fn last_flight(connection: &mut Connection) -> Vec<u8> {
    let hello = connection.take_outgoing();
    connection.stream.write_all(&hello).unwrap();
    loop {
        assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
        connection.tls.process_new_packets().unwrap();
        let flight = connection.take_outgoing();
        if !flight.is_empty() {
            return flight;
        }
    }
}

fn a_client_that_stops_before_its_signature_is_timed_out(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients
        .setup(io, &origin)
        .listener("handshake_timeout = \"300ms\"")
        .start();
    let client = Client::new(&gateway).shows(&clients.root.client()).fragments(400);
    for client in [client.clone().tls12(), client.tls13()] {
        let mut connection = client.open();
        let flight = last_flight(&mut connection);
        connection.stream.write_all(&flight[..flight.len() - 40]).unwrap();
        std::io::Read::read_to_end(&mut connection.stream, &mut Vec::new()).unwrap();
    }
    gateway.wait_for_ended("handshake_timeout", 2);
    gateway.wait_until_quiet();
}

const PYTHON: &str = r#"
import socket, ssl, sys
ip, port, name, ca, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(certificate, key)
for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
    context.minimum_version = context.maximum_version = version
    plain = socket.create_connection((ip, int(port)), timeout=30)
    with context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(b"there and back")
        got = b""
        while len(got) < 14:
            got += tls.recv(14) or sys.exit("the stream ended early")
        assert got == b"there and back"
        tls.unwrap()
print("ok")
"#;

fn other_peoples_clients_show_theirs(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients.setup(io, &origin).start();
    let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
    let (address, ca) = (gateway.address.to_string(), gateway.ca.file());
    let ca = ca.to_str().unwrap();
    for (name, kind) in [("p256", KeyKind::Ecdsa), ("p384", KeyKind::P384), ("rsa", KeyKind::Rsa)] {
        let shown = clients.root.below("below", KeyKind::Ecdsa).client_with(kind, |_| {});
        let (chain, key) = shown.write(clients.folder.path(), name);
        let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
        assert_eq!(python(PYTHON, &[&ip, &port, SITE, ca, chain, key]), "ok\n");
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments = [
                "s_client",
                "-connect",
                &address,
                "-servername",
                SITE,
                "-CAfile",
                ca,
                version,
            ];
            let own = [
                "-cert",
                chain,
                "-cert_chain",
                chain,
                "-key",
                key,
                "-verify_return_error",
            ];
            let mut client = Program::start("openssl", &[&arguments[..], &own].concat());
            client.send(b"there and back\n");
            client.wait_for("there and back");
            client
                .finish()
                .ok()
                .says("Acceptable client certificate CA names")
                .says("clients");
        }
        let trust = ["--x509cafile", ca, "--verify-hostname", SITE, "--sni-hostname", SITE];
        let own = ["--x509certfile", chain, "--x509keyfile", key, "--port", &port, &ip];
        let mut client = Program::start("gnutls-cli", &[&trust[..], &own].concat());
        client.wait_for("Handshake was completed");
        client.send(b"there and back\n");
        client.wait_for("there and back");
        client.finish().ok();
    }
    gateway.wait_until_quiet();
    assert_eq!(refused(&gateway), 0);

    let page = Origin::http("a page of the origin");
    let gateway = clients.setup(io, &page).start();
    let (ip, port, ca) = (gateway.address.ip(), gateway.address.port(), gateway.ca.file());
    let (resolve, url) = (format!("{SITE}:{port}:{ip}"), format!("https://{SITE}:{port}/"));
    let arguments = [
        "--silent",
        "--show-error",
        "--fail",
        "--cacert",
        ca.to_str().unwrap(),
        "--resolve",
        &resolve,
    ];
    let (chain, key) = clients.root.client().write(clients.folder.path(), "curl");
    let own = ["--cert", chain.to_str().unwrap(), "--key", key.to_str().unwrap(), &url];
    let got = run("curl", &[&arguments[..], &own].concat(), b"").ok();
    assert_eq!(got.stdout, "a page of the origin");
    let refused = run("curl", &[&arguments[..], &[&url]].concat(), b"");
    assert!(
        !refused.status.success() && refused.text().contains("alert"),
        "{refused:?}"
    );
    assert_eq!(page.accepted(), 1);
    gateway.wait_until_quiet();
}

/// The client shows it once, and its session carries that over.
fn a_session_that_is_resumed_needs_no_certificate_again(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients.setup(io, &origin).start();
    let (chain, key) = clients.root.client().write(clients.folder.path(), "client");
    let (address, ca) = (gateway.address.to_string(), gateway.ca.file());
    let arguments = [
        "s_client",
        "-connect",
        &address,
        "-CAfile",
        ca.to_str().unwrap(),
        "-servername",
        SITE,
        "-tls1_2",
        "-reconnect",
        "-cert",
        chain.to_str().unwrap(),
        "-key",
        key.to_str().unwrap(),
    ];
    let said = run("openssl", &arguments, b"").ok();
    let count = |what: &str| said.text().matches(what).count();
    assert_eq!((count("New, TLSv1.2"), count("Reused, TLSv1.2")), (1, 5));
    gateway.wait_until_quiet();
}

fn reload(gateway: &Gateway, result: &str) {
    let name = "ringlock_configuration_reloads_total";
    let before = gateway.metrics().sum(name, &[("result", result)]);
    gateway.signal(Signal::HUP);
    wait_for_metric(gateway, name, &[("result", result)], before + 1.0);
}

fn a_reload_changes_the_ca_for_new_connections(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients.setup(io, &origin).workers(2).start();
    let (old, new) = (clients.root.client(), Authority::root("new clients"));
    let mut open = Client::new(&gateway).shows(&old).connect();
    open.send(b"before");
    assert_eq!(open.receive(6), b"before");

    // One that cannot be read leaves the old one in force.
    std::fs::write(clients.ca(), "no certificate\n").unwrap();
    reload(&gateway, "failed");
    let line = gateway.wait_for_line("why not", |line| line["level"] == "ERROR");
    let why = line["why"].as_str().unwrap();
    assert!(
        why.contains("client_auth.ca: found no certificate in") && why.contains("ca.pem"),
        "{why}"
    );
    try_exchange(&Client::new(&gateway).shows(&old)).unwrap();
    let newcomer = Client::new(&gateway).shows(&new.client());
    assert_eq!(newcomer.refused_after_its_flight(), Alert::UnknownCA);

    std::fs::write(clients.ca(), new.pem()).unwrap();
    reload(&gateway, "succeeded");
    // Each worker takes the new snapshot when it is woken.
    for _ in 0..8 {
        eventually("the new CA", || try_exchange(&newcomer).ok());
    }
    let old = Client::new(&gateway).shows(&old);
    for client in [old.clone().tls12(), old.tls13()] {
        assert_eq!(client.refused_after_its_flight(), Alert::UnknownCA);
    }
    open.send(b"after");
    assert_eq!(open.receive(5), b"after");
    assert!(open.finish().is_empty());

    // Nobody is asked any more.
    gateway.edit_config("mode = \"required\"", "mode = \"off\"");
    reload(&gateway, "succeeded");
    eventually("nobody to be asked", || try_exchange(&Client::new(&gateway)).ok());
    gateway.wait_until_quiet();
}
