//! The whole configuration as loaded: files read, names resolved, keys checked. Immutable, built whole or not at all, swapped by
//! one `Arc`. A session keeps the one it started with.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::address::ServerEndpoint;
use crate::config::{self, Config, IdentityId, NamePattern, ServerAddress, UpstreamId};
use crate::crypto::cpu::Cpu;
use crate::identity::{Identity, NameMap, Selector};
use crate::limits::{CERTIFICATE_FILE_BYTES_MAX, SERVERS_PER_UPSTREAM_MAX};
use crate::metrics::ServerMetrics;
use crate::tls::policy::Policy;

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
    /// By [`IdentityId`].
    pub identities: Vec<Arc<Identity>>,
}

/// One `[[listener]]`.
#[derive(Debug)]
pub struct Listener {
    /// As in the configuration.
    pub name: Arc<str>,
    /// TLS settings.
    pub policy: Arc<Policy>,
    /// Connections open, over all workers and reloads.
    pub live: Arc<AtomicUsize>,
    settings: config::Listener,
    routes: NameMap<UpstreamId>,
}

/// One `[[upstream]]`.
#[derive(Debug)]
pub struct Upstream {
    /// As in the configuration.
    pub settings: config::Upstream,
    /// Every address that the configured servers have; a host name may have several.
    pub servers: Vec<Server>,
}

/// One address of an upstream.
#[derive(Debug)]
pub struct Server {
    /// For people and logs.
    pub label: Arc<str>,
    /// Where it listens.
    pub endpoint: ServerEndpoint,
    /// One for each worker.
    pub metrics: Vec<Arc<ServerMetrics>>,
}

/// Something in the configuration that cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// Which part: `identity "site"`.
    pub part: String,
    /// Which key of it: `certificate`.
    pub key: &'static str,
    /// What was found, what was expected, what to do.
    pub what: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.part, self.key, self.what)
    }
}

impl Snapshot {
    /// Reads every file and resolves every name. `previous` hands over the connection counts of listeners
    /// that stay, and the counters of upstream servers that stay.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn load(config: Config, workers: usize, previous: Option<&Snapshot>) -> Result<Snapshot, Vec<LoadError>> {
        let mut errors = Vec::new();
        let identities = collect(&config.identities, &mut errors, load_identity);
        let upstreams = collect(&config.upstreams, &mut errors, |upstream| {
            load_upstream(upstream, workers, previous)
        });
        let listeners = if errors.is_empty() {
            collect(&config.listeners, &mut errors, |listener| {
                load_listener(listener, &identities, previous)
            })
        } else {
            Vec::new()
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        let epoch = previous.map_or(1, |snapshot| snapshot.epoch + 1);
        Ok(Snapshot {
            epoch,
            config,
            listeners,
            upstreams,
            identities,
        })
    }

    /// The server that an id of this snapshot's balancer means.
    #[must_use]
    pub fn server(&self, group: UpstreamId, index: usize) -> &Server {
        &self.upstreams[group.0].servers[index]
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
        routed.copied().unwrap_or(self.settings.upstream)
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

fn collect<T, U>(items: &[T], errors: &mut Vec<LoadError>, mut load: impl FnMut(&T) -> Result<U, LoadError>) -> Vec<U> {
    items
        .iter()
        .filter_map(|item| load(item).map_err(|error| errors.push(error)).ok())
        .collect()
}

fn load_identity(settings: &config::Identity) -> Result<Arc<Identity>, LoadError> {
    let error = |key, what| LoadError {
        part: format!("identity \"{}\"", settings.name),
        key,
        what,
    };
    let certificate = read(&settings.certificate).map_err(|what| error("certificate", what))?;
    let mut key = read(&settings.key).map_err(|what| error("key", what))?;
    let identity = Identity::from_pem(&settings.name, &certificate, &key);
    zeroize::Zeroize::zeroize(&mut key);
    match identity {
        Ok(identity) => Ok(Arc::new(identity)),
        Err(problem) => {
            let (key, path) = match problem {
                crate::identity::IdentityError::Key(_) => ("key", &settings.key),
                crate::identity::IdentityError::Certificate(_)
                | crate::identity::IdentityError::NoCertificate
                | crate::identity::IdentityError::Mismatch => ("certificate", &settings.certificate),
            };
            Err(error(key, format!("{}: {problem}", path.display())))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path)
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?
        .len();
    if size > CERTIFICATE_FILE_BYTES_MAX {
        return Err(format!(
            "{} has {size} bytes, expected at most {CERTIFICATE_FILE_BYTES_MAX}: is it a PEM file?",
            path.display()
        ));
    }
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn load_upstream(
    settings: &config::Upstream,
    workers: usize,
    previous: Option<&Snapshot>,
) -> Result<Upstream, LoadError> {
    let error = |what| LoadError {
        part: format!("upstream \"{}\"", settings.name),
        key: "servers",
        what,
    };
    let same = previous.and_then(|snapshot| snapshot.upstreams.iter().find(|u| u.settings.name == settings.name));
    let known = |endpoint: &ServerEndpoint| same?.servers.iter().find(|server| server.endpoint == *endpoint);
    let mut servers: Vec<Server> = Vec::new();
    for address in &settings.servers {
        let endpoints: Vec<ServerEndpoint> = match address {
            ServerAddress::Unix(path) => vec![ServerEndpoint::Unix(path.clone())],
            ServerAddress::Host(host, port) => resolve(host, *port)
                .map_err(error)?
                .into_iter()
                .map(ServerEndpoint::Tcp)
                .collect(),
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
        let found = servers.len();
        return Err(error(format!(
            "the servers have {found} addresses, expected at most {SERVERS_PER_UPSTREAM_MAX}"
        )));
    }
    Ok(Upstream {
        settings: settings.clone(),
        servers,
    })
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| {
            format!("cannot resolve \"{host}\" ({error}); expected a host name that resolves when the configuration is loaded, or an IP address")
        })?
        .collect();
    if addresses.is_empty() {
        Err(format!("\"{host}\" has no address"))
    } else {
        Ok(addresses)
    }
}

fn load_listener(
    settings: &config::Listener,
    identities: &[Arc<Identity>],
    previous: Option<&Snapshot>,
) -> Result<Listener, LoadError> {
    let own = settings
        .identities
        .iter()
        .map(|&IdentityId(position)| Arc::clone(&identities[position]))
        .collect();
    let selector = Arc::new(Selector::new(own, settings.strict_sni));
    let policy = Policy::new(&settings.tls, selector, Cpu::detect()).map_err(|error| LoadError {
        part: format!("listener \"{}\"", settings.name),
        key: "tls",
        what: error.to_string(),
    })?;
    let mut routes = NameMap::default();
    for route in &settings.routes {
        let pattern: &NamePattern = &route.sni;
        routes.insert(pattern, route.upstream);
    }
    let same = previous.and_then(|snapshot| snapshot.listeners.iter().find(|l| *l.name == *settings.name));
    Ok(Listener {
        name: settings.name.as_str().into(),
        policy: Arc::new(policy),
        live: same.map(|listener| Arc::clone(&listener.live)).unwrap_or_default(),
        settings: settings.clone(),
        routes,
    })
}
