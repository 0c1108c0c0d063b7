//! The loop of an attack: one thread, one epoll instance, a bounded number of connections that follow their scripts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt;

use super::script::{Next, Script};
use super::tally::Tally;
use crate::error::PerfError;
use crate::socket::{Cause, start_connect};

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;

/// Longest wait: how soon an end that was asked for is seen.
const LOOK: Duration = Duration::from_millis(50);

/// What one connection may read or write in a turn, in calls: a storm does not hold up the others.
const CALLS_PER_TURN: usize = 16;

/// Nothing is read while more bytes than this wait to be sent: a server that only talks does not fill the memory with answers. What
/// scripts send by themselves is no more at a time.
const WAITING_MAX: usize = 64 * 1024;

/// Connections that are opened in a turn.
const OPENED_PER_TURN: usize = 64;

/// How long nothing is opened after a connection could not be.
const BACKOFF: Duration = Duration::from_millis(10);

/// Source addresses on loopback: ports in TIME_WAIT are then no limit.
const SOURCES: u8 = 8;

/// What bounds an attack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) target: SocketAddr,
    /// At a time.
    pub(super) connections: usize,
    /// In all.
    pub(super) connections_max: u64,
    /// Opened per second.
    pub(super) rate: Option<u32>,
    pub(super) duration: Duration,
    /// How long one is kept.
    pub(super) timeout: Duration,
    /// Between two bytes.
    pub(super) pause: Duration,
}

/// An attack under way.
pub(super) struct Flood<N> {
    bounds: Bounds,
    /// Makes the script of the connection with this number.
    new_script: N,
    poll: Poll,
    slots: Vec<Option<Attempt>>,
    free: Vec<usize>,
    /// When pauses are over, at most one for each connection that is open, and those of ended ones until they are due.
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Those that have more to do than a turn allows.
    again: VecDeque<(usize, u64)>,
    opened_from: Instant,
    /// Nothing is opened before.
    not_before: Instant,
    next_scan: Instant,
    buffer: Vec<u8>,
    tally: Tally,
}

/// One connection.
struct Attempt {
    number: u64,
    stream: TcpStream,
    script: Box<dyn Script>,
    begun: Instant,
    connected: bool,
    out: Vec<u8>,
    /// 0 <= written <= out.len()
    written: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `out` is sent, then the script goes on.
    Sending,
    /// The same, with a pause.
    SendingThenPause,
    /// Until then.
    Pausing(Instant),
    /// What the server sends is waited for.
    Waiting,
}

/// How a connection ended: [`Ending::ending`](super::tally::Ending::ending).
type End = &'static str;

impl<N: FnMut(u64) -> Result<Box<dyn Script>, PerfError>> Flood<N> {
    pub(super) fn new(bounds: Bounds, new_script: N) -> Result<Self, PerfError> {
        let now = Instant::now();
        Ok(Self {
            new_script,
            poll: Poll::new().map_err(|error| PerfError::io("create an epoll instance", error))?,
            slots: (0..bounds.connections).map(|_| None).collect(),
            free: (0..bounds.connections).rev().collect(),
            timers: BinaryHeap::new(),
            again: VecDeque::new(),
            opened_from: now,
            not_before: now,
            next_scan: now,
            buffer: vec![0; 64 * 1024],
            tally: Tally::new(),
            bounds,
        })
    }

