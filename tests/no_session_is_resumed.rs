//! No ticket is issued and no session is resumed, whatever the client tries.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[macro_use]
mod support;

use support::*;

both_drivers!(
    openssl_reconnects_with_full_handshakes,
    nothing_comes_that_openssl_could_save,
);

fn s_client(gateway: &Gateway, flags: &[&str]) -> Ran {
    run("openssl", &s_client_arguments(gateway, flags), b"").ok()
}

#[track_caller]
fn assert_all_full(gateway: &Gateway, handshakes: u64) {
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.sum("ringlock_handshakes_total", &[("resumption", "resumed")]),
        0.0
    );
    assert_eq!(
        metrics.count("ringlock_handshakes_total", &[("resumption", "full")]),
        handshakes
    );
}

fn openssl_reconnects_with_full_handshakes(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&gateway, &[version, "-reconnect"]).text();
        assert_eq!(said.matches("Reused,").count(), 0, "{said}");
        assert_eq!(said.matches("New, TLSv1.").count(), 6, "{said}");
    }
    assert_all_full(&gateway, 12);
}

fn nothing_comes_that_openssl_could_save(io: Io) {
    let origin = Origin::saying("data after which every ticket would have come");
    let gateway = Setup::new(io, &[origin.address()]).start();
    for version in ["-tls1_2", "-tls1_3"] {
        let saved = gateway.folder().join("session");
        let flags = [version, "-sess_out", saved.to_str().unwrap(), "-ign_eof"];
        let ran = s_client(&gateway, &flags).says("every ticket");
        for ticket in ["New Session Ticket", "TLS session ticket:"] {
            assert!(!ran.text().contains(ticket), "{ran:#?}");
        }
        assert!(!saved.exists(), "a session was saved with {version}");
    }
    assert_all_full(&gateway, 2);
}
