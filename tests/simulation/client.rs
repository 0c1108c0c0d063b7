//! Scripted clients: well-behaved ones and every kind of trouble.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringlock::net::sim::random::Random;
use ringlock::net::sim::{Peer, SimDriver};
use ringlock::tls::Tls;

use super::server::Server;
use super::stream;

/// The client's end of a kind of TLS.
pub(crate) trait ClientTls: Sized {
    /// The gateway's end.
    type Server: Tls;

    /// A connection; its hello goes to `out`.
    fn new(random: &mut Random, hello: Hello, out: &mut VecDeque<u8>) -> Self;

    /// Takes what came.
    fn receive(&mut self, bytes: &[u8], out: &mut VecDeque<u8>) -> Vec<Heard>;

    /// Seals data, once established.
    fn send(&mut self, plain: &[u8], out: &mut VecDeque<u8>);

    /// Seals the end of the stream.
    fn close_notify(&mut self, out: &mut VecDeque<u8>);

    /// Seals a KeyUpdate that asks for an answer.
    fn key_update(&mut self, out: &mut VecDeque<u8>);
}

/// What a client hears from the gateway.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Established,
    Data(Vec<u8>),
    CloseNotify,
    /// The gateway refuses.
    Alert,
}

/// What a hello is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    Good,
    /// The gateway has nothing in common with it.
    Refused,
    /// Its key share is no key.
    BadShare,
}

/// What a client does wrong. Positions are bytes on the wire, so that they fall into every phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    ResetAt(usize),
    /// Ends TCP without close_notify, and goes on reading.
    TruncateAt(usize),
    /// Sends nothing more, and goes on reading.
    MuteAt(usize),
    /// Reads nothing more, by bytes of data received.
    DeafAt(usize),
    /// No TLS at all.
    Garbage,
    BadHello(Hello),
    KeyUpdates(usize),
    /// Bytes after close_notify, without end of TCP.
    TailAfterClose(usize),
    /// Does not close when all is said.
    Stays,
}

/// When a client that has sent all sends close_notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    AtOnce,
    /// When all that the server has to send is there: nothing may be held back for more to come.
    AfterAnswer,
    AfterServer,
}

#[derive(Clone, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) at: Duration,
    /// Which of the listeners that are open.
    pub(crate) listener: usize,
    pub(crate) upload: usize,
    pub(crate) chunk: usize,
    /// Between chunks, and between reads.
    pub(crate) pace: Duration,
    pub(crate) read_max: usize,
    /// When it ends its stream, once all is sent.
    pub(crate) ends: Ends,
    /// Ends TCP right after close_notify.
    pub(crate) fin_with_close: bool,
    pub(crate) mischief: Option<Mischief>,
}

/// See the module.
pub(crate) struct Client<C> {
    pub(crate) plan: ClientPlan,
    pub(crate) peer: Peer,
    /// As the kernel sees it, and as the PROXY header says.
    pub(crate) address: SocketAddr,
    pub(crate) announced: Option<SocketAddr>,
    tls: C,
    out: VecDeque<u8>,
    raw_sent: usize,
    pub(crate) established: bool,
    updated_keys: bool,
    /// Bytes of data given to TLS, and come out of it.
    pub(crate) sent: usize,
    pub(crate) received: usize,
    pub(crate) sent_close_notify: bool,
    pub(crate) saw_close_notify: bool,
    pub(crate) saw_alert: bool,
    pub(crate) saw_end: bool,
    pub(crate) saw_reset: bool,
    /// Has reset the connection, or ended TCP without close_notify.
    pub(crate) broke_off: bool,
    shut: bool,
    next_send: Instant,
    next_read: Instant,
    pub(crate) finished: bool,
}

impl<C: ClientTls> Client<C> {
    pub(crate) fn new(
        plan: ClientPlan,
        peer: Peer,
        address: SocketAddr,
        header: Option<(SocketAddr, SocketAddr)>,
        now: Instant,
        random: &mut Random,
    ) -> Client<C> {
        let mut out = VecDeque::new();
        if let Some((from, to)) = header {
            let line = format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
            out.extend(line.bytes());
        }
        let hello = match plan.mischief {
            Some(Mischief::BadHello(hello)) => hello,
            _ => Hello::Good,
        };
        if plan.mischief == Some(Mischief::Garbage) {
            out.extend(b"GET / HTTP/1.1\r\n\r\n");
        }
        let tls = C::new(random, hello, &mut out);
        Client {
            plan,
            peer,
            address,
            announced: header.map(|(from, _)| from),
            tls,
            out,
            raw_sent: 0,
            established: false,
            updated_keys: false,
            sent: 0,
            received: 0,
            sent_close_notify: false,
            saw_close_notify: false,
            saw_alert: false,
            saw_end: false,
            saw_reset: false,
            broke_off: false,
            shut: false,
            next_send: now,
            next_read: now,
            finished: false,
        }
    }

    /// Does what can be done now. `server` is the other end of this client's session.
    pub(crate) fn step(&mut self, net: &mut SimDriver, now: Instant, server: Option<&Server>) {
        if self.finished {
            return;
        }
        self.read(net, now, server.map(|server| server.peer));
        self.write(net, now, server);
        // After a close_notify the other direction goes on.
        let over = self.saw_end && (self.shut || !self.saw_close_notify) && self.plan.mischief != Some(Mischief::Stays);
        if over || self.saw_reset || net.is_closed_by_worker(self.peer) && !self.reads_on() {
            net.close(self.peer);
            self.shut = true;
        }
        if net.is_closed_by_worker(self.peer) && (self.saw_end || self.saw_reset || !self.reads_on()) {
            net.close(self.peer);
            self.finished = true;
        }
    }

