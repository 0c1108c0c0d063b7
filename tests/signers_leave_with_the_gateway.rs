//! A signer serves for as long as its gateway needs it, and not a moment longer: whatever signals come, however the gateway ends, and
//! whatever the configuration says next.

use crate::support::*;

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

both_drivers!(
    they_leave_with_a_gateway_that_stops,
    they_leave_with_a_gateway_that_is_killed,
    they_leave_with_a_gateway_that_is_killed_while_their_token_hangs,
    they_leave_the_signals_of_a_terminal_to_the_gateway,
    one_comes_and_goes_with_its_token,
    whoever_waits_for_a_token_that_is_removed_is_served,
    whoever_came_before_a_token_was_removed_is_served_by_it,
);

fn start(io: Io, token: &Faulty, origin: &Origin) -> Setup {
    Setup::new(io, &[origin.address()])
        .global("drain_timeout = \"20s\"")
        .listener("handshake_timeout = \"25s\"")
        .no_identities()
        .token(token, "sessions = 2\ntimeout = \"20s\"")
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
}

/// The last thing that the module was told is that it is not needed any more.
fn took_leave(token: &Faulty) -> bool {
    let calls = |function| token.folder().module_calls(function);
    calls("C_Finalize") == calls("C_Initialize")
}

fn they_leave_with_a_gateway_that_stops(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    exchange(&gateway);
    let signer = signer(&gateway, &token);
    gateway.stop();
    assert!(!is_alive(signer), "the gateway waits for it");
    assert!(took_leave(&token));
}

fn they_leave_with_a_gateway_that_is_killed(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    exchange(&gateway);
    let signer = signer(&gateway, &token);
    kill(gateway.pid());
    let (status, log) = gateway.wait();
    assert!(!status.success(), "{log}");
    wait_for_end(signer);
    assert!(took_leave(&token));
}

fn they_leave_with_a_gateway_that_is_killed_while_their_token_hangs(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    let signer = signer(&gateway, &token);
    token.cue("hang = all");
    let mut waiting = Client::new(&gateway).open();
    waiting.flush().unwrap();
    wait_for_metric(&gateway, "ringlock_key_requests_in_flight", &[], 1.0);
    kill(gateway.pid());
    gateway.wait();
    wait_for_end(signer);
}

/// Ctrl-C goes to the whole group, and so do signals of service managers.
fn they_leave_the_signals_of_a_terminal_to_the_gateway(io: Io) {
    for signal in [Signal::INT, Signal::TERM] {
        let (origin, token) = (Origin::echo(), Faulty::new("edge"));
        let setsid = tool("setsid").display().to_string();
        let gateway = start(io, &token, &origin).through(&[&setsid]).start();
        let group = Pid::from_raw(i32::try_from(gateway.pid()).unwrap()).unwrap();
        let signer = signer(&gateway, &token);
        kill_process_group(group, Signal::HUP).unwrap();
        wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], 2.0);
        assert!(is_alive(signer), "it is needed as before");

        token.cue("hang = sign");
        let mut waiting = Client::new(&gateway).open();
        waiting.flush().unwrap();
        wait_for_metric(&gateway, "ringlock_key_requests_in_flight", &[], 1.0);
        kill_process_group(group, signal).unwrap();
        eventually("the gateway to drain", || {
            (gateway.ask("/readyz").0 == 503).then_some(())
        });
        assert!(is_alive(signer), "somebody waits for it");
        token.cue("");
        waiting.handshake().expect("it is served while the gateway drains");
        echoes(&mut waiting, b"served");
        assert!(waiting.finish().is_empty());
        let (status, log) = gateway.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!is_alive(signer));
    }
}

/// The configuration's key of the identity "site", in the token and in a file.
fn keys(gateway: &Gateway, token: &Faulty) -> (String, String) {
    let folder = token.folder().pin_file("edge");
    let file = folder.with_file_name("site.pem");
    let own = gateway.folder().join("site.key");
    std::fs::copy(file, own).unwrap();
    (token.uri("site"), "site.key".to_owned())
}

