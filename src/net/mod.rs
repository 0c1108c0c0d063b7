//! Drivers: what the kernel does for a worker.

pub mod buffer;
pub mod driver;
pub mod epoll;
mod socket;
pub mod timer;
pub mod uring;

pub use socket::Waker;
