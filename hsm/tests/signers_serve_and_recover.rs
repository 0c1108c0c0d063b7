//! A signer over real sockets, with a module that fails as it is told.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[allow(dead_code, reason = "every test uses a part of it")]
#[path = "support/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "every test uses a part of it")]
#[path = "support/scripted.rs"]
mod scripted;

use std::io::Write;
use std::time::{Duration, Instant};

use gateway::{Gateway, PATIENCE, Worker};
use ringlock_hsm::files::Files;
use ringlock_hsm::protocol::{Breaker, FaultKind, KeyNumber, KeyPlace, Order, Refusal, Report, TokenNumber};
use ringlock_hsm::remote::Isolation;
use ringlock_hsm::signer::SignerError;
use ringlock_hsm::uri::{ObjectMatch, PinSource};
use scripted::{SCHEME, Script, failure, place, settings};

/// A signer with one token, its key 1, and a channel.
fn serving(script: &Script, sessions: u32, isolation: Isolation) -> (Gateway, Worker) {
    let mut gateway = Gateway::start(script.clone(), isolation);
    gateway.token(1, settings("edge", sessions));
    gateway.key(1, 1, place("key")).unwrap();
    gateway.serving(1, sessions);
    let worker = gateway.channel();
    (gateway, worker)
}

/// The same, in which nothing counts as hanging.
fn patient(script: &Script) -> (Gateway, Worker) {
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    let mut settings = settings("edge", 1);
    settings.timeout = PATIENCE;
    gateway.token(1, settings);
    gateway.key(1, 1, place("key")).unwrap();
    let worker = gateway.channel();
    (gateway, worker)
}

/// Waits for something that the script sees.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_key_is_described_proven_and_used() {
    let script = Script::new(&["edge"]);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    gateway.token(1, settings("edge", 2));
    let key = gateway.key(1, 1, place("key")).unwrap();
    assert_eq!((key.public.as_slice(), key.token.as_str()), (&b"public"[..], "edge"));
    assert_eq!(key.proofs.len(), 1);
    assert_eq!(
        (key.proofs[0].scheme, key.proofs[0].mechanism.as_str()),
        (SCHEME.into(), "CKM_SCRIPT")
    );
    assert_eq!(key.proofs[0].signature, Ok(b"public signs challenge".to_vec()));
    let mut worker = gateway.channel();
    assert_eq!(worker.sign(7, 1, b"hello").unwrap(), b"public signs hello");
    let fault = gateway.key(2, 1, place("none")).unwrap_err();
    assert_eq!(
        (fault.kind, fault.found.as_str()),
        (FaultKind::Object, "no object \"none\"")
    );
    let (question, token) = (5, TokenNumber(1));
    let object = ObjectMatch::default();
    gateway.order(&Order::Certificates {
        question,
        token,
        object,
    });
    let found = gateway.find(|report| match report {
        Report::Certificates { question: 5, found } => Some(found.clone()),
        Report::Loaded(_)
        | Report::Key { .. }
        | Report::Certificates { .. }
        | Report::Status { .. }
        | Report::Pong(_) => None,
    });
    assert_eq!(found.unwrap(), [b"certificate".to_vec()]);
    gateway.end().unwrap();
    assert_eq!(script.world().open, 0, "sessions are closed");
}

#[test]
fn only_what_is_announced_and_not_forgotten_is_signed() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 1, Isolation::Process);
    assert_eq!(worker.sign(1, 9, b"a"), Err(Refusal::Unknown));
    worker.ask_with(2, 1, 0x0807, PATIENCE, b"a");
    assert_eq!(worker.answer().unwrap(), (2, Err(Refusal::Unknown)));
    assert!(worker.sign(3, 1, b"a").is_ok());
    gateway.order(&Order::Forget(KeyNumber(1)));
    gateway.ping(1);
    assert_eq!(worker.sign(4, 1, b"a"), Err(Refusal::Unknown));
    gateway.key(2, 1, place("key")).unwrap();
    assert!(worker.sign(5, 2, b"a").is_ok());
    gateway.order(&Order::Close(TokenNumber(1)));
    gateway.ping(2);
    assert_eq!(worker.sign(6, 2, b"a"), Err(Refusal::Unknown));
    wait_until("the token's session is closed", || script.world().open == 0);
    gateway.end().unwrap();
}

