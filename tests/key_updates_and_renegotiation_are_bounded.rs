//! KeyUpdates are followed, a flood of them is not, and renegotiation is refused.

use crate::support::*;

both_drivers!(
    openssl_cannot_renegotiate,
    openssl_updates_its_keys,
    rustls_updates_its_keys_amid_data,
    a_flood_of_key_updates_ends_the_connection,
    updates_with_data_between_them_are_bounded_too,
);

fn s_client(gateway: &Gateway, version: &str) -> Program {
    let arguments = s_client_arguments(gateway, &["-verify_return_error", version]);
    let client = Program::start("openssl", &arguments);
    client.wait_for("Verify return code: 0 (ok)");
    client
}

fn openssl_cannot_renegotiate(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut client = s_client(&gateway, "-tls1_2");
    client.send(b"before\n");
    client.wait_for("before");
    client.send(b"R\n");
    client.wait_for("RENEGOTIATING");
    client.wait_for("no renegotiation");
    let ran = client.finish();
    assert!(!ran.status.success(), "{ran:#?}");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.count("ringlock_handshakes_total", &[]), 1);
    Client::new(&gateway).connect().finish();
}

fn openssl_updates_its_keys(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut client = s_client(&gateway, "-tls1_3");
    // K asks us to update as well, k does not.
    for (round, command) in ["K\n", "k\n", "K\n"].iter().enumerate() {
        client.send(command.as_bytes());
        // OpenSSL takes a command and text that come together for one command.
        eventually("the update", || {
            (client.text().matches("KEYUPDATE").count() > round).then_some(())
        });
        let text = format!("data {round} under new keys");
        client.send(format!("{text}\n").as_bytes());
        client.wait_for(&text);
    }
    client.finish().ok();
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}

fn rustls_updates_its_keys_amid_data(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).tls13().connect();
    for round in 0..8 {
        connection.tls.refresh_traffic_keys().unwrap();
        let data = pattern(1000 * (round + 1));
        connection.send(&data);
        assert!(connection.receive(data.len()) == data);
    }
    connection.finish();
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}

fn a_flood_of_key_updates_ends_the_connection(io: Io) {
    flood(io, b"");
}

/// Whoever hides a flood among data is not let through either.
fn updates_with_data_between_them_are_bounded_too(io: Io) {
    flood(io, b"x");
}

fn flood(io: Io, between: &[u8]) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).tls13().connect();
    let mut sent = 0;
    while sent < 100_000 && connection.tls.refresh_traffic_keys().is_ok() {
        sent += 1;
        if connection.flush().is_err() || connection.try_send(between).is_err() {
            break;
        }
    }
    gateway.wait_for_cause("client sent too many KeyUpdates");
    assert!(sent < 100_000, "all of the flood was taken");
    gateway.wait_until_quiet();
    let mut next = Client::new(&gateway).connect();
    next.send(b"x");
    assert_eq!(next.receive(1), b"x");
}
