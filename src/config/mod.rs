//! The configuration as the rest of the program sees it: every value already legal, every name already resolved.
//!
//! `load` is the only way to get one. Parsing, defaults, cross references and messages are in the files beside
//! this one; nothing outside `config/` knows TOML.
//!
//! `keys` is the table of every key, with kind and default; `read` reads TOML against it and collects the problems;
//! `schema` prints it. `global`, `listener`, `tls`, `identity`, `tokens` and `upstream` make the types below from the tables of
//! the file, with `units`, `address` and `names` for what stands in strings.

mod address;
mod client_auth;
mod global;
mod identity;
mod keys;
mod listener;
mod names;
mod nearest;
mod ocsp;
mod problem;
mod read;
mod schema;
mod tls;
mod tokens;
mod units;
mod upstream;

#[cfg(test)]
mod messages;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use ringlock_hsm::remote::Isolation;
use ringlock_hsm::uri::{ObjectMatch, PinSource, TokenMatch};
use toml::de::DeTable;

use self::address::Taken;
pub use self::client_auth::{
    ClientAuth, ClientName, CrlCheck, NameKind, issuer_text, public_key_text, serial_digits, serial_text,
};
use self::names::Names;
use self::problem::Text;
pub use self::problem::{Places, Position, Problem, Problems, Warning, quoted};
use self::read::Report;
pub use self::schema::schema;
use self::tokens::Tokens;
pub use self::units::parse as parse_duration;

/// A longer configuration file is refused: thousands of listeners fit, and a wrong path does not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Most syntax errors that are told of one file: the later ones are mostly consequences.
const SYNTAX_ERRORS_MAX: usize = 10;

/// Reads the file at `path`. What is legal and probably not meant comes with it as warnings.
///
/// # Errors
///
/// Everything for which the file is refused: it cannot be read, is not TOML, or has keys and values that are not legal.
pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Problems> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let found = format!("that it cannot be read ({error})");
            Problem::of_file(path, found, "a TOML file", "check the path and its permissions")
        })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let found = format!("more than {FILE_BYTES_MAX} bytes");
        return Err(Problem::of_file(path, found, "a TOML file", "check that this is the configuration").into());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        Problem {
            position: Some(Text::new(&before).position(valid..valid)),
            ..Problem::of_file(
                path,
                "bytes that are no UTF-8".to_owned(),
                "UTF-8",
                "save the file as UTF-8",
            )
        }
    })?;
    parse(&text, path)
}

/// Reads `text`, which stands in the file `origin`: relative paths are relative to its folder.
///
/// # Errors
///
/// As [`load`].
pub fn parse(text: &str, origin: &Path) -> Result<(Config, Vec<Warning>), Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if let Some(problems) = Problems::new(syntax_problems(text, origin, &errors)) {
        return Err(problems);
    }
    let mut report = Report::new(origin, text);
    let parts = read::root(&mut report, document, |root| {
        let mut taken = Taken::default();
        let mut identity_names = Names::new("identity");
        let mut upstream_names = Names::new("upstream");
        let global = root.section("global", |table| global::read(table, &mut taken));
        let mut tokens = Tokens::default();
        let tokens_read = root.named("keys", |name, table| tokens.define(name, table));
        let identities = root.sections("identity", |table| {
            identity::read(table, &mut identity_names, &mut tokens)
        });
        let upstreams = root.sections("upstream", |table| upstream::read(table, &mut upstream_names));
        let crypto = root.section("crypto", global::read_crypto);
        let tickets = root.section("tickets", tls::read_tickets);
        let mut context = listener::Context {
            listeners: Names::new("listener"),
            identities: &mut identity_names,
            upstreams: &mut upstream_names,
            taken: &mut taken,
        };
        let listeners = root.sections("listener", |table| listener::read(table, &mut context));
        identity_names.warn_unused(root.report);
        upstream_names.warn_unused(root.report);
        tokens.warn_unused(root.report);
        tokens_read?;
        Some((
            global?,
            crypto?,
            tickets?,
            listeners?,
            identities?,
            upstreams?,
            tokens.into_tokens(),
        ))
    });
    let (problems, warnings, places) = report.into_parts();
    if let Some(problems) = Problems::new(problems) {
        return Err(problems);
    }
    let (global, crypto, tickets, listeners, identities, upstreams, tokens) =
        parts.expect("a reader that returns nothing has noted a problem");
    Ok((
        Config {
            global,
            crypto,
            tickets,
            listeners,
            identities,
            upstreams,
            tokens,
            places,
        },
        warnings,
    ))
}

