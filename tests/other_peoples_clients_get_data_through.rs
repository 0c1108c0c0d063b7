//! openssl, curl, Python and GnuTLS reach an origin through the gateway.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[macro_use]
mod support;

use support::*;

both_drivers!(rustls_gets_an_echo,);

fn rustls_gets_an_echo(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let mut client = Client::new(&gateway).connect();
    client.send(b"hello");
    assert_eq!(client.receive(5), b"hello");
    assert!(client.finish().is_empty());
    gateway.wait_for_ended("finished", 1);
    gateway.wait_until_quiet();
}
