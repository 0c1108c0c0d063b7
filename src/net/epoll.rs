//! The epoll driver: readiness turned into completions. First class: it serves wherever io_uring is missing or forbidden.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;

use super::buffer::ReceiveBuffer;
use super::driver::{Close, Completion, Driver, Op, Socket, Token};
use super::socket::{self, Table, Waker};
use crate::address::{Endpoints, ServerEndpoint};
use crate::buffers::SendBuffer;
use crate::error::IoError;
use crate::limits::{ACCEPTS_PER_TURN, EPOLL_EVENTS, RECEIVE_BYTES_MAX, RECEIVE_LARGE_BUFFERS};

/// What the receives of one turn bring, one after another. A receive needs `RECEIVE_BYTES_MAX` of room and keeps what it
/// filled, so small messages lie close together and the processor's cache holds them.
struct Arena {
    memory: Box<[u8]>,
    used: usize,
    /// Receives whose bytes have not been given back. At 0 the arena starts anew.
    lent: usize,
}

impl Arena {
    fn new() -> Arena {
        let memory = vec![0; RECEIVE_LARGE_BUFFERS * RECEIVE_BYTES_MAX].into_boxed_slice();
        Arena {
            memory,
            used: 0,
            lent: 0,
        }
    }

    /// Room for a receive; `None` when this turn has brought enough.
    fn room(&mut self) -> Option<&mut [u8]> {
        self.memory.get_mut(self.used..self.used + RECEIVE_BYTES_MAX)
    }

    /// The receive filled `len` bytes of its room.
    fn lend(&mut self, len: usize) -> ReceiveBuffer {
        let id = self.used as u32;
        self.used += len;
        self.lent += 1;
        ReceiveBuffer { id, len: len as u32 }
    }

    fn take_back(&mut self, _buffer: ReceiveBuffer) {
        self.lent -= 1;
        if self.lent == 0 {
            self.used = 0;
        }
    }
}

const WAKER: mio::Token = mio::Token(usize::MAX);

struct Entry {
    socket: socket2::Socket,
    /// False exactly when the last receive or accept found nothing and no event has come since.
    readable: bool,
    /// False exactly when the last send found no room and no event has come since.
    writable: bool,
    /// The end of the stream or an error is waiting behind the data: no further event will announce it.
    hung_up: bool,
    accept: Option<Token>,
    receive: Option<Token>,
    send: Option<(Token, SendBuffer)>,
    connect: Option<Token>,
    cancelled: bool,
    /// In the driver's queue of sockets to look at.
    queued: bool,
}

impl Entry {
    fn new(socket: socket2::Socket) -> Entry {
        Entry {
            socket,
            readable: false,
            writable: true,
            hung_up: false,
            accept: None,
            receive: None,
            send: None,
            connect: None,
            cancelled: false,
            queued: false,
        }
    }
}

/// See the module.
pub struct EpollDriver {
    poll: Poll,
    events: Events,
    waker: Waker,
    now: Instant,
    sockets: Table<Entry>,
    /// Sockets with an operation that may make progress.
    queue: VecDeque<Socket>,
    arena: Arena,
}

impl EpollDriver {
    /// A driver for the calling thread.
    pub fn new() -> std::io::Result<EpollDriver> {
        let poll = Poll::new()?;
        let waker = Waker::new()?;
        poll.registry()
            .register(&mut SourceFd(&waker.fd().as_raw_fd()), WAKER, Interest::READABLE)?;
        Ok(EpollDriver {
            poll,
            events: Events::with_capacity(EPOLL_EVENTS),
            waker,
            now: clock(),
            sockets: Table::default(),
            queue: VecDeque::new(),
            arena: Arena::new(),
        })
    }

