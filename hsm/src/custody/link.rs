//! The gateway's end of a control connection: sends and receives without ever waiting.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::SendFlags;
use serde::Serialize;

use crate::passing;
use crate::protocol::{self, Garbled, Order, Report};

/// See the module.
pub(super) struct Link {
    socket: UnixStream,
    reader: protocol::Reader,
    /// What the kernel has not taken yet.
    waiting: VecDeque<Outgoing>,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Goes with the first byte.
    descriptor: Option<OwnedFd>,
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// More may come.
    All,
    /// Nothing more comes.
    End,
}

impl Link {
    /// A link, and the signer's end of it.
    pub(super) fn pair() -> io::Result<(Link, OwnedFd)> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let link = Link {
            socket,
            reader: protocol::Reader::default(),
            waiting: VecDeque::new(),
        };
        Ok((link, theirs.into()))
    }

    /// Sends an order, now or as soon as the signer has read earlier ones.
    pub(super) fn send(&mut self, order: &Order) {
        self.queue(order, None);
    }

    /// Sends an order with a descriptor.
    pub(super) fn send_with(&mut self, order: &Order, descriptor: OwnedFd) {
        self.queue(order, Some(descriptor));
    }

    fn queue(&mut self, order: &impl Serialize, descriptor: Option<OwnedFd>) {
        let mut bytes = Vec::new();
        protocol::write(order, &mut bytes);
        self.waiting.push_back(Outgoing {
            bytes,
            sent: 0,
            descriptor,
        });
        self.flush();
    }

    /// Gives the kernel what it takes.
    pub(super) fn flush(&mut self) {
        while let Some(first) = self.waiting.front_mut() {
            // A signer that has ended is found out by receiving.
            let rest = &first.bytes[first.sent..];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let Ok(sent) = passing::send(&self.socket, rest, first.descriptor.as_ref(), flags) else {
                return;
            };
            first.descriptor = None;
            first.sent += sent;
            if first.sent == first.bytes.len() {
                self.waiting.pop_front();
            }
        }
    }

    /// Receives what there is.
    pub(super) fn receive(&mut self) -> Received {
        let mut bytes = [0; 16 * 1024];
        loop {
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return Received::End,
                Ok(length) => self.reader.push(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::All,
                Err(_) => return Received::End,
            }
        }
    }

    /// The next report of what was received.
    pub(super) fn next_report(&mut self) -> Result<Option<Report>, Garbled> {
        self.reader.next_message()
    }
}

/// A new channel: the worker's end, and the signer's.
pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours.into(), theirs.into()))
}

/// Waits until one of them can be received from, at most for this long.
pub(super) fn wait<'a>(links: impl Iterator<Item = &'a Link>, at_most: Duration) {
    let mut sockets: Vec<PollFd<'_>> = links.map(|link| PollFd::new(&link.socket, PollFlags::IN)).collect();
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    // Fails only when a signal came: then waiting ends early.
    let _ = rustix::event::poll(&mut sockets, Some(&timeout));
}
