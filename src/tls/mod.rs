//! TLS on the server side. rustls is reached through this folder alone, by its unbuffered API; it does the handshake and keeps the
//! secrets, the records after that are ours.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod client_hello;
pub mod handshake;
pub mod policy;
mod protection;
pub mod records;
pub mod resumption;
pub mod session_cache;
pub mod tickets;
mod unbuffered;

use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::CertificateDer;

use crate::buffers::{Outbox, SendPool, Sink};
use crate::crypto::{CryptoOp, CryptoResult};
use crate::error::{Cause, HandshakeFailure};
use crate::metrics::{Negotiated, Resumptions};
use policy::Policy;

/// The TLS of one connection, as a session sees it: bytes in, bytes and decisions out. rustls is one implementation
/// ([`handshake::Connection`]), the simulator's short protocol the other.
pub trait Tls: Sized {
    /// A connection that has received nothing.
    fn accept(policy: &Arc<Policy>) -> Self;

    /// Takes bytes of the handshake. Returns how many are used up, and what to do next; the rest must be given again, with
    /// more behind it.
    fn handshake(&mut self, received: &mut [u8], outboxes: &mut Outboxes<'_>) -> (usize, Step);

    /// The answer to [`Step::Crypto`]; call [`Tls::handshake`] again with the same bytes.
    fn crypto_done(&mut self, result: CryptoResult);

    /// Takes records after the handshake. Returns how many bytes are used up; the rest is an incomplete record.
    fn open(&mut self, now: Instant, received: &[u8], outboxes: &mut Outboxes<'_>) -> (usize, Opened);

    /// Seals application data; after the end of our direction, nothing.
    ///
    /// # Errors
    /// The connection cannot carry more; the alert is sealed.
    fn seal(&mut self, plain: &[u8], sealed: &mut Sink<'_>) -> Result<(), Cause>;

    /// Seals the end of our direction.
    fn close_notify(&mut self, sealed: &mut Sink<'_>);

    /// The name the client asked for, lower case, once its ClientHello is complete.
    fn server_name(&self) -> Option<&str>;

    /// The protocol agreed on, once the handshake is complete.
    fn alpn(&self) -> Option<&[u8]>;

    /// What was agreed on, once the handshake is complete.
    fn negotiated(&self) -> Option<Negotiated>;

    /// Gives away what the client has shown in this handshake, or in the one whose session it resumes, its own certificate first: once,
    /// when the handshake is complete. The first has been verified; not all of the others need be on its path.
    fn take_client_certificates(&mut self) -> Box<[CertificateDer<'static>]>;

    /// What became of sessions, once the handshake is complete.
    fn resumptions(&self) -> Resumptions;
}

/// Where the client's records put what comes out of them.
pub struct Outboxes<'a> {
    /// Application data, for the upstream.
    pub plain: &'a mut Outbox,
    /// Answers to the client: KeyUpdates and alerts.
    pub sealed: &'a mut Outbox,
    /// Where both get their buffers.
    pub pool: &'a mut SendPool,
}

/// What follows from the bytes of a handshake.
#[derive(Debug)]
pub enum Step {
    /// More bytes.
    NeedsInput,
    /// The handshake waits for the answer to this.
    Crypto(CryptoOp),
    /// Application data may flow.
    Established,
    /// It is over; the alert, if one is due, is sealed.
    Failed(HandshakeFailure),
}

/// What follows from records after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// More may come.
    Open,
    /// The client has ended its direction with close_notify.
    Closed,
    /// The connection is over; the alert, if one is due, is sealed.
    Failed(Cause),
}