    /// A handle that ends this driver's wait from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn register(&self, entry: &Entry, socket: Socket, interest: Interest) -> std::io::Result<()> {
        let fd = entry.socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), mio::Token(socket.0 as usize), interest)
    }

    fn insert(&mut self, entry: Entry, interest: Interest) -> Result<Socket, IoError> {
        let socket = self.sockets.insert(entry);
        let registered = self.register(self.sockets.get(socket).expect("just inserted"), socket, interest);
        match registered {
            Ok(()) => Ok(socket),
            Err(error) => {
                self.sockets.remove(socket);
                Err(error.into())
            }
        }
    }

    fn enqueue(&mut self, socket: Socket) {
        let entry = self.sockets.open_mut(socket);
        if !entry.queued {
            entry.queued = true;
            self.queue.push_back(socket);
        }
    }

    /// Runs what can run, once for each socket in the queue.
    fn run_queue(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.queue.len() {
            let Some(socket) = self.queue.pop_front() else { return };
            let Some(entry) = self.sockets.get_mut(socket) else {
                continue;
            };
            entry.queued = false;
            if entry.cancelled {
                entry.cancelled = false;
                self.run_accept(socket, completions);
                Self::complete_cancelled(self.sockets.open_mut(socket), completions);
                continue;
            }
            if entry.writable {
                Self::run_connect(entry, completions);
                Self::run_send(entry, completions);
            }
            if entry.readable && entry.receive.is_some() && !self.run_receive(socket, completions) {
                self.enqueue(socket);
            }
            self.run_accept(socket, completions);
        }
    }

    fn complete_cancelled(entry: &mut Entry, completions: &mut Vec<Completion>) {
        let error = IoError::CANCELLED;
        if let Some(token) = entry.accept.take() {
            completions.push(Completion::AcceptFailed { token, error });
        }
        if let Some(token) = entry.receive.take() {
            completions.push(Completion::ReceiveFailed { token, error });
        }
        if let Some((token, buffer)) = entry.send.take() {
            completions.push(Completion::Sent {
                token,
                buffer,
                result: Err(error),
            });
        }
        if let Some(token) = entry.connect.take() {
            completions.push(Completion::Connected {
                token,
                result: Err(error),
            });
        }
    }

    fn run_connect(entry: &mut Entry, completions: &mut Vec<Completion>) {
        if let Some(token) = entry.connect.take() {
            let result = match entry.socket.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(error)) | Err(error) => Err(error.into()),
            };
            completions.push(Completion::Connected { token, result });
        }
    }

    fn run_send(entry: &mut Entry, completions: &mut Vec<Completion>) {
        let Some((token, buffer)) = entry.send.take() else {
            return;
        };
        match (&entry.socket).write(buffer.pending()) {
            Ok(sent) => {
                entry.writable = sent == buffer.len();
                completions.push(Completion::Sent {
                    token,
                    buffer,
                    result: Ok(sent),
                });
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                entry.writable = false;
                entry.send = Some((token, buffer));
            }
            Err(error) => completions.push(Completion::Sent {
                token,
                buffer,
                result: Err(error.into()),
            }),
        }
    }

    /// False when this turn has brought enough.
    fn run_receive(&mut self, socket: Socket, completions: &mut Vec<Completion>) -> bool {
        let Some(bytes) = self.arena.room() else {
            return false;
        };
        let entry = self.sockets.open_mut(socket);
        let Some(token) = entry.receive.take() else { return true };
        match (&entry.socket).read(bytes) {
            Ok(0) => completions.push(Completion::Received {
                token,
                buffer: None,
                more: false,
            }),
            Ok(n) => {
                entry.readable = n == RECEIVE_BYTES_MAX || entry.hung_up;
                completions.push(Completion::Received {
                    token,
                    buffer: Some(self.arena.lend(n)),
                    more: entry.readable,
                });
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                entry.readable = error.kind() == ErrorKind::Interrupted;
                entry.receive = Some(token);
            }
            Err(error) => completions.push(Completion::ReceiveFailed {
                token,
                error: error.into(),
            }),
        }
        true
    }

    fn run_accept(&mut self, listener: Socket, completions: &mut Vec<Completion>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let entry = self.sockets.open_mut(listener);
            let Some(token) = entry.accept.filter(|_| entry.readable) else {
                return;
            };
            let accepted = rustix::net::accept_with(&entry.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
            let failure = match accepted {
                Ok(fd) => match self.insert(Entry::new(fd.into()), Interest::READABLE | Interest::WRITABLE) {
                    Ok(socket) => {
                        completions.push(Completion::Accepted { token, socket });
                        continue;
                    }
                    Err(error) => error,
                },
                Err(rustix::io::Errno::AGAIN) => {
                    entry.readable = false;
                    return;
                }
                Err(error) => IoError(error.raw_os_error()),
            };
            if !socket::concerns_connection(failure) {
                self.sockets.open_mut(listener).accept = None;
                completions.push(Completion::AcceptFailed { token, error: failure });
                return;
            }
        }
        self.enqueue(listener);
    }

    /// Takes the events that are there, or come within whole milliseconds.
    fn take_events(&mut self, timeout: Option<Duration>) {
        // Fails only when interrupted by a signal: then there are no events, which is true.
        let _ = self.poll.poll(&mut self.events, timeout);
    }

    fn wait_for_events(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else {
            return self.take_events(None);
        };
        loop {
            let left = deadline.saturating_duration_since(clock());
            let milliseconds = Duration::from_millis(left.as_millis() as u64);
            if milliseconds.is_zero() {
                self.wait_briefly(left);
                return self.take_events(Some(Duration::ZERO));
            }
            self.take_events(Some(milliseconds));
            if !self.events.is_empty() {
                return;
            }
        }
    }

    /// Waits for events for less than a millisecond, which poll(2) can and epoll cannot.
    fn wait_briefly(&self, left: Duration) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: left.subsec_nanos().into(),
        };
        if !left.is_zero() {
            let mut epoll = [PollFd::from_borrowed_fd(self.poll.registry().as_fd(), PollFlags::IN)];
            // Fails only when interrupted by a signal, and then waits less.
            let _ = rustix::event::poll(&mut epoll, Some(&timeout));
        }
    }

    fn poll(&mut self, deadline: Option<Instant>, idle: bool) {
        if idle {
            self.wait_for_events(deadline);
        } else {
            self.take_events(Some(Duration::ZERO));
        }
        for event in &self.events {
            if event.token() == WAKER {
                self.waker.clear();
                continue;
            }
            let socket = Socket(event.token().0 as u32);
            let Some(entry) = self.sockets.get_mut(socket) else {
                continue;
            };
            entry.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
            entry.hung_up |= event.is_read_closed() || event.is_error();
            entry.writable |= event.is_writable() || event.is_error();
            if !entry.queued {
                entry.queued = true;
                self.queue.push_back(socket);
            }
        }
    }
}

