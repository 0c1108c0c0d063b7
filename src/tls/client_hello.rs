//! The ClientHello as the client sent it: gathered from TLS records, then read without a copy.
//!
//! Certificate, route and group are chosen from it before rustls sees the same bytes, so what this file
//! accepts and rustls accepts must read the same; a differential test in `tests` sees to it.

use std::borrow::Cow;
use std::net::IpAddr;

use rustls::{CipherSuite, NamedGroup};
use rustls_pki_types::DnsName;

use crate::error::HandshakeFailure;
use crate::limits::CLIENT_HELLO_BYTES_MAX;

const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
const CONTENT_TYPE_HANDSHAKE: u8 = 0x16;
const MESSAGE_TYPE_CLIENT_HELLO: u8 = 0x01;

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered<'a> {
    /// A ClientHello may still come of it: receive more.
    NeedMore,
    /// The body of the ClientHello, without the four bytes of message header, for [`ClientHello::parse`]. Borrowed
    /// when one record holds it all. The record that holds its last byte is complete, so rustls will find a whole
    /// message in the same bytes. More bytes may follow it.
    Complete(Cow<'a, [u8]>),
    /// No byte that could follow makes this a ClientHello we accept.
    Refused(HandshakeFailure),
}

/// Looks for a whole ClientHello at the start of `received`: all that the client sent so far, record headers
/// included, from its first byte. The answer depends on the bytes only, not on the pieces they came in.
#[must_use]
pub fn gather(received: &[u8]) -> Gathered<'_> {
    Gathering::default().gather(received)
}

/// [`gather`] for bytes that come in pieces: remembers which records it has passed, so that a client that sends
/// thousands of tiny records in tiny pieces costs no more than the bytes are worth.
#[derive(Clone, Debug, Default)]
pub struct Gathering {
    /// Where the first record starts that has not been passed.
    at: usize,
    /// How many bytes of the message, header included, the records before `at` hold.
    message_bytes: usize,
    /// The first bytes of the message, as far as `message_bytes` reaches.
    message_header: [u8; MESSAGE_HEADER_BYTES],
}

impl Gathering {
    /// As [`gather`]. `received` starts with the bytes of the call before and may hold more behind them.
    #[must_use]
    pub fn gather<'a>(&mut self, received: &'a [u8]) -> Gathered<'a> {
        match self.find_message(received) {
            Err(Stop::NeedMore) => Gathered::NeedMore,
            Err(Stop::Refused(failure)) => Gathered::Refused(failure),
            Ok(body_bytes) => {
                let first_end = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([received[3], received[4]]));
                let body_start = RECORD_HEADER_BYTES + MESSAGE_HEADER_BYTES;
                let body = if body_start + body_bytes <= first_end {
                    Cow::Borrowed(&received[body_start..body_start + body_bytes])
                } else {
                    Cow::Owned(join_records(received, body_bytes))
                };
                debug_assert_eq!(body.len(), body_bytes);
                Gathered::Complete(body)
            }
        }
    }

    /// Where the last record starts that was looked at: once the ClientHello is complete, the one that completes it.
    #[must_use]
    pub fn last_record(&self) -> usize {
        self.at
    }

    /// The length of the ClientHello's body, once every record that holds a part of it is there.
    fn find_message(&mut self, received: &[u8]) -> Result<usize, Stop> {
        loop {
            let (payload, end) = record(received, self.at)?;

            let mut message_header = self.message_header;
            let wanted = message_header.get_mut(self.message_bytes..).unwrap_or_default();
            let n = wanted.len().min(payload.len());
            wanted[..n].copy_from_slice(&payload[..n]);
            let message_bytes = self.message_bytes + payload.len();

            if message_bytes > 0 && message_header[0] != MESSAGE_TYPE_CLIENT_HELLO {
                return Err(Stop::Refused(HandshakeFailure::MalformedHello));
            }
            if message_bytes >= MESSAGE_HEADER_BYTES {
                let [_, high, middle, low] = message_header;
                let body_bytes = u32::from_be_bytes([0, high, middle, low]) as usize;
                if RECORD_HEADER_BYTES + MESSAGE_HEADER_BYTES + body_bytes > CLIENT_HELLO_BYTES_MAX {
                    return Err(Stop::Refused(HandshakeFailure::HelloTooLarge));
                }
                if message_bytes >= MESSAGE_HEADER_BYTES + body_bytes && end <= received.len() {
                    return Ok(body_bytes);
                }
            }
            if end > received.len() {
                return Err(Stop::NeedMore);
            }
            *self = Gathering {
                at: end,
                message_bytes,
                message_header,
            };
        }
    }
}

