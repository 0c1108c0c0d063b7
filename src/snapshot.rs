//! The whole configuration as loaded: files read, names resolved, keys checked. Immutable, built whole or not at all, swapped by
//! one `Arc`. A session keeps the one it started with.

mod admissions;
mod client_auth;
mod identities;
pub mod inventory;
mod renewal;
mod staples;

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use ringlock_hsm::custody::Custody;
use ringlock_hsm::regular_file;
use ringlock_hsm::remote::Group;
use ringlock_hsm::uri::PinSource;
use zeroize::Zeroizing;

use self::admissions::Destination;
pub use self::client_auth::End;
use self::identities::{Identities, Loaded};
pub use self::identities::{files, pairs, token_spec};
pub use self::renewal::{Failure, Renewal};
pub use self::staples::{StapleSource, Stapled, responder};

use crate::address::ServerEndpoint;
use crate::config::{
    self, Config, IdentityId, Places, Problem, ServerAddress, TicketSecret, TlsVersion, UpstreamId, Warning,
};
use crate::crypto::cpu::Cpu;
use crate::identity::client_auth::{ClientAuth, RevocationList};
use crate::identity::preflight::FileFacts;
use crate::identity::{Identity, NameMap, Selector};
use crate::limits::{FOLDER_MESSAGES_MAX, SERVERS_PER_UPSTREAM_MAX};
use crate::metrics::{Counter, KeyMetrics, ServerMetrics};
use crate::tls::policy::{Admission, AdmissionId, Policy};
use crate::tls::session_cache::SessionCache;
use crate::tls::tickets::Tickets;

/// See the module.
#[derive(Debug)]
pub struct Snapshot {
    /// 1 for the first, one more for each reload.
    pub epoch: u64,
    /// What it was made from.
    pub config: Config,
    /// By position in [`Config::listeners`].
    pub listeners: Vec<Listener>,
    /// By [`UpstreamId`].
    pub upstreams: Vec<Upstream>,
    /// All, in the order of the file: of a folder as many as it has. [`Snapshot::identities_of`] has those of an [`IdentityId`].
    pub identities: Vec<Arc<Identity>>,
    /// By [`IdentityId`]: which of the identities.
    ranges: Vec<Range<usize>>,
    /// By position in `identities`.
    files: Vec<FileFacts>,
    /// Those that get OCSP staples, or should.
    pub staples: Vec<Stapled>,
    /// What tickets are sealed with: the same through all reloads.
    pub tickets: Arc<Tickets>,
    /// Tokens that identities have their keys in.
    pub key_groups: Vec<KeyGroup>,
    /// Connections that were accepted under this snapshot and are open, of each worker (gauge).
    pub connections: Box<[CachePadded<Counter>]>,
    /// Tokens that should have a key and do not show it, while another of their group does.
    absences: Vec<Warning>,
}

/// Tokens that hold the same keys, of a snapshot that uses them.
#[derive(Clone, Debug)]
pub struct KeyGroup {
    /// What workers ask.
    pub group: Arc<Group>,
    /// One for each worker.
    pub metrics: Vec<Arc<KeyMetrics>>,
}

/// One `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// As in the configuration.
    pub name: Arc<str>,
    /// TLS settings.
    pub policy: Arc<Policy>,
    /// Who is let in: the first is for all names but those of routes that have one of their own.
    admissions: Vec<Admission>,
    /// Connections open, over all workers and reloads.
    pub live: Arc<AtomicUsize>,
    settings: config::Listener,
    routes: Arc<NameMap<Destination>>,
}

/// One `[[upstream]]`.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// As in the configuration.
    pub settings: config::Upstream,
    /// Every address that the configured servers have; a host name may have several.
    pub servers: Vec<Server>,
}

/// One address of an upstream.
#[derive(Clone, Debug)]
pub struct Server {
    /// For people and logs.
    pub label: Arc<str>,
    /// Where it listens.
    pub endpoint: ServerEndpoint,
    /// One for each worker.
    pub metrics: Vec<Arc<ServerMetrics>>,
}

