//! A plain-TCP origin to put behind the server under test: one thread, large buffers, as little work as can be.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::args::{OriginArgs, OriginMode};
use crate::error::PerfError;
use crate::plan::{pin, raise_descriptor_limit};

/// Bytes per read and write.
const BUFFER: usize = 256 * 1024;

/// Reads or writes before other connections get their turn.
const TRANSFERS_PER_TURN: usize = 4;

/// Open files wanted where the hard limit is lower; as many as the hard limit allows otherwise.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// How often the stop flag is looked at when nothing happens.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// How long nothing is accepted when there is no descriptor or memory for a connection; others end meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of an answer's body if nothing else is said.
const RESPONSE_BYTES: usize = 64;

/// The longest head of a request.
const REQUEST_HEAD_MAX: usize = 64 * 1024;

const LISTENER: Token = Token(usize::MAX);

/// A listening origin.
pub struct Origin {
    mode: OriginMode,
    bytes_max: Option<u64>,
    duration: Option<Duration>,
    address: SocketAddr,
    listener: TcpListener,
    poll: Poll,
    /// When to accept: an event has said so, or there was no descriptor.
    accept_at: Option<Instant>,
    /// Index is the token; `None` is free.
    connections: Vec<Option<Served>>,
    free: Vec<usize>,
    /// Connections to be continued without an event.
    ready: VecDeque<usize>,
    buffer: Vec<u8>,
    /// Mode `http`: what each request is answered with.
    response: Vec<u8>,
    report: OriginReport,
}

/// What an origin did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OriginReport {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that ended with the peer's FIN, or, in mode `close`, with ours.
    pub closed: u64,
    /// Connections that ended with an error, a reset as a rule.
    pub failed: u64,
    /// Times that no connection could be accepted for want of a descriptor or of memory, and was later.
    pub accept_pauses: u64,
    /// Bytes read.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
}

struct Served {
    stream: TcpStream,
    /// Mode `echo`: bytes that could not be written yet.
    pending: Vec<u8>,
    /// Mode `http`: answers that are still to be written. Nothing is read while there are any.
    owed: usize,
    /// Mode `http`: bytes of the first of them that are written.
    written: usize,
    /// Mode `http`: a request's head that has not all come.
    head: Vec<u8>,
    /// Mode `http`: bytes of a request's body that are still to come.
    body_left: u64,
    /// Mode `send`: bytes still to be sent; `None`: without end.
    left: Option<u64>,
    /// True exactly when our FIN is out.
    write_closed: bool,
}

enum State {
    Waiting,
    Ready,
    Closed,
}