enum Stop {
    NeedMore,
    Refused(HandshakeFailure),
}

/// The payload (as much as has come) of the record that starts at `at`, and where the record ends.
fn record(received: &[u8], at: usize) -> Result<(&[u8], usize), Stop> {
    let header = &received[at..received.len().min(at + RECORD_HEADER_BYTES)];
    let is_handshake = header
        .first()
        .is_none_or(|&content_type| content_type == CONTENT_TYPE_HANDSHAKE);
    let is_tls = is_handshake && header.get(1).is_none_or(|&major| major == 3);
    if !is_tls {
        // Inside a ClientHello another record, an alert say, is a broken handshake; at the start it is another protocol.
        return Err(if at == 0 {
            not_tls(received)
        } else {
            Stop::Refused(HandshakeFailure::MalformedHello)
        });
    }
    let &[_, _, _, length_high, length_low] = header else {
        return Err(Stop::NeedMore);
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    // RFC 8446 section 5.1: "Implementations MUST NOT send zero-length fragments of Handshake types".
    if length == 0 {
        return Err(Stop::Refused(HandshakeFailure::MalformedHello));
    }
    let end = at + RECORD_HEADER_BYTES + length;
    if end > CLIENT_HELLO_BYTES_MAX {
        return Err(Stop::Refused(HandshakeFailure::HelloTooLarge));
    }
    Ok((&received[at + RECORD_HEADER_BYTES..received.len().min(end)], end))
}

/// Plain HTTP deserves its own message: it is the mistake people make. Four bytes tell.
fn not_tls(received: &[u8]) -> Stop {
    const METHODS: [&[u8; 4]; 10] = [
        b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"DELE", b"CONN", b"PATC", b"TRAC", b"PRI ",
    ];
    if METHODS.iter().any(|method| received.starts_with(*method)) {
        Stop::Refused(HandshakeFailure::NotTls { plain_http: true })
    } else if METHODS.iter().any(|method| method.starts_with(received)) {
        Stop::NeedMore
    } else {
        Stop::Refused(HandshakeFailure::NotTls { plain_http: false })
    }
}

/// The body of a message that several records hold; [`Gathering::find_message`] has checked them all.
fn join_records(received: &[u8], body_bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(body_bytes);
    let mut skip = MESSAGE_HEADER_BYTES;
    let mut at = 0;
    while body.len() < body_bytes {
        let length = usize::from(u16::from_be_bytes([received[at + 3], received[at + 4]]));
        let payload = &received[at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + length];
        let skipped = skip.min(payload.len());
        let part = &payload[skipped..];
        skip -= skipped;
        body.extend_from_slice(&part[..part.len().min(body_bytes - body.len())]);
        at += RECORD_HEADER_BYTES + length;
    }
    body
}

/// A ClientHello whose lengths have all been checked. Everything borrows from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello<'a> {
    legacy_version: u16,
    cipher_suites: &'a [u8],
    /// A DNS name by `DnsName`'s rules, without a trailing dot.
    server_name: Option<&'a str>,
    /// ProtocolName entries: one byte of length, never 0, then that many bytes.
    alpn: &'a [u8],
    groups: &'a [u8],
    signature_schemes: &'a [u8],
    /// KeyShareEntry entries: group, two bytes of length, never 0, then that many bytes.
    key_shares: &'a [u8],
    supported_versions: Option<&'a [u8]>,
    takes_tickets: bool,
}

impl<'a> ClientHello<'a> {
    /// Reads the body that [`Gathered::Complete`] holds.
    ///
    /// # Errors
    /// [`HandshakeFailure::MalformedHello`] when a length does not fit, bytes are left over, a list that must not be
    /// empty is, an extension comes twice, or the host name is none (RFC 6066 section 3: no trailing dot, one name).
    pub fn parse(body: &'a [u8]) -> Result<Self, HandshakeFailure> {
        Self::read(&mut Reader(body)).ok_or(HandshakeFailure::MalformedHello)
    }

