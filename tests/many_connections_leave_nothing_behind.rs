//! A small soak: idle connections, slow handshakes and traffic at once, twice; the second time takes no more memory than the
//! first. `scripts/soak` is the large one.

use crate::support::*;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

both_drivers!(idle_slow_and_busy_connections_live_beside_each_other);

const IDLE: usize = 1000;
const SLOW: usize = 100;
const MIB: u64 = 1024 * 1024;

/// Both ends of the idle connections but the gateway's are ours.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let enough = maximum.is_none_or(|maximum| maximum >= 4 * (IDLE + SLOW) as u64);
    assert!(
        enough,
        "this test needs more descriptors: raise the hard limit (ulimit -Hn)"
    );
}

fn idle_slow_and_busy_connections_live_beside_each_other(io: Io) {
    raise_descriptor_limit();
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()])
        .log("format = \"json\"\nconnections = \"failures\"")
        .listener("handshake_timeout = \"5m\"\nidle_timeout = \"10m\"")
        .start();
    exchange(&gateway);
    gateway.wait_until_quiet();
    let before = gateway.resident_bytes();
    let mut after = Vec::new();
    for _ in 0..2 {
        let each = a_round(&gateway);
        let metrics = gateway.wait_until_quiet();
        let others: Vec<_> = metrics
            .ended()
            .into_keys()
            .filter(|cause| cause != "finished")
            .collect();
        assert!(others.is_empty(), "{others:?}");
        after.push(gateway.resident_bytes());
        assert!(each < 64 * 1024, "{each} bytes for an idle connection");
    }
    assert!(
        after[1] <= after[0] + after[0] / 10 + 4 * MIB,
        "memory grows from round to round: {before} bytes before, {after:?} after each"
    );
    let log = gateway.stop();
    assert!(
        !log.contains("\"message\":\"connection\""),
        "no connection failed: {log}"
    );
}

/// Returns the memory that a connection takes.
fn a_round(gateway: &Gateway) -> u64 {
    let before = gateway.resident_bytes();
    let client = Client::new(gateway);
    let mut idle: Vec<Connection> = Vec::with_capacity(IDLE);
    let opened: Vec<Vec<Connection>> = std::thread::scope(|scope| {
        let open = || (0..IDLE / 4).map(|_| client.connect()).collect();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    idle.extend(opened.into_iter().flatten());
    let each = gateway.resident_bytes().saturating_sub(before) / IDLE as u64;

    // One byte of each hello after the other, while traffic goes on.
    let mut slow: Vec<(Connection, Vec<u8>)> = (0..SLOW)
        .map(|_| {
            let mut connection = client.open();
            let hello = connection.take_outgoing();
            (connection, hello)
        })
        .collect();
    let (stop, exchanged) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let busy: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        try_exchange(&client).expect("traffic goes on");
                        exchanged.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            for (connection, hello) in &mut slow {
                connection.stream.write_all(&[hello.remove(0)]).unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let live = gateway.metrics().count("ringlock_connections_live", &[]);
        assert!(live >= (IDLE + SLOW) as u64, "{live} connections live");
        stop.store(true, Ordering::SeqCst);
        for thread in busy {
            thread.join().unwrap();
        }
    });
    assert!(exchanged.load(Ordering::SeqCst) > 0);
    for (mut connection, rest) in slow {
        connection.stream.write_all(&rest).unwrap();
        connection.handshake().unwrap();
        assert!(connection.finish().is_empty());
    }
    for (number, mut connection) in idle.into_iter().enumerate() {
        let message = (number as u64).to_be_bytes();
        connection.send(&message);
        assert_eq!(
            connection.receive(message.len()),
            message,
            "an idle connection still works"
        );
        assert!(connection.finish().is_empty());
    }
    each
}