impl Snapshot {
    /// Reads every file, resolves every name, and has every key in a token show that it signs. `previous` hands over the connection
    /// counts of listeners that stay, and the counters of upstream servers and tokens that stay.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(
        config: Config,
        workers: usize,
        previous: Option<&Snapshot>,
        custody: &mut Custody,
    ) -> Result<Snapshot, Vec<Problem>> {
        // The operator's word that the PINs are right.
        custody.forgive_pins();
        let mut problems = Vec::new();
        let places = &config.places;
        let mut loader = Identities::new(&config, custody, previous);
        for settings in &config.identities {
            problems.extend(told(loader.load(settings), settings, places));
        }
        let Loaded {
            identities,
            ranges,
            files,
            groups,
            absences,
        } = loader.into_loaded();
        problems.extend(staples::missing_dir(&config));
        let staples::Loaded { staples, unusable } = staples::load(by_settings(&config, &identities, &ranges), places);
        problems.extend(
            unusable
                .into_iter()
                .filter(|file| file.is_mistake)
                .map(|file| file.problem),
        );
        let upstreams = collect(&config.upstreams, &mut problems, |upstream| {
            load_upstream(upstream, places, workers, previous)
        });
        let load_client_auths = |listener| {
            collect(&admissions::settings(listener), &mut problems, |settings| {
                client_auth::load(settings.client_auth, &settings.table, places).map(|loaded| loaded.map(Arc::new))
            })
        };
        let client_auths: Vec<_> = config.listeners.iter().map(load_client_auths).collect();
        let mut client_auths = client_auths.into_iter();
        let tickets = previous
            .map(|snapshot| Arc::clone(&snapshot.tickets))
            .unwrap_or_default();
        let mut listeners = Vec::new();
        if problems.is_empty() {
            listeners = collect(&config.listeners, &mut problems, |listener| {
                let client_auths = client_auths.next().expect("each listener's were loaded");
                let previous = previous.and_then(|snapshot| snapshot.listener(&listener.name));
                let admissions = admissions::load(listener, client_auths, &config.tickets, &tickets, previous);
                let own = identities_of(&listener.identities, &ranges, &identities);
                let own: Vec<_> = own.map(Arc::clone).collect();
                load_listener(listener, admissions, places, &own, previous)
            });
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let epoch = previous.map_or(1, |snapshot| snapshot.epoch + 1);
        Ok(Snapshot {
            epoch,
            config,
            listeners,
            upstreams,
            identities,
            ranges,
            files,
            staples,
            tickets,
            key_groups: groups
                .into_iter()
                .map(|group| KeyGroup::new(group, workers, previous))
                .collect(),
            connections: connections(workers),
            absences,
        })
    }

    /// What is legal and probably not meant, at `now` in seconds since 1970.
    #[must_use]
    pub fn warnings(&self, now: i64) -> Vec<Warning> {
        let mut warnings = self.absences.clone();
        warnings.extend(identities::warnings(self, now));
        let identities = by_settings(&self.config, &self.identities, &self.ranges);
        warnings.extend(staples::warnings(&self.config, identities, &self.staples));
        for token in &self.config.tokens {
            if let Some(path) = token.pin.as_ref().and_then(PinSource::exposed) {
                let what = format!("others than owner and group can read or write {}", path.display());
                let remedy = format!("take that from them: chmod o= {}", path.display());
                warnings.push(self.config.places.warning(token.key("pin_source"), what, remedy));
            }
        }
        if let TicketSecret::File(path) = &self.config.tickets.secret
            && regular_file::is_exposed(path)
        {
            let path = path.display();
            let what = format!(
                "others than owner and group can read or write {path}: whoever knows the secret can open tickets and take over sessions"
            );
            let remedy = format!("take that from them: chmod o= {path}, and put another secret there");
            warnings.push(self.config.places.warning("tickets.secret", what, remedy));
        }
        for (table, settings, client_auth) in self.client_auths() {
            let places = &self.config.places;
            warnings.extend(client_auth::warnings(settings, client_auth, &table, places, now));
        }
        for listener in &self.listeners {
            warnings.extend(admissions::warnings(self, listener));
        }
        warnings
    }

    /// How near their ends the CAs and revocation lists of clients are, at `now` in seconds since 1970.
    #[must_use]
    pub fn ends_of_clients(&self, now: i64) -> Vec<End> {
        let all = self.client_auths();
        let places = &self.config.places;
        all.flat_map(|(table, settings, client_auth)| client_auth::ends(settings, client_auth, &table, places, now))
            .collect()
    }

    /// What clients are verified with, and where that is configured.
    fn client_auths(&self) -> impl Iterator<Item = (String, &config::ClientAuth, &ClientAuth)> {
        self.listeners.iter().flat_map(|listener| {
            let settings = admissions::settings(&listener.settings);
            let with_admissions = settings.into_iter().zip(&listener.admissions);
            with_admissions.filter_map(|(settings, admission)| {
                Some((settings.table, settings.client_auth?, admission.client_auth.as_deref()?))
            })
        })
    }

    /// Every identity with its name.
    fn named(&self) -> impl Iterator<Item = (&str, &Arc<Identity>)> {
        self.identities.iter().map(|identity| (&*identity.name, identity))
    }

    /// The identities by name, and what is known of their files.
    fn by_name(&self) -> HashMap<&str, (&Arc<Identity>, &FileFacts)> {
        let named = self.named().zip(&self.files);
        named
            .map(|((name, identity), files)| (name, (identity, files)))
            .collect()
    }

    /// The identities of these, in their order.
    pub fn identities_of<'a>(&'a self, ids: &'a [IdentityId]) -> impl Iterator<Item = &'a Arc<Identity>> + Clone {
        identities_of(ids, &self.ranges, &self.identities)
    }

    /// Lists that clients are looked up in, with the names of their listeners; not those that newer ones have replaced.
    pub fn revocation_lists(&self) -> impl Iterator<Item = (&str, &RevocationList)> {
        self.listeners.iter().flat_map(|listener| {
            let client_auths = listener
                .admissions
                .iter()
                .filter_map(|admission| admission.client_auth.as_ref());
            let lists = client_auths.flat_map(|client_auth| client_auth.lists());
            let in_use = lists.filter(|list| !list.is_replaced);
            in_use.map(|list| (&*listener.name, list))
        })
    }

    /// The listener of this name.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| *listener.name == *name)
    }

    /// A server that both groups have, for people.
    fn shared_server(&self, one: UpstreamId, other: UpstreamId) -> Option<&str> {
        let [one, other] = [one, other].map(|UpstreamId(position)| &self.upstreams[position].servers);
        let is_shared = |server: &&Server| other.iter().any(|other| other.endpoint == server.endpoint);
        one.iter().find(is_shared).map(|server| &*server.label)
    }

    /// The server that an id of this snapshot's balancer means.
    #[must_use]
    pub fn server(&self, group: UpstreamId, index: usize) -> &Server {
        &self.upstreams[group.0].servers[index]
    }
}

