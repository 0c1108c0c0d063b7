//! One simulated connection: two directions of bytes under way, each in order and late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::random::Random;
use crate::error::IoError;

/// An end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The worker's.
    Gateway,
    /// The scripted client's or server's.
    Peer,
}

impl Place {
    fn other(self) -> Place {
        match self {
            Place::Gateway => Place::Peer,
            Place::Peer => Place::Gateway,
        }
    }
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// What one end has and knows.
#[derive(Debug)]
pub(super) struct End {
    /// On its way to here; times do not decrease.
    transit: VecDeque<(Instant, Segment)>,
    transit_bytes: usize,
    arrived: VecDeque<u8>,
    /// The other end's end of stream has arrived.
    ended: bool,
    /// The connection is broken, seen from here.
    pub(super) reset: bool,
    /// Whoever is here has not closed.
    pub(super) open: bool,
    /// Our end of stream is sent.
    pub(super) shut: bool,
    /// Bytes that whoever is here has sent.
    pub(super) sent: usize,
    /// Bytes that whoever is here has received.
    pub(super) received: usize,
}

impl End {
    fn new() -> End {
        End {
            transit: VecDeque::new(),
            transit_bytes: 0,
            arrived: VecDeque::new(),
            ended: false,
            reset: false,
            open: true,
            shut: false,
            sent: 0,
            received: 0,
        }
    }

    /// A receive would not wait.
    pub(super) fn is_readable(&self) -> bool {
        !self.arrived.is_empty() || self.ended || self.reset
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    gateway: End,
    peer: End,
}

/// What moving bytes takes: the time, chance, and the faults that chance draws.
pub(super) struct Weather<'a> {
    pub(super) now: Instant,
    pub(super) random: &'a mut Random,
    pub(super) faults: &'a Faults,
}

impl Weather<'_> {
    /// In steps, so that things happen at the same time.
    fn latency(&mut self) -> Duration {
        let steps = self.faults.latency_max.as_micros() as usize / 100;
        Duration::from_micros(self.random.below(steps + 1) as u64 * 100)
    }
}

impl Wire {
    pub(super) fn new() -> Wire {
        Wire {
            gateway: End::new(),
            peer: End::new(),
        }
    }

    pub(super) fn end(&self, place: Place) -> &End {
        match place {
            Place::Gateway => &self.gateway,
            Place::Peer => &self.peer,
        }
    }

    fn end_mut(&mut self, place: Place) -> &mut End {
        match place {
            Place::Gateway => &mut self.gateway,
            Place::Peer => &mut self.peer,
        }
    }

    /// Bytes that fit on the way from here.
    pub(super) fn room(&self, from: Place, faults: &Faults) -> usize {
        let to = self.end(from.other());
        faults.window.saturating_sub(to.transit_bytes + to.arrived.len())
    }

    /// Takes some bytes from whoever is here; none when the way is full.
    pub(super) fn send(&mut self, from: Place, bytes: &[u8], weather: &mut Weather<'_>) -> Result<usize, IoError> {
        if self.end(from).reset {
            return Err(IoError(libc::EPIPE));
        }
        assert!(!self.end(from).shut, "nothing is sent after the end of the stream");
        let mut taken = bytes.len().min(self.room(from, weather.faults));
        if taken > 1 && weather.random.chance(weather.faults.partial_send) {
            taken = weather.random.between(1, taken);
        }
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let length = weather.random.between(1, weather.faults.segment_max.min(rest.len()));
            let length = if weather.random.chance(500) {
                weather.faults.segment_max.min(rest.len())
            } else {
                length
            };
            let (segment, later) = rest.split_at(length);
            self.post(from, Segment::Bytes(segment.to_vec()), weather);
            rest = later;
        }
        self.end_mut(from).sent += taken;
        Ok(taken)
    }

    /// Gives what has arrived; nothing at all is the end of the stream.
    pub(super) fn receive(&mut self, at: Place, most: usize) -> Result<Vec<u8>, IoError> {
        let end = self.end_mut(at);
        if end.arrived.is_empty() && end.reset {
            return Err(IoError(libc::ECONNRESET));
        }
        let length = most.min(end.arrived.len());
        end.received += length;
        Ok(end.arrived.drain(..length).collect())
    }

    /// The end of the stream from here.
    pub(super) fn shutdown(&mut self, from: Place, weather: &mut Weather<'_>) {
        if !std::mem::replace(&mut self.end_mut(from).shut, true) {
            self.post(from, Segment::End, weather);
        }
    }

    /// Leaves in order. With unread bytes that is a reset, as in the kernel.
    pub(super) fn close(&mut self, from: Place, weather: &mut Weather<'_>) {
        if self.end(from).arrived.is_empty() {
            self.shutdown(from, weather);
        } else {
            self.reset(from, weather);
        }
        self.end_mut(from).open = false;
    }

    /// Breaks the connection. Of what is still on the way a part is lost.
    pub(super) fn reset(&mut self, from: Place, weather: &mut Weather<'_>) {
        let to = self.end_mut(from.other());
        let keep = weather.random.below(to.transit.len() + 1);
        to.transit.truncate(keep);
        to.transit_bytes = to.transit.iter().map(|(_, segment)| segment.len()).sum();
        self.post(from, Segment::Reset, weather);
        let here = self.end_mut(from);
        here.transit.clear();
        here.transit_bytes = 0;
        here.shut = true;
        here.reset = true;
    }

    fn post(&mut self, from: Place, segment: Segment, weather: &mut Weather<'_>) {
        let to = self.end_mut(from.other());
        let earliest = to.transit.back().map_or(weather.now, |(at, _)| *at);
        let at = (weather.now + weather.latency()).max(earliest);
        to.transit_bytes += segment.len();
        to.transit.push_back((at, segment));
    }

    /// When the next segment arrives somewhere.
    pub(super) fn next_arrival(&self) -> Option<Instant> {
        let first = |end: &End| end.transit.front().map(|(at, _)| *at);
        first(&self.gateway).into_iter().chain(first(&self.peer)).min()
    }

    /// Lets arrive what is due; true when the peer has something new to look at.
    pub(super) fn deliver(&mut self, weather: &mut Weather<'_>) -> bool {
        self.arrive(Place::Gateway, weather);
        self.arrive(Place::Peer, weather)
    }

    fn arrive(&mut self, at: Place, weather: &mut Weather<'_>) -> bool {
        let mut news = false;
        loop {
            let end = self.end_mut(at);
            let Some((_, segment)) = end.transit.pop_front_if(|(time, _)| *time <= weather.now) else {
                return news;
            };
            end.transit_bytes -= segment.len();
            news = true;
            match segment {
                Segment::Bytes(_) if end.reset => {}
                // Nobody is here any more to read it: the kernel says so.
                Segment::Bytes(_) if !end.open => self.reset(at, weather),
                Segment::Bytes(bytes) => end.arrived.extend(bytes),
                Segment::End => end.ended = true,
                Segment::Reset => end.reset = true,
            }
        }
    }

    /// Neither end is of interest to anybody.
    pub(super) fn is_over(&self) -> bool {
        let over = |end: &End| !end.open && end.transit.is_empty();
        over(&self.gateway) && over(&self.peer)
    }
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Segment::Bytes(bytes) => bytes.len(),
            Segment::End | Segment::Reset => 0,
        }
    }
}