impl Origin {
    /// Binds and listens.
    ///
    /// # Errors
    /// When the address cannot be bound or the CPU not be had.
    pub fn new(args: &OriginArgs) -> Result<Self, PerfError> {
        if let Some(cpu) = args.cpu {
            pin(cpu)?;
        }
        raise_descriptor_limit(getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS_WANTED))?;
        let what = || format!("listen on {}", args.listen);
        let mut listener = TcpListener::bind(args.listen).map_err(|error| PerfError::io(what(), error))?;
        let address = listener.local_addr().map_err(|error| PerfError::io(what(), error))?;
        let poll = Poll::new().map_err(|error| PerfError::io("create an epoll instance", error))?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(|error| PerfError::io("register the listener", error))?;
        Ok(Self {
            mode: args.mode,
            bytes_max: args.bytes.map(|bytes| bytes as u64),
            duration: args.duration,
            address,
            listener,
            poll,
            accept_at: None,
            connections: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            buffer: vec![0x5a; BUFFER],
            response: response(args.bytes.unwrap_or(RESPONSE_BYTES)),
            report: OriginReport::default(),
        })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is set or the duration is over.
    ///
    /// # Errors
    /// When epoll fails, or accept for another reason than want of descriptors or memory; errors of single connections are counted.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<OriginReport, PerfError> {
        let end = self.duration.map(|duration| Instant::now() + duration);
        let mut events = Events::with_capacity(1024);
        while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
            let timeout = if self.ready.is_empty() {
                self.accept_at
                    .map_or(STOP_CHECK, |at| at.saturating_duration_since(Instant::now()))
            } else {
                Duration::ZERO
            };
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != ErrorKind::Interrupted
            {
                return Err(PerfError::io("wait for events", error));
            }
            let continued = self.ready.len();
            for event in &events {
                if event.token() == LISTENER {
                    self.accept_at.get_or_insert_with(Instant::now);
                } else {
                    self.step(event.token().0, event.is_read_closed() || event.is_error());
                }
            }
            for _ in 0..continued {
                if let Some(index) = self.ready.pop_front() {
                    self.step(index, true);
                }
            }
            if self.accept_at.take_if(|at| *at <= Instant::now()).is_some() {
                self.accept()?;
            }
        }
        Ok(self.report)
    }

    fn accept(&mut self) -> Result<(), PerfError> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.report.accepted += 1;
                    self.serve(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The peer went away while it waited.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) if passes(&error) => {
                    self.report.accept_pauses += 1;
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return Ok(());
                }
                Err(error) => return Err(PerfError::io("accept a connection", error)),
            }
        }
    }

    fn serve(&mut self, mut stream: TcpStream) {
        if self.mode == OriginMode::Close {
            self.report.closed += 1;
            return;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let interest = match self.mode {
            OriginMode::Discard | OriginMode::Close => Interest::READABLE,
            OriginMode::Echo | OriginMode::Send | OriginMode::Http => Interest::READABLE | Interest::WRITABLE,
        };
        // An echo answers each message at once; waiting for acknowledgements would measure the kernel's timers.
        let prepared = match self.mode {
            OriginMode::Echo | OriginMode::Http => stream.set_nodelay(true),
            OriginMode::Send | OriginMode::Discard | OriginMode::Close => Ok(()),
        };
        let registered = prepared.and_then(|()| self.poll.registry().register(&mut stream, Token(index), interest));
        if registered.is_err() {
            self.report.failed += 1;
            self.free.push(index);
            return;
        }
        let left = self.bytes_max;
        self.connections[index] = Some(Served {
            stream,
            pending: Vec::new(),
            owed: 0,
            written: 0,
            head: Vec::new(),
            body_left: 0,
            left,
            write_closed: false,
        });
    }

    fn step(&mut self, index: usize, peer_closing: bool) {
        let Some(served) = &mut self.connections[index] else {
            return;
        };
        let (buffer, report) = (&mut self.buffer, &mut self.report);
        let result = match self.mode {
            OriginMode::Echo => served.echo(peer_closing, buffer, report),
            OriginMode::Http => served.http(peer_closing, buffer, &self.response, report),
            OriginMode::Send => served.send(buffer, report),
            OriginMode::Discard | OriginMode::Close => served.discard(peer_closing, buffer, report),
        };
        match result {
            Ok(State::Waiting) => return,
            Ok(State::Ready) => {
                self.ready.push_back(index);
                return;
            }
            Ok(State::Closed) => self.report.closed += 1,
            Err(_) => self.report.failed += 1,
        }
        self.connections[index] = None;
        self.free.push(index);
    }
}

impl OriginReport {
    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report holds only numbers")
    }
}

impl Served {
    fn echo(&mut self, peer_closing: bool, buffer: &mut [u8], report: &mut OriginReport) -> io::Result<State> {
        for _ in 0..TRANSFERS_PER_TURN {
            if !self.pending.is_empty() {
                let written = write_some(&mut self.stream, &self.pending)?;
                report.sent += written as u64;
                self.pending.drain(..written);
                if !self.pending.is_empty() {
                    return Ok(State::Waiting);
                }
            }
            let length = match self.stream.read(buffer) {
                Ok(0) => return Ok(State::Closed),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(State::Waiting),
                Err(error) => return Err(error),
            };
            report.received += length as u64;
            let written = write_some(&mut self.stream, &buffer[..length])?;
            report.sent += written as u64;
            self.pending.extend_from_slice(&buffer[written..length]);
            if self.pending.is_empty() && length < buffer.len() && !peer_closing {
                return Ok(State::Waiting);
            }
        }
        Ok(State::Ready)
    }

