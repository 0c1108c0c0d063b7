//! A token that fails or goes away costs new handshakes only, which wait for it or fail at once, as configured; and when it is back
//! it is used again without anybody's doing. After a refused PIN it is not: tokens lock themselves.

use crate::support::*;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::AlertDescription;

both_drivers!(
    whichever_way_it_goes_it_comes_back,
    handshakes_wait_for_it,
    sessions_are_resumed_while_it_is_away,
    whoever_has_waited_too_long_is_refused,
    a_softhsm_token_made_anew_is_used,
    sessions_that_the_token_has_dropped_cost_nobody,
    a_session_in_use_is_not_dropped,
    another_token_of_its_group_takes_its_place,
    a_refused_pin_is_not_tried_again,
    a_reload_tries_a_pin_once_and_leaves_the_last_attempt_to_people,
);

const TOKEN: [(&str, &str); 1] = [("token", "edge")];
const OPEN: [(&str, &str); 2] = [("token", "edge"), ("state", "open")];
const CLOSED: [(&str, &str); 2] = [("token", "edge"), ("state", "closed")];
const BREAKER: &str = "ringlock_token_breaker";
const FAILURES: &str = "ringlock_handshake_failures_total";
const UNAVAILABLE: [(&str, &str); 1] = [("cause", "key_unavailable")];
const DOWN: &str = "the private key could not be used: its token cannot be used at present";

fn start(io: Io, token: &dyn Token, origin: &Origin, lines: &str) -> Gateway {
    Setup::new(io, &[origin.address()])
        .no_identities()
        .listener("handshake_timeout = \"25s\"")
        .token(token, lines)
        .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
        .start()
}

/// Has the gateway notice that its token fails: with clients, because it asks the token for nothing else.
#[track_caller]
fn wait_until_down(gateway: &Gateway) {
    eventually("the token to be given up", || {
        let _ = try_exchange(&Client::new(gateway));
        (gateway.metrics().sum(BREAKER, &OPEN) == 1.0).then_some(())
    });
}

/// Tells how long it takes until a client is served.
#[track_caller]
fn wait_until_served(gateway: &Gateway, what: &str) {
    let start = Instant::now();
    eventually("new handshakes to succeed", || try_exchange(&Client::new(gateway)).ok());
    eprintln!("{what}: served {:?} after its return", start.elapsed());
    wait_for_metric(gateway, BREAKER, &CLOSED, 1.0);
}

fn whichever_way_it_goes_it_comes_back(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin, "sessions = 3\nwhen_down = \"fail\"");
    let mut established = Client::new(&gateway).connect();
    let first = signer(&gateway, &token);
    let ways = [
        ("fail = CKR_DEVICE_REMOVED", "CKR_DEVICE_REMOVED"),
        ("fail = CKR_GENERAL_ERROR", "CKR_GENERAL_ERROR"),
        ("fail_sign = CKR_SESSION_HANDLE_INVALID", "CKR_SESSION_HANDLE_INVALID"),
        ("fail_sign = CKR_DEVICE_ERROR", "CKR_DEVICE_ERROR"),
        ("fail_sign = CKR_FUNCTION_FAILED", "CKR_FUNCTION_FAILED"),
        ("absent", "CKR_DEVICE_REMOVED"),
        ("absent = sticky", "CKR_DEVICE_REMOVED"),
    ];
    let mut before = 0;
    for (cue, error) in ways {
        token.cue(cue);
        wait_until_down(&gateway);
        let errors = [TOKEN[0], ("error", error)];
        let metrics = gateway.metrics();
        assert!(
            metrics.sum("ringlock_token_errors_total", &errors) > 0.0,
            "{cue}: {}",
            metrics.text()
        );
        let refused = metrics.sum(FAILURES, &UNAVAILABLE);
        assert_eq!(
            Client::new(&gateway).refused_with(),
            AlertDescription::InternalError,
            "{cue}"
        );
        wait_for_metric(&gateway, FAILURES, &UNAVAILABLE, refused + 1.0);
        let line = gateway.wait_for_cause(DOWN);
        assert_eq!(line["fault"], "key", "{line}");
        gateway.wait_for_line("why the token is not used", |line| {
            let why = line["why"].as_str().unwrap_or_default();
            line["message"] == "token cannot be used" && line["token"] == "edge" && why.contains(error)
        });
        echoes(&mut established, b"established traffic does not notice");
        token.cue("");
        wait_until_served(&gateway, cue);
        let recoveries = gateway.metrics().count("ringlock_token_recoveries_total", &TOKEN);
        assert!(recoveries > before, "{cue}: {recoveries} recoveries, {before} before");
        before = recoveries;
    }
    assert_eq!(signer(&gateway, &token), first, "no way of going needs another signer");
    assert_eq!(gateway.metrics().count("ringlock_signer_restarts_total", &TOKEN), 0);
    eventually("every session to be opened again", || {
        (gateway.metrics().sum("ringlock_token_sessions", &TOKEN) == 3.0).then_some(())
    });
    assert!(established.finish().is_empty());
    gateway.wait_until_quiet();
}

