//! Listening sockets: one per worker and address, or those that systemd hands over.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::LISTEN_BACKLOG;

/// Sockets that systemd has bound for us, by address.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// Takes them from the environment (`LISTEN_FDS`). What is no TCP listener is left alone. To be called before anything is
    /// opened: should the environment promise more than there is, a descriptor of our own would have the number.
    #[must_use]
    pub fn take() -> Inherited {
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

    /// Those addresses that nobody in `used` has.
    pub(super) fn unused(&self, used: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
        self.0
            .iter()
            .map(|(bound, _)| *bound)
            .filter(|bound| !used.contains(bound))
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
/// The kernel's; [`explain`] has the words for it.
pub(super) fn bind(
    address: SocketAddr,
    workers: usize,
    congestion_control: Option<&str>,
    inherited: &Inherited,
) -> std::io::Result<Vec<OwnedFd>> {
    if let Some(listener) = inherited.find(address) {
        // One queue for all workers, as its owner made it.
        return (0..workers).map(|_| listener.try_clone().map(OwnedFd::from)).collect();
    }
    (0..workers)
        .map(|worker| bind_one(address, worker == 0, congestion_control).map(OwnedFd::from))
        .collect()
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

/// What was expected of an address that cannot be listened at, and what to do; a gateway that `runs` has given up its rights.
pub(super) fn explain(error: &std::io::Error, runs: bool) -> (&'static str, &'static str) {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => (
            "an address that is free",
            "end the process that has it, or choose another",
        ),
        Some(libc::EACCES) if runs => (
            "an address that this process may bind",
            "restart the gateway, which has given up the right to ports below 1024; or choose one from 1024 on",
        ),
        Some(libc::EACCES) => (
            "an address that this process may bind",
            "start as root (`user` drops it afterwards) or with CAP_NET_BIND_SERVICE, or choose a port from 1024 on",
        ),
        Some(libc::EADDRNOTAVAIL) => (
            "an address of this machine",
            "choose another, or 0.0.0.0 or [::] for all",
        ),
        Some(_) | None => ("an address that can be bound", "choose another"),
    }
}
