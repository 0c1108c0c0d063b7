//! Drivers: what the kernel does for a worker.

pub mod buffer;
pub mod driver;
pub mod epoll;
pub mod sim;
mod socket;
pub mod timer;
pub mod uring;

pub use socket::Waker;
