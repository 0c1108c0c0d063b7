//! A worker's channel as the signer sees it: requests come in, answers go out, written together when several are ready.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::protocol::{self, Garbled, Reader, Refusal, Request, Response};

/// What one receive may bring: some 300 requests.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Answers that a worker has not taken. It asks for a few thousand signatures at most, of 600 bytes at most: beyond this it does not read.
const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A connection with a worker.
pub(crate) struct Channel {
    socket: OwnedFd,
    out: Mutex<Out>,
    gone: AtomicBool,
}

#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    /// Somebody is writing, and will write what is appended meanwhile.
    writing: bool,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Arc<Channel> {
        Arc::new(Channel {
            socket,
            out: Mutex::default(),
            gone: AtomicBool::new(false),
        })
    }

    /// Reads until the worker, [`Channel::end`] or a message that is none ends it. `requests` gets what each receive brought.
    pub(crate) fn read(&self, mut requests: impl FnMut(&mut Received<'_>) -> Result<(), Garbled>) {
        let mut reader = Reader::default();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => break,
                Ok((_, length)) => {
                    reader.push(&buffer[..length]);
                    if let Err(garbled) = requests(&mut Received(&mut reader)) {
                        crate::signer::complain(&format!("a worker's channel has ended: {garbled}"));
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.end();
    }

    /// Nobody is answered any more, and the reader stops.
    pub(crate) fn end(&self) {
        self.gone.store(true, Ordering::Release);
        // It may have been shut down already, by either side.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn answer(self: &Arc<Self>, response: &Response<'_>) {
        if self.is_gone() {
            return;
        }
        let mut out = self.out();
        protocol::write(response, &mut out.bytes);
        if out.bytes.len() > UNREAD_BYTES_MAX {
            crate::signer::complain("a worker's channel has ended: the worker does not read its answers");
            out.bytes = Vec::new();
            return self.end();
        }
        if out.writing {
            return;
        }
        out.writing = true;
        drop(out);
        self.write(SendFlags::DONTWAIT);
    }

    /// Writes until nothing is left. A session's thread does not wait for a worker: when the socket is full, a thread is started that does.
    fn write(self: &Arc<Self>, wait: SendFlags) {
        let mut bytes = Vec::new();
        loop {
            let mut out = self.out();
            std::mem::swap(&mut bytes, &mut out.bytes);
            if bytes.is_empty() {
                out.writing = false;
                return;
            }
            drop(out);
            let mut sent = 0;
            while sent < bytes.len() {
                match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL | wait) {
                    Ok(length) => sent += length,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        bytes.drain(..sent);
                        return self.write_later(bytes);
                    }
                    Err(_) => return self.end(),
                }
            }
            bytes.clear();
        }
    }

    fn write_later(self: &Arc<Self>, mut rest: Vec<u8>) {
        let mut out = self.out();
        rest.append(&mut out.bytes);
        out.bytes = rest;
        drop(out);
        let channel = Arc::clone(self);
        let started = thread::Builder::new().name("answers".to_owned());
        if started.spawn(move || channel.write(SendFlags::empty())).is_err() {
            self.end();
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().expect("nobody panics while holding this lock")
    }
}

/// Requests that have been received.
pub(crate) struct Received<'a>(&'a mut Reader);

impl Received<'_> {
    pub(crate) fn next(&mut self) -> Result<Option<Request<'_>>, Garbled> {
        self.0.next_bytes()?.map(protocol::decode).transpose()
    }
}

/// The answer that somebody waits for. Given exactly once: one that is dropped says that the token failed.
pub(crate) struct Reply {
    channel: Arc<Channel>,
    id: u64,
    answered: bool,
}

impl Reply {
    pub(crate) fn new(channel: &Arc<Channel>, id: u64) -> Reply {
        Reply {
            channel: Arc::clone(channel),
            id,
            answered: false,
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn is_moot(&self) -> bool {
        self.channel.is_gone()
    }

    pub(crate) fn refuse(self, refusal: Refusal) {
        self.give(Err(refusal), 0);
    }

    pub(crate) fn give(mut self, signature: Result<&[u8], Refusal>, signing_us: u32) {
        self.send(signature, signing_us);
    }

    fn send(&mut self, signature: Result<&[u8], Refusal>, signing_us: u32) {
        self.answered = true;
        self.channel.answer(&Response {
            id: self.id,
            signing_us,
            signature,
        });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.send(Err(Refusal::Failed), 0);
        }
    }
}
