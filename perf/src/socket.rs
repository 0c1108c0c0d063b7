//! Sockets of clients: how one begins to connect, and why it fails.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};

/// A socket that connects, from `source` if there is one, and does not block.
pub(crate) fn start_connect(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // Otherwise the first application bytes wait for the acknowledgement of Finished.
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        // The port is chosen by connect, which may use one port for many destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        bind(&socket, &SocketAddrV4::new(source, 0))?;
    }
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Why a socket fails, as far as results tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nobody listens.
    Refused,
    /// All ports towards the server are taken.
    NoLocalPort,
    /// This process, or the machine, has too many open files.
    NoDescriptor,
    /// The server has ended it, not in order.
    Reset,
    /// The kernel has given it up.
    TimedOut,
    /// Anything else.
    Other,
}

impl Cause {
    /// What the system's answer means.
    pub(crate) fn of(error: &io::Error) -> Self {
        use ErrorKind::{AddrInUse, AddrNotAvailable, BrokenPipe, ConnectionAborted, ConnectionReset};
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused {
            Self::Refused
        } else if matches!(kind, AddrNotAvailable | AddrInUse) {
            Self::NoLocalPort
        } else if matches!(kind, ConnectionReset | BrokenPipe | ConnectionAborted) {
            Self::Reset
        } else if kind == ErrorKind::TimedOut {
            Self::TimedOut
        } else if matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE)) {
            Self::NoDescriptor
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart() {
        for (errno, cause) in [
            (Errno::CONNREFUSED, Cause::Refused),
            (Errno::ADDRNOTAVAIL, Cause::NoLocalPort),
            (Errno::ADDRINUSE, Cause::NoLocalPort),
            (Errno::MFILE, Cause::NoDescriptor),
            (Errno::NFILE, Cause::NoDescriptor),
            (Errno::CONNRESET, Cause::Reset),
            (Errno::PIPE, Cause::Reset),
            (Errno::TIMEDOUT, Cause::TimedOut),
            (Errno::ACCESS, Cause::Other),
        ] {
            assert_eq!(Cause::of(&errno.into()), cause, "{errno:?}");
        }
        assert_eq!(Cause::of(&io::Error::other("no answer of the system")), Cause::Other);
    }
}
