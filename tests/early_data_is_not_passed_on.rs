//! Early data can be replayed, so it is never taken: it is read over, and what follows the handshake is passed on.

use crate::support::*;

both_drivers!(
    that_of_a_foreign_session_is_read_over,
    that_of_a_session_of_ours_is_read_over_and_the_session_resumed,
    a_hello_retry_request_changes_nothing,
    tickets_allow_none,
);

const VERSION: &str = "-tls1_3";
/// As much as is read over, with room for what encryption adds.
const LARGE: usize = 16_000;

/// OpenSSL sends so many bytes of early data with this session, and then something else to an echo.
#[track_caller]
fn send_early(gateway: &Gateway, session: &SavedSession, bytes: usize, flags: &[&str], resumed: bool) {
    let [file, early] = ["offered.pem", "early"].map(|name| gateway.folder().join(name));
    session.write(&file);
    std::fs::write(&early, "early ".repeat(bytes).split_at(bytes).0).unwrap();
    let (file, early) = (file.to_str().unwrap(), early.to_str().unwrap());
    let offered = [VERSION, "-sess_in", file, "-early_data", early];
    let said = s_client_echo(gateway, &[&offered[..], flags].concat());
    assert!(said.contains("Early data was rejected"), "{said}");
    let expected = if resumed { "Reused, TLSv1.3" } else { "New, TLSv1.3" };
    assert!(said.contains(expected), "{said}");
    assert!(!said.contains("early early"), "it came back from the server: {said}");
    gateway.wait_until_quiet();
}

#[track_caller]
fn assert_nothing_else_was_passed_on(gateway: &Gateway, connections: u64) {
    gateway.wait_until_quiet();
    let message = "there and back\n".len() as u64;
    let lines = eventually("all connections to be logged", || {
        let mut lines = gateway.log_lines();
        lines.retain(|line| line["message"] == "connection");
        (lines.len() as u64 >= connections).then_some(lines)
    });
    for line in lines {
        assert_eq!(
            (&line["received"], &line["sent"]),
            (&message.into(), &message.into()),
            "{line}"
        );
    }
}

fn that_of_a_foreign_session_is_read_over(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let suite = ["-early_data", "-ciphersuites", "TLS_AES_128_GCM_SHA256"];
    let session = SavedSession::of_openssl(&gateway, VERSION, &suite);
    for bytes in [1, 600, LARGE / 2, LARGE] {
        send_early(&gateway, &session, bytes, &[], false);
    }
    let suites = "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256";
    send_early(&gateway, &session, LARGE, &["-ciphersuites", suites], false);
    let metrics = assert_handshakes(&gateway, 5, 0);
    assert_eq!(declined(&metrics, "ticket", "unknown"), 5);
    assert_nothing_else_was_passed_on(&gateway, 5);
}

/// The client believes that the gateway allows it.
fn that_of_a_session_of_ours_is_read_over_and_the_session_resumed(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let file = gateway.folder().join("session.pem");
    s_client_echo(&gateway, &[VERSION, "-sess_out", file.to_str().unwrap()]);
    let session = SavedSession::read(&file).with_early_data(LARGE as u32);
    for bytes in [600, LARGE] {
        send_early(&gateway, &session, bytes, &[], true);
    }
    assert_resumptions(&gateway, "ticket", 1, 2);
    assert_nothing_else_was_passed_on(&gateway, 3);
}

/// The first ClientHello has a share for a group that the gateway lacks. The foreign session's suite has the hash of the gateway's: OpenSSL
/// withdraws others in its second ClientHello, which rustls takes for a mistake.
fn a_hello_retry_request_changes_nothing(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let groups = ["-groups", "P-521:X25519"];
    let suite = ["-early_data", "-ciphersuites", "TLS_AES_128_GCM_SHA256"];
    let foreign = SavedSession::of_openssl(&gateway, VERSION, &suite);
    let file = gateway.folder().join("session.pem");
    s_client_echo(&gateway, &[VERSION, "-sess_out", file.to_str().unwrap()]);
    let ours = SavedSession::read(&file).with_early_data(LARGE as u32);
    for bytes in [600, LARGE] {
        send_early(&gateway, &foreign, bytes, &groups, false);
        send_early(&gateway, &ours, bytes, &groups, true);
    }
    assert_handshakes(&gateway, 3, 2);
    assert_nothing_else_was_passed_on(&gateway, 5);
}

/// So a client that follows the rules sends none.
fn tickets_allow_none(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let file = gateway.folder().join("session.pem");
    let saved = file.to_str().unwrap();
    s_client_echo(&gateway, &[VERSION, "-sess_out", saved]);
    let early = gateway.folder().join("early");
    std::fs::write(&early, "early early").unwrap();
    let said = s_client_echo(
        &gateway,
        &[VERSION, "-sess_in", saved, "-early_data", early.to_str().unwrap()],
    );
    assert!(said.contains("Early data was not sent"), "{said}");
    assert_resumptions(&gateway, "ticket", 1, 1);
}
