//! More handshakes than a token can sign for: some wait, the others are refused at once, and nobody else is concerned: not another
//! listener's handshakes, not keys in files, not established connections.

use crate::support::*;

use std::net::SocketAddr;

use rustix::process::Signal;
use rustls::AlertDescription;

both_drivers!(
    a_flood_waits_within_bounds_and_the_rest_is_refused_at_once,
    a_flood_at_one_listener_is_served_beside_another,
    a_drain_serves_those_who_wait,
    a_reload_keeps_those_who_wait,
);

const FLOOD: usize = 200;
const QUEUE: usize = 8;
/// Of a token with one session: in it, and on their way to it.
const IN_FLIGHT: usize = 3;
const KEPT: usize = QUEUE + IN_FLIGHT;

const WAITING: &str = "ringlock_key_requests_waiting";
const IN_FLIGHT_NOW: &str = "ringlock_key_requests_in_flight";
const FULL: [(&str, &str); 1] = [("cause", "key_queue_full")];
const FAILURES: &str = "ringlock_handshake_failures_total";

/// A name whose identity has its key in a file.
const SOFT: &str = "soft.example";

/// A slow token; the listener `edge`, and another one with the same identities.
struct Site {
    token: Faulty,
    _origin: Origin,
    gateway: Gateway,
    other: SocketAddr,
}

impl Site {
    fn start(io: Io) -> Site {
        let (origin, token) = (Origin::echo(), Faulty::new("edge"));
        let other = free_address();
        let patience = "handshake_timeout = \"28s\"";
        let gateway = Setup::new(io, &[origin.address()])
            .no_identities()
            .global("drain_timeout = \"25s\"")
            .listener(patience)
            .token(&token, &format!("sessions = 1\nqueue = {QUEUE}\ntimeout = \"25s\""))
            .token_identity(&token, "site", &[SITE], KeyKind::Ecdsa)
            .identity("soft", &[SOFT], KeyKind::Ecdsa)
            .more(&format!(
                "[[listener]]\nname = \"other\"\naddress = \"{other}\"\nidentities = [\"site\", \"soft\"]\nupstream = \"app\"\n{patience}"
            ))
            .start();
        let _origin = origin;
        Site {
            token,
            _origin,
            gateway,
            other,
        }
    }

    /// Has so many handshakes begin, of which none is waited for.
    fn flood(&self, count: usize) -> Vec<Connection> {
        let client = Client::new(&self.gateway);
        let begin = |_| {
            let mut connection = client.open();
            connection.flush().unwrap();
            connection
        };
        (0..count).map(begin).collect()
    }

    #[track_caller]
    fn wait_for_refused(&self, count: usize) {
        wait_for_metric(&self.gateway, FAILURES, &FULL, count as f64);
    }

    #[track_caller]
    fn wait_for_waiting(&self, count: usize) {
        wait_for_metric(&self.gateway, WAITING, &[], count as f64);
        wait_for_metric(&self.gateway, IN_FLIGHT_NOW, &[], IN_FLIGHT as f64);
    }
}

/// What comes of handshakes that have begun: how many succeed, and how many are refused by an alert. Nothing else may come of them.
fn outcomes(flood: Vec<Connection>) -> (usize, usize) {
    let (mut served, mut refused) = (0, 0);
    for mut connection in flood {
        match connection.handshake() {
            Ok(()) => {
                echoes(&mut connection, b"served after all");
                assert!(connection.finish().is_empty());
                served += 1;
            }
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                let alert = Some(&rustls::Error::AlertReceived(AlertDescription::InternalError));
                assert_eq!(inner, alert, "{error:?}");
                refused += 1;
            }
        }
    }
    (served, refused)
}

