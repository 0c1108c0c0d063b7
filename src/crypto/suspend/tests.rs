use std::rc::Rc;
use std::sync::Arc;

use rustls::NamedGroup;

use super::*;

fn op(length: u8) -> CryptoOp {
    CryptoOp::KeyExchange {
        group: NamedGroup::X25519,
        peer_share: vec![0; usize::from(length)].into(),
    }
}

fn length(op: &CryptoOp) -> usize {
    match op {
        CryptoOp::KeyExchange { peer_share, .. } => peer_share.len(),
        CryptoOp::Sign { .. } | CryptoOp::SignElsewhere { .. } | CryptoOp::Verify(_) => panic!("nobody asked for that"),
    }
}

fn signature(byte: u8) -> CryptoResult {
    CryptoResult::Signature(Ok(vec![byte]))
}

/// Asks for `count` operations and tells what the answers were.
fn asks(count: u8) -> Vec<String> {
    (0..count).map(|n| format!("{:?}", ask(op(n)))).collect()
}

#[test]
fn a_call_goes_on_with_each_answer() {
    let Progress::Waits(call, first) = run(|| asks(2)) else {
        panic!("it asks");
    };
    assert_eq!(length(&first), 0);
    let Progress::Waits(call, second) = call.resume(signature(1)) else {
        panic!("it asks again");
    };
    assert_eq!(length(&second), 1);
    let Progress::Done(answers) = call.resume(CryptoResult::Abandoned) else {
        panic!("it has asked twice");
    };
    assert_eq!(answers, ["Signature(1 bytes)", "Abandoned"]);
    assert_eq!(SUSPENDED.get(), 0);
}

#[test]
fn a_call_that_asks_for_nothing_returns_at_once() {
    assert!(matches!(run(|| 7), Progress::Done(7)));
    assert_eq!(SUSPENDED.get(), 0);
}

#[test]
fn many_calls_wait_and_go_on_in_any_order() {
    let mut waiting: Vec<_> = (0..64u8)
        .map(|n| match run(move || (n, ask(op(n)))) {
            Progress::Waits(call, op) => (n, call, op),
            Progress::Done(_) | Progress::Panicked => panic!("it asks"),
        })
        .collect();
    while !waiting.is_empty() {
        let (n, call, op) = waiting.swap_remove(waiting.len() * 7 / 13);
        assert_eq!(length(&op), usize::from(n));
        let Progress::Done((same, CryptoResult::Signature(Ok(answer)))) = call.resume(signature(n)) else {
            panic!("it asks once");
        };
        assert_eq!((same, answer), (n, vec![n]));
    }
    assert_eq!(SUSPENDED.get(), 0);
    assert!(FREE_STACKS.with_borrow(Vec::len) <= SUSPENDED_STACKS_KEEP);
}

#[test]
fn a_call_that_is_dropped_is_told_and_leaves_nothing_on_its_stack() {
    let held = Rc::new(());
    for asked in 1..4 {
        let held = Rc::clone(&held);
        let Progress::Waits(call, _) = run(move || {
            let _held = held;
            asks(asked)
        }) else {
            panic!("it asks");
        };
        drop(call);
    }
    assert_eq!(Rc::strong_count(&held), 1);
    assert_eq!(SUSPENDED.get(), 0);
}

#[test]
fn a_panic_costs_the_call_and_not_the_worker() {
    let held = Arc::new(());
    let inside = Arc::clone(&held);
    let Progress::Waits(call, _) = run(move || {
        let _inside = inside;
        let answer = ask(op(0));
        panic!("on purpose, after {answer:?}");
    }) else {
        panic!("it asks first");
    };
    assert!(matches!(call.resume(signature(0)), Progress::<()>::Panicked));
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(SUSPENDED.get(), 0);
    assert!(RUNNING.get().is_none());
    assert!(matches!(
        run(|| panic!("on purpose, at once")),
        Progress::<()>::Panicked
    ));
}

#[test]
fn beyond_the_bound_and_outside_of_calls_answers_are_computed_inline() {
    assert!(matches!(ask(op(32)), CryptoResult::KeyExchange(_)));
    let waiting: Vec<_> = (0..SUSPENDED_CALLS_MAX).map(|_| run(|| asks(1))).collect();
    assert_eq!(SUSPENDED.get(), SUSPENDED_CALLS_MAX);
    let Progress::Done(answers) = run(|| asks(3)) else {
        panic!("there is no stack for it");
    };
    assert!(
        answers.iter().all(|answer| answer.starts_with("KeyExchange")),
        "{answers:?}"
    );
    drop(waiting);
    assert_eq!(SUSPENDED.get(), 0);
}

#[test]
fn the_stack_ends_in_memory_that_cannot_be_touched() {
    let stack = GuardedStack::new().unwrap();
    let (base, limit) = (stack.base().get(), stack.limit().get());
    assert_eq!(base - limit, MAPPED_BYTES);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guard = format!("{limit:x}-{:x} ---p", limit + SUSPENDED_STACK_GUARD_BYTES);
    assert!(maps.contains(&guard), "{guard}");
}
