//! Records after the handshake: sealed and opened by Ringlock's adapter and by rustls.
//!
//! What rustls seals is handed to a writer that drops it, as `writev` would take it from where it lies; what it opens is
//! read into a buffer, from which it would be sent.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use ringlock::limits::RECEIVE_BYTES_MAX;
use ringlock::tls::{Opened, Outboxes, Tls};
use rustls::{ClientConfig, ClientConnection, ServerConfig};

use super::cpu::timed;
use super::tls::{FLIGHTS_MAX, Ringlock, Rustls, Server, Shared, client, deliver, flight};

/// Bytes between two readings of the clock: many small messages, and still within the processor's cache, where the kernel leaves
/// what it has just received.
const BATCH_BYTES: usize = 256 * 1024;

/// A client and its server after the handshake.
pub(crate) fn establish<S: Server>(shared: &mut S::Shared, config: &Arc<ClientConfig>) -> (ClientConnection, S) {
    let mut client = client(config);
    let mut server = S::accept(shared);
    let mut bytes = Vec::new();
    for _ in 0..FLIGHTS_MAX {
        flight(&mut client, &mut bytes);
        if server.is_established() {
            break;
        }
        let mut answer = Vec::new();
        server.receive(shared, &mut bytes, &mut answer);
        deliver(&mut client, &answer);
    }
    assert!(
        server.is_established() && !client.is_handshaking(),
        "a handshake has fewer flights"
    );
    (client, server)
}

/// Has the client seal `plain` this many times, some of them ahead, and counts what `take` needs for them.
pub(crate) fn incoming(
    client: &mut ClientConnection,
    plain: &[u8],
    count: u64,
    mut take: impl FnMut(&mut [u8]),
) -> Duration {
    let ahead = (BATCH_BYTES / plain.len()).max(1);
    let mut messages = vec![Vec::new(); ahead];
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(ahead).min(ahead);
        for message in &mut messages[..some] {
            client.writer().write_all(plain).expect("no limit is set");
            flight(client, message);
        }
        timed(&mut spent, || {
            messages[..some].iter_mut().for_each(|message| take(message))
        });
        left -= some as u64;
    }
    spent
}

/// A server whose records are measured; both return how many bytes came out.
pub(crate) trait Records: Server {
    fn seal(&mut self, shared: &mut Self::Shared, plain: &[u8]) -> usize;
    fn open(&mut self, shared: &mut Self::Shared, sealed: &mut [u8]) -> usize;
}

impl Records for Ringlock {
    fn seal(&mut self, shared: &mut Shared, plain: &[u8]) -> usize {
        self.tls
            .seal(plain, &mut self.sealed.sink(&mut shared.pool))
            .expect("keys that last");
        let buffer = self.sealed.take().expect("something was sealed");
        let sent = buffer.len();
        self.sealed.returned(buffer, sent, &mut shared.pool);
        sent
    }

    fn open(&mut self, shared: &mut Shared, sealed: &mut [u8]) -> usize {
        let mut outboxes = Outboxes {
            plain: &mut self.plain,
            sealed: &mut self.sealed,
            pool: &mut shared.pool,
        };
        let (used, opened) = self.tls.open(shared.now, sealed, &mut outboxes);
        assert_eq!(
            (used, opened),
            (sealed.len(), Opened::Open),
            "whole records are used up"
        );
        let buffer = self.plain.take().expect("something was opened");
        let sent = buffer.len();
        self.plain.returned(buffer, sent, &mut shared.pool);
        sent
    }
}

impl Records for Rustls {
    fn seal(&mut self, _: &mut Arc<ServerConfig>, plain: &[u8]) -> usize {
        self.0.writer().write_all(plain).expect("no limit is set");
        let mut sent = 0;
        while self.0.wants_write() {
            sent += self.0.write_tls(&mut std::io::sink()).expect("a sink takes everything");
        }
        sent
    }

    fn open(&mut self, _: &mut Arc<ServerConfig>, sealed: &mut [u8]) -> usize {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; RECEIVE_BYTES_MAX]);
        }
        let mut opened = 0;
        let mut rest = &*sealed;
        while !rest.is_empty() {
            self.0.read_tls(&mut rest).expect("memory can be read");
            let state = self.0.process_new_packets().expect("the client speaks TLS");
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let read = BUFFER.with_borrow_mut(|buffer| self.0.reader().read(buffer));
                let read = read.expect("there is something to read");
                opened += read;
                left -= read;
            }
        }
        opened
    }
}
