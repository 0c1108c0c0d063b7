//! What both kernel drivers do with sockets in the same way.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use socket2::{Domain, Protocol, SockAddr, Type};

use super::driver::{Close, Socket};
use crate::address::{Endpoints, ServerEndpoint};
use crate::error::IoError;

/// Wakes a driver from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new() -> std::io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    /// Ends the current or the next wait of the driver.
    pub fn wake(&self) {
        // Fails only when 2^64 wakes are unread: then the driver is awake anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        // Fails only when there is nothing to read.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A stream socket for this endpoint, and the address to connect it to.
pub(super) fn open(endpoint: &ServerEndpoint, nonblocking: bool) -> std::io::Result<(socket2::Socket, SockAddr)> {
    let (address, protocol) = match endpoint {
        ServerEndpoint::Tcp(address) => (SockAddr::from(*address), Some(Protocol::TCP)),
        ServerEndpoint::Unix(path) => (SockAddr::unix(path)?, None),
    };
    let mut kind = Type::STREAM.cloexec();
    if nonblocking {
        kind = kind.nonblocking();
    }
    let domain = Domain::from(i32::from(address.family()));
    let socket = socket2::Socket::new_raw(domain, kind, protocol)?;
    if protocol.is_some() {
        socket.set_tcp_nodelay(true)?;
    }
    Ok((socket, address))
}

pub(super) fn endpoints(socket: &socket2::Socket) -> Option<Endpoints> {
    let address = |a: std::io::Result<SockAddr>| a.ok().and_then(|a| a.as_socket()).map(unmap);
    Some(Endpoints {
        peer: address(socket.peer_addr())?,
        local: address(socket.local_addr())?,
    })
}

/// A client that reached a dual-stack listener by IPv4 is an IPv4 client.
fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(super) fn shutdown_write(socket: &socket2::Socket) {
    // Fails only when the connection is already gone; the next receive says so.
    let _ = socket.shutdown(Shutdown::Write);
}

/// Sets how the close that follows is seen by the other end.
pub(super) fn prepare_close(socket: &socket2::Socket, how: Close) {
    match how {
        Close::Orderly => {}
        Close::Reset => {
            // Fails only when the connection is already gone.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// The open sockets of a driver, each with the driver's own state `S`.
pub(super) struct Table<S> {
    entries: Vec<Option<S>>,
    free: Vec<u32>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Table {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<S> Table<S> {
    pub(super) fn insert(&mut self, entry: S) -> Socket {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            return Socket(index);
        }
        let index = u32::try_from(self.entries.len()).expect("a process has fewer than 2^32 descriptors");
        self.entries.push(Some(entry));
        Socket(index)
    }

    pub(super) fn get(&self, socket: Socket) -> Option<&S> {
        self.entries.get(socket.0 as usize).and_then(Option::as_ref)
    }

    pub(super) fn get_mut(&mut self, socket: Socket) -> Option<&mut S> {
        self.entries.get_mut(socket.0 as usize).and_then(Option::as_mut)
    }

    /// The entry of a socket that the worker says is open.
    pub(super) fn open_mut(&mut self, socket: Socket) -> &mut S {
        self.get_mut(socket)
            .expect("the worker names only sockets it has not closed")
    }

    pub(super) fn remove(&mut self, socket: Socket) -> S {
        self.free.push(socket.0);
        self.entries[socket.0 as usize]
            .take()
            .expect("the worker closes a socket once")
    }
}

/// Errors of accept(2) that belong to the connection that was about to be accepted, not to the listener.
pub(super) fn concerns_connection(error: IoError) -> bool {
    matches!(
        error.0,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::EPERM
    )
}
