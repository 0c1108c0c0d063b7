//! Scripted servers behind the gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringlock::net::sim::{Peer, SimDriver};

use super::stream;

/// How a server address answers connection attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Up,
    Refuses,
    /// Never answers.
    Silent,
}

/// What a server does wrong; positions in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    ResetAt(usize),
    /// Closes, whatever it has not read.
    CloseAt(usize),
    /// Reads nothing more, by bytes received.
    DeafAt(usize),
    /// Never ends its stream.
    Mute,
}

#[derive(Clone, Debug)]
pub(crate) struct ServerPlan {
    pub(crate) download: usize,
    pub(crate) chunk: usize,
    pub(crate) pace: Duration,
    pub(crate) read_max: usize,
    /// Ends its stream when all is sent, instead of after the client's end.
    pub(crate) ends_first: bool,
    pub(crate) mischief: Option<Mischief>,
}

/// One connection of a server.
pub(crate) struct Server {
    pub(crate) plan: ServerPlan,
    pub(crate) peer: Peer,
    pub(crate) client: Peer,
    /// What is still to come of a PROXY header, and what it has to say.
    header: Option<(Vec<u8>, SocketAddr)>,
    pub(crate) sent: usize,
    pub(crate) received: usize,
    /// Has ended its stream, in order.
    pub(crate) shut: bool,
    /// Its end looks orderly from the gateway: it closed, with nothing unread or the gateway not knowing.
    pub(crate) closed: bool,
    /// Has closed or reset before the end.
    pub(crate) broke_off: bool,
    pub(crate) saw_end: bool,
    pub(crate) saw_reset: bool,
    /// The client's end was seen before ours was sent.
    pub(crate) client_ended_first: bool,
    next_send: Instant,
    next_read: Instant,
    pub(crate) finished: bool,
}

impl Server {
    pub(crate) fn new(plan: ServerPlan, peer: Peer, client: Peer, header: Option<SocketAddr>, now: Instant) -> Server {
        Server {
            plan,
            peer,
            client,
            header: header.map(|from| (Vec::new(), from)),
            sent: 0,
            received: 0,
            shut: false,
            closed: false,
            broke_off: false,
            saw_end: false,
            saw_reset: false,
            client_ended_first: false,
            next_send: now,
            next_read: now,
            finished: false,
        }
    }

    pub(crate) fn step(&mut self, net: &mut SimDriver, now: Instant) {
        if self.finished {
            return;
        }
        self.read(net, now);
        self.write(net, now);
        let done = self.saw_end && self.shut;
        let gone = net.is_closed_by_worker(self.peer) && (self.saw_end || self.saw_reset || self.is_deaf());
        if done || gone || self.saw_reset {
            net.close(self.peer);
            self.finished = true;
        }
    }

    fn is_deaf(&self) -> bool {
        self.broke_off || matches!(self.plan.mischief, Some(Mischief::DeafAt(at)) if self.received >= at)
    }

    fn read(&mut self, net: &mut SimDriver, now: Instant) {
        while !self.is_deaf() && !self.saw_end && !self.saw_reset {
            if self.next_read > now {
                return net.wake_at(self.next_read);
            }
            match net.receive(self.peer, self.plan.read_max) {
                None => return,
                Some(Err(_)) => self.saw_reset = true,
                Some(Ok(bytes)) if bytes.is_empty() => {
                    self.saw_end = true;
                    self.client_ended_first = !self.shut;
                }
                Some(Ok(bytes)) => {
                    self.next_read = now + self.plan.pace;
                    self.take(bytes);
                }
            }
        }
    }

    fn take(&mut self, mut bytes: Vec<u8>) {
        if let Some((line, from)) = &mut self.header {
            line.append(&mut bytes);
            let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
                assert!(line.len() < 107, "no PROXY header");
                return;
            };
            let text = String::from_utf8(line[..end].to_vec()).expect("the simulation is set up");
            let parts: Vec<&str> = text.split(' ').collect();
            assert_eq!(parts[..2], ["PROXY", "TCP4"], "{text}");
            assert_eq!(format!("{}:{}", parts[2], parts[4]), from.to_string(), "{text}");
            bytes = line.split_off(end + 2);
            self.header = None;
        }
        let what = format_args!("server {} from client {}", self.peer.0, self.client.0);
        stream::check(self.client.0 as u64, self.received, &bytes, what);
        self.received += bytes.len();
    }

    fn write(&mut self, net: &mut SimDriver, now: Instant) {
        if self.broke_off || self.shut || self.saw_reset {
            return;
        }
        if self.next_send > now {
            return net.wake_at(self.next_send);
        }
        match self.plan.mischief {
            Some(Mischief::ResetAt(at)) if self.sent >= at => {
                self.broke_off = true;
                return net.reset(self.peer);
            }
            Some(Mischief::CloseAt(at)) if self.sent >= at => {
                self.broke_off = true;
                self.closed = true;
                return net.close(self.peer);
            }
            _ => {}
        }
        let length = self.plan.chunk.min(self.plan.download - self.sent);
        if length > 0 {
            let bytes = stream::piece(self.peer.0 as u64, self.sent, length);
            match net.send(self.peer, &bytes) {
                Ok(sent) => {
                    self.sent += sent;
                    if sent > 0 {
                        self.next_send = now + self.plan.pace;
                        net.wake_at(self.next_send);
                    }
                }
                Err(_) => self.broke_off = true,
            }
        } else if (self.plan.ends_first || self.saw_end) && self.plan.mischief != Some(Mischief::Mute) {
            self.shut = true;
            net.shutdown(self.peer);
        }
    }
}
