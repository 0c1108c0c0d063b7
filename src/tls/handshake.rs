//! One connection from the first byte of its ClientHello to its close_notify: the handshake by rustls, then the records.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use rustls::crypto::CompletedKeyExchange;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::{
    AlertDescription, CipherSuite, Error, HandshakeKind, NamedGroup, OtherError, PeerIncompatible, PeerMisbehaved,
    ProtocolVersion,
};

use super::client_hello::{ClientHello, Gathered, Gathering};
use super::policy::Policy;
use super::protection::TAG_BYTES;
use super::records::{Records, record_end};
use super::resumption::{self, Attempt};
use super::unbuffered::{self, Processed};
use super::{Opened, Outboxes, Step, Tls};
use crate::buffers::Sink;
use crate::crypto::suspend::{self, Progress, Suspended};
use crate::crypto::{CryptoOp, CryptoResult, provider};
use crate::error::{Cause, ClientRefusal, HandshakeFailure, KeyFailure, alert_name};
use crate::identity::client_auth;
use crate::metrics::{self, Negotiated, Resumptions};

/// See the module.
pub struct Connection {
    policy: Arc<Policy>,
    state: State,
    server_name: Option<Box<str>>,
    /// While rustls has the connection and is not at work.
    attempt: Option<Box<Attempt>>,
    /// Highest version the client offered, as on the wire.
    offered_version: u16,
    /// Where the record ends that completes the ClientHello.
    hello_end: usize,
    /// The client is asked for certificates, and rustls verifies signatures of its.
    asks_for_certificates: bool,
}

enum State {
    /// The ClientHello is not complete.
    Hello(Gathering),
    /// The key exchange of the complete ClientHello is being computed elsewhere.
    Exchanging(Box<UnbufferedServerConnection>, Exchange),
    /// It has been computed; rustls has seen nothing yet.
    Exchanged(
        Box<UnbufferedServerConnection>,
        Exchange,
        Result<CompletedKeyExchange, Error>,
    ),
    /// rustls has asked for something that is being computed elsewhere. `end`: of the records it has been given.
    Suspended {
        call: Suspended<Called>,
        end: usize,
    },
    /// It has been computed; rustls does not know yet.
    Answered {
        call: Suspended<Called>,
        end: usize,
        answer: CryptoResult,
    },
    /// rustls has the connection. It has seen what lies before `end`, the beginning of a message whose end has not come, and has
    /// changed it: it is given so again, with more behind it.
    Handshaking {
        rustls: Box<UnbufferedServerConnection>,
        end: usize,
    },
    Established(Box<Established>),
    /// Over.
    Dead,
}

/// A key exchange that is known before rustls asks for it.
struct Exchange {
    group: NamedGroup,
    peer_share: Box<[u8]>,
}

/// What a call of rustls gives back.
struct Called {
    rustls: Box<UnbufferedServerConnection>,
    attempt: Box<Attempt>,
    processed: Processed,
    /// The bytes of a call that had a copy of them: decrypted in place, and to be given so again where a message has not ended.
    given: Option<Vec<u8>>,
}

/// What rustls is given of the bytes received.
#[derive(Clone, Copy)]
struct Window {
    /// Those before are used up.
    used: usize,
    end: usize,
}

struct Established {
    records: Records,
    negotiated: Option<Negotiated>,
    resumptions: Resumptions,
    alpn: Option<Box<[u8]>>,
    /// Until they are taken.
    client_certificates: Box<[CertificateDer<'static>]>,
}

impl Tls for Connection {
    fn accept(policy: &Arc<Policy>) -> Self {
        Connection {
            policy: Arc::clone(policy),
            state: State::Hello(Gathering::default()),
            server_name: None,
            attempt: None,
            offered_version: 0,
            hello_end: 0,
            asks_for_certificates: false,
        }
    }

