//! The ClientHello of a client that comes back with a session ticket (or a session's id), as somebody could have recorded it.

use std::fmt::{self, Formatter};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::{NamedGroup, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

use super::hello::{client_hello, config};
use super::witness::visit_until;
use crate::error::PerfError;

/// How long a session is waited for behind the handshake.
const PATIENCE: Duration = Duration::from_secs(1);

/// Gets a session of this version from the server; what the next connection begins with. Nothing when the server gives none.
///
/// # Errors
/// When the server cannot be connected to in this version.
pub(super) fn recorded(
    target: SocketAddr,
    name: &ServerName<'static>,
    version: &'static SupportedProtocolVersion,
    timeout: Duration,
) -> Result<Option<Vec<u8>>, PerfError> {
    let sessions = Arc::new(Kept::default());
    let mut config = config(&[version])?;
    config.resumption = Resumption::store(sessions.clone());
    let visited = visit_until(target, name, Arc::new(config.clone()), (timeout, PATIENCE), || {
        sessions.any()
    });
    visited.map_err(|error| PerfError::io(format!("get a session of {:?} from {target}", version.version), error))?;
    if !sessions.any() {
        return Ok(None);
    }
    client_hello(config, name).map(Some)
}

/// The session that came first.
#[derive(Default)]
struct Kept(Mutex<Sessions>);

#[derive(Default)]
struct Sessions {
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Option<Tls13ClientSessionValue>,
}

impl Kept {
    fn any(&self) -> bool {
        let sessions = self.sessions();
        sessions.tls12.is_some() || sessions.tls13.is_some()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}

impl ClientSessionStore for Kept {
    // A resumption offers what a full handshake does.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.sessions().tls12.get_or_insert(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions().tls12.take()
    }

    // It was taken when it was offered.
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, session: Tls13ClientSessionValue) {
        self.sessions().tls13.get_or_insert(session);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions().tls13.take()
    }
}

impl fmt::Debug for Kept {
    // Sessions hold secrets.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}