    fn http(
        &mut self,
        peer_closing: bool,
        buffer: &mut [u8],
        response: &[u8],
        report: &mut OriginReport,
    ) -> io::Result<State> {
        for _ in 0..TRANSFERS_PER_TURN {
            if self.owed > 0 {
                let written = write_some(&mut self.stream, &response[self.written..])?;
                report.sent += written as u64;
                self.written += written;
                if self.written < response.len() {
                    return Ok(State::Waiting);
                }
                (self.owed, self.written) = (self.owed - 1, 0);
                continue;
            }
            let length = match self.stream.read(buffer) {
                Ok(0) => return Ok(State::Closed),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(State::Waiting),
                Err(error) => return Err(error),
            };
            report.received += length as u64;
            self.owed = self.requests(&buffer[..length])?;
            if self.owed == 0 && length < buffer.len() && !peer_closing {
                return Ok(State::Waiting);
            }
        }
        Ok(State::Ready)
    }

    /// How many requests end in these bytes.
    fn requests(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut bytes, mut ended) = (bytes, 0);
        loop {
            let body = bytes.len().min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
            self.body_left -= body as u64;
            bytes = &bytes[body..];
            if bytes.is_empty() {
                return Ok(ended);
            }
            let before = self.head.len();
            self.head.extend_from_slice(&bytes[..bytes.len().min(REQUEST_HEAD_MAX)]);
            let mut headers = [httparse::EMPTY_HEADER; 128];
            let mut request = httparse::Request::new(&mut headers);
            let refused = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
            match request.parse(&self.head) {
                Ok(httparse::Status::Complete(used)) => {
                    let length = request
                        .headers
                        .iter()
                        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
                    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
                    self.body_left = length.unwrap_or(0);
                    self.head.clear();
                    bytes = &bytes[used - before..];
                    // Answered when its head is there: nobody looks at the body.
                    ended += 1;
                }
                Ok(httparse::Status::Partial) if self.head.len() < REQUEST_HEAD_MAX => return Ok(ended),
                Ok(httparse::Status::Partial) => return Err(refused("a request's head longer than 64 KiB")),
                Err(error) => return Err(refused(&error.to_string())),
            }
        }
    }

    fn send(&mut self, buffer: &mut [u8], report: &mut OriginReport) -> io::Result<State> {
        for _ in 0..TRANSFERS_PER_TURN {
            let wanted = self.left.map_or(buffer.len(), |left| {
                buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX))
            });
            if wanted == 0 {
                return self.finish_sending(buffer, report);
            }
            let written = write_some(&mut self.stream, &buffer[..wanted])?;
            report.sent += written as u64;
            self.left = self.left.map(|left| left - written as u64);
            if written < wanted {
                return Ok(State::Waiting);
            }
        }
        Ok(State::Ready)
    }

    fn finish_sending(&mut self, buffer: &mut [u8], report: &mut OriginReport) -> io::Result<State> {
        if !self.write_closed {
            self.stream.shutdown(Shutdown::Write)?;
            self.write_closed = true;
        }
        self.discard(true, buffer, report)
    }

    /// `TRUNC` makes the kernel drop the bytes without copying them.
    fn discard(&mut self, peer_closing: bool, buffer: &mut [u8], report: &mut OriginReport) -> io::Result<State> {
        for _ in 0..TRANSFERS_PER_TURN {
            match recv(&self.stream, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, 0)) => return Ok(State::Closed),
                Ok((_, length)) => {
                    report.received += length as u64;
                    if length < buffer.len() && !peer_closing {
                        return Ok(State::Waiting);
                    }
                }
                Err(Errno::AGAIN) => return Ok(State::Waiting),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(State::Ready)
    }
}

/// A response with so many bytes of body.
fn response(bytes: usize) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
    response.resize(response.len() + bytes, b'x');
    response
}

/// True for what other connections that end, or other programs, give back.
fn passes(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// Writes what fits; 0 when nothing does.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Ok(written) => Ok(written),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}
