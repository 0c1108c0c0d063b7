//! What the black-box tests share: the real binary in a folder of its own, certificates, origins, clients and other people's
//! tools. But for `multibuffer`, nothing here links the gateway's library: the tests see what its users see.
//!
//! A test is a function that takes an [`Io`], and `both_drivers!(name, …)` runs it on io_uring and on epoll:
//!
//! ```ignore
//! use crate::support::*;
//!
//! both_drivers!(an_echo_comes_back);
//!
//! fn an_echo_comes_back(io: Io) {
//!     let origin = Origin::echo();
//!     let gateway = Setup::new(io, &[origin.address()]).start();
//!     let mut client = Client::new(&gateway).connect();
//!     client.send(b"hello");
//!     assert_eq!(client.receive(5), b"hello");
//! }
//! ```
//!
//! A gateway that goes out of scope is sent SIGTERM; its exit code and its log are then checked. A program that is missing
//! fails the test and says so: `scripts/setup` installs it.

mod authority;
mod balancers;
mod certificates;
mod client;
mod clients;
mod exposition;
mod gateway;
mod hello;
mod load;
mod metrics;
pub(crate) mod multibuffer;
mod operation;
mod origin;
mod pki;
pub(crate) mod pre_shared_keys;
mod processes;
mod proxy_header;
pub(crate) mod responder;
mod saved_sessions;
mod sessions;
mod tokens;
mod tools;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub(crate) use authority::{Authority, DAY, Shown, pem_of, pem_of_list, serial};
pub(crate) use balancers::Balancer;
pub(crate) use certificates::{Ca, KeyKind, leaf_in};
pub(crate) use client::{Client, Connection, End};
pub(crate) use clients::{ClientFiles, let_in, refused};
pub(crate) use exposition::{Exposition, Format};
pub(crate) use gateway::{Gateway, Setup, ringlock};
pub(crate) use hello::{Alert, HANDSHAKE, Hello, read_alert, record};
pub(crate) use load::under_load;
pub(crate) use metrics::Metrics;
pub(crate) use operation::{
    cpu_time, echoes, exchange, handshake_kind, raw_request, reload, s_client_arguments, s_client_echo, try_exchange,
    wait_for_metric,
};
pub(crate) use origin::{Origin, Stream, reset};
pub(crate) use pki::{Pki, Served};
pub(crate) use processes::{
    children, command_line, descriptors, environment, has_secret_memory, is_alive, kill, launcher, living_children,
    locked_kib, memory_holds, signer, signers, user, wait_for_end, wait_until_nothing_is_left,
};
pub(crate) use proxy_header::{ProxyHeader, header_origin};
pub(crate) use saved_sessions::{SavedSession, assert_handshakes, assert_resumptions, declined};
pub(crate) use sessions::{Session, Visit, Wallet};
pub(crate) use tokens::{Faulty, FaultyPair, P11Kit, PIN, SoftHsm, Token, Tpm};
pub(crate) use tools::{Program, Ran, faked_clocks, python, run, run_with, tool};

/// The longest that any single thing may take before a test is taken to hang. Nothing is ever asserted to be faster.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The name that the default identity of a [`Setup`] has.
pub(crate) const SITE: &str = "site.example";

/// The driver that a gateway under test uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    /// io_uring
    Uring,
    /// epoll
    Epoll,
}

impl Io {
    /// As in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Io::Uring => "io_uring",
            Io::Epoll => "epoll",
        }
    }
}

/// Makes two tests of each function, `name::io_uring` and `name::epoll`.
macro_rules! both_drivers {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn io_uring() {
                super::$name(crate::support::Io::Uring);
            }
            #[test]
            fn epoll() {
                super::$name(crate::support::Io::Epoll);
            }
        }
    )+};
}

/// An address where nothing listens. Each test process has a loopback IP address of its own, and the ports are below those that the
/// kernel chooses, so nobody else takes it meanwhile; no two calls give the same.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    loop {
        let address = SocketAddr::new(own_ip(), NEXT.fetch_add(1, Ordering::Relaxed));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The loopback address of this test process: 127.64.0.0 and up, by process id.
pub(crate) fn own_ip() -> IpAddr {
    let [high, middle, low] = match std::process::id().to_be_bytes() {
        [_, high, middle, low] => [high, middle, low],
    };
    IpAddr::V4(Ipv4Addr::new(127, 64 | (high & 0x3f), middle, low))
}

/// Asks until the answer is `Some`; fails the test when that takes longer than [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `length` bytes that differ from place to place, the same in each run: a pattern with a period that no buffer size divides.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(pattern_byte).collect()
}

/// The byte of [`pattern`] at this position.
pub(crate) fn pattern_byte(position: usize) -> u8 {
    let position = position as u64;
    ((position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) ^ position) as u8
}