impl KeyGroup {
    fn new(group: Arc<Group>, workers: usize, previous: Option<&Snapshot>) -> KeyGroup {
        let known = previous.and_then(|snapshot| {
            let mut groups = snapshot.key_groups.iter();
            groups.find(|known| known.group.spec.name == group.spec.name)
        });
        KeyGroup {
            group,
            metrics: match known {
                Some(known) => known.metrics.clone(),
                None => (0..workers).map(|_| Arc::default()).collect(),
            },
        }
    }
}

impl Listener {
    /// As in the configuration.
    #[must_use]
    pub fn settings(&self) -> &config::Listener {
        &self.settings
    }

    /// Where a client that asked for this lower-case name goes.
    #[must_use]
    pub fn route(&self, name: Option<&str>) -> UpstreamId {
        let routed = name.and_then(|name| self.routes.find(name).first());
        routed.map_or(self.settings.upstream, |destination| destination.upstream)
    }

    /// How clients that ask for this lower-case name are let in.
    #[must_use]
    pub fn admission(&self, name: Option<&str>) -> &Admission {
        let routed = name.and_then(|name| self.routes.find(name).first());
        let AdmissionId(position) = routed.map_or(AdmissionId::default(), |destination| destination.admission);
        &self.admissions[position]
    }

    /// Connections of clients that are revoked after they were let in are closed, at least those that have asked for some name.
    #[must_use]
    pub fn closes_revoked(&self) -> bool {
        self.admissions.iter().any(Admission::closes_revoked)
    }

    /// For sessions that clients do not keep themselves: one for all names.
    #[must_use]
    pub fn session_cache(&self) -> Option<&Arc<SessionCache>> {
        self.admissions[0].resumption.cache()
    }

    /// Counts a connection in, unless there are `connections_max` already.
    #[must_use]
    pub fn admit(&self) -> bool {
        let live = self.live.fetch_add(1, Ordering::Relaxed);
        if live < self.settings.connections_max {
            return true;
        }
        self.live.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// Counts a connection out.
    pub fn leave(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

fn identities_of<'a>(
    ids: &'a [IdentityId],
    ranges: &'a [Range<usize>],
    identities: &'a [Arc<Identity>],
) -> impl Iterator<Item = &'a Arc<Identity>> + Clone {
    ids.iter().flat_map(|id| &identities[ranges[id.0].clone()])
}

/// Each `[[identity]]` with those that were made of it.
fn by_settings<'a>(
    config: &'a Config,
    identities: &'a [Arc<Identity>],
    ranges: &'a [Range<usize>],
) -> impl Iterator<Item = (&'a config::Identity, &'a [Arc<Identity>])> {
    let slices = ranges.iter().map(|range| &identities[range.clone()]);
    config.identities.iter().zip(slices)
}

/// None yet, of any worker.
fn connections(workers: usize) -> Box<[CachePadded<Counter>]> {
    (0..workers).map(|_| CachePadded::default()).collect()
}