    fn handshake(&mut self, received: &mut [u8], outboxes: &mut Outboxes<'_>) -> (usize, Step) {
        match std::mem::replace(&mut self.state, State::Dead) {
            State::Hello(gathering) => match self.hello(gathering, received) {
                Ok(Some(op)) => (0, Step::Crypto(op)),
                Ok(None) if matches!(self.state, State::Hello(_)) => (0, Step::NeedsInput),
                Ok(None) => self.handshake(received, outboxes),
                Err(failure) => {
                    if let Some(alert) = alert_for(&failure) {
                        outboxes.sealed.sink(outboxes.pool).write(&fatal(alert));
                    }
                    (received.len(), Step::Failed(failure))
                }
            },
            waiting @ (State::Exchanging(..) | State::Suspended { .. }) => {
                self.state = waiting;
                (0, Step::NeedsInput)
            }
            State::Exchanged(rustls, exchange, answer) => {
                let at = Window {
                    used: 0,
                    end: self.hello_end,
                };
                let given = &mut received[..at.end];
                let call = move |rustls: &mut UnbufferedServerConnection, given: &mut [u8]| {
                    let Exchange { group, peer_share } = exchange;
                    provider::with_prepared(group, peer_share, answer, || unbuffered::process(rustls, given))
                };
                let progress = call_that_may_wait(rustls, self.take_attempt(), given, call);
                self.go_on(progress, at, received, outboxes)
            }
            State::Answered { call, end, answer } => {
                let at = Window { used: 0, end };
                self.go_on(call.resume(answer), at, received, outboxes)
            }
            State::Handshaking { rustls, end } => self.run(rustls, Window { used: 0, end }, received, outboxes),
            State::Established(_) | State::Dead => (
                received.len(),
                Step::Failed(HandshakeFailure::Protocol("bytes after the end".into())),
            ),
        }
    }

    fn crypto_done(&mut self, result: CryptoResult) {
        self.state = match (std::mem::replace(&mut self.state, State::Dead), result) {
            (State::Exchanging(rustls, exchange), CryptoResult::KeyExchange(answer)) => {
                State::Exchanged(rustls, exchange, answer)
            }
            (State::Suspended { call, end }, answer) => State::Answered { call, end, answer },
            (other, _) => other,
        };
    }

    fn open(&mut self, now: Instant, received: &[u8], outboxes: &mut Outboxes<'_>) -> (usize, Opened) {
        match &mut self.state {
            State::Established(this) => this.records.open(now, received, outboxes),
            State::Hello(_)
            | State::Exchanging(..)
            | State::Exchanged(..)
            | State::Suspended { .. }
            | State::Answered { .. }
            | State::Handshaking { .. }
            | State::Dead => (received.len(), Opened::Closed),
        }
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Sink<'_>) -> Result<(), Cause> {
        if let State::Established(this) = &mut self.state {
            this.records.seal(plain, sealed)?;
        }
        Ok(())
    }

    fn close_notify(&mut self, sealed: &mut Sink<'_>) {
        if let State::Established(this) = &mut self.state {
            this.records.close_notify(sealed);
        }
    }

    fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    fn alpn(&self) -> Option<&[u8]> {
        self.established()?.alpn.as_deref()
    }

    fn negotiated(&self) -> Option<Negotiated> {
        self.established()?.negotiated
    }

    fn take_client_certificates(&mut self) -> Box<[CertificateDer<'static>]> {
        let State::Established(this) = &mut self.state else {
            return Box::default();
        };
        std::mem::take(&mut this.client_certificates)
    }