    fn read(body: &mut Reader<'a>) -> Option<Self> {
        let legacy_version = body.u16()?;
        body.take(32)?; // random
        let session_id = body.prefixed_u8()?;
        let cipher_suites = u16_list(body.prefixed_u16()?)?;
        let compression_methods = body.prefixed_u8()?;
        if session_id.0.len() > 32 || compression_methods.0.is_empty() {
            return None;
        }
        let mut hello = ClientHello {
            legacy_version,
            cipher_suites,
            server_name: None,
            alpn: &[],
            groups: &[],
            signature_schemes: &[],
            key_shares: &[],
            supported_versions: None,
            takes_tickets: false,
        };
        // A TLS 1.2 client may send no extensions at all (RFC 5246 section 7.4.1.2).
        if !body.is_empty() {
            let mut extensions = body.prefixed_u16()?;
            hello.read_extensions(&mut extensions)?;
        }
        body.is_empty().then_some(hello)
    }

    fn read_extensions(&mut self, extensions: &mut Reader<'a>) -> Option<()> {
        // One bit for each of the 65,536 types: the cost stays the same when a client sends thousands of extensions.
        let mut seen = [0_u64; 1024];
        while !extensions.is_empty() {
            let extension_type = extensions.u16()?;
            let mut content = extensions.prefixed_u16()?;

            let word = &mut seen[usize::from(extension_type >> 6)];
            let bit = 1 << (extension_type & 63);
            if *word & bit != 0 {
                return None;
            }
            *word |= bit;

            match extension_type {
                0 => self.server_name = read_server_name(&mut content)?,
                10 => self.groups = u16_list(content.prefixed_u16()?)?,
                13 => self.signature_schemes = u16_list(content.prefixed_u16()?)?,
                16 => self.alpn = read_alpn(content.prefixed_u16()?)?,
                43 => self.supported_versions = Some(u16_list(content.prefixed_u8()?)?),
                51 => self.key_shares = read_key_shares(content.prefixed_u16()?)?,
                35 => {
                    self.takes_tickets = true;
                    content = Reader(&[]);
                }
                _ => content = Reader(&[]), // not ours to judge
            }
            if !content.is_empty() {
                return None;
            }
        }
        Some(())
    }

    /// The host name the client asks for, in the client's spelling: compare without regard to case. None when it
    /// sent none, or an IP address, which RFC 6066 does not permit here and clients send all the same.
    #[must_use]
    pub fn server_name(&self) -> Option<&'a str> {
        self.server_name
    }

    /// The application protocols offered, in the client's order; nothing when it did not send the extension.
    pub fn alpn(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = Reader(self.alpn);
        std::iter::from_fn(move || Some(rest.prefixed_u8()?.0))
    }

    /// The cipher suites in the client's order, without GREASE.
    pub fn cipher_suites(&self) -> impl Iterator<Item = CipherSuite> + use<'a> {
        values(self.cipher_suites).map(CipherSuite::from)
    }

    /// The groups (supported_groups) in the client's order, without GREASE.
    pub fn groups(&self) -> impl Iterator<Item = NamedGroup> + use<'a> {
        values(self.groups).map(NamedGroup::from)
    }

    /// The key share for this group; the first when the client broke the rule of one for each group.
    #[must_use]
    pub fn key_share(&self, group: NamedGroup) -> Option<&'a [u8]> {
        let wanted = u16::from(group);
        let mut rest = Reader(self.key_shares);
        while let (Some(group), Some(share)) = (rest.u16(), rest.prefixed_u16()) {
            if group == wanted {
                return Some(share.0);
            }
        }
        None
    }

    /// The signature schemes for the handshake in the client's order, without GREASE; nothing when a TLS 1.2 client
    /// did not send the extension (RFC 5246 section 7.4.1.4.1: it then accepts SHA-1).
    pub fn signature_schemes(&self) -> impl Iterator<Item = rustls::SignatureScheme> + use<'a> {
        values(self.signature_schemes).map(rustls::SignatureScheme::from)
    }

    /// The versions of supported_versions in the client's order, as on the wire and without GREASE; nothing when the
    /// client did not send the extension: then [`ClientHello::best_version`] stands for the highest it has.
    pub fn versions(&self) -> impl Iterator<Item = u16> + use<'a> {
        values(self.supported_versions.unwrap_or_default())
    }

    /// The highest version the client offers, as on the wire (0x0304 is TLS 1.3). Versions above TLS 1.3 and drafts
    /// count only when nothing else is offered. Without supported_versions never more than 0x0303: such a client
    /// negotiates TLS 1.2 or below whatever its legacy_version says (RFC 8446 section 4.2.1).
    #[must_use]
    pub fn best_version(&self) -> u16 {
        if self.supported_versions.is_none() {
            return self.legacy_version.min(0x0303);
        }
        let known = self
            .versions()
            .filter(|version| (0x0300..=0x0304).contains(version))
            .max();
        known.or_else(|| self.versions().max()).unwrap_or(self.legacy_version)
    }

    /// Whether the client takes tickets of TLS 1.2 (RFC 5077), with or without offering one.
    #[must_use]
    pub fn takes_tickets(&self) -> bool {
        self.takes_tickets
    }

    /// Whether the client would rather have ChaCha20-Poly1305: one without AES instructions lists it before any AES-GCM.
    #[must_use]
    pub fn prefers_chacha(&self) -> bool {
        self.cipher_suites().find_map(is_chacha).unwrap_or(false)
    }
}

