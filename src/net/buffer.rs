//! Receive buffers: they belong to the driver, are lent for the length of one completion and come back at once.

/// A filled receive buffer of a driver. Not `Clone`: it is given back exactly once (invariant 2).
#[derive(Debug)]
#[must_use = "a receive buffer goes back to its driver"]
pub struct ReceiveBuffer {
    /// The driver's own number for it.
    pub(super) id: u32,
    pub(super) len: u32,
}

impl ReceiveBuffer {
    /// Number of bytes received, at least 1.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "never empty: the end of a stream has no buffer"
    )]
    pub fn len(&self) -> usize {
        self.len as usize
    }
}