/// The errors of the TOML parser, at most one a line.
fn syntax_problems(text: &str, origin: &Path, errors: &[toml::de::Error]) -> Vec<Problem> {
    let lines = Text::new(text);
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let position = lines.position(error.span().unwrap_or(text.len()..text.len()));
        let told = problems
            .iter()
            .any(|p| p.position.as_ref().is_some_and(|p| p.line == position.line));
        if told || problems.len() == SYNTAX_ERRORS_MAX {
            continue;
        }
        let (what, expected) = error
            .message()
            .split_once(", expected ")
            .unwrap_or((error.message(), "legal TOML"));
        let problem = if what == "duplicate key" {
            let found = format!("{} a second time", read::shown(&text[position.span.clone()]));
            Problem::of_file(origin, found, "each key once", "remove one of the two, or merge them")
        } else {
            let found = format!("a syntax error ({what})");
            let remedy = "correct the line, or one before it (toml.io describes the format)";
            Problem::of_file(origin, found, expected, remedy)
        };
        problems.push(Problem {
            position: Some(position),
            ..problem
        });
    }
    problems
}

/// The whole file. Indexes ([`IdentityId`], [`UpstreamId`], [`TokenId`]) point into the vectors here.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[global]`
    pub global: Global,
    /// `[crypto]`
    pub crypto: Crypto,
    /// `[tickets]`
    pub tickets: Tickets,
    /// `[[listener]]`, in file order.
    pub listeners: Vec<Listener>,
    /// `[[identity]]`, in file order.
    pub identities: Vec<Identity>,
    /// `[[upstream]]`, in file order.
    pub upstreams: Vec<Upstream>,
    /// `[keys.NAME]`, in file order.
    pub tokens: Vec<TokenConfig>,
    /// Where each key stands in the file, for problems that are found later.
    pub places: Places,
}

/// Position of an identity in [`Config::identities`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdentityId(pub usize);

/// Position of an upstream in [`Config::upstreams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// Position of a token in [`Config::tokens`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub usize);

/// `[global]`
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// How many workers, and on which processors.
    pub workers: Workers,
    /// Which driver.
    pub io: Io,
    /// Where metrics, health and version are served; none when absent.
    pub admin: Option<AdminAddress>,
    /// How long SIGTERM waits for connections to finish.
    pub drain_timeout: Duration,
    /// User to become after binding.
    pub user: Option<String>,
    /// Main group to become a member of; the user's own when absent.
    pub group: Option<String>,
    /// What the process gives up after binding.
    pub given_up: GivenUp,
    /// Certificates, keys, CAs and revocation lists are loaded again by themselves when their files change.
    pub watch_files: bool,
    /// `ocsp_dir`, `ocsp_proxy` and `must_staple`
    pub stapling: Stapling,
    /// `[global.log]`
    pub log: Log,
}

/// What the process gives up after binding: everything, unless an `unsafe_` key keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Capabilities.
    pub capabilities: bool,
    /// That others see its memory: core dumps and debuggers.
    pub dumps: bool,
    /// Files that it does not need (Landlock).
    pub files: bool,
    /// System calls that it does not need (seccomp).
    pub system_calls: bool,
}

/// What concerns the OCSP staples of all identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stapling {
    /// `ocsp_dir`: where answers are kept over restarts; nowhere when absent.
    pub dir: Option<PathBuf>,
    /// `ocsp_proxy`: responders are asked directly when absent.
    pub proxy: Option<OcspProxy>,
    /// `must_staple`
    pub must_staple: MustStaple,
}

/// `ocsp_proxy`: an HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OcspProxy {
    /// A host name or an IP address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// `must_staple`: what becomes of a certificate that demands a staple while there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MustStaple {
    /// It is served, and a warning is logged.
    Warn,
    /// It is not served.
    Refuse,
}

/// `[crypto]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crypto {
    /// Batches of operations.
    pub multibuffer: Multibuffer,
    /// Key pairs and signature set-ups before they are needed.
    pub made_ahead: MadeAhead,
}

/// `made_ahead`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeAhead {
    /// Key pairs, and signature set-ups where the machine cannot be copied while it runs.
    Auto,
    /// Both.
    On,
    /// Nothing.
    Off,
}

