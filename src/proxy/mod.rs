//! The journey of one connection, free of sockets, clocks and threads.

pub mod proxy_protocol;
pub mod upstream;