fn clock() -> Instant {
    Instant::now()
}

impl Driver for EpollDriver {
    fn now(&self) -> Instant {
        self.now
    }

    fn begin(&mut self, completions: &mut Vec<Completion>) {
        self.run_queue(completions);
    }

    fn busy(&self) -> Duration {
        clock().saturating_duration_since(self.now)
    }

    fn listen(&mut self, listener: OwnedFd) -> Result<Socket, IoError> {
        let socket = socket2::Socket::from(listener);
        socket.set_nonblocking(true)?;
        let mut entry = Entry::new(socket);
        // Connections may have arrived before the registration, which then announces them; looking at once costs nothing.
        entry.readable = true;
        self.insert(entry, Interest::READABLE)
    }

    fn adopt(&mut self, stream: OwnedFd) -> Result<Socket, IoError> {
        let socket = socket2::Socket::from(stream);
        socket.set_nonblocking(true)?;
        // What has arrived before the registration is announced by it.
        self.insert(Entry::new(socket), Interest::READABLE | Interest::WRITABLE)
    }

    fn connect(&mut self, token: Token, endpoint: &ServerEndpoint) -> Result<Socket, IoError> {
        let (socket, address) = socket::open(endpoint, true)?;
        let pending = match socket.connect(&address) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) => return Err(error.into()),
        };
        let mut entry = Entry::new(socket);
        entry.writable = !pending;
        entry.connect = Some(token);
        let socket = self.insert(entry, Interest::READABLE | Interest::WRITABLE)?;
        self.enqueue(socket);
        Ok(socket)
    }

    fn submit(&mut self, token: Token, op: Op) {
        let socket = match op {
            Op::Accept(socket) => {
                self.sockets.open_mut(socket).accept = Some(token);
                socket
            }
            Op::Receive(socket) => {
                let entry = self.sockets.open_mut(socket);
                debug_assert!(entry.receive.is_none(), "one receive per socket");
                entry.receive = Some(token);
                socket
            }
            Op::Send(socket, buffer) => {
                let entry = self.sockets.open_mut(socket);
                debug_assert!(entry.send.is_none(), "one send per socket");
                entry.send = Some((token, buffer));
                socket
            }
            Op::Cancel(socket) => {
                self.sockets.open_mut(socket).cancelled = true;
                socket
            }
        };
        self.enqueue(socket);
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        self.run_queue(completions);
        self.poll(deadline, completions.is_empty() && self.queue.is_empty());
        self.run_queue(completions);
        self.now = clock();
    }

    fn received<'a>(&'a mut self, buffer: &'a ReceiveBuffer) -> &'a mut [u8] {
        let start = buffer.id as usize;
        &mut self.arena.memory[start..start + buffer.len()]
    }

    fn recycle(&mut self, buffer: ReceiveBuffer) {
        self.arena.take_back(buffer);
    }

    fn shutdown_write(&mut self, socket: Socket) {
        socket::shutdown_write(&self.sockets.open_mut(socket).socket);
    }

    fn close(&mut self, socket: Socket, how: Close) {
        let entry = self.sockets.remove(socket);
        debug_assert!(
            entry.receive.is_none() && entry.send.is_none() && entry.connect.is_none(),
            "nothing is in flight on a socket that is closed (invariant 3)"
        );
        socket::prepare_close(&entry.socket, how);
    }

    fn endpoints(&self, socket: Socket) -> Option<Endpoints> {
        self.sockets
            .get(socket)
            .and_then(|entry| socket::endpoints(&entry.socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_at_the_next_millisecond() {
        let mut driver = EpollDriver::new().unwrap();
        let mut shortest = Duration::MAX;
        // A busy machine makes some of them longer.
        for _ in 0..200 {
            let started = clock();
            driver.wait(Some(started + Duration::from_micros(100)), &mut Vec::new());
            let waited = started.elapsed();
            assert!(waited >= Duration::from_micros(100), "{waited:?}");
            shortest = shortest.min(waited);
        }
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    }
}
