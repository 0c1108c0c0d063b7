use std::time::Duration;

use rustls::crypto::SupportedKxGroup;

use super::*;
use crate::crypto::batch::Engine;
use crate::crypto::{CryptoOp, CryptoResult, inline};

fn opened(now: Instant) -> Arc<WorkerMetrics> {
    let metrics = Arc::<WorkerMetrics>::default();
    let engine = Arc::new(Engine::inline(false).making_ahead(Ahead::ALL));
    assert!(!engine.ahead().setups, "there is no library");
    open(&engine, &metrics, now).unwrap();
    metrics
}

fn agrees(group: &'static dyn SupportedKxGroup) {
    let client = group.start().unwrap();
    let op = CryptoOp::KeyExchange {
        group: group.name(),
        peer_share: client.pub_key().into(),
    };
    let CryptoResult::KeyExchange(Ok(server)) = inline::run(&op) else {
        panic!()
    };
    let secret = client.complete(&server.pub_key).unwrap();
    assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
}

fn fill() {
    for _ in 0..1000 {
        if !wants_more() {
            return;
        }
        refill();
    }
    panic!("it is never full");
}

#[test]
fn nothing_is_made_that_nobody_asked_for() {
    opened(Instant::now());
    assert!(!wants_more());
    assert_eq!(expires_at(), None);
    let x25519 = rustls::crypto::aws_lc_rs::kx_group::X25519;
    agrees(x25519);
    assert!(wants_more());
    fill();
    let waiting = POOL.with_borrow(|pool| {
        let started = pool.as_ref().unwrap().started.each_ref();
        started.map(|started| started.waiting.len())
    });
    assert_eq!(waiting, [MADE_AHEAD_STARTED_MAX, 0, 0]);
}

#[test]
fn each_group_is_served_from_what_was_made_ahead() {
    let metrics = opened(Instant::now());
    use rustls::crypto::aws_lc_rs::kx_group as groups;
    let served = [
        groups::X25519,
        groups::SECP256R1,
        groups::SECP384R1,
        groups::X25519MLKEM768,
    ];
    for group in served {
        agrees(group);
    }
    // The hybrid group takes of X25519's.
    assert_eq!(
        (metrics.made_ahead_used.value(), metrics.made_ahead_missing.value()),
        (0, 4)
    );
    fill();
    for group in served {
        agrees(group);
    }
    assert_eq!(
        (metrics.made_ahead_used.value(), metrics.made_ahead_missing.value()),
        (4, 4)
    );
}

#[test]
fn no_key_pair_is_used_twice_and_an_empty_pool_is_no_hindrance() {
    let metrics = opened(Instant::now());
    let mut seen = std::collections::HashSet::new();
    let peer = rustls::crypto::aws_lc_rs::kx_group::X25519.start().unwrap();
    for round in 0..120 {
        if round % 30 == 1 {
            fill();
        }
        let op = CryptoOp::KeyExchange {
            group: NamedGroup::X25519,
            peer_share: peer.pub_key().into(),
        };
        let CryptoResult::KeyExchange(Ok(server)) = inline::run(&op) else {
            panic!()
        };
        assert!(seen.insert(server.pub_key));
    }
    assert_eq!(metrics.made_ahead_used.value(), 4 * MADE_AHEAD_STARTED_MAX as u64);
}

#[test]
fn what_is_too_old_is_thrown_away_and_not_made_again_for_nobody() {
    let start = Instant::now();
    let metrics = opened(start);
    agrees(rustls::crypto::aws_lc_rs::kx_group::X25519);
    fill();
    assert_eq!(expires_at(), Some(start + MADE_AHEAD_AGE_MAX));
    expire(start + MADE_AHEAD_AGE_MAX - Duration::from_nanos(1));
    assert!(expires_at().is_some());
    expire(start + MADE_AHEAD_AGE_MAX);
    assert_eq!(metrics.made_ahead_expired.value(), MADE_AHEAD_STARTED_MAX as u64);
    assert_eq!(expires_at(), None);
    assert!(!wants_more());
}

#[test]
fn a_closed_pool_is_empty_and_stays_so() {
    opened(Instant::now());
    agrees(rustls::crypto::aws_lc_rs::kx_group::X25519);
    fill();
    close();
    assert_eq!(expires_at(), None);
    agrees(rustls::crypto::aws_lc_rs::kx_group::X25519);
    assert!(!wants_more());
}
