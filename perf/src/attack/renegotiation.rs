//! Renegotiation that the client asks for (RFC 5746): each that is granted costs the server a handshake.

use rustls_pki_types::ServerName;

use super::established::{Keys, Origin, Repeated};
use super::hello::renegotiating;
use super::records::{ALERT, HANDSHAKE};
use super::script::Next;

/// Handshake message type.
const SERVER_HELLO: u8 = 2;

/// Level of an alert behind which the connection goes on.
const WARNING: u8 = 1;

/// Description of the alert by which a server declines (RFC 5246 section 7.2.2).
const NO_RENEGOTIATION: u8 = 100;

/// One connection's attempts: each follows the refusal of the one before.
pub(super) struct Renegotiation {
    name: ServerName<'static>,
    /// An attempt has not been answered.
    waiting: bool,
    attempts: u64,
}

impl Renegotiation {
    /// Asks in this name.
    pub(super) fn new(name: ServerName<'static>) -> Self {
        Self {
            name,
            waiting: false,
            attempts: 0,
        }
    }
}

impl Repeated for Renegotiation {
    fn variant(&self) -> &'static str {
        "tls12"
    }

    fn ready(&mut self, keys: &mut Keys, out: &mut Vec<u8>) -> Next {
        let (false, Origin::Tls12(verify_data)) = (self.waiting, &keys.origin) else {
            return Next::Wait;
        };
        keys.outgoing
            .seal(HANDSHAKE, &renegotiating(&self.name, verify_data), out);
        self.attempts += 1;
        self.waiting = true;
        Next::Send
    }

    fn received(&mut self, record: (u8, &[u8]), keys: &mut Keys, out: &mut Vec<u8>) -> Next {
        match record {
            (ALERT, [WARNING, NO_RENEGOTIATION]) => {
                self.waiting = false;
                self.ready(keys, out)
            }
            (HANDSHAKE, [SERVER_HELLO, ..]) => Next::Done("renegotiated"),
            _ => Next::Wait,
        }
    }

    fn messages(&self) -> u64 {
        self.attempts
    }
}
