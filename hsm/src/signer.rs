//! placeholder
/// placeholder
pub fn on_thread(_: std::os::fd::OwnedFd) {}