fn one_comes_and_goes_with_its_token(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    let (in_token, in_file) = keys(&gateway, &token);
    let mut established = Client::new(&gateway).connect();
    let mut before = None;
    for _ in 0..3 {
        let signer = signer(&gateway, &token);
        gateway.edit_config(&in_token, &in_file);
        reload(&gateway);
        // An old configuration lives for as long as its connections.
        echoes(&mut established, b"established");
        assert!(established.finish().is_empty());
        wait_for_end(signer);
        eventually("no child", || children(&gateway).is_empty().then_some(()));
        let signed = token.calls("C_Sign");
        exchange(&gateway);
        gateway.wait_until_quiet();
        assert_eq!(token.calls("C_Sign"), signed, "the file's key has signed");
        assert!(!gateway.metrics().has("ringlock_token_sessions", &[]));
        let before = *before.get_or_insert_with(|| descriptors(gateway.pid()));
        wait_until_nothing_is_left(&gateway, before);

        gateway.edit_config(&in_file, &in_token);
        reload(&gateway);
        established = eventually("the token's key to be used", || {
            let connection = Client::new(&gateway).connect();
            (token.calls("C_Sign") > signed + 2).then_some(connection)
        });
    }
    assert!(established.finish().is_empty());
}

fn whoever_waits_for_a_token_that_is_removed_is_served(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    let (in_token, in_file) = keys(&gateway, &token);
    let signer = signer(&gateway, &token);
    token.cue("hang = sign");
    let mut waiting: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = Client::new(&gateway).open();
            connection.flush().unwrap();
            connection
        })
        .collect();
    wait_for_metric(&gateway, "ringlock_key_requests_in_flight", &[], 5.0);
    wait_for_metric(&gateway, "ringlock_key_requests_waiting", &[], 5.0);
    // It has not said anything yet, and belongs to the configuration under which it came.
    waiting.push(Client::new(&gateway).open());
    wait_for_metric(&gateway, "ringlock_connections_live", &[], waiting.len() as f64);
    gateway.edit_config(&in_token, &in_file);
    reload(&gateway);
    eventually("the file's key to be used", || {
        // Whoever comes before the worker has heard of the reload waits for the token as well.
        try_exchange(&Client::new(&gateway).patience(Duration::from_millis(500))).ok()
    });
    assert!(is_alive(signer), "somebody waits for it");
    token.cue("");
    for connection in &mut waiting {
        connection.handshake().expect("it was promised");
        echoes(connection, b"served");
    }
    drop(waiting);
    wait_for_end(signer);
    gateway.wait_until_quiet();
}

fn whoever_came_before_a_token_was_removed_is_served_by_it(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin).start();
    let (in_token, in_file) = keys(&gateway, &token);
    let signer = signer(&gateway, &token);
    // It says nothing before the reload.
    let mut early = Client::new(&gateway).open();
    wait_for_metric(&gateway, "ringlock_connections_live", &[], 1.0);
    gateway.edit_config(&in_token, &in_file);
    reload(&gateway);
    exchange(&gateway);
    let signed = token.calls("C_Sign");
    early
        .handshake()
        .expect("its configuration lives for as long as it does");
    echoes(&mut early, b"served");
    assert!(token.calls("C_Sign") > signed);
    assert!(early.finish().is_empty());
    wait_for_end(signer);
}

#[test]
fn a_signer_that_is_started_by_hand_says_what_it_is() {
    let ran = ringlock(&["signer"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    ran.says("it starts by itself").says("ringlock run");
    // A connection with somebody else than its gateway is no better.
    let script = "import os, socket, subprocess, sys\n\
        ours, theirs = socket.socketpair()\n\
        pid = os.fork()\n\
        if pid == 0:\n\
        \x20   ours.close()\n\
        \x20   ran = subprocess.run([sys.argv[1], 'signer'], stdin=theirs, capture_output=True, text=True, timeout=30)\n\
        \x20   print(ran.returncode, ran.stderr)\n\
        \x20   sys.exit(0)\n\
        os.waitpid(pid, 0)\n";
    let said = python(script, &[env!("CARGO_BIN_EXE_ringlock")]);
    assert!(
        said.starts_with("1 ") && said.contains("expected one of the gateway"),
        "{said}"
    );
}
