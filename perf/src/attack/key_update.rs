//! A storm of KeyUpdates (RFC 8446 section 4.6.3): each makes the server derive keys twice and answer.

use super::established::{Keys, Origin, Repeated};
use super::records::{APPLICATION_DATA, HANDSHAKE};
use super::script::Next;

/// Handshake message type.
const KEY_UPDATE: u8 = 24;

/// A KeyUpdate that asks for one in return.
const UPDATE_REQUESTED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 1];

/// KeyUpdates that are made before any is sent.
const AT_ONCE: usize = 64;

/// One connection's storm.
pub(super) struct KeyUpdates {
    variant: &'static str,
    /// There is a byte of data behind each, as a server's count may begin anew there.
    with_data: bool,
    sent: u64,
}

impl KeyUpdates {
    /// A storm of this variant.
    pub(super) fn new(variant: &'static str) -> Self {
        Self {
            variant,
            with_data: variant == "with-data",
            sent: 0,
        }
    }
}

impl Repeated for KeyUpdates {
    fn variant(&self) -> &'static str {
        self.variant
    }

    fn ready(&mut self, keys: &mut Keys, out: &mut Vec<u8>) -> Next {
        for _ in 0..AT_ONCE {
            keys.outgoing.seal(HANDSHAKE, &UPDATE_REQUESTED, out);
            if let Origin::Tls13 { client, .. } = &mut keys.origin {
                keys.outgoing = client.update();
            }
            if self.with_data {
                keys.outgoing.seal(APPLICATION_DATA, b"x", out);
            }
            self.sent += 1;
        }
        Next::Send
    }

    fn received(&mut self, (kind, payload): (u8, &[u8]), keys: &mut Keys, _: &mut Vec<u8>) -> Next {
        if let (HANDSHAKE, [KEY_UPDATE, ..], Origin::Tls13 { server, .. }) = (kind, payload, &mut keys.origin) {
            keys.incoming = server.update();
        }
        Next::Wait
    }

    fn messages(&self) -> u64 {
        self.sent
    }
}
