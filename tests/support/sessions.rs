//! Clients that come back: what they keep of their sessions, and offer where a test wants it.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ClientConfig, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme};

use super::{Ca, Client, Shown, operation};

/// What a client keeps. It offers its sessions to whomever it comes to, whatever name or address they are of, and however
/// old they are: to decline them is up to the gateway.
#[derive(Clone)]
pub(crate) struct Wallet {
    sessions: Arc<Sessions>,
    shown: Arc<Changing>,
    /// rustls offers a session only to servers that it verifies in the same way.
    verifier: Arc<dyn ServerCertVerifier>,
    clock: Arc<dyn TimeProvider>,
}

/// A session, good for one attempt.
pub(crate) enum Session {
    /// A ticket, or an id.
    Tls12(Box<Tls12ClientSessionValue>),
    /// A ticket.
    Tls13(Box<Tls13ClientSessionValue>),
}

/// What has become of a client that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// Its session was resumed; a message went to the server and back.
    Resumed,
    /// There was a full handshake; a message went to the server and back.
    Full,
    /// The gateway ended the handshake with this alert.
    Refused(AlertDescription),
}

impl Wallet {
    /// An empty one, of a client that trusts this CA.
    pub(crate) fn new(ca: &Ca) -> Wallet {
        Wallet::trusting(&ca.file())
    }

    /// An empty one, of a client that trusts the CA in this file.
    pub(crate) fn trusting(ca: &Path) -> Wallet {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        Wallet {
            sessions: Arc::default(),
            shown: Arc::default(),
            verifier: verifier.build().unwrap(),
            clock: Arc::new(Stopped(UnixTime::now())),
        }
    }

    /// Takes out the session that came last.
    #[track_caller]
    pub(crate) fn take(&self) -> Session {
        self.sessions.pop().expect("the client has got a session")
    }

    /// Puts in a session, which is offered next.
    pub(crate) fn put(&self, session: Session) {
        self.sessions.0.lock().unwrap().push(session);
    }

    /// Sessions in it.
    pub(crate) fn count(&self) -> usize {
        self.sessions.0.lock().unwrap().len()
    }

    /// Throws all away.
    pub(crate) fn clear(&self) {
        self.sessions.0.lock().unwrap().clear();
    }

    /// Has a client in the making use it, and show this when it is asked for a certificate.
    pub(super) fn give_to(&self, config: &mut ClientConfig, shown: Option<&Shown>) {
        *self.shown.0.lock().unwrap() = shown.map(Shown::certified);
        config.resumption = Resumption::store(self.sessions.clone());
        config.client_auth_cert_resolver = self.shown.clone();
        config.time_provider = Arc::clone(&self.clock);
        config.dangerous().set_certificate_verifier(Arc::clone(&self.verifier));
    }
}

impl Client<'_> {
    /// Comes, exchanges a message with an echoing server, and goes.
    #[track_caller]
    pub(crate) fn visit(&self) -> Visit {
        match self.try_visit() {
            Ok(visit) => visit,
            Err(error) => panic!("neither served nor refused: {error}"),
        }
    }

    /// The same, which may fail.
    pub(crate) fn try_visit(&self) -> std::io::Result<Visit> {
        let exchanged = self.try_connect().and_then(|mut connection| {
            operation::try_exchange_over(&mut connection)?;
            Ok(match connection.tls.handshake_kind() {
                Some(HandshakeKind::Resumed) => Visit::Resumed,
                Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => Visit::Full,
            })
        });
        exchanged.or_else(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner {
                Some(rustls::Error::AlertReceived(alert)) => Ok(Visit::Refused(*alert)),
                Some(_) | None => Err(error),
            }
        })
    }
}

/// The last first.
#[derive(Default)]
struct Sessions(Mutex<Vec<Session>>);

impl Sessions {
    fn pop(&self) -> Option<Session> {
        self.0.lock().unwrap().pop()
    }

    fn pop_if(&self, wanted: impl Fn(&Session) -> bool) -> Option<Session> {
        self.0.lock().unwrap().pop_if(|session| wanted(session))
    }

    fn push(&self, session: Session) {
        self.0.lock().unwrap().push(session);
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sessions", self.0.lock().unwrap().len())
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _server: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.push(Session::Tls12(Box::new(value)));
    }

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        match self.pop_if(|session| matches!(session, Session::Tls12(_)))? {
            Session::Tls12(value) => Some(*value),
            Session::Tls13(_) => None,
        }
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.push(Session::Tls13(Box::new(value)));
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        match self.pop_if(|session| matches!(session, Session::Tls13(_)))? {
            Session::Tls13(value) => Some(*value),
            Session::Tls12(_) => None,
        }
    }
}

/// Shows what it was told last, or nothing.
#[derive(Debug, Default)]
struct Changing(Mutex<Option<Arc<CertifiedKey>>>);

impl ResolvesClientCert for Changing {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap().clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A clock that stands still, by which no session grows old.
#[derive(Debug)]
struct Stopped(UnixTime);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}
