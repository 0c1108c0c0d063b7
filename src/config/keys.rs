//! What a key of the file can be, and what is expected of its values. `table` has every one of them.

mod table;

pub(super) use self::table::ROOT;
use super::units;

/// A TOML table.
pub(super) struct Section {
    /// What it configures.
    pub(super) doc: &'static str,
    /// Its keys, in the order in which the documentation shows them.
    pub(super) keys: &'static [Key],
}

/// A key of a [`Section`].
pub(super) struct Key {
    /// As in the file.
    pub(super) name: &'static str,
    /// What its values look like.
    pub(super) kind: Kind,
    /// What its absence means.
    pub(super) presence: Presence,
    /// What it does.
    pub(super) doc: &'static str,
}

/// What the absence of a key means.
pub(super) enum Presence {
    /// An error.
    Required,
    /// Nothing, or what `doc` says.
    Optional,
    /// The same as this TOML value.
    Default(&'static str),
}

/// What the values of a key look like.
pub(super) enum Kind {
    /// `true` or `false`.
    Flag,
    /// A string that is not empty; what it should be.
    Text(&'static str),
    /// A list of strings, none twice.
    Texts {
        /// What each should be.
        what: &'static str,
        /// The list may be empty.
        empty: bool,
    },
    /// One string or a list of them; what each should be.
    TextOrTexts(&'static str),
    /// A number and a unit, such as "10s".
    Duration {
        /// "0s" has a meaning.
        zero: bool,
    },
    /// A duration of at least a second, and of whole ones.
    WholeSeconds {
        /// In days.
        max: u64,
    },
    /// "off", or a number and a unit of bytes, such as "64MiB".
    OffOrSize {
        /// In bytes.
        min: u64,
        /// In bytes.
        max: u64,
    },
    /// A whole number from 1 to this.
    Count(u64),
    /// A whole number from 0 to this.
    UpTo(u64),
    /// 0.0 to 1.0.
    Share,
    /// One of these strings.
    Word(&'static [Word]),
    /// "auto", or a list of some of these names.
    AutoOrNames(fn() -> Vec<&'static str>),
    /// "auto", a number, or a list of processors.
    Workers,
    /// `[name]`
    Section(&'static Section),
    /// `[[name]]`
    Sections(&'static Section),
    /// `[name.NAME]`, as many as there are names.
    Named(&'static Section),
}

/// A legal value of [`Kind::Word`].
pub(super) struct Word {
    /// As in the file.
    pub(super) text: &'static str,
    /// The word belongs to the contract, its feature does not exist: giving it is an error.
    pub(super) later: bool,
}

/// Bound of `connections_max`: at about 5 KiB each, ten million idle connections fill 50 GB.
pub(super) const CONNECTIONS_MAX: u64 = 10_000_000;

/// Bound of `workers` and of processor numbers: the kernel's processor sets, as libc passes them, have 1,024 bits.
pub(super) const CPUS_MAX: u64 = 1024;

/// Bound of `sessions`: each has a thread, and tokens have fewer.
pub(super) const SESSIONS_MAX: u64 = 1024;

/// Bound of `queue`: a token that signs in a millisecond takes a minute for as many. A worker has `limits::SUSPENDED_CALLS_MAX` that
/// wait, for all queues together.
pub(super) const QUEUE_MAX: u64 = 65_536;

/// Bound of `rotation` and `lifetime`: clients keep a ticket no longer than seven days (RFC 8446 section 4.6.1).
pub(super) const TICKET_DAYS_MAX: u64 = 7;

/// Bounds of `session_cache`: below, its parts hold too few sessions each; above, it is a typing error.
pub(super) const SESSION_CACHE_MIN: u64 = 1024 * 1024;
pub(super) const SESSION_CACHE_MAX: u64 = 1024 * 1024 * 1024 * 1024;

/// Bound of `verify_depth`: paths are not built any longer.
pub(super) const VERIFY_DEPTH_MAX: u64 = 6;

const NAME: &str = "a name of 1 to 64 characters";
pub(super) const LISTEN_ADDRESS: &str = r#"an IP address and port such as "0.0.0.0:443" or "[::]:443""#;
pub(super) const SERVER_ADDRESS: &str =
    r#""host:port" such as "127.0.0.1:8080" or "[::1]:8080", or "unix:/path/of.socket""#;
pub(super) const ADMIN_ADDRESS: &str =
    r#"an IP address and port such as "127.0.0.1:9180", or the path of a socket such as "/run/ringlock/admin.sock""#;
pub(super) const CERTIFICATE: &str = r#"the path of a file with the certificate chain (PEM, DER or PKCS#12), or the URI of a certificate in a token such as "pkcs11:token=edge;object=site;type=cert""#;
pub(super) const PRIVATE_KEY: &str = r#"the path of a file with the private key (PEM, DER or PKCS#12), or the URI of a key in a token such as "pkcs11:token=edge;object=site;type=private""#;
pub(super) const OCSP: &str = r#""off", "auto", or the path of a DER file with an OCSP response"#;
pub(super) const OCSP_PROXY: &str = r#"the address of an HTTP proxy such as "http://proxy.example.com:3128""#;
pub(super) const TICKET_SECRET: &str = r#""random", or "file:PATH" of a file with at least 32 random bytes"#;
pub(super) const TOKEN_ATTRIBUTES: &str =
    r#"the label of a token, or a URI with what it is known by such as "pkcs11:serial=0123""#;
pub(super) const PIN_SOURCE: &str =
    r#""file:PATH" of a file whose first line is the PIN, or "credential:NAME" of a systemd credential"#;
pub(super) const CRL: &str = "the path of a PEM or DER file with revocation lists";
pub(super) const CLIENT_NAME: &str = r#"a name such as "spiffe://example.org/ns/prod/*", "uri:https://example.org/a", "dns:*.clients.example.com", "email:ops@example.com", "cn:batch-7", "o:Example Corp", "ou:Payments", "spki:sha256/BASE64" or "issuer:CN=clients,O=Example Corp""#;
pub(super) const CLIENT_DENIED: &str = r#""serial:0A1B", "serial:0A1B@CN=clients,O=Example Corp", or what "allow" takes such as "spki:sha256/BASE64" or "cn:batch-7""#;
pub(super) const NAME_PATTERN: &str = r#"a host name such as "api.example.com" or "*.example.com""#;
const fn key(name: &'static str, kind: Kind, presence: Presence, doc: &'static str) -> Key {
    Key {
        name,
        kind,
        presence,
        doc,
    }
}

const fn word(text: &'static str) -> Word {
    Word { text, later: false }
}

const fn later(text: &'static str) -> Word {
    Word { text, later: true }
}

impl Section {
    /// The key of this name.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

impl Kind {
    /// What an error says was expected.
    pub(super) fn expected(&self) -> String {
        match self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Text(what) => (*what).to_owned(),
            Kind::Texts { what, empty: true } => format!("a list of strings, each {what}"),
            Kind::Texts { what, empty: false } => format!("a list of at least one string, each {what}"),
            Kind::TextOrTexts(what) => format!("{what}, or a list of them"),
            Kind::Duration { zero: true } => r#"a duration such as "10s" or "250ms""#.to_owned(),
            Kind::Duration { zero: false } => r#"a duration above zero such as "10s" or "250ms""#.to_owned(),
            Kind::WholeSeconds { max } => format!(r#"a duration of whole seconds from "1s" to "{max}d", such as "1h""#),
            Kind::OffOrSize { min, max } => {
                let (min, max) = (units::shown_size(*min), units::shown_size(*max));
                format!(r#""off", or a size from "{min}" to "{max}" such as "64MiB""#)
            }
            Kind::Count(max) => format!("a whole number from 1 to {max}"),
            Kind::UpTo(max) => format!("a whole number from 0 to {max}"),
            Kind::Share => "a number from 0.0 to 1.0".to_owned(),
            Kind::Word(words) => alternatives(
                words
                    .iter()
                    .filter(|word| !word.later)
                    .map(|word| word.text)
                    .collect::<Vec<_>>(),
            ),
            Kind::AutoOrNames(names) => format!(r#""auto", or a list of {}"#, alternatives(names())),
            Kind::Workers => r#""auto", a number of threads, or a list of processors such as "0-3,8""#.to_owned(),
            Kind::Section(_) => "a table".to_owned(),
            Kind::Sections(_) => "a list of tables".to_owned(),
            Kind::Named(_) => "tables with names".to_owned(),
        }
    }
}

/// Every table of the file, with the header it has there.
pub(super) fn sections() -> Vec<(String, &'static Section)> {
    fn collect(path: &str, section: &'static Section, found: &mut Vec<(String, &'static Section)>) {
        for key in section.keys {
            let inner = if path.is_empty() {
                key.name.to_owned()
            } else {
                format!("{path}.{}", key.name)
            };
            match key.kind {
                Kind::Section(section) => {
                    found.push((format!("[{inner}]"), section));
                    collect(&inner, section, found);
                }
                Kind::Sections(section) => {
                    found.push((format!("[[{inner}]]"), section));
                    collect(&inner, section, found);
                }
                Kind::Named(section) => {
                    let inner = format!("{inner}.NAME");
                    found.push((format!("[{inner}]"), section));
                    collect(&inner, section, found);
                }
                Kind::Flag
                | Kind::Text(_)
                | Kind::Texts { .. }
                | Kind::TextOrTexts(_)
                | Kind::Duration { .. }
                | Kind::WholeSeconds { .. }
                | Kind::OffOrSize { .. }
                | Kind::Count(_)
                | Kind::UpTo(_)
                | Kind::Share
                | Kind::Word(_)
                | Kind::AutoOrNames(_)
                | Kind::Workers => {}
            }
        }
    }
    let mut found = Vec::new();
    collect("", &ROOT, &mut found);
    found
}

/// The header of a table of the file: `[listener.tls]`
pub(super) fn header(section: &'static Section) -> String {
    let found = sections().into_iter().find(|(_, other)| std::ptr::eq(*other, section));
    found.expect("every table that is read is in the table of keys").0
}

/// `"a", "b" or "c"`
pub(super) fn alternatives(names: Vec<&str>) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
