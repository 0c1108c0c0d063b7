//! A ClientHello of TLS 1.3 that offers tickets, made by hand: as many and as wrong as a test wants.

use std::io::Read;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};

use super::{HANDSHAKE, Hello, SITE, record};

const PRE_SHARED_KEY: u16 = 41;
const MODES: u16 = 45;
const BINDER_BYTES: usize = 32;

/// Tickets that all belong to one pre-shared key, as far as their binders go, for a suite with SHA-256.
#[derive(Clone)]
pub(crate) struct Offer {
    secret: Vec<u8>,
    tickets: Vec<Vec<u8>>,
    /// How many of them have a binder.
    binders: usize,
    modes: Option<Vec<u8>>,
    is_last: bool,
}

impl Offer {
    /// With a key exchange (psk_dhe_ke).
    pub(crate) fn new(secret: &[u8], tickets: Vec<Vec<u8>>) -> Offer {
        Offer {
            secret: secret.to_owned(),
            binders: tickets.len(),
            tickets,
            modes: Some(vec![1]),
            is_last: true,
        }
    }

    /// One more ticket, which has no binder.
    pub(crate) fn more(mut self, ticket: &[u8]) -> Offer {
        self.tickets.push(ticket.to_owned());
        self
    }

    /// These modes: 0 is psk_ke, 1 is psk_dhe_ke.
    pub(crate) fn modes(mut self, modes: &[u8]) -> Offer {
        self.modes = Some(modes.to_owned());
        self
    }

    /// Without the extension that has the modes.
    pub(crate) fn without_modes(mut self) -> Offer {
        self.modes = None;
        self
    }

    /// Followed by another extension.
    pub(crate) fn not_last(mut self) -> Offer {
        self.is_last = false;
        self
    }

    /// The ClientHello in one record.
    pub(crate) fn record(&self) -> Vec<u8> {
        let message = self.message(&[0; BINDER_BYTES]);
        let binders = 2 + self.binders * (1 + BINDER_BYTES);
        let binder = self.binder(&message[..message.len() - binders]);
        record(HANDSHAKE, &self.message(&binder))
    }

    fn message(&self, binder: &[u8; BINDER_BYTES]) -> Vec<u8> {
        let ages = |ticket: &Vec<u8>| [with_length(ticket), vec![0; 4]].concat();
        let identities: Vec<u8> = self.tickets.iter().flat_map(ages).collect();
        let one = [&[BINDER_BYTES as u8], &binder[..]].concat();
        let offer = [with_length(&identities), with_length(&one.repeat(self.binders))].concat();
        let name = [&[0][..], &with_length(SITE.as_bytes())].concat();
        let mut hello = Hello::new(0x0303)
            .extension(0, with_length(&name))
            // supported_versions
            .extension(43, vec![2, 3, 4])
            // key_share: X25519 of the private key one, whose public key is the base point
            .extension(51, with_length(&[&[0, 29, 0, 32, 9][..], &[0; 31]].concat()));
        hello.suites = vec![0x1301];
        if let Some(modes) = &self.modes {
            hello = hello.extension(MODES, [&[modes.len() as u8], &modes[..]].concat());
        }
        hello = hello.extension(PRE_SHARED_KEY, offer);
        if !self.is_last {
            hello = hello.extension(23, Vec::new());
        }
        hello.message()
    }

    /// RFC 8446 section 4.2.11.2, for the message up to the binders.
    fn binder(&self, message: &[u8]) -> [u8; BINDER_BYTES] {
        let early = hmac(&[0; 32], &self.secret);
        let nothing = digest(&SHA256, b"");
        let key = expand_label(&early, "res binder", nothing.as_ref());
        let finished = expand_label(&key, "finished", b"");
        hmac(&finished, digest(&SHA256, message).as_ref())
    }
}

fn with_length(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("it fits its length field");
    [&length.to_be_bytes(), content].concat()
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = sign(&Key::new(HMAC_SHA256, key), message);
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// HKDF-Expand-Label (RFC 8446 section 7.1) of 32 bytes.
fn expand_label(secret: &[u8; 32], label: &str, context: &[u8]) -> [u8; 32] {
    let label = [b"tls13 ", label.as_bytes()].concat();
    let short = |content: &[u8]| [&[content.len() as u8], content].concat();
    let info = [&[0, 32][..], &short(&label), &short(context), &[1]].concat();
    hmac(secret, &info)
}

/// What the gateway says of the offer, in plain text.
#[derive(Debug)]
pub(crate) struct ServerHello {
    /// Position of the ticket that is accepted.
    pub(crate) selected: Option<u16>,
}

impl ServerHello {
    /// Reads the first message of the answer.
    #[track_caller]
    pub(crate) fn read(stream: &mut impl Read) -> ServerHello {
        let mut header = [0; 5];
        stream.read_exact(&mut header).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut message).unwrap();
        assert_eq!(
            (header[0], message[0]),
            (HANDSHAKE, 2),
            "no ServerHello, but {message:02x?}"
        );
        // Version and random, session id, suite and compression, length of all extensions.
        let mut at = 4 + 2 + 32;
        at += 1 + usize::from(message[at]) + 2 + 1 + 2;
        let mut selected = None;
        while at < message.len() {
            let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
            if word(at) == PRE_SHARED_KEY {
                selected = Some(word(at + 4));
            }
            at += 4 + usize::from(word(at + 2));
        }
        ServerHello { selected }
    }
}