fn a_flood_waits_within_bounds_and_the_rest_is_refused_at_once(io: Io) {
    let site = Site::start(io);
    let (token, gateway) = (&site.token, &site.gateway);
    exchange(gateway);
    gateway.wait_until_quiet();
    let before = descriptors(gateway.pid());
    let mut established = Client::new(gateway).connect();

    // It signs nothing before it is told to.
    token.cue("hang = sign");
    let flood = site.flood(FLOOD);
    site.wait_for_refused(FLOOD - KEPT);
    site.wait_for_waiting(QUEUE);
    let line =
        gateway.wait_for_cause("the private key could not be used: as many handshakes wait for its token as may");
    assert_eq!(line["fault"], "key", "{line}");

    // Each listener has its part of the queue: somebody who has waited for longest gives way, and only one.
    let mut others: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = Client::new(gateway).to(site.other).open();
            connection.flush().unwrap();
            connection
        })
        .collect();
    site.wait_for_refused(FLOOD - KEPT + others.len());
    site.wait_for_waiting(QUEUE);

    // Others are not concerned.
    for address in [gateway.address, site.other] {
        try_exchange(&Client::new(gateway).name(SOFT).to(address)).unwrap();
    }
    echoes(&mut established, &pattern(100_000));
    assert!(established.finish().is_empty());
    site.wait_for_waiting(QUEUE);

    token.cue("latency_ms = 50");
    for connection in &mut others {
        connection.handshake().expect("the other listener is served");
        echoes(connection, b"served");
    }
    let gave_way = others.len();
    drop(others);
    assert_eq!(outcomes(flood), (KEPT - gave_way, FLOOD - KEPT + gave_way));
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.sum(WAITING, &[]) + metrics.sum(IN_FLIGHT_NOW, &[]), 0.0);
    let refused = [("result", "refused")];
    assert_eq!(
        metrics.count("ringlock_key_requests_total", &refused) as usize,
        FLOOD - KEPT + gave_way
    );
    wait_until_nothing_is_left(gateway, before);
}

fn a_flood_at_one_listener_is_served_beside_another(io: Io) {
    let site = Site::start(io);
    let gateway = &site.gateway;
    site.token.cue("latency_ms = 20");
    let other = Client::new(gateway).to(site.other);
    let (load, ()) = under_load(&Client::new(gateway), 3 * KEPT, |load| {
        eventually("the flood to be refused", || {
            (gateway.metrics().sum(FAILURES, &FULL) >= FLOOD as f64).then_some(())
        });
        for _ in 0..10 {
            try_exchange(&other).expect("the other listener is served");
        }
        load.wait_for_more(10);
    });
    let alert = rustls::Error::AlertReceived(AlertDescription::InternalError).to_string();
    let failures = load.failures();
    let others: Vec<_> = failures.iter().filter(|failure| **failure != alert).collect();
    assert!(others.is_empty(), "{others:?}");
    let metrics = gateway.wait_until_quiet();
    assert_eq!(metrics.sum(FAILURES, &FULL), failures.len() as f64);
    assert_eq!(
        metrics.sum(FAILURES, &[]),
        failures.len() as f64,
        "{:?}",
        metrics.ended()
    );
}

fn a_drain_serves_those_who_wait(io: Io) {
    let site = Site::start(io);
    let signer = signer(&site.gateway, &site.token);
    site.token.cue("hang = sign");
    let flood = site.flood(FLOOD);
    site.wait_for_refused(FLOOD - KEPT);
    site.gateway.signal(Signal::TERM);
    eventually("the gateway to drain", || {
        (site.gateway.ask("/readyz").0 == 503).then_some(())
    });
    assert!(is_alive(signer), "it is needed");
    site.token.cue("");
    assert_eq!(outcomes(flood), (KEPT, FLOOD - KEPT));
    let (status, log) = site.gateway.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("drain_timeout has passed"), "{log}");
    assert!(!is_alive(signer), "it has left with the gateway");
}

fn a_reload_keeps_those_who_wait(io: Io) {
    let site = Site::start(io);
    let (token, gateway) = (&site.token, &site.gateway);
    token.cue("latency_ms = 300");
    let flood = site.flood(KEPT);
    site.wait_for_waiting(QUEUE);
    // What is needed stays; the new configuration has another one of the settings besides.
    gateway.edit_config("queue = 8", "queue = 100");
    reload(gateway);
    assert!(
        gateway.metrics().sum("ringlock_connections_live", &[]) > 0.0,
        "somebody still waits while the configuration changes"
    );
    let more = site.flood(2 * QUEUE);
    token.cue("");
    assert_eq!(outcomes(flood), (KEPT, 0));
    assert_eq!(outcomes(more), (2 * QUEUE, 0), "there is more room");
    gateway.wait_until_quiet();
}