/// `multibuffer`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Multibuffer {
    /// Where the library is found and the processor has what it takes.
    Auto,
    /// Every operation is computed by itself.
    Off,
    /// With this library, or refuse to start.
    Library(PathBuf),
}

/// `[tickets]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tickets {
    /// `secret`
    pub secret: TicketSecret,
    /// `rotation`: whole seconds.
    pub rotation: Duration,
    /// `lifetime`: whole seconds.
    pub lifetime: Duration,
}

/// `secret`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TicketSecret {
    /// Made by this process, and known to it alone.
    Random,
    /// The content of a file.
    File(PathBuf),
}

/// `workers`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One per processor this process may run on.
    Auto,
    /// This many, on the first allowed processors.
    Count(NonZeroUsize),
    /// One on each of these processors.
    Cpus(Vec<usize>),
}

/// `io`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring where the kernel has what is needed, epoll otherwise.
    Auto,
    /// io_uring or refuse to start.
    IoUring,
    /// epoll.
    Epoll,
}

/// `admin`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// `127.0.0.1:9180`
    Tcp(SocketAddr),
    /// A path: a UNIX socket.
    Unix(PathBuf),
}

/// `[global.log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `format`
    pub format: LogFormat,
    /// `level`
    pub level: LogLevel,
    /// `file`: standard error when absent; reopened on SIGUSR1.
    pub file: Option<PathBuf>,
    /// `connections`: which connection ends are logged.
    pub connections: ConnectionLog,
    /// `connections_sample`: share of the *successful* connections that is logged, 0.0 to 1.0; failures always are.
    pub connections_sample: f64,
}

/// `format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

/// `level`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what stops the service.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And life events and connections.
    Info,
    /// And decisions.
    Debug,
}

/// `connections`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLog {
    /// No line for any connection.
    Off,
    /// Only those that ended with a failure.
    Failures,
    /// All (successful ones sampled by `connections_sample`).
    All,
}

/// `[[listener]]`, mode "tcp".
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// `name`, unique.
    pub name: String,
    /// `address`: one or more.
    pub addresses: Vec<SocketAddr>,
    /// `accept_proxy`: a PROXY header comes first on every connection.
    pub accept_proxy: bool,
    /// `identities`: never empty; the first is the default unless `strict_sni`.
    pub identities: Vec<IdentityId>,
    /// `strict_sni`: refuse names that no identity has (and clients that send none).
    pub strict_sni: bool,
    /// `upstream`: where connections go that no route takes.
    pub upstream: UpstreamId,
    /// `routes`: an exact name beats a wildcard; of equal names the first wins.
    pub routes: Vec<Route>,
    /// `connections_max`
    pub connections_max: usize,
    /// `handshake_timeout`: from accept to Finished, PROXY header included.
    pub handshake_timeout: Duration,
    /// `idle_timeout`: no byte either way.
    pub idle_timeout: Duration,
    /// `write_timeout`: a peer that takes no byte of what is queued for it.
    pub write_timeout: Duration,
    /// `linger_timeout`: waiting for the peer's end after ours.
    pub linger_timeout: Duration,
    /// `connection_age_max`: a connection of this age is closed in order; none for never.
    pub connection_age_max: Option<Duration>,
    /// `congestion_control`: the system's when absent.
    pub congestion_control: Option<String>,
    /// `[listener.tls]`
    pub tls: Tls,
    /// `[listener.client_auth]`: `None` when `mode` is "off".
    pub client_auth: Option<ClientAuth>,
}

/// One entry of `routes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `sni`: never empty.
    pub sni: Vec<NamePattern>,
    /// `upstream`: where they go.
    pub upstream: UpstreamId,
    /// `[listener.routes.client_auth]`, as [`Listener::client_auth`]; that holds where there is none.
    pub client_auth: Option<Option<ClientAuth>>,
}

/// A host name or a wildcard for exactly one leftmost label, lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamePattern {
    /// `api.example.com`
    Exact(String),
    /// `*.example.com`; holds `example.com`.
    Wildcard(String),
}

