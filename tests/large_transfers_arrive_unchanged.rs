//! A hundred megabytes each way, many small messages, and both directions at once.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Mutex, mpsc};

use crate::support::*;
use aws_lc_rs::digest::{Context, Digest, SHA256};

both_drivers!(
    a_download_of_100_mb,
    an_upload_of_100_mb,
    many_small_messages,
    both_directions_at_once,
);

const BYTES: usize = 100 * 1000 * 1000;
/// A prime, so that no buffer's size divides it.
const BLOCK_BYTES: usize = 1_000_003;

/// The blocks of a transfer of [`BYTES`].
fn blocks(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..BYTES.div_ceil(BLOCK_BYTES)).map(move |n| &block[..BLOCK_BYTES.min(BYTES - n * BLOCK_BYTES)])
}

fn expected() -> Digest {
    let block = pattern(BLOCK_BYTES);
    let mut context = Context::new(&SHA256);
    blocks(&block).for_each(|block| context.update(block));
    context.finish()
}

fn a_download_of_100_mb(io: Io) {
    let origin = Origin::start(|mut stream| {
        let block = pattern(BLOCK_BYTES);
        blocks(&block).for_each(|block| stream.write_all(block).unwrap());
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    let mut context = Context::new(&SHA256);
    let (mut total, mut buffer) = (0, vec![0; 64 * 1024]);
    let end = loop {
        match connection.read(&mut buffer).unwrap() {
            Ok(length) => {
                context.update(&buffer[..length]);
                total += length;
            }
            Err(end) => break end,
        }
    };
    assert_eq!((total, end), (BYTES, End::CloseNotify));
    assert_eq!(context.finish().as_ref(), expected().as_ref());
    connection.close_notify();
    gateway.wait_for_ended("finished", 1);
    let metrics = gateway.wait_until_quiet();
    let labels = [("side", "upstream"), ("direction", "received")];
    assert_eq!(metrics.count("ringlock_transferred_bytes_total", &labels), BYTES as u64);
}

fn an_upload_of_100_mb(io: Io) {
    let (sender, results) = mpsc::channel();
    let sender = Mutex::new(sender);
    let origin = Origin::start(move |mut stream| {
        let mut context = Context::new(&SHA256);
        let (mut total, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                length => {
                    context.update(&buffer[..length]);
                    total += length;
                }
            }
        }
        sender.lock().unwrap().send((total, context.finish())).unwrap();
    });
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    let block = pattern(BLOCK_BYTES);
    blocks(&block).for_each(|block| connection.send(block));
    connection.finish();
    let (total, digest) = results.recv_timeout(PATIENCE).unwrap();
    assert_eq!(total, BYTES);
    assert_eq!(digest.as_ref(), expected().as_ref());
    gateway.wait_for_ended("finished", 1);
    let metrics = gateway.wait_until_quiet();
    let labels = [("side", "upstream"), ("direction", "sent")];
    assert_eq!(metrics.count("ringlock_transferred_bytes_total", &labels), BYTES as u64);
}

fn many_small_messages(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    // One at a time, then many in a row.
    for length in (1..400).chain([1; 600]) {
        let data = pattern(length);
        connection.send(&data);
        assert_eq!(connection.receive(length), data);
    }
    for _ in 0..20 {
        for _ in 0..500 {
            connection.send(b"0123456789");
        }
        assert_eq!(connection.receive(5000), b"0123456789".repeat(500));
    }
    assert!(connection.finish().is_empty());
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}

/// One client that sends and receives the echo at the same time.
fn both_directions_at_once(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut connection = Client::new(&gateway).connect();
    connection.stream.set_nonblocking(true).unwrap();
    let block = pattern(BLOCK_BYTES);
    let mut unsent: Vec<&[u8]> = vec![&block; 30];
    let total = unsent.len() * BLOCK_BYTES;
    let (mut context, mut got, mut buffer) = (Context::new(&SHA256), 0, vec![0; 64 * 1024]);
    let would_block = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
    while got < total {
        if let Some(piece) = unsent.last_mut() {
            *piece = &piece[connection.tls.writer().write(piece).unwrap()..];
            if piece.is_empty() {
                unsent.pop();
            }
        }
        if let Err(error) = connection.flush() {
            assert!(would_block(&error), "{error}");
        }
        match connection.tls.read_tls(&mut connection.stream) {
            Ok(length) => assert!(length > 0, "the stream ended after {got} of {total} bytes"),
            Err(error) => assert!(would_block(&error), "{error} after {got} of {total} bytes"),
        }
        connection.tls.process_new_packets().unwrap();
        while let Ok(length) = connection.tls.reader().read(&mut buffer) {
            context.update(&buffer[..length]);
            got += length;
        }
    }
    connection.stream.set_nonblocking(false).unwrap();
    assert!(connection.finish().is_empty());
    let mut expected = Context::new(&SHA256);
    (0..total / BLOCK_BYTES).for_each(|_| expected.update(&block));
    assert_eq!(context.finish().as_ref(), expected.finish().as_ref());
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}
