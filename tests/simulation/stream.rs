//! Byte streams that follow from a number, so that any piece of one can be checked by itself.

use ringlock::net::sim::random::mix;

/// The bytes of stream `id` from `offset` on.
pub(crate) fn piece(id: u64, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    let first = offset / 8;
    for word in first..(offset + length).div_ceil(8).max(first) {
        bytes.extend(mix(mix(id) ^ word as u64).to_le_bytes());
    }
    bytes.drain(..offset % 8);
    bytes.truncate(length);
    bytes
}

/// Asserts that `bytes` are what stream `id` has at `offset`.
pub(crate) fn check(id: u64, offset: usize, bytes: &[u8], what: std::fmt::Arguments<'_>) {
    assert!(
        piece(id, offset, bytes.len()) == bytes,
        "{what}: {} bytes from {offset} on are not those that were sent",
        bytes.len()
    );
}