    fn reads_on(&self) -> bool {
        !matches!(self.plan.mischief, Some(Mischief::DeafAt(at)) if self.received >= at) && !self.broke_off_both_ways()
    }

    fn broke_off_both_ways(&self) -> bool {
        self.broke_off && matches!(self.plan.mischief, Some(Mischief::ResetAt(_)))
    }

    fn read(&mut self, net: &mut SimDriver, now: Instant, server: Option<Peer>) {
        while self.reads_on() && !self.saw_end && !self.saw_reset {
            if self.next_read > now {
                net.wake_at(self.next_read);
                return;
            }
            match net.receive(self.peer, self.plan.read_max) {
                None => return,
                Some(Err(_)) => self.saw_reset = true,
                Some(Ok(bytes)) if bytes.is_empty() => self.saw_end = true,
                Some(Ok(bytes)) => {
                    self.next_read = now + self.plan.pace;
                    for heard in self.tls.receive(&bytes, &mut self.out) {
                        self.hear(net, heard, server);
                    }
                }
            }
        }
    }

    fn hear(&mut self, net: &mut SimDriver, heard: Heard, server: Option<Peer>) {
        match heard {
            Heard::Established => self.established = true,
            Heard::Alert => self.saw_alert = true,
            Heard::CloseNotify => {
                self.saw_close_notify = true;
                net.note(format_args!("client {} hears close_notify", self.peer.0));
            }
            Heard::Data(bytes) => {
                assert!(!self.saw_close_notify, "data after close_notify");
                let server = server.expect("data comes from a server");
                let what = format_args!("client {} from server {}", self.peer.0, server.0);
                stream::check(server.0 as u64, self.received, &bytes, what);
                self.received += bytes.len();
            }
        }
    }

    fn write(&mut self, net: &mut SimDriver, now: Instant, server: Option<&Server>) {
        if self.broke_off || self.shut || self.saw_reset {
            return;
        }
        self.flush(net);
        if self.broke_off || !self.out.is_empty() || !self.established || self.sent_close_notify {
            return;
        }
        if self.next_send > now {
            return net.wake_at(self.next_send);
        }
        if let Some(Mischief::KeyUpdates(count)) = self.plan.mischief
            && !std::mem::replace(&mut self.updated_keys, true)
        {
            for _ in 0..count {
                self.tls.key_update(&mut self.out);
            }
        }
        let length = self.plan.chunk.min(self.plan.upload - self.sent);
        if length > 0 {
            let bytes = stream::piece(self.peer.0 as u64, self.sent, length);
            self.tls.send(&bytes, &mut self.out);
            self.sent += length;
            self.next_send = now + self.plan.pace;
            if self.plan.pace > Duration::ZERO {
                net.wake_at(self.next_send);
            } else {
                net.wake();
            }
        } else if self.may_end(server) {
            self.tls.close_notify(&mut self.out);
            self.sent_close_notify = true;
            if let Some(Mischief::TailAfterClose(length)) = self.plan.mischief {
                // Looks like a record of data.
                self.out.extend([23, 3, 3, 0, 40]);
                self.out.extend(std::iter::repeat_n(7, length));
            }
        }
        self.flush(net);
    }

    fn may_end(&self, server: Option<&Server>) -> bool {
        let of_itself = match self.plan.ends {
            Ends::AtOnce => true,
            Ends::AfterAnswer => server.is_some_and(|server| self.received == server.plan.download),
            Ends::AfterServer => false,
        };
        of_itself || self.saw_close_notify
    }

    fn flush(&mut self, net: &mut SimDriver) {
        let limit = match self.plan.mischief {
            Some(Mischief::ResetAt(at) | Mischief::TruncateAt(at) | Mischief::MuteAt(at)) => at,
            _ => usize::MAX,
        };
        let length = self.out.len().min(limit - self.raw_sent);
        if length > 0 {
            self.out.make_contiguous();
            match net.send(self.peer, &self.out.as_slices().0[..length]) {
                Ok(sent) => {
                    self.out.drain(..sent);
                    self.raw_sent += sent;
                }
                Err(_) => {
                    self.out.clear();
                    self.broke_off = true;
                    return;
                }
            }
        }
        if self.raw_sent == limit {
            match self.plan.mischief {
                Some(Mischief::ResetAt(_)) => {
                    self.broke_off = true;
                    net.reset(self.peer);
                }
                Some(Mischief::TruncateAt(_)) => {
                    self.broke_off = true;
                    net.shutdown(self.peer);
                }
                _ => {}
            }
        } else if self.sent_close_notify && self.out.is_empty() && !self.shut {
            let leaves = self.plan.fin_with_close || self.saw_close_notify;
            if leaves && self.plan.mischief != Some(Mischief::Stays) {
                self.shut = true;
                net.shutdown(self.peer);
            }
        }
    }

    /// Whether all of close_notify is on its way.
    pub(crate) fn ended_in_order(&self) -> bool {
        self.sent_close_notify && !self.broke_off
    }

    /// Describes the client for a failure.
    pub(crate) fn describe(&self) -> String {
        format!(
            "client {} {:?}: established {}, sent {} received {}, close_notify sent {} seen {}, end {} reset {} alert {}",
            self.peer.0,
            self.plan,
            self.established,
            self.sent,
            self.received,
            self.sent_close_notify,
            self.saw_close_notify,
            self.saw_end,
            self.saw_reset,
            self.saw_alert
        )
    }
}