#[test]
fn the_earliest_deadline_is_first_and_what_is_late_is_not_signed() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = patient(&script);
    script.token("edge", |token| token.hang_next = 1);
    worker.ask(0, 1, PATIENCE, b"first");
    wait_until("it has begun", || script.token("edge", |token| token.hanging == 1));
    for (id, seconds) in [(1, 50), (2, 30), (3, 40), (4, 30)] {
        worker.ask(id, 1, Duration::from_secs(seconds), &[u8::try_from(id).unwrap()]);
    }
    worker.ask(5, 1, Duration::ZERO, b"late");
    // They are in the queue when the first one is done.
    std::thread::sleep(Duration::from_millis(100));
    script.token("edge", |token| token.release());
    let mut answers: Vec<_> = (0..6).map(|_| worker.answer().unwrap()).collect();
    answers.sort_by_key(|(id, _)| *id);
    assert_eq!(answers[5], (5, Err(Refusal::Expired)));
    assert!(
        answers[..5].iter().all(|(_, signature)| signature.is_ok()),
        "{answers:?}"
    );
    let signed = script.token("edge", |token| token.signed.clone());
    assert_eq!(signed[signed.len() - 4..], [[2], [4], [3], [1]]);
    gateway.end().unwrap();
}

#[test]
fn more_than_the_queue_holds_is_refused_at_once() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = patient(&script);
    script.token("edge", |token| token.hang = true);
    worker.ask(0, 1, PATIENCE, b"");
    wait_until("it has begun", || script.token("edge", |token| token.hanging == 1));
    for id in 1..4200 {
        worker.ask(id, 1, PATIENCE, b"");
    }
    // One is being signed and 4096 wait.
    for id in 4097..4200 {
        assert_eq!(worker.answer().unwrap(), (id, Err(Refusal::Full)));
    }
    script.token("edge", |token| token.release());
    for _ in 0..4097 {
        assert!(worker.answer().unwrap().1.is_ok());
    }
    gateway.end().unwrap();
}

#[test]
fn a_token_that_loses_its_sessions_serves_again() {
    for ckr in [
        "CKR_GENERAL_ERROR",
        "CKR_DEVICE_ERROR",
        "CKR_DEVICE_REMOVED",
        "CKR_TOKEN_NOT_PRESENT",
        "CKR_TOKEN_NOT_RECOGNIZED",
        "CKR_SESSION_HANDLE_INVALID",
        "CKR_SESSION_CLOSED",
        "CKR_CRYPTOKI_NOT_INITIALIZED",
        "CKR_USER_NOT_LOGGED_IN",
    ] {
        let script = Script::new(&["edge"]);
        let (mut gateway, mut worker) = serving(&script, 3, Isolation::Process);
        let openings = script.token("edge", |token| {
            token.failures.push_back(failure(ckr));
            token.openings
        });
        let refusals = worker.sign_until_it_works(1, b"a");
        assert_eq!(refusals[0], Refusal::Failed, "{ckr}");
        assert!(
            refusals[1..].iter().all(|refusal| *refusal == Refusal::Unavailable),
            "{ckr}: {refusals:?}"
        );
        let status = gateway.serving(1, 3);
        assert_eq!(status.errors, [(ckr.to_owned(), 1)]);
        assert_eq!((status.recoveries, status.trouble), (1, None), "{ckr}");
        assert_eq!(
            script.token("edge", |token| token.openings),
            openings + 3,
            "{ckr}: every session anew"
        );
        assert_eq!(script.world().resets, 0, "opening anew was enough");
        gateway.end().unwrap();
    }
}

