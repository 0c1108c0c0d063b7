//! Listening sockets: one per worker and address, or those that systemd hands over.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::LISTEN_BACKLOG;

/// Sockets that systemd has bound for us, by address.
#[derive(Debug, Default)]
pub(super) struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Takes them from the environment (`LISTEN_FDS`). What is no TCP listener is left alone.
    #[must_use]
    pub(super) fn take() -> Inherited {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_tcp_listener(index)
                && let Ok(address) = listener.local_addr()
            {
                sockets.push((address, listener));
            }
        }
        Inherited(sockets)
    }

    fn find(&self, address: SocketAddr) -> Option<&TcpListener> {
        self.0
            .iter()
            .find(|(bound, _)| *bound == address)
            .map(|(_, listener)| listener)
    }
}

/// Listens at `address`, once for each worker.
///
/// # Errors
/// What was tried, why it failed, what to do.
pub(super) fn bind(
    address: SocketAddr,
    workers: usize,
    congestion_control: Option<&str>,
    inherited: &Inherited,
) -> Result<Vec<OwnedFd>, String> {
    if let Some(listener) = inherited.find(address) {
        // One queue for all workers, as its owner made it.
        let again = || listener.try_clone().map(OwnedFd::from);
        let sockets: std::io::Result<Vec<OwnedFd>> = (0..workers).map(|_| again()).collect();
        return sockets.map_err(|error| format!("cannot use the socket for {address} that was passed: {error}"));
    }
    let mut sockets: Vec<OwnedFd> = Vec::with_capacity(workers);
    for worker in 0..workers {
        let first = worker == 0;
        sockets.push(
            bind_one(address, first, congestion_control)
                .map_err(|error| explain(address, &error))?
                .into(),
        );
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr, first: bool, congestion_control: Option<&str>) -> std::io::Result<Socket> {
    if first {
        // Without SO_REUSEPORT: with it we would silently share the port with another process of this user.
        let probe = Socket::new(
            Domain::for_address(address),
            Type::STREAM.cloexec(),
            Some(Protocol::TCP),
        )?;
        probe.set_reuse_address(true)?;
        if address.is_ipv6() {
            probe.set_only_v6(true)?;
        }
        probe.bind(&address.into())?;
    }
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // An IPv4 address is listened at when the configuration says so.
        socket.set_only_v6(true)?;
    }
    // Connections inherit both.
    socket.set_tcp_nodelay(true)?;
    if let Some(name) = congestion_control {
        socket.set_tcp_congestion(name.as_bytes())?;
    }
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

fn explain(address: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "another process has it: end that one, or choose another address",
        Some(libc::EACCES) => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE (see `user` for dropping root afterwards)"
        }
        Some(libc::EADDRNOTAVAIL) => "this machine does not have that address",
        Some(_) | None => "choose another address",
    };
    format!("cannot listen at {address}: {error}; {remedy}")
}
