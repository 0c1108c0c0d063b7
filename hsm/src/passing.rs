//! Bytes over UNIX sockets, and descriptors that come with them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// What one receive may bring.
pub(crate) const DESCRIPTORS_MAX: usize = 64;

/// Sends bytes, and with the first of them a descriptor. Returns how many bytes were sent.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<&OwnedFd>, flags: SendFlags) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptor = descriptor.map(AsFd::as_fd);
    if let Some(descriptor) = &descriptor {
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
        debug_assert!(pushed, "the space is for one descriptor");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

/// Receives bytes; their descriptors are appended, and closed by programs that this one starts. Returns how many bytes there are.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut impl Extend<OwnedFd>,
    flags: RecvFlags,
) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}