#[test]
fn failures_that_lose_no_session_open_the_breaker_when_three_come_in_a_row() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 1, Isolation::Process);
    let fail = |times: usize| {
        script.token("edge", |token| {
            token.failures.extend(vec![failure("CKR_FUNCTION_FAILED"); times])
        })
    };
    fail(2);
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Failed));
    assert_eq!(worker.sign(2, 1, b"a"), Err(Refusal::Failed));
    assert!(worker.sign(3, 1, b"a").is_ok());
    fail(3);
    for id in 4..7 {
        assert_eq!(worker.sign(id, 1, b"a"), Err(Refusal::Failed));
    }
    worker.sign_until_it_works(1, b"a");
    let status = gateway.serving(1, 1);
    assert_eq!(status.recoveries, 1, "the first two opened nothing");
    assert_eq!(status.errors, [("CKR_FUNCTION_FAILED".to_owned(), 5)]);
    gateway.end().unwrap();
}

#[test]
fn a_stale_handle_is_found_anew_at_once() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 2, Isolation::Process);
    script.token("edge", |token| token.handles += 1);
    assert!(worker.sign(1, 1, b"a").is_ok());
    assert_eq!(gateway.serving(1, 2).recoveries, 0);
    gateway.end().unwrap();
}

#[test]
fn another_key_in_the_same_place_is_not_used() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 1, Isolation::Process);
    script.token("edge", |token| {
        token.handles += 1;
        token.keys.insert("key".to_owned(), b"other".to_vec());
    });
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Unavailable));
    assert_eq!(gateway.key(2, 1, place("key")).unwrap().public, b"other");
    assert!(worker.sign(2, 2, b"a").is_ok());
    gateway.end().unwrap();
}

#[test]
fn a_key_that_is_missing_makes_the_module_begin_anew_once() {
    let script = Script::new(&["edge"]);
    script.token("edge", |token| token.keys.insert("other".to_owned(), b"other".to_vec()));
    let (mut gateway, mut worker) = serving(&script, 2, Isolation::Process);
    // Some modules see a token that was made anew only when they begin anew.
    let key = script.token("edge", |token| {
        token.handles += 1;
        token.keys.remove("key").unwrap()
    });
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Unavailable));
    wait_until("the module begins anew", || script.world().resets > 0);
    // It did not help: the token serves without this key.
    assert_eq!(gateway.serving(1, 2).recoveries, 1);
    gateway.key(2, 1, place("other")).unwrap();
    for _ in 0..3 {
        assert_eq!(worker.sign(2, 1, b"a"), Err(Refusal::Unavailable));
        assert!(worker.sign(3, 2, b"a").is_ok());
        std::thread::sleep(Duration::from_millis(600));
    }
    assert_eq!(script.world().resets, 1, "nothing more is to be hoped for");
    script.token("edge", |token| token.keys.insert("key".to_owned(), key));
    worker.sign_until_it_works(1, b"a");
    gateway.end().unwrap();
}

#[test]
fn a_token_that_is_away_is_refused_at_once_and_serves_when_it_is_back() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 2, Isolation::Process);
    script.token("edge", |token| token.present = false);
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Failed));
    gateway.status(1, |status| status.breaker == Breaker::Open && status.trouble.is_some());
    assert_eq!(worker.sign(2, 1, b"a"), Err(Refusal::Unavailable));
    let fault = gateway.key(2, 1, place("key")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Token, "{fault}");
    script.token("edge", |token| token.present = true);
    let back = Instant::now();
    worker.sign_until_it_works(1, b"a");
    assert!(back.elapsed() < Duration::from_secs(30), "the back-off is bounded");
    assert!(worker.sign(9, 2, b"a").is_ok(), "a key that was announced meanwhile");
    gateway.end().unwrap();
}

#[test]
fn a_token_that_was_never_there_is_opened_when_it_comes() {
    let script = Script::new(&["edge"]);
    script.token("edge", |token| token.present = false);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    gateway.token(1, settings("edge", 1));
    let fault = gateway.key(1, 1, place("key")).unwrap_err();
    assert_eq!(fault.found, "no token like that");
    let mut worker = gateway.channel();
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Unavailable));
    script.token("edge", |token| token.present = true);
    worker.sign_until_it_works(1, b"a");
    assert_eq!(gateway.serving(1, 1).recoveries, 0, "opened for the first time");
    gateway.end().unwrap();
}

