//! The journey of one connection, free of sockets, clocks and threads.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod leg;
pub mod proxy_protocol;
pub mod session;
pub mod upstream;
