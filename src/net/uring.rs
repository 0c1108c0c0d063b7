//! The io_uring driver. Receives pick a buffer of a ring shared by all connections, so an idle connection owns none; each is a
//! single shot, so that what a session takes in is bounded exactly by what it asked for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::buffer::ReceiveBuffer;
use super::driver::{Close, Completion, Driver, Op, Socket, Token};
use super::socket::{self, Table, Waker};
use crate::address::{Endpoints, ServerEndpoint};
use crate::buffers::SendBuffer;
use crate::error::IoError;
use crate::limits::{
    COMPLETIONS_PER_TURN, RECEIVE_BYTES_MAX, RECEIVE_LARGE_BUFFERS, RECEIVE_SMALL_BUFFERS, RECEIVE_SMALL_BYTES,
    URING_COMPLETIONS, URING_ENTRIES,
};

/// `IORING_RECVSEND_POLL_FIRST`: do not try before the socket is ready.
const POLL_FIRST: u16 = 1;

/// What a completion is about; with the socket's index and generation it makes `user_data`, never a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Answers to cancel and close, which nobody waits for.
    Ignored,
    Waker,
    Accept,
    Receive,
    Send,
    Connect,
}

impl Kind {
    fn from_bits(bits: u8) -> Kind {
        [
            Kind::Ignored,
            Kind::Waker,
            Kind::Accept,
            Kind::Receive,
            Kind::Send,
            Kind::Connect,
        ]
        .into_iter()
        .find(|&kind| kind as u8 == bits)
        .unwrap_or(Kind::Ignored)
    }
}

/// kind (8 bits) | generation (24 bits) | socket (32 bits)
fn user_data(kind: Kind, generation: u32, socket: Socket) -> u64 {
    u64::from(kind as u8) << 56 | u64::from(generation & 0x00ff_ffff) << 32 | u64::from(socket.0)
}

struct Entry {
    socket: socket2::Socket,
    generation: u32,
    accept: Option<Token>,
    receive: Option<Token>,
    send: Option<(Token, SendBuffer)>,
    /// The address stays here while the kernel may read it.
    connect: Option<(Token, Box<SockAddr>)>,
    /// The last receive said that more is waiting: try at once.
    nonempty: bool,
    /// What the next receive, or the one in flight, takes.
    size: Size,
    /// Cancelled: a receive that waits for a buffer is not tried again.
    cancelled: bool,
}

/// The two sizes of receive buffers, each a ring of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

impl Size {
    /// The kernel's name of the ring.
    fn group(self) -> u16 {
        match self {
            Size::Small => 0,
            Size::Large => 1,
        }
    }

    /// Number of buffers, and bytes of each.
    fn shape(self) -> (usize, usize) {
        match self {
            Size::Small => (RECEIVE_SMALL_BUFFERS, RECEIVE_SMALL_BYTES),
            Size::Large => (RECEIVE_LARGE_BUFFERS, RECEIVE_BYTES_MAX),
        }
    }

    /// Buffers are numbered through both rings: a completion then says which ring its buffer is of.
    fn first_id(self) -> u16 {
        match self {
            Size::Small => 0,
            Size::Large => RECEIVE_SMALL_BUFFERS as u16,
        }
    }

    /// What the next receive is likely to bring, judged by the last one: a connection that fills small buffers gets large
    /// ones until one of those brings little.
    fn after(received: usize) -> Size {
        if received >= RECEIVE_SMALL_BYTES {
            Size::Large
        } else {
            Size::Small
        }
    }
}

/// The memory that receives land in, and the ring through which the kernel takes buffers from it.
struct BufferRing {
    /// As many entries as buffers, page aligned, mapped for this ring.
    entries: *mut BufRingEntry,
    memory: Box<[u8]>,
    size: Size,
    tail: u16,
}

