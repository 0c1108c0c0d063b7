//! Sessions that connections resume. Each is offered by one connection, which puts the one that it gets here: as many
//! clients as there are connections in flight, each coming back with what it was given last.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Formatter};
use std::sync::{Mutex, MutexGuard};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Sessions by the name that was asked for, taken in the order in which they came.
pub(crate) struct Sessions {
    /// Of each name, 0 < most
    most: usize,
    kept: Mutex<HashMap<ServerName<'static>, Kept>>,
}

/// Of a persona, which has one version, only one of them is used.
#[derive(Default)]
struct Kept {
    tls12: VecDeque<Tls12ClientSessionValue>,
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    /// Keeps at most `most` sessions of each name; the oldest goes for a new one.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            kept: Mutex::default(),
        }
    }

    /// Sessions that wait for a connection.
    pub(crate) fn waiting(&self) -> usize {
        let kept = self.kept();
        kept.values().map(|kept| kept.tls12.len() + kept.tls13.len()).sum()
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, Kept>> {
        self.kept.lock().expect("nothing panics while it is locked")
    }

    fn push<T>(&self, sessions: &mut VecDeque<T>, session: T) {
        if sessions.len() == self.most {
            sessions.pop_front();
        }
        sessions.push_back(session);
    }
}

impl ClientSessionStore for Sessions {
    // One group is offered as a rule; without a hint a resumption offers what a full handshake does.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.push(&mut self.kept().entry(name).or_default().tls12, session);
    }

    /// Takes it. rustls puts it back when the server has resumed it and sent no other.
    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().get_mut(&name.to_owned())?.tls12.pop_front()
    }

    // It was taken when it was offered.
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, session: Tls13ClientSessionValue) {
        self.push(&mut self.kept().entry(name).or_default().tls13, session);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().get_mut(name)?.tls13.pop_front()
    }
}

impl fmt::Debug for Sessions {
    // Sessions hold secrets.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}
