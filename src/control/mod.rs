//! The control side: everything that is not a connection, on the main thread.

pub mod admin;
pub mod log;
pub mod metrics;