impl BufferRing {
    #[expect(
        unsafe_code,
        reason = "the kernel's buffer ring is shared memory; rustix maps it only through unsafe"
    )]
    fn new(size: Size) -> io::Result<BufferRing> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let (count, bytes) = size.shape();
        // SAFETY: a new private mapping aliases nothing.
        let entries = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                count * size_of::<BufRingEntry>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )?
        };
        let mut ring = BufferRing {
            entries: entries.cast(),
            memory: vec![0; count * bytes].into_boxed_slice(),
            size,
            tail: 0,
        };
        for id in 0..count as u16 {
            ring.add(size.first_id() + id);
        }
        Ok(ring)
    }

    fn bytes(&mut self, id: u16, len: usize) -> &mut [u8] {
        let start = usize::from(id - self.size.first_id()) * self.size.shape().1;
        &mut self.memory[start..start + len]
    }

    /// Gives buffer `id` to the kernel.
    #[expect(unsafe_code, reason = "the kernel's buffer ring is shared memory")]
    fn add(&mut self, id: u16) {
        let (count, bytes) = self.size.shape();
        let address = self.bytes(id, bytes).as_mut_ptr() as u64;
        let slot = usize::from(self.tail) % count;
        // SAFETY: `entries` holds `count` entries and `slot` is below that; the kernel reads an entry only after the tail has
        // passed it, which the release store below publishes. The tail shares memory with the reserved field of entry 0,
        // which set_addr, set_len and set_bid leave alone.
        unsafe {
            let entry = &mut *self.entries.add(slot);
            entry.set_addr(address);
            entry.set_len(bytes as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    #[expect(unsafe_code, reason = "registers shared memory with the kernel")]
    fn register(&self, ring: &IoUring) -> io::Result<()> {
        let (count, _) = self.size.shape();
        // SAFETY: the mapping and the buffers live as long as this, which is dropped after the ring (field order of
        // UringDriver).
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(self.entries as u64, count as u16, self.size.group(), 0)
        }
    }
}

impl Drop for BufferRing {
    #[expect(unsafe_code, reason = "unmaps what new mapped")]
    fn drop(&mut self) {
        let length = self.size.shape().0 * size_of::<BufRingEntry>();
        // SAFETY: mapped by new with this length; the ring that knew it is gone before (field order of UringDriver).
        let unmapped = unsafe { rustix::mm::munmap(self.entries.cast(), length) };
        debug_assert!(unmapped.is_ok(), "the mapping is ours");
    }
}

/// See the module.
pub struct UringDriver {
    ring: IoUring,
    small: BufferRing,
    large: BufferRing,
    waker: Waker,
    now: Instant,
    sockets: Table<Entry>,
    next_generation: u32,
    /// Receives that found no free buffer, and those that were asked for after them: tried in this order in the next turn, when
    /// buffers have come back.
    starved: Vec<Socket>,
    accept_again: Vec<Socket>,
    rearm_waker: bool,
}

/// Opens the ring for what this file does with it, and for nothing else: operations on a ring pass by the filter of system calls, and
/// without this they could open files, make sockets of any kind, and so on.
fn restrict(ring: &IoUring) -> io::Result<()> {
    const OPERATIONS: [u8; 6] = [
        opcode::AcceptMulti::CODE,
        opcode::AsyncCancel2::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
    ];
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits());
    let operations = OPERATIONS.map(Restriction::sqe_op);
    let mut restrictions: Vec<Restriction> = operations.into_iter().chain([flags]).collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

impl UringDriver {
    /// A driver for the calling thread, which alone may use it.
    ///
    /// # Errors
    /// The kernel is older than 6.1, or forbids io_uring (containers do), or has no memory for the ring.
    pub fn new() -> io::Result<UringDriver> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(URING_COMPLETIONS)
            .setup_r_disabled()
            .build(URING_ENTRIES)?;
        let (small, large) = (BufferRing::new(Size::Small)?, BufferRing::new(Size::Large)?);
        small.register(&ring)?;
        large.register(&ring)?;
        restrict(&ring)?;
        Ok(UringDriver {
            ring,
            small,
            large,
            waker: Waker::new()?,
            now: clock(),
            sockets: Table::default(),
            next_generation: 0,
            starved: Vec::new(),
            accept_again: Vec::new(),
            rearm_waker: true,
        })
    }

    /// A handle that ends this driver's wait from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn insert(&mut self, socket: socket2::Socket) -> Socket {
        self.next_generation = self.next_generation.wrapping_add(1);
        self.sockets.insert(Entry {
            socket,
            generation: self.next_generation & 0x00ff_ffff,
            accept: None,
            receive: None,
            send: None,
            connect: None,
            nonempty: false,
            size: Size::Small,
            cancelled: false,
        })
    }

    /// Queues a submission; when the queue is full, what is in it goes to the kernel first.
    #[expect(unsafe_code, reason = "the kernel acts on memory that a submission names")]
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is kept until its completion: send buffers and addresses in the socket's
            // Entry, receive memory in `buffers`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Fails with EBUSY or EINTR when the completion queue is full or a signal came: the queue still drains.
            let _ = self.ring.submit();
        }
    }

    fn push_accept(&mut self, socket: Socket) {
        let entry = self.sockets.open_mut(socket);
        let sqe = opcode::AcceptMulti::new(Fd(entry.socket.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(user_data(Kind::Accept, entry.generation, socket));
        self.push(&sqe);
    }

    fn push_receive(&mut self, socket: Socket) {
        let entry = self.sockets.open_mut(socket);
        let sqe = opcode::Recv::new(
            Fd(entry.socket.as_raw_fd()),
            std::ptr::null_mut(),
            RECEIVE_BYTES_MAX as u32,
        )
        .buf_group(entry.size.group())
        .ioprio(if entry.nonempty { 0 } else { POLL_FIRST })
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
        .user_data(user_data(Kind::Receive, entry.generation, socket));
        self.push(&sqe);
    }

    fn push_waker(&mut self) {
        let sqe = opcode::PollAdd::new(Fd(self.waker.fd().as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(user_data(Kind::Waker, 0, Socket(0)));
        self.push(&sqe);
    }

    /// Submits, and waits for a completion or the deadline.
    fn enter(&mut self, deadline: Option<Instant>) {
        // Errors: ETIME is the deadline, EINTR a signal, EBUSY a full completion queue. Each means: look at the completions.
        let _ = match deadline {
            None => self.ring.submitter().submit_and_wait(1),
            Some(deadline) => {
                let timeout = Timespec::from(deadline.saturating_duration_since(clock()));
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        };
    }

    /// Takes what has completed, and tells how much that was.
    fn harvest(&mut self, completions: &mut Vec<Completion>) -> usize {
        let mut count = 0;
        while let Some(cqe) = { self.ring.completion().next() } {
            count += 1;
            self.complete(cqe.user_data(), cqe.result(), cqe.flags(), completions);
        }
        count
    }

    fn complete(&mut self, data: u64, result: i32, flags: u32, completions: &mut Vec<Completion>) {
        let kind = Kind::from_bits((data >> 56) as u8);
        if kind == Kind::Waker {
            self.waker.clear();
            self.rearm_waker |= !cqueue::more(flags);
            return;
        }
        let socket = Socket(data as u32);
        let generation = (data >> 32) as u32 & 0x00ff_ffff;
        let current = self
            .sockets
            .get(socket)
            .is_some_and(|entry| entry.generation == generation);
        if kind == Kind::Ignored || !current {
            self.discard(kind, result, flags);
            return;
        }
        match kind {
            Kind::Accept => self.complete_accept(socket, result, flags, completions),
            Kind::Receive => self.complete_receive(socket, result, flags, completions),
            Kind::Send => {
                if let Some((token, buffer)) = self.sockets.open_mut(socket).send.take() {
                    let result = if result >= 0 {
                        Ok(result as usize)
                    } else {
                        Err(IoError(-result))
                    };
                    completions.push(Completion::Sent { token, buffer, result });
                }
            }
            Kind::Connect => {
                if let Some((token, _)) = self.sockets.open_mut(socket).connect.take() {
                    let result = if result >= 0 { Ok(()) } else { Err(IoError(-result)) };
                    completions.push(Completion::Connected { token, result });
                }
            }
            Kind::Ignored | Kind::Waker => unreachable!("returned above"),
        }
    }

    /// A completion that no open socket asked for: what it brought is given back.
    #[expect(unsafe_code, reason = "an accepted descriptor arrives as a number")]
    fn discard(&mut self, kind: Kind, result: i32, flags: u32) {
        if let Some(id) = cqueue::buffer_select(flags) {
            self.ring_of(id).add(id);
        }
        if kind == Kind::Accept && result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }

    #[expect(unsafe_code, reason = "an accepted descriptor arrives as a number")]
    fn complete_accept(&mut self, listener: Socket, result: i32, flags: u32, completions: &mut Vec<Completion>) {
        let Some(token) = self.sockets.open_mut(listener).accept else {
            return;
        };
        if result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
            let accepted = unsafe { socket2::Socket::from_raw_fd(result) };
            let socket = self.insert(accepted);
            completions.push(Completion::Accepted { token, socket });
        } else {
            let error = IoError(-result);
            if !socket::concerns_connection(error) {
                self.sockets.open_mut(listener).accept = None;
                completions.push(Completion::AcceptFailed { token, error });
                return;
            }
        }
        if !cqueue::more(flags) {
            self.accept_again.push(listener);
        }
    }

    fn complete_receive(&mut self, socket: Socket, result: i32, flags: u32, completions: &mut Vec<Completion>) {
        let id = cqueue::buffer_select(flags);
        let entry = self.sockets.open_mut(socket);
        entry.nonempty = cqueue::sock_nonempty(flags);
        let more = entry.nonempty;
        if result == -libc::ENOBUFS {
            entry.nonempty = true;
            self.starved.push(socket);
            return;
        }
        let Some(token) = entry.receive.take() else { return };
        match (id, result) {
            (Some(id), 1..) => {
                entry.size = Size::after(result as usize);
                let (id, len) = (u32::from(id), result as u32);
                let buffer = Some(ReceiveBuffer { id, len });
                completions.push(Completion::Received { token, buffer, more });
                return;
            }
            (_, 0..) => completions.push(Completion::Received {
                token,
                buffer: None,
                more: false,
            }),
            (_, _) => completions.push(Completion::ReceiveFailed {
                token,
                error: IoError(-result),
            }),
        }
        if let Some(id) = id {
            self.ring_of(id).add(id);
        }
    }

    fn ring_of(&mut self, id: u16) -> &mut BufferRing {
        if id < Size::Large.first_id() {
            &mut self.small
        } else {
            &mut self.large
        }
    }
}

/// The number that a completion gave this buffer.
fn buffer_id(buffer: &ReceiveBuffer) -> u16 {
    u16::try_from(buffer.id).expect("this driver numbers its buffers with 16 bits")
}

fn clock() -> Instant {
    Instant::now()
}

impl Driver for UringDriver {
    fn now(&self) -> Instant {
        self.now
    }

    fn begin(&mut self, _: &mut Vec<Completion>) {
        if !self.ring.submission().is_empty() {
            // Fails with EBUSY or EINTR when the completion queue is full or a signal came: the next wait submits.
            let _ = self.ring.submit();
        }
    }

    fn busy(&self) -> Duration {
        clock().saturating_duration_since(self.now)
    }

    fn listen(&mut self, listener: OwnedFd) -> Result<Socket, IoError> {
        let socket = socket2::Socket::from(listener);
        socket.set_nonblocking(false)?;
        Ok(self.insert(socket))
    }

    fn adopt(&mut self, stream: OwnedFd) -> Result<Socket, IoError> {
        let socket = socket2::Socket::from(stream);
        socket.set_nonblocking(false)?;
        Ok(self.insert(socket))
    }

    fn connect(&mut self, token: Token, endpoint: &ServerEndpoint) -> Result<Socket, IoError> {
        let (socket, address) = socket::open(endpoint, false)?;
        let fd = Fd(socket.as_raw_fd());
        let address = Box::new(address);
        let (pointer, length) = (address.as_ptr(), address.len());
        let socket = self.insert(socket);
        let entry = self.sockets.open_mut(socket);
        entry.connect = Some((token, address));
        let data = user_data(Kind::Connect, entry.generation, socket);
        self.push(&opcode::Connect::new(fd, pointer.cast(), length).build().user_data(data));
        Ok(socket)
    }

    fn submit(&mut self, token: Token, op: Op) {
        match op {
            Op::Accept(socket) => {
                self.sockets.open_mut(socket).accept = Some(token);
                self.push_accept(socket);
            }
            Op::Receive(socket) => {
                let entry = self.sockets.open_mut(socket);
                debug_assert!(entry.receive.is_none(), "one receive per socket");
                entry.receive = Some(token);
                if self.starved.is_empty() {
                    self.push_receive(socket);
                } else {
                    // Behind those that have waited: the few that bring much would else take all buffers, turn after turn.
                    self.starved.push(socket);
                }
            }
            Op::Send(socket, buffer) => {
                let entry = self.sockets.open_mut(socket);
                debug_assert!(entry.send.is_none(), "one send per socket");
                let pending = buffer.pending();
                let sqe = opcode::Send::new(Fd(entry.socket.as_raw_fd()), pending.as_ptr(), pending.len() as u32)
                    .flags(libc::MSG_NOSIGNAL)
                    .build()
                    .user_data(user_data(Kind::Send, entry.generation, socket));
                entry.send = Some((token, buffer));
                self.push(&sqe);
            }
            Op::Cancel(socket) => {
                let entry = self.sockets.open_mut(socket);
                entry.cancelled = true;
                let fd = Fd(entry.socket.as_raw_fd());
                self.push(
                    &opcode::AsyncCancel2::new(CancelBuilder::fd(fd).all())
                        .build()
                        .user_data(0),
                );
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        if std::mem::take(&mut self.rearm_waker) {
            self.push_waker();
        }
        for socket in std::mem::take(&mut self.starved) {
            match self.sockets.get_mut(socket) {
                Some(entry) if entry.cancelled => {
                    completions.extend(entry.receive.take().map(|token| Completion::ReceiveFailed {
                        token,
                        error: IoError::CANCELLED,
                    }))
                }
                Some(entry) if entry.receive.is_some() => self.push_receive(socket),
                Some(_) | None => {}
            }
        }
        for listener in std::mem::take(&mut self.accept_again) {
            if self.sockets.get(listener).is_some_and(|entry| entry.accept.is_some()) {
                self.push_accept(listener);
            }
        }
        if completions.is_empty() && deadline.is_none_or(|deadline| deadline > self.now) {
            self.enter(deadline);
        } else {
            let _ = self.ring.submit();
        }
        self.now = clock();
        let mut count = self.harvest(completions);
        // A call hands over twenty (kernel 6.14 and later). What a flood brought would be in front of all else for many turns.
        while count < COMPLETIONS_PER_TURN && self.ring.submission().taskrun() {
            let _ = self.ring.submit();
            count += self.harvest(completions).max(1);
        }
    }

    fn received<'a>(&'a mut self, buffer: &'a ReceiveBuffer) -> &'a mut [u8] {
        let id = buffer_id(buffer);
        self.ring_of(id).bytes(id, buffer.len())
    }

    fn recycle(&mut self, buffer: ReceiveBuffer) {
        let id = buffer_id(&buffer);
        self.ring_of(id).add(id);
    }

    fn shutdown_write(&mut self, socket: Socket) {
        socket::shutdown_write(&self.sockets.open_mut(socket).socket);
    }

    fn close(&mut self, socket: Socket, how: Close) {
        if let Some(entry) = self.sockets.get(socket).filter(|entry| entry.accept.is_some()) {
            // An accept that is under way keeps the listener open: it has to end before the descriptor is gone.
            let data = user_data(Kind::Accept, entry.generation, socket);
            self.push(
                &opcode::AsyncCancel2::new(CancelBuilder::user_data(data))
                    .build()
                    .user_data(0),
            );
            // Fails when the completion queue is full: the cancellation is then submitted with the next turn.
            let _ = self.ring.submit();
        }
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
