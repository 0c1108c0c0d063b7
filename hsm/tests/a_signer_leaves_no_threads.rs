//! When its control connection ends, a signer on a thread of the gateway goes with all of its threads, once none of them hangs any more.
//! Alone in its process, because it counts threads.

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

use std::time::{Duration, Instant};

use gateway::{Gateway, PATIENCE};
use ringlock_hsm::remote::Isolation;
use scripted::{Script, place, settings};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn wait_for_threads(wanted: usize) {
    let deadline = Instant::now() + PATIENCE;
    while threads() != wanted {
        assert!(Instant::now() < deadline, "{} threads, expected {wanted}", threads());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn threads_of_sessions_channels_and_answers_end() {
    let before = threads();
    let script = Script::new(&["edge", "other"]);
    let mut gateway = Gateway::start(script.clone(), Isolation::Thread);
    for (token, name) in [(1, "edge"), (2, "other")] {
        gateway.token(token, settings(name, 4));
        gateway.key(token, token, place("key")).unwrap();
        gateway.serving(token, 4);
    }
    let mut workers: Vec<_> = (0..3).map(|_| gateway.channel()).collect();
    // Answers that nobody reads: somebody waits to write them.
    for id in 0..1000 {
        workers[0].ask(id, 1, PATIENCE, &[0; 1000]);
    }
    assert!(workers[1].sign(1, 2, b"a").is_ok());
    script.token("other", |token| token.hang_next = 1);
    workers[1].ask(2, 2, PATIENCE, b"hangs");
    let deadline = Instant::now() + PATIENCE;
    while script.token("other", |token| token.hanging) == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // The signer, two times four sessions, three channels, at least.
    assert!(threads() >= before + 12, "{}", threads());
    gateway.end().unwrap();
    wait_for_threads(before + 1);
    assert_eq!(script.world().open, 1, "of the thread that hangs");
    for worker in &mut workers[1..] {
        while worker.answer().is_some() {}
    }
    script.token("other", |token| token.release());
    wait_for_threads(before);
    assert_eq!(script.world().open, 0);
}