fn sessions_are_resumed_while_it_is_away(io: Io) {
    const VISITS: usize = 20;
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin, "when_down = \"fail\"");
    let clients = [Client::new(&gateway).tls13(), Client::new(&gateway).tls12()].map(Client::keeps_sessions);
    for client in &clients {
        try_exchange(client).expect("the token is there");
    }
    token.cue("absent = sticky");
    wait_until_down(&gateway);
    for client in clients.iter().cycle().take(VISITS) {
        try_exchange(client).expect("whoever resumes a session needs no signature");
    }
    assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    let metrics = gateway.wait_until_quiet();
    let accepted = metrics.count("ringlock_sessions_accepted_total", &[("kind", "ticket")]);
    assert_eq!(accepted, VISITS as u64, "{}", metrics.text());
}

fn handshakes_wait_for_it(io: Io) {
    const WAITING: usize = 6;
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin, "timeout = \"20s\"");
    let mut established = Client::new(&gateway).connect();
    token.cue("absent = sticky");
    let client = Client::new(&gateway);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..WAITING).map(|_| scope.spawn(|| try_exchange(&client))).collect();
        wait_for_metric(&gateway, "ringlock_key_requests_waiting", &[], WAITING as f64);
        wait_for_metric(&gateway, BREAKER, &OPEN, 1.0);
        echoes(&mut established, b"established traffic does not notice");
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        token.cue("");
        for thread in waiting {
            thread.join().unwrap().expect("it has waited, and been served");
        }
    });
    assert!(established.finish().is_empty());
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.sum(FAILURES, &[]), 0.0, "{:?}", metrics.ended());
}

fn whoever_has_waited_too_long_is_refused(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin, "timeout = \"300ms\"");
    let mut established = Client::new(&gateway).connect();
    token.cue("absent");
    wait_until_down(&gateway);
    let refused = gateway.metrics().sum(FAILURES, &UNAVAILABLE);
    assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    wait_for_metric(&gateway, FAILURES, &UNAVAILABLE, refused + 1.0);
    gateway.wait_for_cause(DOWN);
    echoes(&mut established, b"established traffic does not notice");
    token.cue("");
    wait_until_served(&gateway, "absent");
}

fn a_softhsm_token_made_anew_is_used(io: Io) {
    let (origin, token) = (Origin::echo(), SoftHsm::new("edge"));
    let gateway = start(io, &token, &origin, "when_down = \"fail\"");
    let mut established = Client::new(&gateway).connect();
    token.remove();
    wait_until_down(&gateway);
    assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    echoes(&mut established, b"established traffic does not notice");
    token.recreate();
    wait_until_served(&gateway, "SoftHSM's token");
    assert!(established.finish().is_empty());
}

fn sessions_that_the_token_has_dropped_cost_nobody(io: Io) {
    const IDLE: Duration = Duration::from_secs(5);
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    // Also where handshakes do not wait.
    let gateway = start(io, &token, &origin, "when_down = \"fail\"\nkeep_alive = \"0s\"");
    exchange(&gateway);
    token.cue("drop_idle_ms = 500");
    for round in 1..=2 {
        // Nothing happens meanwhile: that is the point. One that drops them all the time would be taken for one that fails.
        std::thread::sleep(IDLE);
        exchange(&gateway);
        let metrics = gateway.metrics();
        assert_eq!(metrics.count("ringlock_key_retries_total", &[]), round);
        assert_eq!(metrics.sum(FAILURES, &[]), 0.0);
    }
}

fn a_session_in_use_is_not_dropped(io: Io) {
    const IDLE: Duration = Duration::from_secs(2);
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let gateway = start(io, &token, &origin, "keep_alive = \"100ms\"");
    exchange(&gateway);
    token.cue(&format!("drop_idle_ms = {}", IDLE.as_millis()));
    std::thread::sleep(IDLE + IDLE / 2);
    exchange(&gateway);
    let metrics = gateway.metrics();
    assert_eq!(metrics.count("ringlock_key_retries_total", &[]), 0);
    assert_eq!(
        metrics.sum("ringlock_token_errors_total", &[]),
        0.0,
        "{}",
        metrics.text()
    );
}

