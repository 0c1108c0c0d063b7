//! A signer that is killed, or that its module takes down with it, is started again, and whoever waited for it does not fail: a
//! handshake is asked once more, and takes longer.

use crate::support::*;

both_drivers!(
    handshakes_live_through_signers_that_are_killed,
    handshakes_live_through_modules_that_crash,
    a_handshake_that_is_lost_with_its_signer_is_asked_again_even_if_none_waits,
);

const ROUNDS: u64 = 5;
const CLIENTS: usize = 4;
const MIB: u64 = 1024 * 1024;
const TOKEN: [(&str, &str); 1] = [("token", "edge")];

/// The back-off doubles with each end, so the fifth pause is longer than a signature may take by default.
const PATIENT: &str = "sessions = 2\ntimeout = \"20s\"";

fn setup(io: Io, token: &Faulty, origin: &Origin) -> Setup {
    Setup::new(io, &[origin.address()])
        .workers(2)
        .no_identities()
        .listener("handshake_timeout = \"25s\"")
        .log("format = \"json\"\nconnections = \"failures\"")
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
}

fn restarts(gateway: &Gateway) -> u64 {
    gateway.metrics().count("ringlock_signer_restarts_total", &TOKEN)
}

/// Has the signer end again and again while clients connect; each time the next one serves before the round is over.
fn ends_in_rounds(gateway: &Gateway, token: &Faulty, end: impl Fn()) {
    let before_memory = gateway.resident_bytes();
    let before_descriptors = {
        exchange(gateway);
        gateway.wait_until_quiet();
        descriptors(gateway.pid())
    };
    let signer_descriptors = descriptors(signer(gateway, token));
    let mut established = Client::new(gateway).connect();
    let (load, ()) = under_load(&Client::new(gateway), CLIENTS, |load| {
        load.wait_for_more(2 * CLIENTS);
        for round in 1..=ROUNDS {
            let old = signer(gateway, token);
            end();
            eventually("the signer to be started again", || {
                (restarts(gateway) >= round).then_some(())
            });
            assert!(!is_alive(old), "the old signer has ended");
            echoes(&mut established, b"established traffic does not notice");
            load.wait_for_more(2 * CLIENTS);
        }
    });
    assert!(
        load.failures().is_empty(),
        "of {} handshakes failed {:?}\n{}",
        load.succeeded(),
        load.failures(),
        gateway.log()
    );
    assert!(established.finish().is_empty());
    let metrics = gateway.wait_until_quiet();
    assert_eq!(
        metrics.count("ringlock_signer_restarts_total", &TOKEN),
        ROUNDS,
        "once for each end"
    );
    assert_eq!(metrics.sum("ringlock_key_requests_waiting", &[]), 0.0);
    assert_eq!(metrics.sum("ringlock_key_requests_in_flight", &[]), 0.0);
    assert_eq!(metrics.sum("ringlock_key_requests_total", &[("result", "failed")]), 0.0);
    assert_eq!(
        metrics.sum("ringlock_key_requests_total", &[("result", "expired")]),
        0.0
    );
    wait_until_nothing_is_left(gateway, before_descriptors);
    let signers = children(gateway);
    assert_eq!(signers.len(), 1, "{signers:?}");
    let (now, memory) = (descriptors(signers[0].pid), gateway.resident_bytes());
    assert!(
        now <= signer_descriptors,
        "the last signer has {now} descriptors, the first had {signer_descriptors}"
    );
    eprintln!(
        "{} handshakes; {before_memory} bytes before, {memory} after",
        load.succeeded()
    );
    assert!(
        memory <= before_memory + before_memory / 2 + 16 * MIB,
        "{before_memory} bytes before, {memory} after"
    );
}

fn handshakes_live_through_signers_that_are_killed(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = setup(io, &token, &origin).token(&token, PATIENT).start();
    token.cue("latency_ms = 10");
    ends_in_rounds(&gateway, &token, || {
        // Somebody is being served in that moment.
        token.cue("hang = sign");
        eventually("a handshake to wait for the token", || {
            (gateway.metrics().sum("ringlock_key_requests_in_flight", &[]) > 0.0).then_some(())
        });
        kill(signer(&gateway, &token));
        token.cue("latency_ms = 10");
    });
    let retries = gateway.metrics().count("ringlock_key_retries_total", &[]);
    assert!(retries >= ROUNDS, "{retries} retries");
    let log = gateway.stop();
    assert!(log.contains("signal: 9"), "the log says how it ended: {log}");
}

fn handshakes_live_through_modules_that_crash(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = setup(io, &token, &origin).token(&token, PATIENT).start();
    ends_in_rounds(&gateway, &token, || token.cue("crash = sign\ntimes = 1"));
    let retries = gateway.metrics().count("ringlock_key_retries_total", &[]);
    assert!(retries >= ROUNDS, "{retries} retries");
    let log = gateway.stop();
    assert!(log.contains("signal: 6"), "the log says how it ended: {log}");
}

/// `when_down = "fail"` is for those that come later.
fn a_handshake_that_is_lost_with_its_signer_is_asked_again_even_if_none_waits(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let settings = format!("{PATIENT}\nwhen_down = \"fail\"");
    let gateway = setup(io, &token, &origin).token(&token, &settings).start();
    token.cue("crash = sign\ntimes = 1");
    exchange(&gateway);
    wait_for_metric(&gateway, "ringlock_key_retries_total", &[], 1.0);
    assert_eq!(restarts(&gateway), 1);
}
