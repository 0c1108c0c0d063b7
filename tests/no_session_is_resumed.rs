//! With `tickets = false` and no cache nothing is issued and nothing is resumed, whatever the client tries.

use crate::support::*;

both_drivers!(
    openssl_reconnects_with_full_handshakes,
    nothing_comes_that_openssl_could_save,
    a_ticket_from_before_is_of_no_use,
);

fn gateway(io: Io, origin: &Origin) -> Gateway {
    Setup::new(io, &[origin.address()]).tls("tickets = false").start()
}

fn s_client(gateway: &Gateway, flags: &[&str]) -> Ran {
    run("openssl", &s_client_arguments(gateway, flags), b"").ok()
}

#[track_caller]
fn assert_all_full(gateway: &Gateway, handshakes: u64) {
    let metrics = assert_resumptions(gateway, "ticket", handshakes, 0);
    assert_eq!(metrics.sum("ringlock_sessions_issued_total", &[]), 0.0);
}

fn openssl_reconnects_with_full_handshakes(io: Io) {
    let origin = Origin::echo();
    let gateway = gateway(io, &origin);
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&gateway, &[version, "-reconnect"]).text();
        assert_eq!(said.matches("Reused,").count(), 0, "{said}");
        assert_eq!(said.matches("New, TLSv1.").count(), 6, "{said}");
    }
    assert_all_full(&gateway, 12);
}

fn nothing_comes_that_openssl_could_save(io: Io) {
    let origin = Origin::saying("data after which every ticket would have come");
    let gateway = gateway(io, &origin);
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

/// Tickets are switched off by a reload.
fn a_ticket_from_before_is_of_no_use(io: Io) {
    let origin = Origin::saying("data after which every ticket has come");
    let gateway = Setup::new(io, &[origin.address()]).tls("tickets = true").start();
    let saved = |version: &str| gateway.folder().join(format!("session{version}")).display().to_string();
    let versions = ["-tls1_2", "-tls1_3"];
    for version in versions {
        s_client(&gateway, &[version, "-sess_out", &saved(version), "-ign_eof"]).says("every ticket");
    }
    gateway.edit_config("tickets = true", "tickets = false");
    reload(&gateway);
    for version in versions {
        // The worker may not have heard of it yet.
        eventually("a full handshake", || {
            let ran = s_client(&gateway, &[version, "-sess_in", &saved(version), "-ign_eof"]).says("every ticket");
            ran.text().contains("New, TLSv1.").then_some(())
        });
    }
    gateway.wait_until_quiet();
}
