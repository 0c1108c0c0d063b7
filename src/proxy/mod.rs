//! The journey of one connection, free of sockets, clocks and threads.

mod leg;
pub mod proxy_protocol;
pub mod session;
pub mod upstream;
