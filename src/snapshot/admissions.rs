//! Whom a listener lets in, and whether that holds: its own `client_auth`, and that of those routes that have one.

use std::sync::Arc;

use rustls::time_provider::DefaultTimeProvider;

use super::{Listener, Snapshot};
use crate::config::{self, NamePattern, Route, UpstreamId, Warning};
use crate::identity::NameMap;
use crate::identity::client_auth::ClientAuth;
use crate::tls::policy::{Admission, AdmissionId};
use crate::tls::resumption::Resumption;
use crate::tls::session_cache::SessionCache;
use crate::tls::tickets::Tickets;

/// Where a name leads, and by which admission.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    pub(super) upstream: UpstreamId,
    pub(super) admission: AdmissionId,
}

/// The settings of one admission.
pub(super) struct Settings<'a> {
    /// Where they are: `listener "edge": routes[1].client_auth`.
    pub(super) table: String,
    /// The names that it is for; none for the listener's own, which is for all others.
    pub(super) names: &'a [NamePattern],
    pub(super) client_auth: Option<&'a config::ClientAuth>,
}

/// Those of all admissions of a listener: its own is the first, then those of routes in their order.
pub(super) fn settings(listener: &config::Listener) -> Vec<Settings<'_>> {
    let name = &listener.name;
    let own = Settings {
        table: format!("listener \"{name}\": client_auth"),
        names: &[],
        client_auth: listener.client_auth.as_ref(),
    };
    let of_routes = listener.routes.iter().enumerate().filter_map(|(number, route)| {
        Some(Settings {
            table: format!("listener \"{name}\": routes[{number}].client_auth"),
            names: &route.sni,
            client_auth: route.client_auth.as_ref()?.as_ref(),
        })
    });
    std::iter::once(own).chain(of_routes).collect()
}

/// Where each route leads, in the order of the file.
fn destinations(routes: &[Route]) -> impl Iterator<Item = (&Route, Destination)> {
    let mut last = AdmissionId::default();
    routes.iter().map(move |route| {
        let admission = match route.client_auth {
            Some(_) => {
                last = AdmissionId(last.0 + 1);
                last
            }
            None => AdmissionId::default(),
        };
        let upstream = route.upstream;
        (route, Destination { upstream, admission })
    })
}

/// What `of` gives for the destination of each name. Names without a route are not in it.
pub(super) fn by_name<T>(listener: &config::Listener, of: impl Fn(Destination) -> T) -> NameMap<T> {
    let mut names = NameMap::default();
    for (route, destination) in destinations(&listener.routes) {
        for name in &route.sni {
            names.insert(name, of(destination));
        }
    }
    names
}

/// With what was loaded for each of [`settings`]. Sessions are kept in one cache, which stays through reloads unless its size is another now.
pub(super) fn load(
    listener: &config::Listener,
    client_auths: Vec<Option<Arc<ClientAuth>>>,
    tickets: &config::Tickets,
    sealing: &Arc<Tickets>,
    previous: Option<&Listener>,
) -> Vec<Admission> {
    let cache = listener.tls.session_cache.map(|bytes| {
        let same = previous.filter(|previous| previous.settings.tls.session_cache == Some(bytes));
        let known = same.and_then(|same| same.session_cache().cloned());
        known.unwrap_or_else(|| Arc::new(SessionCache::new(bytes)))
    });
    let admission = |client_auth: Option<Arc<ClientAuth>>| {
        let sealing = listener.tls.tickets.then(|| Arc::clone(sealing));
        let clock = Arc::new(DefaultTimeProvider);
        let resumption = Resumption::new(&listener.name, client_auth.as_deref(), tickets.lifetime, sealing, clock);
        Admission {
            client_auth,
            resumption: Arc::new(match &cache {
                Some(cache) => resumption.with_cache(Arc::clone(cache)),
                None => resumption,
            }),
        }
    };
    client_auths.into_iter().map(admission).collect()
}

/// Warns of each admission that requires a certificate, while another name leads to the same server without it: a client of that other name
/// may ask the application for whatever it likes.
pub(super) fn warnings(snapshot: &Snapshot, listener: &Listener) -> Vec<Warning> {
    let own = Destination {
        upstream: listener.settings.upstream,
        admission: AdmissionId::default(),
    };
    let routes = &listener.settings.routes;
    let of_routes = destinations(routes).map(|(route, destination)| (route.sni.first(), destination));
    let all: Vec<_> = std::iter::once((None, own)).chain(of_routes).collect();
    let policy = |AdmissionId(position): AdmissionId| {
        let admission = &listener.admissions[position];
        admission.client_auth.as_ref().map(|client_auth| client_auth.policy())
    };
    let mut warnings = Vec::new();
    for (position, settings) in settings(&listener.settings).into_iter().enumerate() {
        let id = AdmissionId(position);
        if !settings.client_auth.is_some_and(|settings| settings.required) {
            continue;
        }
        let others = || all.iter().filter(|(_, other)| policy(other.admission) != policy(id));
        let behind = all.iter().filter(|(_, destination)| destination.admission == id);
        let shared = behind.flat_map(|(_, destination)| {
            others().filter_map(|(name, other)| {
                let server = snapshot.shared_server(destination.upstream, other.upstream)?;
                Some((server, *name))
            })
        });
        if let Some((server, name)) = shared.into_iter().next() {
            let whoever = match name {
                Some(name) => format!("clients that ask for {name}"),
                None => "clients that ask for a name without a route, or for none".to_owned(),
            };
            let what = format!(
                "server {server} behind it is also reached by {whoever}, who need not fulfil it: if the application goes by the Host header, they get what is meant for others"
            );
            let remedy = "have these names served by servers of their own, or have the application refuse a Host that is not the name in the PROXY header (send_proxy = \"v2\")";
            warnings.push(snapshot.config.places.warning(settings.table, what, remedy));
        }
    }
    warnings
}