fn another_token_of_its_group_takes_its_place(io: Io) {
    let origin = Origin::echo();
    let (first, second) = (Faulty::new("first"), Faulty::new("second"));
    let pair = FaultyPair::new("pair", &first, &second);
    let gateway = start(io, &pair, &origin, "sessions = 2");
    let client = Client::new(&gateway);
    let (load, ()) = under_load(&client, 3, |load| {
        for (goes, label) in [(&first, "first"), (&second, "second")] {
            load.wait_for_more(6);
            goes.cue("absent = sticky");
            wait_for_metric(&gateway, BREAKER, &[("token", label), ("state", "open")], 1.0);
            load.wait_for_more(6);
            goes.cue("");
            wait_for_metric(&gateway, BREAKER, &[("token", label), ("state", "closed")], 1.0);
            let signed = goes.calls("C_Sign");
            eventually("both tokens to be used", || {
                (goes.calls("C_Sign") > signed).then_some(())
            });
        }
    });
    assert!(load.failures().is_empty(), "{:?}\n{}", load.failures(), gateway.log());
    assert_eq!(gateway.wait_until_quiet().sum(FAILURES, &[]), 0.0);
}

/// The gateway's copy of a PIN, in another file than the token's own.
struct OwnPin(tempfile::TempDir);

impl OwnPin {
    fn new(pin: &str) -> OwnPin {
        let own = OwnPin(tempfile::tempdir().unwrap());
        write(&own.file(), pin);
        std::fs::set_permissions(own.file(), Permissions::from_mode(0o600)).unwrap();
        own
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("pin")
    }

    fn start(&self, io: Io, token: &Faulty, origin: &Origin) -> Gateway {
        let section = token.section("sessions = 2\nwhen_down = \"fail\"");
        let (theirs, ours) = (token.pin_file(), self.file());
        let section = section.replace(theirs.to_str().unwrap(), ours.to_str().unwrap());
        Setup::new(io, &[origin.address()])
            .no_identities()
            .more(&section)
            .token_identity(token, "site", &[SITE], KeyKind::Ecdsa)
            .start()
    }
}

fn write(file: &Path, pin: &str) {
    std::fs::write(file, pin).unwrap();
}

fn a_refused_pin_is_not_tried_again(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let own = OwnPin::new(PIN);
    let gateway = own.start(io, &token, &origin);
    let mut established = Client::new(&gateway).connect();
    token.cue("absent = sticky");
    wait_until_down(&gateway);
    write(&token.pin_file(), "271828");
    token.cue("");
    wait_for_metric(&gateway, "ringlock_token_pin_refused", &TOKEN, 1.0);
    let failures = || token.folder().pin_failures("edge");
    assert_eq!(failures(), 1);

    // Neither clients nor a new signer make it try again.
    for _ in 0..3 {
        assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    }
    let old = signer(&gateway, &token);
    kill(old);
    wait_for_metric(&gateway, "ringlock_signer_restarts_total", &TOKEN, 1.0);
    eventually("the new signer to say how the token is", || {
        let metrics = gateway.metrics();
        let errors = [TOKEN[0], ("error", "Pin")];
        (metrics.sum("ringlock_token_errors_total", &errors) >= 1.0).then_some(())
    });
    assert_eq!(Client::new(&gateway).refused_with(), AlertDescription::InternalError);
    assert_eq!(gateway.metrics().sum("ringlock_token_pin_refused", &TOKEN), 1.0);
    assert_eq!(failures(), 1, "once and no more");

    // Somebody has looked at it.
    write(&own.file(), "271828");
    reload(&gateway);
    wait_until_served(&gateway, "the right PIN");
    assert_eq!(gateway.metrics().sum("ringlock_token_pin_refused", &TOKEN), 0.0);
    assert_eq!(failures(), 0, "the token has forgotten");
    echoes(&mut established, b"established traffic does not notice");
    assert!(established.finish().is_empty());
    let log = gateway.stop();
    assert!(!log.contains(PIN) && !log.contains("271828"), "{log}");
}

fn a_reload_tries_a_pin_once_and_leaves_the_last_attempt_to_people(io: Io) {
    let (origin, token) = (Origin::echo(), Faulty::new("edge"));
    let own = OwnPin::new(PIN);
    let gateway = own.start(io, &token, &origin);
    let failures = || token.folder().pin_failures("edge");
    token.cue("absent = sticky");
    wait_until_down(&gateway);
    write(&token.pin_file(), "271828");
    token.cue("");
    wait_for_metric(&gateway, "ringlock_token_pin_refused", &TOKEN, 1.0);
    assert_eq!(failures(), 1);
    for failed in 1..=2 {
        gateway.signal(Signal::HUP);
        let labels = [("result", "failed")];
        wait_for_metric(
            &gateway,
            "ringlock_configuration_reloads_total",
            &labels,
            f64::from(failed),
        );
        assert_eq!(
            failures(),
            2,
            "of three attempts the first reload takes one, and the second one none"
        );
    }
    gateway.wait_for_line("why it is not tried", |line| {
        line["why"]
            .as_str()
            .unwrap_or_default()
            .contains("one attempt at its PIN left")
    });
}
