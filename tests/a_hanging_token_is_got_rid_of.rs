//! A token whose calls do not return takes nothing with it: its signer is ended and started again, other tokens and keys serve on, and
//! service returns with the token.

use crate::support::*;

use std::time::Instant;

use rustls::AlertDescription;

both_drivers!(
    its_signer_is_started_again,
    a_hang_of_one_call_costs_one_attempt,
    on_a_thread_the_breaker_opens,
    a_gateway_with_a_token_that_hangs_ends_when_it_is_told_to,
);

const HANGS: [(&str, &str); 1] = [("token", "hangs")];
const OPEN: [(&str, &str); 2] = [("token", "hangs"), ("state", "open")];
const CLOSED: [(&str, &str); 2] = [("token", "hangs"), ("state", "closed")];
const BREAKER: &str = "ringlock_token_breaker";
const FAILURES: &str = "ringlock_handshake_failures_total";

/// Names whose keys are in the other token, and in a file.
const OTHER: &str = "other.example";
const SOFT: &str = "soft.example";

/// [`SITE`] is in the token that hangs, which is used as these lines say.
fn start(io: Io, hangs: &Faulty, other: &Faulty, origin: &Origin, lines: &str) -> Gateway {
    Setup::new(io, &[origin.address()])
        .no_identities()
        .global("drain_timeout = \"5s\"")
        .listener("handshake_timeout = \"25s\"")
        .token(hangs, lines)
        .token(other, "")
        .token_identity(hangs, "site", &[SITE], KeyKind::Ecdsa)
        .token_identity(other, "other", &[OTHER], KeyKind::Ecdsa)
        .identity("soft", &[SOFT], KeyKind::Ecdsa)
        .start()
}

#[track_caller]
fn others_serve(gateway: &Gateway, established: &mut Connection) {
    for name in [OTHER, SOFT] {
        try_exchange(&Client::new(gateway).name(name)).expect("it has nothing to do with that token");
    }
    echoes(established, b"established traffic does not notice");
}

#[track_caller]
fn wait_until_served(gateway: &Gateway) {
    let start = Instant::now();
    eventually("new handshakes to succeed", || try_exchange(&Client::new(gateway)).ok());
    eprintln!("served {:?} after the token's return", start.elapsed());
    wait_for_metric(gateway, BREAKER, &CLOSED, 1.0);
}

fn its_signer_is_started_again(io: Io) {
    let (origin, hangs, other) = (Origin::echo(), Faulty::new("hangs"), Faulty::new("other"));
    let gateway = start(io, &hangs, &other, &origin, "sessions = 2\ntimeout = \"500ms\"");
    let mut established = Client::new(&gateway).connect();
    let (first, others) = (signer(&gateway, &hangs), signer(&gateway, &other));
    hangs.cue("hang = sign");
    let (load, ()) = under_load(&Client::new(&gateway), 3, |_| {
        eventually("the signer to be started again", || {
            let metrics = gateway.metrics();
            (metrics.sum("ringlock_signer_restarts_total", &HANGS) >= 1.0).then_some(())
        });
        others_serve(&gateway, &mut established);
    });
    assert!(!is_alive(first));
    assert_eq!(load.succeeded(), 0, "nobody can be served by it");
    let alert = rustls::Error::AlertReceived(AlertDescription::InternalError).to_string();
    assert!(load.failures().iter().all(|failure| *failure == alert), "{load:?}");
    let metrics = gateway.metrics();
    let failed = |cause| metrics.sum(FAILURES, &[("cause", cause)]) as usize;
    assert!(failed("key_timeout") > 0, "those that the hang met: {load:?}");
    assert_eq!(
        failed("key_timeout") + failed("key_unavailable") + failed("key"),
        load.failures().len()
    );
    gateway.wait_for_line("how the signer ended", |line| {
        line["why"].as_str().unwrap_or_default().contains("exit status: 75")
    });
    hangs.cue("");
    wait_until_served(&gateway);
    others_serve(&gateway, &mut established);
    assert_eq!(
        signer(&gateway, &other),
        others,
        "the other module's signer is the same"
    );
    assert!(established.finish().is_empty());
    gateway.wait_until_quiet();
    eventually("no zombie", || {
        children(&gateway).iter().all(|child| !child.zombie).then_some(())
    });
    assert_eq!(children(&gateway).len(), 2, "{:?}", children(&gateway));
}

fn a_hang_of_one_call_costs_one_attempt(io: Io) {
    let (origin, hangs, other) = (Origin::echo(), Faulty::new("hangs"), Faulty::new("other"));
    let gateway = start(io, &hangs, &other, &origin, "sessions = 2\ntimeout = \"1s\"");
    hangs.cue("hang = sign\ntimes = 1");
    assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    wait_for_metric(&gateway, FAILURES, &[("cause", "key_timeout")], 1.0);
    let errors = [HANGS[0], ("error", "Timeout")];
    wait_for_metric(&gateway, "ringlock_token_errors_total", &errors, 1.0);
    // The other session, and the one that takes the place of the one that hangs.
    for _ in 0..4 {
        exchange(&gateway);
    }
    wait_for_metric(&gateway, "ringlock_token_sessions", &HANGS, 2.0);
    let metrics = gateway.metrics();
    assert_eq!(metrics.count("ringlock_signer_restarts_total", &HANGS), 0);
    hangs.cue("");
}

fn on_a_thread_the_breaker_opens(io: Io) {
    let (origin, hangs, other) = (Origin::echo(), Faulty::new("hangs"), Faulty::new("other"));
    let lines = "isolation = \"thread\"\nsessions = 2\ntimeout = \"500ms\"";
    let gateway = start(io, &hangs, &other, &origin, lines);
    assert_eq!(children(&gateway).len(), 1, "only the other token's");
    let mut established = Client::new(&gateway).connect();
    hangs.cue("hang = sign");
    let (load, ()) = under_load(&Client::new(&gateway), 3, |_| {
        wait_for_metric(&gateway, BREAKER, &OPEN, 1.0);
        others_serve(&gateway, &mut established);
    });
    assert_eq!(load.succeeded(), 0);
    assert_eq!(gateway.metrics().count("ringlock_signer_restarts_total", &HANGS), 0);
    hangs.cue("");
    wait_until_served(&gateway);
    others_serve(&gateway, &mut established);
    assert!(established.finish().is_empty());
    gateway.wait_until_quiet();
}

fn a_gateway_with_a_token_that_hangs_ends_when_it_is_told_to(io: Io) {
    for isolation in ["process", "thread"] {
        let (origin, hangs, other) = (Origin::echo(), Faulty::new("hangs"), Faulty::new("other"));
        let lines = format!("isolation = \"{isolation}\"\nsessions = 2\ntimeout = \"20s\"");
        let gateway = start(io, &hangs, &other, &origin, &lines);
        let signers = children(&gateway);
        // Also calls that end a session and the module, should somebody make them.
        hangs.cue("hang = all");
        let mut waiting = Client::new(&gateway).open();
        waiting.flush().unwrap();
        wait_for_metric(&gateway, "ringlock_key_requests_in_flight", &[("group", "hangs")], 1.0);
        gateway.stop();
        for signer in signers {
            assert!(!is_alive(signer.pid), "{isolation}: {signer:?} is left");
        }
    }
}
