//! Whatever a token does, each request on each channel gets exactly one answer, and a signature is of what was asked for.

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

use std::time::Duration;

use gateway::{Gateway, PATIENCE};
use proptest::prelude::*;
use ringlock_hsm::remote::Isolation;
use scripted::{Script, failure, place, settings};

/// What happens, in this order.
#[derive(Clone, Debug)]
enum Event {
    /// A channel asks for a signature of this key, of use for so many milliseconds.
    Ask {
        channel: usize,
        key: u32,
        left_ms: u64,
    },
    /// The next signature fails.
    Fail(&'static str),
    /// The next opening fails.
    FailToOpen(&'static str),
    /// The next signature hangs.
    Hang,
    /// What hangs goes on.
    Release,
    /// The token is away, or back.
    Present(bool),
    /// The objects are written anew.
    Renumber,
    Pause(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let ckr = || {
        prop::sample::select(vec![
            "CKR_DEVICE_REMOVED",
            "CKR_SESSION_HANDLE_INVALID",
            "CKR_FUNCTION_FAILED",
            "CKR_KEY_HANDLE_INVALID",
        ])
    };
    prop_oneof![
        24 => (0..3usize, 1..4u32, prop::sample::select(vec![0, 1, 20, 60_000]))
            .prop_map(|(channel, key, left_ms)| Event::Ask { channel, key, left_ms }),
        2 => ckr().prop_map(Event::Fail),
        1 => ckr().prop_map(Event::FailToOpen),
        1 => Just(Event::Hang),
        1 => Just(Event::Release),
        1 => any::<bool>().prop_map(Event::Present),
        1 => Just(Event::Renumber),
        2 => (0..8u64).prop_map(Event::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_request_gets_one_answer(
        sessions in 1..4u32,
        process in any::<bool>(),
        events in prop::collection::vec(event(), 1..300),
    ) {
        let script = Script::new(&["edge"]);
        let isolation = if process { Isolation::Process } else { Isolation::Thread };
        let mut gateway = Gateway::start(script.clone(), isolation);
        let mut quick = settings("edge", sessions);
        quick.timeout = Duration::from_millis(40);
        gateway.token(1, quick);
        for key in 1..3 {
            gateway.key(key, 1, place("key")).unwrap();
        }
        let mut workers: Vec<_> = (0..3).map(|_| gateway.channel()).collect();
        let mut asked = [0u64; 3];
        for event in &events {
            match *event {
                Event::Ask { channel, key, left_ms } => {
                    let id = asked[channel];
                    asked[channel] += 1;
                    let left = Duration::from_millis(left_ms);
                    workers[channel].ask(id, key, left, format!("{channel}/{id}").as_bytes());
                }
                Event::Fail(ckr) => script.token("edge", |token| token.failures.push_back(failure(ckr))),
                Event::FailToOpen(ckr) => script.token("edge", |token| token.open_failures.push_back(failure(ckr))),
                Event::Hang => script.token("edge", |token| token.hang_next = 1),
                Event::Release => script.token("edge", |token| token.release()),
                Event::Present(present) => script.token("edge", |token| token.present = present),
                Event::Renumber => script.token("edge", |token| token.handles += 1),
                Event::Pause(ms) => std::thread::sleep(Duration::from_millis(ms)),
            }
        }
        script.token("edge", |token| {
            token.present = true;
            token.release();
        });
        for (channel, worker) in workers.iter_mut().enumerate() {
            let mut answered = vec![false; usize::try_from(asked[channel]).unwrap()];
            for _ in 0..asked[channel] {
                // A process that cannot go on closes its channels, which answers everything at once.
                let Some((id, signature)) = worker.answer() else {
                    prop_assert!(process && gateway.outcome().is_err());
                    return Ok(());
                };
                let answered = &mut answered[usize::try_from(id).unwrap()];
                prop_assert!(!*answered, "{channel}/{id} twice");
                *answered = true;
                if let Ok(signature) = signature {
                    prop_assert_eq!(signature, format!("public signs {channel}/{id}").into_bytes());
                }
            }
        }
        // Nothing more comes: the next answer is that of the next request.
        for (channel, worker) in workers.iter_mut().enumerate() {
            worker.ask(u64::MAX, 99, PATIENCE, b"");
            if let Some((id, _)) = worker.answer() {
                prop_assert_eq!(id, u64::MAX, "of channel {}", channel);
            }
        }
        let _ = gateway.end();
    }
}