#[test]
fn the_module_begins_anew_when_opening_is_not_enough() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = serving(&script, 4, Isolation::Process);
    script.token("edge", |token| token.wants_reset = true);
    worker.sign_until_it_works(1, b"a");
    let world = script.world();
    assert!((1..3).contains(&world.resets), "{}", world.resets);
    assert_eq!(world.open_at_reset, 0, "nobody was in the module");
    drop(world);
    gateway.end().unwrap();
}

#[test]
fn a_healthy_token_of_the_module_is_not_interrupted_often() {
    let script = Script::new(&["edge", "other"]);
    let (mut gateway, mut worker) = serving(&script, 1, Isolation::Process);
    gateway.token(2, settings("other", 1));
    gateway.key(2, 2, place("key")).unwrap();
    script.token("edge", |token| token.wants_reset = true);
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Failed));
    let openings = script.token("edge", |token| token.openings);
    wait_until("three more attempts", || {
        script.token("edge", |token| token.openings) >= openings + 3
    });
    assert_eq!(script.world().resets, 0);
    assert!(worker.sign(2, 2, b"a").is_ok());
    // As soon as the other one does not serve either, nobody is interrupted.
    script.token("other", |token| token.present = false);
    assert_eq!(worker.sign(3, 2, b"a"), Err(Refusal::Failed));
    worker.sign_until_it_works(1, b"a");
    assert!(script.world().resets > 0);
    gateway.end().unwrap();
}

#[test]
fn a_refused_pin_is_never_tried_twice() {
    let script = Script::new(&["edge"]);
    script.token("edge", |token| token.wrong_pin = true);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    let mut with_pin = settings("edge", 4);
    with_pin.pin = Some(PinSource::Credential("pin".to_owned()));
    gateway.token(1, with_pin.clone());
    let fault = gateway.key(1, 1, place("key")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Pin);
    let mut worker = gateway.channel();
    let status = gateway.status(1, |status| status.pin_refused);
    assert_eq!(
        (status.breaker, status.trouble.as_deref()),
        (Breaker::Open, Some("CKR_PIN_INCORRECT from a script"))
    );
    script.token("edge", |token| token.wrong_pin = false);
    // Longer than the first two pauses of the back-off.
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Unavailable));
    assert_eq!(script.token("edge", |token| token.logins), 1);
    // After a restart of the signer the gateway says so; nobody tries then either.
    gateway.token(2, scripted_without_login(&with_pin));
    gateway.status(2, |status| status.pin_refused);
    assert_eq!(script.token("edge", |token| token.logins), 1);
    gateway.token(1, with_pin);
    worker.sign_until_it_works(1, b"a");
    assert!(!gateway.serving(1, 4).pin_refused);
    gateway.end().unwrap();
}

fn scripted_without_login(settings: &ringlock_hsm::protocol::TokenSettings) -> ringlock_hsm::protocol::TokenSettings {
    let mut settings = settings.clone();
    settings.login = false;
    settings
}

#[test]
fn a_pin_that_is_refused_when_sessions_are_opened_anew_ends_it_too() {
    let script = Script::new(&["edge"]);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    let mut with_pin = settings("edge", 2);
    with_pin.pin = Some(PinSource::Credential("pin".to_owned()));
    gateway.token(1, with_pin);
    gateway.key(1, 1, place("key")).unwrap();
    gateway.serving(1, 2);
    let mut worker = gateway.channel();
    let logins = script.token("edge", |token| {
        token.wrong_pin = true;
        token.failures.push_back(failure("CKR_DEVICE_REMOVED"));
        token.logins
    });
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Failed));
    gateway.status(1, |status| status.pin_refused);
    assert_eq!(gateway.key(2, 1, place("key")).unwrap_err().kind, FaultKind::Pin);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(script.token("edge", |token| token.logins), logins + 1);
    gateway.end().unwrap();
}

