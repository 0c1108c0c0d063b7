//! Everything that knows TLS; rustls is reached through this folder alone.

pub mod client_hello;