    /// Attacks until its time is over, all connections have been there, or `over` says so, which is asked all the time.
    pub(super) fn run(mut self, mut over: impl FnMut() -> bool) -> Result<Tally, PerfError> {
        let mut events = Events::with_capacity(EVENTS);
        self.opened_from = Instant::now();
        let end = self.opened_from + self.bounds.duration;
        while Instant::now() < end && !over() && !self.is_done() {
            self.open_what_is_due()?;
            let timeout = self.next_look().min(end.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != ErrorKind::Interrupted
            {
                return Err(PerfError::io("wait for events", error));
            }
            for event in &events {
                self.turn(event.token().0);
            }
            for (slot, number) in std::mem::take(&mut self.again) {
                if self.is(slot, number) {
                    self.turn(slot);
                }
            }
            self.fire_timers();
        }
        self.tally.wall = self.opened_from.elapsed();
        for slot in 0..self.slots.len() {
            self.end(slot, "open_at_end");
        }
        Ok(self.tally)
    }

    fn is_done(&self) -> bool {
        self.tally.attempts >= self.bounds.connections_max && self.free.len() == self.slots.len()
    }

    fn is(&self, slot: usize, number: u64) -> bool {
        self.slots[slot]
            .as_ref()
            .is_some_and(|attempt| attempt.number == number)
    }

    /// How many connections may have been begun by now.
    fn due(&self, now: Instant) -> u64 {
        let by_rate = self.bounds.rate.map_or(u64::MAX, |rate| {
            // The first is due at once.
            1 + (now.duration_since(self.opened_from).as_secs_f64() * f64::from(rate)) as u64
        });
        by_rate.min(self.bounds.connections_max)
    }

    fn next_look(&self) -> Duration {
        let now = Instant::now();
        if !self.again.is_empty() {
            return Duration::ZERO;
        }
        let mut next = LOOK;
        if let Some(Reverse((at, ..))) = self.timers.peek() {
            next = next.min(at.saturating_duration_since(now));
        }
        if !self.free.is_empty() && self.tally.attempts < self.bounds.connections_max {
            let opening = match self.bounds.rate {
                Some(rate) => {
                    let due = Duration::from_secs_f64(self.tally.attempts as f64 / f64::from(rate));
                    (self.opened_from + due).max(self.not_before)
                }
                None => self.not_before,
            };
            next = next.min(opening.saturating_duration_since(now));
        }
        next
    }

    fn open_what_is_due(&mut self) -> Result<(), PerfError> {
        for _ in 0..OPENED_PER_TURN {
            let now = Instant::now();
            if now < self.not_before || self.tally.attempts >= self.due(now) {
                break;
            }
            let Some(slot) = self.free.pop() else { break };
            let number = self.tally.attempts;
            let script = (self.new_script)(number)?;
            self.tally.attempts += 1;
            match self.connect(slot, number) {
                Ok(stream) => {
                    self.slots[slot] = Some(Attempt {
                        number,
                        stream,
                        script,
                        begun: now,
                        connected: false,
                        out: Vec::new(),
                        written: 0,
                        stage: Stage::Sending,
                    });
                    self.tally.open_most = self.tally.open_most.max(self.slots.len() - self.free.len());
                }
                Err(error) => {
                    self.not_before = now + BACKOFF;
                    self.tally.ended(script.variant(), failure(&error), None, now.elapsed());
                    self.free.push(slot);
                }
            }
        }
        Ok(())
    }

    fn connect(&self, slot: usize, number: u64) -> io::Result<TcpStream> {
        let target = self.bounds.target;
        let socket = start_connect(target, source(target, number))?;
        let mut stream = TcpStream::from_std(std::net::TcpStream::from(socket));
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot), interest)?;
        Ok(stream)
    }

    /// Goes on where a pause is over, and now and then looks for connections that have been kept for long enough.
    fn fire_timers(&mut self) {
        let now = Instant::now();
        if now >= self.next_scan {
            self.next_scan = now + LOOK;
            for slot in 0..self.slots.len() {
                let kept = self.slots[slot]
                    .as_ref()
                    .map(|attempt| now.duration_since(attempt.begun));
                if kept.is_some_and(|kept| kept >= self.bounds.timeout) {
                    self.end(slot, "timed_out");
                }
            }
        }
        while let Some(&Reverse((at, slot, number))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let Some(attempt) = self.slots[slot].as_mut().filter(|attempt| attempt.number == number) else {
                continue;
            };
            if let Stage::Pausing(until) = attempt.stage
                && until <= now
            {
                attempt.stage = Stage::Sending;
                self.turn(slot);
            }
        }
    }

    /// Lets a connection do what it can.
    fn turn(&mut self, slot: usize) {
        let Some(attempt) = &mut self.slots[slot] else { return };
        match attempt.turn(&mut self.buffer, &mut self.tally, self.bounds.pause) {
            Ok(Turn::Idle) => {}
            Ok(Turn::More) => self.again.push_back((slot, attempt.number)),
            Ok(Turn::PauseUntil(at)) => self.timers.push(Reverse((at, slot, attempt.number))),
            Err(end) => self.end(slot, end),
        }
    }

    fn end(&mut self, slot: usize, ending: End) {
        let Some(attempt) = self.slots[slot].take() else { return };
        if ending == "refused" {
            self.not_before = Instant::now() + BACKOFF;
        }
        let kept = attempt.begun.elapsed();
        self.tally
            .ended(attempt.script.variant(), ending, attempt.script.alert(), kept);
        self.tally.messages += attempt.script.messages();
        // A socket that is closed is not polled any more.
        drop(attempt);
        self.free.push(slot);
    }
}

/// What a turn of a connection came to.
enum Turn {
    /// The kernel says when there is more to do.
    Idle,
    /// There is more to do.
    More,
    PauseUntil(Instant),
}

