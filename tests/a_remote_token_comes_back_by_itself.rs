//! A token behind a server (`p11-kit server`) that is killed and started again while clients connect: service returns by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::*;

both_drivers!(
    a_server_that_is_killed_and_started_again_is_used_again,
    a_server_that_is_replaced_at_once_is_used_again,
);

fn gateway(io: Io, origin: &Origin, kit: &P11Kit<'_>) -> Gateway {
    Setup::new(io, &[origin.address()])
        .no_identities()
        .workers(2)
        .token(kit, "sessions = 4\ntimeout = \"1s\"")
        .token_identity(kit, "site", &[SITE], KeyKind::Ecdsa)
        .start()
}

/// Clients connect all the time while `meanwhile` runs; it can see how many were served and how many were not.
fn under_load(gateway: &Gateway, meanwhile: impl FnOnce(&AtomicUsize, &AtomicUsize)) {
    let (over, served, refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let of = match try_exchange(&Client::new(gateway)) {
                        Ok(()) => &served,
                        Err(_) => &refused,
                    };
                    of.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Ends the clients also when what happens meanwhile fails.
        let _over = Ends(&over);
        meanwhile(&served, &refused);
    });
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn wait_for_more(what: &str, count: &AtomicUsize) {
    let before = count.load(Ordering::Relaxed);
    eventually(what, || (count.load(Ordering::Relaxed) >= before + 20).then_some(()));
}

fn a_server_that_is_killed_and_started_again_is_used_again(io: Io) {
    let (origin, hsm) = (Origin::echo(), SoftHsm::new("edge"));
    let kit = P11Kit::new(&hsm);
    let gateway = gateway(io, &origin, &kit);
    under_load(&gateway, |served, refused| {
        for _ in 0..2 {
            wait_for_more("clients to be served", served);
            kit.kill();
            wait_for_more("clients to be refused", refused);
            kit.start();
            wait_for_more("clients to be served again", served);
        }
    });
    exchange(&gateway);
    gateway.wait_until_quiet();
}

fn a_server_that_is_replaced_at_once_is_used_again(io: Io) {
    let (origin, hsm) = (Origin::echo(), SoftHsm::new("edge"));
    let kit = P11Kit::new(&hsm);
    let gateway = gateway(io, &origin, &kit);
    under_load(&gateway, |served, _| {
        for _ in 0..3 {
            wait_for_more("clients to be served", served);
            kit.kill();
            kit.start();
        }
        wait_for_more("clients to be served again", served);
    });
    exchange(&gateway);
    gateway.wait_until_quiet();
}
