//! Other people's clients, many at once, agree on keys with the batch and verify its signatures.

use crate::support::multibuffer;

use std::io::Write;
use std::time::Duration;

use crate::support::*;
use rustls::NamedGroup;

both_drivers!(
    python_verifies_signatures_of_each_kind_of_key,
    openssl_verifies_signatures_of_each_kind_of_key,
    rustls_agrees_in_each_group,
    a_slow_client_does_not_hold_up_a_batch,
);

const KINDS: [KeyKind; 5] = [
    KeyKind::Ecdsa,
    KeyKind::P384,
    KeyKind::Rsa,
    KeyKind::Rsa3072,
    KeyKind::Rsa4096,
];

/// A gateway with the library and an identity of this kind.
fn gateway(io: Io, kind: KeyKind, origin: &Origin) -> Option<Gateway> {
    let path = multibuffer::library()?;
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .identity("site", &[SITE], kind)
        .more(&format!("[crypto]\nmultibuffer = {path:?}"));
    let gateway = setup.start();
    let line = gateway.wait_for_line("what computes", |line| line["engine"].is_string());
    assert_eq!(line["engine"], "in batches of up to eight", "{line}");
    Some(gateway)
}

/// Runs `clients` until there were batches of signatures and key exchanges both.
#[track_caller]
fn until_batched(gateway: &Gateway, clients: impl Fn()) {
    let batches = |metrics: &Metrics| metrics.count("ringlock_crypto_batch_operations_count", &[]);
    let before = batches(&gateway.metrics());
    eventually("handshakes that share a call", || {
        clients();
        (batches(&gateway.metrics()) > before).then_some(())
    });
    let metrics = gateway.wait_until_quiet();
    // Both tell of the same calls.
    let sum = metrics.count("ringlock_crypto_batch_operations_sum", &[]);
    let batched = metrics.count("ringlock_crypto_operations_total", &[("engine", "batch")]);
    assert_eq!(sum, batched, "{}", metrics.text());
    assert!(sum >= 2 * batches(&metrics), "{}", metrics.text());
}

/// Twenty threads shake hands at the same time, twice each, and check certificate, name and signature.
const PYTHON: &str = r#"
import socket, ssl, sys, threading
ip, port, name, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
ready, failures = threading.Barrier(20), []
def client():
    try:
        for _ in range(2):
            plain = socket.create_connection((ip, int(port)), timeout=30)
            ready.wait(30)
            with context.wrap_socket(plain, server_hostname=name) as tls:
                tls.sendall(b"there and back")
                got = b""
                while len(got) < 14:
                    got += tls.recv(14) or sys.exit("the stream ended early")
                assert got == b"there and back"
                tls.unwrap()
    except BaseException as error:
        failures.append(repr(error))
        ready.abort()
threads = [threading.Thread(target=client) for _ in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit("\n".join(failures)) if failures else print("ok")
"#;

fn python_verifies_signatures_of_each_kind_of_key(io: Io) {
    let origin = Origin::echo();
    for kind in KINDS {
        let Some(gateway) = gateway(io, kind, &origin) else {
            return;
        };
        let (ip, port) = (gateway.address.ip().to_string(), gateway.address.port().to_string());
        let ca = gateway.ca.file();
        until_batched(&gateway, || {
            assert_eq!(python(PYTHON, &[&ip, &port, SITE, ca.to_str().unwrap()]), "ok\n");
        });
    }
}

fn openssl_verifies_signatures_of_each_kind_of_key(io: Io) {
    let origin = Origin::echo();
    for kind in KINDS {
        let Some(gateway) = gateway(io, kind, &origin) else {
            return;
        };
        for version in ["-tls1_3", "-tls1_2"] {
            let strict = ["-verify_return_error", "-verify_hostname", SITE, version];
            let arguments = s_client_arguments(&gateway, &strict);
            let mut clients: Vec<_> = (0..10).map(|_| Program::start("openssl", &arguments)).collect();
            for client in &mut clients {
                client.send(b"there and back\n");
                client.wait_for("there and back");
            }
            for client in clients {
                client.finish().ok().says("Verify return code: 0 (ok)");
            }
        }
        gateway.wait_until_quiet();
    }
}

fn rustls_agrees_in_each_group(io: Io) {
    let origin = Origin::echo();
    let Some(gateway) = gateway(io, KeyKind::Ecdsa, &origin) else {
        return;
    };
    for group in [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::X25519MLKEM768] {
        until_batched(&gateway, || {
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        let mut client = Client::new(&gateway).tls13().groups(&[group]).connect();
                        assert_eq!(client.negotiated().2, group);
                        client.send(b"there and back");
                        assert_eq!(client.receive(14), b"there and back");
                        client.finish();
                    });
                }
            });
        });
    }
}

/// Clients that stop in the middle, that hang up while an answer is computed, and that send nothing, among others.
fn a_slow_client_does_not_hold_up_a_batch(io: Io) {
    let origin = Origin::echo();
    let Some(gateway) = gateway(io, KeyKind::Rsa, &origin) else {
        return;
    };
    std::thread::scope(|scope| {
        for number in 0..24 {
            let gateway = &gateway;
            scope.spawn(move || match number % 3 {
                0 => {
                    // Stops in the middle of its ClientHello.
                    let hello = Client::new(gateway).open().take_outgoing();
                    let mut tcp = gateway.connect_tcp();
                    tcp.write_all(&hello[..hello.len() / 2]).unwrap();
                    std::thread::sleep(Duration::from_millis(100));
                }
                1 => {
                    // Hangs up right behind its ClientHello.
                    let mut client = Client::new(gateway).open();
                    let _ = client.flush();
                    client.reset();
                }
                _ => {
                    for _ in 0..4 {
                        let mut client = Client::new(gateway).connect();
                        client.send(b"there and back");
                        assert_eq!(client.receive(14), b"there and back");
                        client.finish();
                    }
                }
            });
        }
    });
    gateway.wait_until_quiet();
}