#[test]
fn a_session_that_hangs_is_replaced_and_its_request_answered() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 2, Isolation::Process);
    script.token("edge", |token| token.hang_next = 1);
    worker.ask(1, 1, PATIENCE, b"hangs");
    wait_until("it hangs", || script.token("edge", |token| token.hanging == 1));
    assert!(worker.sign(2, 1, b"a").is_ok(), "the other session serves");
    assert_eq!(worker.answer().unwrap(), (1, Err(Refusal::Failed)));
    let status = gateway.serving(1, 2);
    assert_eq!(status.errors, [("Timeout".to_owned(), 1)]);
    assert_eq!(script.world().open, 3, "one of them hangs");
    script.token("edge", |token| token.release());
    wait_until("the late one has been closed", || script.world().open == 2);
    assert!(worker.sign(3, 1, b"a").is_ok());
    gateway.end().unwrap();
}

#[test]
fn pings_are_answered_while_all_sessions_hang_and_then_the_process_ends() {
    let script = Script::new(&["edge"]);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    let mut patient = settings("edge", 2);
    patient.timeout = Duration::from_secs(1);
    gateway.token(1, patient);
    gateway.key(1, 1, place("key")).unwrap();
    gateway.serving(1, 2);
    let mut worker = gateway.channel();
    script.token("edge", |token| token.hang = true);
    for id in 0..4 {
        worker.ask(id, 1, PATIENCE, b"a");
    }
    wait_until("both hang", || script.token("edge", |token| token.hanging == 2));
    gateway.ping(1);
    let mut answers: Vec<_> = (0..4).map(|_| worker.answer().unwrap()).collect();
    answers.sort_by_key(|(id, _)| *id);
    assert_eq!(answers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(answers.iter().all(|(_, answer)| answer.is_err()), "{answers:?}");
    gateway.ping(2);
    let outcome = gateway.outcome();
    assert!(matches!(outcome, Err(SignerError::Hung(_))), "{outcome:?}");
    script.token("edge", |token| token.release());
}

#[test]
fn a_thread_says_that_everything_hangs_and_goes_on_when_it_does_not() {
    let script = Script::new(&["edge"]);
    let (mut gateway, mut worker) = serving(&script, 1, Isolation::Thread);
    script.token("edge", |token| token.hang = true);
    assert_eq!(worker.sign(1, 1, b"a"), Err(Refusal::Failed));
    let status = gateway.status(1, |status| status.breaker == Breaker::Open);
    assert_eq!(
        status.trouble.as_deref(),
        Some("a call that has not returned within 200ms")
    );
    wait_until("the second thread hangs as well", || {
        script.token("edge", |token| token.hanging == 2)
    });
    gateway.ping(1);
    assert_eq!(worker.sign(2, 1, b"a"), Err(Refusal::Unavailable));
    script.token("edge", |token| token.release());
    worker.sign_until_it_works(1, b"a");
    gateway.end().unwrap();
}

#[test]
fn a_panic_ends_the_signer_and_its_channels() {
    for isolation in [Isolation::Process, Isolation::Thread] {
        let script = Script::new(&["edge"]);
        let (mut gateway, mut worker) = serving(&script, 2, isolation);
        script.token("edge", |token| token.panics = true);
        worker.ask(1, 1, PATIENCE, b"a");
        assert!(matches!(gateway.outcome(), Err(SignerError::Panicked)));
        while worker.answer().is_some() {}
    }
}

#[test]
fn an_idle_session_is_used_now_and_then() {
    let script = Script::new(&["edge"]);
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    let mut lively = settings("edge", 1);
    lively.keep_alive = Some(Duration::from_millis(10));
    gateway.token(1, lively);
    wait_until("it is touched", || script.token("edge", |token| token.touches >= 3));
    script.token("edge", |token| token.wants_reset = true);
    gateway.status(1, |status| status.recoveries > 0);
    assert!(script.world().resets > 0, "an idle session that is lost is found out");
    gateway.end().unwrap();
}

#[test]
fn garbage_ends_a_channel_and_only_that() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = serving(&script, 1, Isolation::Process);
    for garbage in [&[0xff; 64][..], &[2, 0, 0, 0, 0xff, 0xff], &[0, 0, 0, 0]] {
        let mut broken = gateway.channel();
        broken.socket.write_all(garbage).unwrap();
        assert_eq!(broken.answer(), None);
    }
    let mut long = gateway.channel();
    long.ask(1, 1, PATIENCE, &[0; 20_000]);
    assert_eq!(long.answer(), None, "nothing that TLS signs is so long");
    assert!(worker.sign(1, 1, b"a").is_ok());
    gateway.end().unwrap();
}