impl Attempt {
    fn turn(&mut self, buffer: &mut [u8], tally: &mut Tally, pause: Duration) -> Result<Turn, End> {
        if !self.connected && !self.is_connected(tally)? {
            return Ok(Turn::Idle);
        }
        // Not each time, as what is left is moved.
        if self.written > self.out.len() / 2 {
            self.out.drain(..self.written);
            self.written = 0;
        }
        let mut calls = 0;
        let all_read = loop {
            if calls == CALLS_PER_TURN || self.too_much_waits() {
                break false;
            }
            calls += 1;
            match self.stream.read(buffer) {
                Ok(0) => return Err("closed_by_server"),
                Ok(length) => {
                    tally.received += length as u64;
                    let next = self.script.received(&buffer[..length], &mut self.out);
                    // An answer goes out at once.
                    if self.stage == Stage::Waiting && self.out.len() > self.written {
                        self.stage = Stage::Sending;
                    }
                    self.end_of(next)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&error)),
            }
        };
        for _ in 0..CALLS_PER_TURN {
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
                match self.stage {
                    Stage::Pausing(_) | Stage::Waiting => return Ok(if all_read { Turn::Idle } else { Turn::More }),
                    Stage::SendingThenPause => {
                        let until = Instant::now() + pause;
                        self.stage = Stage::Pausing(until);
                        return Ok(Turn::PauseUntil(until));
                    }
                    Stage::Sending => {
                        let next = self.script.ready(&mut self.out);
                        self.end_of(next)?;
                        self.stage = match next {
                            Next::Send => Stage::Sending,
                            Next::SendThenPause => Stage::SendingThenPause,
                            Next::Wait | Next::Reset | Next::Done(_) => Stage::Waiting,
                        };
                        continue;
                    }
                }
            }
            match self.stream.write(&self.out[self.written..]) {
                Ok(length) => {
                    tally.sent += length as u64;
                    self.written += length;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // When there is room again, the kernel says so.
                    let idle = all_read || self.too_much_waits();
                    return Ok(if idle { Turn::Idle } else { Turn::More });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.read_the_rest(buffer, tally);
                    return Err(failure(&error));
                }
            }
        }
        Ok(Turn::More)
    }

    fn too_much_waits(&self) -> bool {
        self.out.len() - self.written > WAITING_MAX
    }

    fn is_connected(&mut self, tally: &mut Tally) -> Result<bool, End> {
        if let Ok(Some(error)) | Err(error) = self.stream.take_error() {
            return Err(failure(&error));
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.connected = true;
                tally.connected += 1;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(failure(&error)),
        }
    }

    /// Ends the connection if its script says so.
    fn end_of(&mut self, next: Next) -> Result<(), End> {
        match next {
            Next::Send | Next::SendThenPause | Next::Wait => Ok(()),
            Next::Done(what) => Err(what),
            Next::Reset => {
                // Without it, closing would send a FIN. If it cannot be had, the result says what there was instead.
                let lingers = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
                Err(if lingers.is_ok() {
                    "reset_by_client"
                } else {
                    "closed_by_client"
                })
            }
        }
    }

    /// An alert may have come before what failed.
    fn read_the_rest(&mut self, buffer: &mut [u8], tally: &mut Tally) {
        for _ in 0..CALLS_PER_TURN {
            let Ok(length @ 1..) = self.stream.read(buffer) else {
                return;
            };
            tally.received += length as u64;
            self.script.received(&buffer[..length], &mut Vec::new());
        }
    }
}

/// Where a connection comes from; nothing: the system chooses.
fn source(target: SocketAddr, number: u64) -> Option<Ipv4Addr> {
    let loopback = matches!(target, SocketAddr::V4(v4) if v4.ip().is_loopback());
    let last = u8::try_from(number % u64::from(SOURCES)).expect("below SOURCES") + 1;
    loopback.then_some(Ipv4Addr::new(127, 0, 0, last))
}

fn failure(error: &io::Error) -> End {
    match Cause::of(error) {
        Cause::Refused => "refused",
        Cause::Reset => "reset_by_server",
        Cause::TimedOut => "timed_out",
        Cause::NoLocalPort => "no_local_port",
        Cause::NoDescriptor => "no_descriptor",
        Cause::Other => "io",
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers each byte by one.
    struct Echo {
        /// The longest that `out` was.
        longest: Arc<AtomicUsize>,
    }

    impl Script for Echo {
        fn variant(&self) -> &'static str {
            "echo"
        }

        fn ready(&mut self, _: &mut Vec<u8>) -> Next {
            Next::Wait
        }

        fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Next {
            out.extend_from_slice(bytes);
            self.longest.fetch_max(out.len(), Ordering::SeqCst);
            Next::Wait
        }

        fn alert(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn a_server_that_does_not_read_is_not_read_from() {
        const BYTES: usize = 32 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut sending = stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || sending.write_all(&vec![7; BYTES]).unwrap());
            std::thread::sleep(Duration::from_millis(500));
            stream.read_exact(&mut vec![0; BYTES]).unwrap();
            sender.join().unwrap();
        });
        let bounds = Bounds {
            target,
            connections: 1,
            connections_max: 1,
            rate: None,
            duration: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
            pause: Duration::ZERO,
        };
        let longest = Arc::new(AtomicUsize::new(0));
        let script = |_| -> Result<Box<dyn Script>, PerfError> {
            Ok(Box::new(Echo {
                longest: longest.clone(),
            }))
        };
        let tally = Flood::new(bounds, script).unwrap().run(|| false).unwrap();
        server.join().unwrap();
        // What was held back comes as soon as there is room.
        assert_eq!((tally.received, tally.sent), (BYTES as u64, BYTES as u64));
        let longest = longest.load(Ordering::SeqCst);
        assert!(longest < 1 << 20, "{longest} bytes waited");
    }
}
