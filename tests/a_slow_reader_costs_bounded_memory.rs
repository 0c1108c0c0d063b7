//! Backpressure: who reads nothing costs the gateway a bounded amount of memory, on either side.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::*;

both_drivers!(
    clients_that_do_not_read_cost_bounded_memory,
    origins_that_do_not_read_cost_bounded_memory,
);

const CONNECTIONS: usize = 20;
/// What one direction of a connection may hold: the high-water mark of 256 KiB and the one receive above it, sealed, with room
/// for the buffers' size classes.
const HELD_BYTES: u64 = 1024 * 1024;

/// Waits until nothing moves any more; gives what has come in and gone out on the way `from` one side to the other.
#[track_caller]
fn wait_for_standstill(gateway: &Gateway, from: &str, to: &str) -> (u64, u64) {
    let moved = || {
        let metrics = gateway.metrics();
        let count = |side, direction| {
            let labels = [("side", side), ("direction", direction)];
            metrics.count("ringlock_transferred_bytes_total", &labels)
        };
        (count(from, "received"), count(to, "sent"))
    };
    let mut last = moved();
    eventually("the flow to stand still", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = moved();
        let before = std::mem::replace(&mut last, now);
        (before == now && now.0 > 0).then_some(now)
    })
}

#[track_caller]
fn assert_bounded(gateway: &Gateway, before: u64, from: &str, to: &str) {
    let (received, sent) = wait_for_standstill(gateway, from, to);
    let held = received.saturating_sub(sent);
    let bound = CONNECTIONS as u64 * HELD_BYTES;
    assert!(held <= bound, "{held} bytes are held for {CONNECTIONS} connections");
    let metrics = gateway.metrics();
    let buffers = metrics.count("ringlock_send_buffers_bytes", &[]);
    assert!(buffers <= bound, "{buffers} bytes of buffers");
    // The pool and what the allocator keeps come on top, but not what the origin could have sent.
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(
        grown <= bound + 32 * 1024 * 1024,
        "the process has grown by {grown} bytes"
    );
}

fn clients_that_do_not_read_cost_bounded_memory(io: Io) {
    let origin = Origin::start(|mut stream| {
        let data = pattern(100_000);
        while stream.write_all(&data).is_ok() {}
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    let before = gateway.resident_bytes();
    let mut connections: Vec<Connection> = (0..CONNECTIONS).map(|_| Client::new(&gateway).connect()).collect();
    assert_bounded(&gateway, before, "upstream", "downstream");
    // They go on where they stood.
    let data = pattern(100_000).repeat(50);
    for connection in &mut connections {
        assert!(connection.receive(data.len()) == data);
    }
    drop(connections);
    gateway.wait_until_quiet();
}

fn origins_that_do_not_read_cost_bounded_memory(io: Io) {
    let (sender, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(Some(gate));
    let origin = Origin::start(move |mut stream| {
        // The first one waits for the word, and so do all behind it.
        if let Some(gate) = gate.lock().unwrap().take() {
            gate.recv().unwrap();
        }
        let (mut all, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            all += length;
        }
        stream.write_all(&(all as u64).to_be_bytes()).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    let before = gateway.resident_bytes();
    let connections: Vec<Connection> = (0..CONNECTIONS).map(|_| Client::new(&gateway).connect()).collect();
    let data = pattern(30_000_000);
    std::thread::scope(|scope| {
        let data = &data;
        let clients: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                scope.spawn(move || {
                    connection.send(data);
                    connection.finish()
                })
            })
            .collect();
        assert_bounded(&gateway, before, "downstream", "upstream");
        sender.send(()).unwrap();
        for client in clients {
            assert_eq!(client.join().unwrap(), (data.len() as u64).to_be_bytes());
        }
    });
    gateway.wait_until_quiet();
}