#[test]
fn what_a_channel_asked_for_goes_with_it() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = patient(&script);
    let gone = gateway.channel();
    script.token("edge", |token| token.hang_next = 1);
    worker.ask(0, 1, PATIENCE, b"first");
    wait_until("it has begun", || script.token("edge", |token| token.hanging == 1));
    for id in 0..10 {
        gone.ask(id, 1, Duration::from_secs(1), b"of the channel that is gone");
    }
    worker.ask(1, 1, Duration::from_secs(50), b"last");
    drop(gone);
    std::thread::sleep(Duration::from_millis(50));
    script.token("edge", |token| token.release());
    assert!(worker.answer().is_some() && worker.answer().is_some());
    let signed = script.token("edge", |token| token.signed.clone());
    assert!(
        !signed.iter().any(|message| message == b"of the channel that is gone"),
        "{signed:?}"
    );
    gateway.end().unwrap();
}

#[test]
fn a_worker_that_does_not_read_holds_up_nobody() {
    let script = Script::new(&["edge"]);
    let (gateway, mut worker) = patient(&script);
    let mut lazy = gateway.channel();
    // Far more than sockets hold.
    let message = [0; 1000];
    for id in 0..2000 {
        lazy.ask(id, 1, PATIENCE, &message);
    }
    assert!(worker.sign(1, 1, b"a").is_ok());
    let mut ids: Vec<u64> = (0..2000).map(|_| lazy.answer().unwrap().0).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..2000), "each once");
    gateway.end().unwrap();
}

#[test]
fn orders_out_of_place_end_the_signer() {
    let script = Script::new(&["edge"]);
    let mut gateway = Gateway::unloaded(script.clone(), Isolation::Process);
    gateway.order(&Order::Forget(KeyNumber(1)));
    assert!(matches!(gateway.outcome(), Err(SignerError::Order(_))));
    let mut gateway = Gateway::start(script.clone(), Isolation::Process);
    gateway.order(&Order::Channel);
    assert!(matches!(
        gateway.outcome(),
        Err(SignerError::Order("a channel without its descriptor"))
    ));
    let mut gateway = Gateway::start(script, Isolation::Process);
    gateway.control.write_all(&[0xff; 8]).unwrap();
    assert!(matches!(gateway.outcome(), Err(SignerError::Order(_))));
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let mut gateway = Gateway::start(Script::new(&["edge"]), Isolation::Process);
    let file = tempfile::tempfile().unwrap();
    gateway.pass(&file.into());
    assert!(gateway.outcome().is_err());
}

#[test]
fn keys_in_files_are_used_without_a_token() {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let pair = rcgen::KeyPair::generate().unwrap();
    let public = rcgen::PublicKeyData::der_bytes(&pair).to_vec();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pair.serialize_pem()).unwrap();
    let mut gateway = Gateway::start(Files::default(), Isolation::Process);
    gateway.token(1, settings("", 2));
    let key = gateway
        .key(
            1,
            1,
            KeyPlace::File {
                path: file.path().to_owned(),
                passphrase: None,
            },
        )
        .unwrap();
    assert_eq!(key.public, rcgen::PublicKeyData::subject_public_key_info(&pair));
    // What is written there later is another key's, to be asked for by another number.
    std::fs::write(file.path(), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let mut worker = gateway.channel();
    let signature = worker.sign(1, 1, b"message").unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public)
        .verify(b"message", &signature)
        .unwrap();
    let renewed = gateway
        .key(
            2,
            1,
            KeyPlace::File {
                path: file.path().to_owned(),
                passphrase: None,
            },
        )
        .unwrap();
    assert_ne!(renewed.public, key.public);
    assert!(worker.sign(2, 1, b"message").is_ok() && worker.sign(3, 2, b"message").is_ok());
    gateway.end().unwrap();
}