/// `[listener.tls]`
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// `min_version`
    pub min_version: TlsVersion,
    /// `max_version`; never below `min_version`.
    pub max_version: TlsVersion,
    /// `cipher_suites`: `None` is "auto"; otherwise in order of preference, never empty, at least one per version.
    pub cipher_suites: Option<Vec<rustls::CipherSuite>>,
    /// `groups`: `None` is "auto"; otherwise never empty.
    pub groups: Option<Vec<rustls::NamedGroup>>,
    /// `alpn`: empty means that ALPN is not negotiated.
    pub alpn: Vec<Vec<u8>>,
    /// `tickets`
    pub tickets: bool,
    /// `session_cache`, in bytes: `None` is "off".
    pub session_cache: Option<usize>,
}

/// `min_version`, `max_version`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// "1.2"
    Tls12,
    /// "1.3"
    Tls13,
}

/// `[[identity]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `name`, unique.
    pub name: String,
    /// `certificate`
    pub certificate: CertificateSource,
    /// `key`, with `key_isolation`; the path of the certificate, or of the folder, when absent.
    pub key: KeySource,
    /// `passphrase_file`
    pub passphrase: Option<PathBuf>,
    /// `ocsp`
    pub ocsp: Ocsp,
}

/// `ocsp`: where an identity's staple comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ocsp {
    /// It has none.
    Off,
    /// From the responder that the certificate names, if it names one.
    Auto,
    /// From a DER file.
    File(PathBuf),
}

/// `certificate`, `certificates`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// A file with a chain.
    File(PathBuf),
    /// A folder with any number of chains and their keys; `key` is the folder, too.
    Folder(PathBuf),
    /// In tokens.
    Tokens(InTokens),
}

/// `key`, with `key_isolation`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file, whose key is used in this process.
    File(PathBuf),
    /// A file that only the signer process reads.
    Signer(PathBuf),
    /// In tokens.
    Tokens(InTokens),
}

/// An object of a token, or of several that hold the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InTokens {
    /// Never empty; several are of one group.
    pub tokens: Vec<TokenId>,
    /// Which object.
    pub object: ObjectMatch,
    /// The URI for messages: without its query.
    pub uri: String,
}

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateSource::File(path) | CertificateSource::Folder(path) => path.display().fmt(f),
            CertificateSource::Tokens(object) => f.write_str(&object.uri),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::File(path) | KeySource::Signer(path) => path.display().fmt(f),
            KeySource::Tokens(object) => f.write_str(&object.uri),
        }
    }
}

/// `[keys.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// NAME
    pub name: String,
    /// `module`. Tokens of one module have the same `isolation`, `user` and `sandbox`.
    pub module: PathBuf,
    /// `token`: by its label, NAME, when absent.
    pub find: TokenMatch,
    /// `group`: tokens that hold the same keys.
    pub group: Option<String>,
    /// `pin_source`, or that of a URI.
    pub pin: Option<PinSource>,
    /// `sessions`: 1 to 1,024.
    pub sessions: u32,
    /// `isolation`
    pub isolation: Isolation,
    /// `timeout`: what a signature may take, waiting included.
    pub timeout: Duration,
    /// `queue`: signatures that may wait, for each worker.
    pub queue: usize,
    /// `when_down`
    pub when_down: WhenDown,
    /// `keep_alive`: `None` when "0s".
    pub keep_alive: Option<Duration>,
    /// `user` that the signer process becomes.
    pub user: Option<String>,
    /// `sandbox`: not "off".
    pub sandbox: bool,
}

/// `when_down`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenDown {
    /// Handshakes wait for a token that is not there until their time is over.
    Wait,
    /// They fail at once.
    Fail,
}

/// `[[upstream]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// `name`, unique.
    pub name: String,
    /// `servers`: never empty.
    pub servers: Vec<ServerAddress>,
    /// `balance`
    pub balance: Balance,
    /// `connect_timeout`, for each server tried.
    pub connect_timeout: Duration,
    /// `connect_on`
    pub connect_on: ConnectOn,
    /// `send_proxy`
    pub send_proxy: SendProxy,
}

/// One of `servers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// `host:port`; a host name is resolved when the configuration is loaded.
    Host(String, u16),
    /// `unix:/path`
    Unix(PathBuf),
}

/// `balance`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// The server with the fewest connections of this worker.
    LeastConnections,
}

/// `connect_on`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOn {
    /// When the handshake is complete.
    Handshake,
    /// When the client has sent its first byte.
    FirstByte,
}

/// `send_proxy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendProxy {
    /// No header.
    Off,
    /// The text form.
    V1,
    /// The binary form with TLVs.
    V2 {
        /// Those of clients are in them, whole.
        certificates: bool,
    },
}