/// `None` for a suite that is neither AES-GCM nor ChaCha20-Poly1305 with (EC)DHE.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls names hundreds of suites, and only these count"
)]
fn is_chacha(suite: CipherSuite) -> Option<bool> {
    match suite {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(true),
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(false),
        _ => None,
    }
}

/// `Some(None)` for an IP address, `None` for anything that is neither.
fn read_server_name<'a>(content: &mut Reader<'a>) -> Option<Option<&'a str>> {
    let mut names = content.prefixed_u16()?;
    let mut found = None;
    while !names.is_empty() {
        // The length of a name of another type is not defined, so nothing behind it can be read.
        if names.u8()? != 0 {
            break;
        }
        // "The ServerNameList MUST NOT contain more than one name of the same name_type." (RFC 6066 section 3)
        if found.is_some() {
            return None;
        }
        let name = std::str::from_utf8(names.prefixed_u16()?.0).ok()?;
        found = Some(if name.parse::<IpAddr>().is_ok() {
            None
        } else {
            DnsName::try_from(name).ok()?;
            (!name.ends_with('.')).then_some(())?;
            Some(name)
        });
    }
    found
}

fn read_alpn(list: Reader<'_>) -> Option<&[u8]> {
    let mut rest = Reader(list.0);
    while !rest.is_empty() {
        if rest.prefixed_u8()?.is_empty() {
            return None;
        }
    }
    list.not_empty()
}

/// May be empty: the client then asks for a HelloRetryRequest (RFC 8446 section 4.2.8).
fn read_key_shares(list: Reader<'_>) -> Option<&[u8]> {
    let mut rest = Reader(list.0);
    while !rest.is_empty() {
        rest.u16()?;
        if rest.prefixed_u16()?.is_empty() {
            return None;
        }
    }
    Some(list.0)
}

/// A list of two-byte values that must not be empty.
fn u16_list(list: Reader<'_>) -> Option<&[u8]> {
    list.0.len().is_multiple_of(2).then_some(())?;
    list.not_empty()
}

fn values(list: &[u8]) -> impl Iterator<Item = u16> + use<'_> {
    list.as_chunks()
        .0
        .iter()
        .map(|&bytes| u16::from_be_bytes(bytes))
        .filter(|&value| !is_grease(value))
}

/// RFC 8701: values that mean nothing, sent to keep servers tolerant.
fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// The bytes not read yet. Every method takes from the front, or returns `None` when there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn not_empty(self) -> Option<&'a [u8]> {
        (!self.0.is_empty()).then_some(self.0)
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn prefixed_u8(&mut self) -> Option<Reader<'a>> {
        let n = self.u8()?;
        self.take(n.into()).map(Reader)
    }

    fn prefixed_u16(&mut self) -> Option<Reader<'a>> {
        let n = self.u16()?;
        self.take(n.into()).map(Reader)
    }
}

#[cfg(test)]
mod tests;