/// The problems of an `[[identity]]`, of which a folder may have thousands.
fn told(failures: Vec<Failure>, settings: &config::Identity, places: &Places) -> Vec<Problem> {
    let more = failures.len().saturating_sub(FOLDER_MESSAGES_MAX);
    let first = failures.into_iter().take(FOLDER_MESSAGES_MAX);
    let mut problems: Vec<Problem> = first.map(|failure| failure.problem).collect();
    if more > 0 {
        let key = format!("identity \"{}\": certificates", settings.name);
        let found = format!("{more} more such files in {}", settings.certificate);
        problems.push(places.problem(key, found, "certificates with their keys", "correct those above first"));
    }
    problems
}

fn collect<T, U>(items: &[T], problems: &mut Vec<Problem>, mut load: impl FnMut(&T) -> Result<U, Problem>) -> Vec<U> {
    items
        .iter()
        .filter_map(|item| load(item).map_err(|problem| problems.push(problem)).ok())
        .collect()
}

/// The bytes of a file of at most so many, or what was found in place of them.
fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    regular_file::read(path, bytes_max).map_err(|error| error.to_string())
}

fn load_upstream(
    settings: &config::Upstream,
    places: &Places,
    workers: usize,
    previous: Option<&Snapshot>,
) -> Result<Upstream, Problem> {
    let key = || format!("upstream \"{}\": servers", settings.name);
    let same = previous.and_then(|snapshot| snapshot.upstreams.iter().find(|u| u.settings.name == settings.name));
    let known = |endpoint: &ServerEndpoint| same?.servers.iter().find(|server| server.endpoint == *endpoint);
    let mut servers: Vec<Server> = Vec::new();
    for address in &settings.servers {
        let endpoints: Vec<ServerEndpoint> = match address {
            ServerAddress::Unix(path) => vec![ServerEndpoint::Unix(path.clone())],
            ServerAddress::Host(host, port) => {
                let resolved = resolve(host, *port).map_err(|what| {
                    let expected = "a host name that resolves when the configuration is loaded, or an IP address";
                    places.problem(
                        key(),
                        what,
                        expected,
                        "correct the name, or ask why it does not resolve here",
                    )
                })?;
                resolved.into_iter().map(ServerEndpoint::Tcp).collect()
            }
        };
        for endpoint in endpoints {
            // Several names may mean one address; it is still one server, with one share of the connections.
            if servers.iter().any(|server| server.endpoint == endpoint) {
                continue;
            }
            servers.push(Server {
                label: endpoint.to_string().into(),
                metrics: match known(&endpoint) {
                    Some(server) => server.metrics.clone(),
                    None => (0..workers).map(|_| Arc::default()).collect(),
                },
                endpoint,
            });
        }
    }
    if servers.len() > SERVERS_PER_UPSTREAM_MAX {
        let found = format!("{} addresses", servers.len());
        let expected = format!("at most {SERVERS_PER_UPSTREAM_MAX}");
        return Err(places.problem(key(), found, expected, "spread the servers over several upstreams"));
    }
    Ok(Upstream {
        settings: settings.clone(),
        servers,
    })
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let resolved = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("\"{host}\", which does not resolve ({error})"))?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in resolved {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        Err(format!("\"{host}\", which has no address"))
    } else {
        Ok(addresses)
    }
}

fn load_listener(
    settings: &config::Listener,
    admissions: Vec<Admission>,
    places: &Places,
    own: &[Arc<Identity>],
    previous: Option<&Listener>,
) -> Result<Listener, Problem> {
    if settings.tls.max_version == TlsVersion::Tls13 && !own.iter().any(|identity| identity.signs_for_tls13()) {
        return Err(places.problem(
            format!("listener \"{}\": identities", settings.name),
            "no key that can sign for TLS 1.3, which is enabled: in their tokens, RSA has no PSS as TLS wants it",
            "a key for ECDSA, Ed25519 or RSA-PSS",
            "use another key or token (`ringlock keys test --config FILE` shows what they can), or set max_version = \"1.2\" in listener.tls",
        ));
    }
    let selector = Arc::new(Selector::new(own, settings.strict_sni));
    let names = admissions::by_name(settings, |destination| destination.admission);
    let policy = Policy::new(&settings.tls, &admissions, names, selector, Cpu::detect());
    let policy = policy.map_err(|error| {
        let key = format!("listener \"{}\": tls", settings.name);
        places.problem(
            key,
            error.to_string(),
            "settings that go together",
            "leave out cipher_suites and groups",
        )
    })?;
    Ok(Listener {
        name: settings.name.as_str().into(),
        policy: Arc::new(policy),
        admissions,
        live: previous.map(|listener| Arc::clone(&listener.live)).unwrap_or_default(),
        settings: settings.clone(),
        routes: Arc::new(admissions::by_name(settings, |destination| destination)),
    })
}