    fn resumptions(&self) -> Resumptions {
        self.established().map(|this| this.resumptions).unwrap_or_default()
    }
}

fn negotiated(rustls: &UnbufferedServerConnection) -> Option<Negotiated> {
    let suite = rustls.negotiated_cipher_suite()?.suite();
    let group = match rustls.negotiated_key_exchange_group() {
        Some(group) => position(&GROUPS, &group.name())?,
        None => position(&metrics::GROUPS, &metrics::NO_GROUP)?,
    };
    Some(Negotiated {
        version: u8::from(rustls.protocol_version()? == ProtocolVersion::TLSv1_3),
        suite: position(&SUITES, &suite)?,
        group,
        resumption: u8::from(is_resumed(rustls)),
    })
}

/// As far as rustls knows by now.
fn is_resumed(rustls: &UnbufferedServerConnection) -> bool {
    rustls.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Calls rustls with records.
fn call(
    mut rustls: Box<UnbufferedServerConnection>,
    attempt: Box<Attempt>,
    received: &mut [u8],
    call: impl FnOnce(&mut UnbufferedServerConnection, &mut [u8]) -> Processed,
) -> Called {
    let resumed = is_resumed(&rustls);
    let (processed, attempt) = resumption::during(attempt, resumed, || call(&mut rustls, received));
    Called {
        rustls,
        attempt,
        processed,
        given: None,
    }
}

/// Calls rustls with records on which it asks for a signature, or for the verification of one, and may have to wait for it.
fn call_that_may_wait(
    rustls: Box<UnbufferedServerConnection>,
    attempt: Box<Attempt>,
    received: &mut [u8],
    process: impl FnOnce(&mut UnbufferedServerConnection, &mut [u8]) -> Processed + 'static,
) -> Progress<Called> {
    if !suspend::is_allowed() {
        return Progress::Done(call(rustls, attempt, received, process));
    }
    let mut received = received.to_vec();
    suspend::run(move || {
        let called = call(rustls, attempt, &mut received, process);
        let given = Some(received);
        Called { given, ..called }
    })
}

/// One record that starts with a ClientHello: the second one, after a HelloRetryRequest.
fn is_client_hello(records: &[u8]) -> bool {
    matches!(records, [22, _, _, _, _, 1, ..]) && record_end(records, 0) == Some(records.len())
}

/// Early data that rustls could not decrypt and has passed over. rustls leaves it where it is, and would count it again with each record after
/// it, until its limit is reached and the handshake fails. AWS-LC wipes what it cannot decrypt, but for the tag; what it can decrypt is never
/// all zeros, because the type is in it.
fn is_passed_over(record: &[u8]) -> bool {
    let [23, _, _, _, _, sealed @ ..] = record else {
        return false;
    };
    let wiped = sealed.len().saturating_sub(TAG_BYTES);
    wiped > 0 && sealed[..wiped].iter().all(|&byte| byte == 0)
}

/// A record that may hold a handshake message: in the clear, or encrypted as TLS 1.3 does it.
fn is_handshake(record: &[u8]) -> bool {
    matches!(record, [22 | 23, ..])
}

/// Versions on the wire.
const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;

/// In the order of [`crate::metrics::SUITES`].
pub const SUITES: [CipherSuite; 9] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// In the order of [`crate::metrics::GROUPS`], without the last.
pub const GROUPS: [NamedGroup; 4] = [
    NamedGroup::X25519MLKEM768,
    NamedGroup::X25519,
    NamedGroup::secp256r1,
    NamedGroup::secp384r1,
];

fn position<T: PartialEq>(table: &[T], value: &T) -> Option<u8> {
    table
        .iter()
        .position(|entry| entry == value)
        .and_then(|position| u8::try_from(position).ok())
}

impl Connection {
    fn established(&self) -> Option<&Established> {
        if let State::Established(this) = &self.state {
            Some(this)
        } else {
            None
        }
    }

    fn take_attempt(&mut self) -> Box<Attempt> {
        self.attempt.take().expect("it is here while rustls is not at work")
    }

    /// Looks at the ClientHello received so far. When it is complete the state moves on, and there may be a key exchange to
    /// compute first; otherwise the state stays `Hello`.
    fn hello(&mut self, mut gathering: Gathering, received: &[u8]) -> Result<Option<CryptoOp>, HandshakeFailure> {
        let body = match gathering.gather(received) {
            Gathered::NeedMore => {
                self.state = State::Hello(gathering);
                return Ok(None);
            }
            Gathered::Refused(failure) => return Err(failure),
            Gathered::Complete(body) => body,
        };
        let hello_end = record_end(received, gathering.last_record()).unwrap_or(received.len());
        let hello = ClientHello::parse(&body)?;
        self.hello_end = hello_end;
        self.server_name = hello.server_name().map(|name| name.to_ascii_lowercase().into());
        self.offered_version = hello.best_version();
        // Without the supported_versions extension the version of the header is the best one, and all below it are meant too.
        let offers = |version| match hello.versions().next() {
            Some(_) => hello.versions().any(|offered| offered == version),
            None => hello.best_version() >= version,
        };
        let tls13 = self.policy.has_version(TLS13) && offers(TLS13);
        let tls12 = self.policy.has_version(TLS12) && offers(TLS12);
        if !tls13 && !tls12 {
            return Err(HandshakeFailure::VersionTooOld {
                offered: self.offered_version,
            });
        }
        if !self.policy.knows(self.server_name.as_deref()) {
            return Err(HandshakeFailure::UnknownName);
        }
        // rustls would look for a certificate that fits no suite, and say that none was found.
        if !self
            .policy
            .shares_suite(if tls13 { TLS13 } else { TLS12 }, || hello.cipher_suites())
        {
            return Err(HandshakeFailure::NoSharedSuite);
        }
        // By the name of this ClientHello, which is that of the connection: rustls refuses a second one with another.
        let configs = self.policy.configs(self.server_name.as_deref());
        self.asks_for_certificates = configs.asks_for_certificates;
        let rustls = UnbufferedServerConnection::new(Arc::clone(configs.config(hello.prefers_chacha())))
            .map_err(|error| HandshakeFailure::Protocol(error.to_string()))?;
        let rustls = Box::new(rustls);
        self.attempt = Some(Box::new(Attempt::new(!tls13, hello.takes_tickets())));
        let group = self.policy.choose_group(hello.groups()).filter(|_| tls13);
        let share = group.and_then(|group| Some((group, hello.key_share(group)?)));
        let Some((group, share)) = share else {
            self.state = State::Handshaking { rustls, end: 0 };
            return Ok(None);
        };
        let op = CryptoOp::KeyExchange {
            group,
            peer_share: share.into(),
        };
        let peer_share = share.into();
        self.state = State::Exchanging(rustls, Exchange { group, peer_share });
        Ok(Some(op))
    }

    /// Gives rustls one record after another, so that no application data is taken before the end of the handshake is seen. A
    /// message that is split over records stays until it is whole.
    fn run(
        &mut self,
        mut rustls: Box<UnbufferedServerConnection>,
        mut at: Window,
        received: &mut [u8],
        outboxes: &mut Outboxes<'_>,
    ) -> (usize, Step) {
        while rustls.is_handshaking() {
            let Some(end) = record_end(received, at.end) else {
                self.state = State::Handshaking {
                    rustls,
                    end: at.end - at.used,
                };
                return (at.used, Step::NeedsInput);
            };
            let verifies = self.asks_for_certificates && is_handshake(&received[at.end..end]);
            at.end = end;
            let given = &mut received[at.used..end];
            let attempt = self.take_attempt();
            let progress = if end == self.hello_end || verifies || is_client_hello(given) {
                call_that_may_wait(rustls, attempt, given, unbuffered::process)
            } else {
                Progress::Done(call(rustls, attempt, given, unbuffered::process))
            };
            match self.after(progress, at, received, outboxes) {
                ControlFlow::Continue((same, next)) => {
                    (rustls, at) = (same, next);
                    if is_passed_over(&received[at.used..at.end]) {
                        at.used = at.end;
                    }
                }
                ControlFlow::Break(step) => return step,
            }
        }
        let negotiated = negotiated(&rustls);
        let resumptions = self.take_attempt().outcome(is_resumed(&rustls));
        let alpn = rustls.alpn_protocol().map(Into::into);
        let client_certificates = rustls.peer_certificates().unwrap_or_default().into();
        match Records::new(*rustls) {
            Ok(records) => {
                self.state = State::Established(Box::new(Established {
                    records,
                    negotiated,
                    resumptions,
                    alpn,
                    client_certificates,
                }));
                (at.end, Step::Established)
            }
            Err(error) => (
                received.len(),
                Step::Failed(HandshakeFailure::Protocol(error.to_string())),
            ),
        }
    }

    /// What follows from a call of rustls, up to the next step.
    fn go_on(
        &mut self,
        progress: Progress<Called>,
        at: Window,
        received: &mut [u8],
        outboxes: &mut Outboxes<'_>,
    ) -> (usize, Step) {
        match self.after(progress, at, received, outboxes) {
            ControlFlow::Continue((rustls, at)) => self.run(rustls, at, received, outboxes),
            ControlFlow::Break(step) => step,
        }
    }

    /// What follows from a call of rustls: it goes on with the next record, or there is a step.
    fn after(
        &mut self,
        progress: Progress<Called>,
        at: Window,
        received: &mut [u8],
        outboxes: &mut Outboxes<'_>,
    ) -> ControlFlow<(usize, Step), (Box<UnbufferedServerConnection>, Window)> {
        let Called {
            rustls,
            attempt,
            processed,
            given,
        } = match progress {
            Progress::Done(called) => called,
            Progress::Panicked => {
                let failure = HandshakeFailure::Protocol("internal error".into());
                return ControlFlow::Break((received.len(), Step::Failed(failure)));
            }
            Progress::Waits(call, op) => {
                // The same bytes come again, from the first that is not used up.
                self.state = State::Suspended {
                    call,
                    end: at.end - at.used,
                };
                return ControlFlow::Break((at.used, Step::Crypto(op)));
            }
        };
        self.attempt = Some(attempt);
        if let Some(given) = given {
            received[at.used..at.end].copy_from_slice(&given);
        }
        let mut sealed = outboxes.sealed.sink(outboxes.pool);
        if processed.error.as_ref().is_some_and(is_key_failure) {
            // rustls has no alert for it. Its ServerHello is kept back, so that the client reads ours in the clear.
            sealed.write(&fatal(AlertDescription::InternalError));
        } else if processed.error.as_ref().is_some_and(is_other_name) {
            // For this one neither.
            sealed.write(&fatal(AlertDescription::IllegalParameter));
        } else {
            sealed.write(&processed.output);
        }
        let failure = match processed.error {
            Some(error) => self.failure(&error),
            None if processed.closed => HandshakeFailure::PeerAlert(AlertDescription::CloseNotify),
            None => {
                let used = at.used + processed.discard;
                return ControlFlow::Continue((rustls, Window { used, end: at.end }));
            }
        };
        ControlFlow::Break((received.len(), Step::Failed(failure)))
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls has more errors than an operator can act on"
    )]
    fn failure(&self, error: &Error) -> HandshakeFailure {
        use PeerIncompatible as P;
        match error {
            Error::AlertReceived(alert) => HandshakeFailure::PeerAlert(*alert),
            Error::NoCertificatesPresented => {
                let words = "client sent no certificate, which is required".into();
                HandshakeFailure::ClientCertificate(ClientRefusal::NoCertificate, words)
            }
            Error::InvalidCertificate(error) => {
                let (reason, words) = client_auth::refusal(error);
                HandshakeFailure::ClientCertificate(reason, format!("client certificate {words}"))
            }
            Error::NoApplicationProtocol => HandshakeFailure::NoSharedAlpn,
            Error::PeerIncompatible(P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired) => {
                HandshakeFailure::NoSharedGroup
            }
            Error::PeerIncompatible(P::NoCipherSuitesInCommon) => HandshakeFailure::NoSharedSuite,
            Error::PeerIncompatible(P::NoSignatureSchemesInCommon) => HandshakeFailure::NoSuitableCertificate,
            Error::PeerIncompatible(P::Tls12NotOffered | P::Tls12NotOfferedOrEnabled) => {
                HandshakeFailure::VersionTooOld {
                    offered: self.offered_version,
                }
            }
            // What rustls says when the selector finds nothing.
            Error::General(why) if why.contains("no server certificate chain resolved") => {
                HandshakeFailure::NoSuitableCertificate
            }
            Error::FailedToGetCurrentTime | Error::FailedToGetRandomBytes => {
                HandshakeFailure::Key(KeyFailure::Failed(error.to_string()))
            }
            Error::Other(OtherError(error)) if let Some(failure) = error.downcast_ref::<KeyFailure>() => {
                HandshakeFailure::Key(failure.clone())
            }
            other => HandshakeFailure::Protocol(describe(other)),
        }
    }
}

/// The key has not signed.
fn is_key_failure(error: &Error) -> bool {
    matches!(error, Error::Other(OtherError(error)) if error.is::<KeyFailure>())
}

/// The second ClientHello has another name than the first: RFC 8446 section 4.1.2 forbids it.
fn is_other_name(error: &Error) -> bool {
    *error == Error::PeerMisbehaved(PeerMisbehaved::ServerNameDifferedOnRetry)
}

/// A fatal alert before anything is encrypted, with its record.
fn fatal(alert: AlertDescription) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, u8::from(alert)]
}

fn describe(error: &Error) -> String {
    if let Error::AlertReceived(alert) = error {
        return format!("peer sent {}", alert_name(*alert));
    }
    error.to_string()
}

/// The alert for a refusal of our own. Whoever does not speak TLS gets none.
fn alert_for(failure: &HandshakeFailure) -> Option<AlertDescription> {
    match failure {
        HandshakeFailure::NotTls { .. } => None,
        HandshakeFailure::HelloTooLarge => Some(AlertDescription::RecordOverflow),
        HandshakeFailure::MalformedHello => Some(AlertDescription::DecodeError),
        HandshakeFailure::VersionTooOld { .. } => Some(AlertDescription::ProtocolVersion),
        HandshakeFailure::UnknownName => Some(AlertDescription::UnrecognisedName),
        HandshakeFailure::NoSharedGroup
        | HandshakeFailure::NoSharedSuite
        | HandshakeFailure::NoSharedAlpn
        | HandshakeFailure::NoSuitableCertificate
        | HandshakeFailure::ClientCertificate(..)
        | HandshakeFailure::PeerAlert(_)
        | HandshakeFailure::Key(_)
        | HandshakeFailure::Protocol(_) => Some(AlertDescription::HandshakeFailure),
    }
}
