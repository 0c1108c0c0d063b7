//! Whole files: what becomes of a right one, and that no text at all makes the reader panic.

use rustls::{CipherSuite, NamedGroup};

use super::*;

mod paths;
mod tokens;

/// A small file without a warning; the tests of messages change one thing in it.
pub(super) const BASE: &str = r#"[[listener]]
name = "edge"
address = "127.0.0.1:8443"
identities = ["site"]
upstream = "app"

[[identity]]
name = "site"
certificate = "site.pem"
key = "site.key"

[[upstream]]
name = "app"
servers = ["127.0.0.1:8080"]
"#;

/// Reads [`BASE`] with the first `from` replaced by `to`; an empty `from` puts `to` in front.
pub(super) fn changed(from: &str, to: &str) -> Result<(Config, Vec<Warning>), Problems> {
    assert!(BASE.contains(from), "{from:?} is in the file");
    parse(&BASE.replacen(from, to, 1), Path::new("ringlock.toml"))
}

/// The example of the contract, without what is not supported yet.
fn client_name(text: &str) -> ClientName {
    ClientName::parse(text).expect("it is legal")
}

pub(super) const CONTRACT: &str = r#"
[global]
workers = "auto"
io = "auto"
admin = "127.0.0.1:9180"
drain_timeout = "30s"
user = "ringlock"
ocsp_dir = "/var/lib/ringlock/ocsp"
ocsp_proxy = "http://proxy.internal:3128"
must_staple = "refuse"

[global.log]
format = "json"
level = "info"

[[listener]]
name = "edge"
address = "0.0.0.0:443"
mode = "tcp"
accept_proxy = false
identities = ["site", "token"]
strict_sni = false
upstream = "app"
routes = [ { sni = "*.API.example.com", upstream = "api" }, { sni = ["admin.example.com", "*.admin.example.com"], upstream = "api", client_auth = { mode = "optional", ca = "admins.pem" } }, { sni = "open.example.com", upstream = "app", client_auth = { mode = "off" } } ]
connections_max = 100000
handshake_timeout = "10s"
idle_timeout = "5m"
congestion_control = "cubic"

[listener.tls]
min_version = "1.2"
max_version = "1.3"
cipher_suites = "auto"
groups = "auto"
alpn = ["h2", "http/1.1"]

[listener.client_auth]
mode = "required"
ca = "clients-ca.pem"
crl = ["clients.crl", "/etc/crl/other.crl"]
verify_depth = 2
crl_check = "leaf"
crl_expired = "accept"
allow = ["spiffe://example.org/ns/prod/*", "dns:*.clients.example.com", "cn:batch-7"]
deny = ["serial:0A1B"]
close_revoked = true

[[identity]]
name = "site"
certificate = "fullchain.pem"
key = "/etc/keys/privkey.pem"
ocsp = "auto"

[[identity]]
name = "token"
certificate = "fullchain.pem"
key = "pkcs11:token=edge;object=site;type=private"
ocsp = "staple.der"

[[upstream]]
name = "app"
servers = ["127.0.0.1:8080", "[::1]:8081", "unix:app.sock"]
balance = "round_robin"
connect_timeout = "250ms"
connect_on = "first_byte"
send_proxy = "v2"

[[upstream]]
name = "api"
servers = ["api.internal:80"]

[keys.edge]
module = "/usr/lib/softhsm/libsofthsm2.so"
pin_source = "file:/etc/ringlock/pin"
sessions = 8
isolation = "process"
timeout = "2s"

[crypto]
multibuffer = "auto"
made_ahead = "auto"

[tickets]
secret = "random"
rotation = "1h"
lifetime = "12h"
"#;

const TICKETS: Tickets = Tickets {
    secret: TicketSecret::Random,
    rotation: Duration::from_secs(3600),
    lifetime: Duration::from_secs(12 * 3600),
};

const EVERYTHING: GivenUp = GivenUp {
    capabilities: true,
    dumps: true,
    files: true,
    system_calls: true,
};

#[test]
fn the_example_of_the_contract_is_read_as_it_says() {
    let (config, warnings) = parse(CONTRACT, Path::new("/etc/ringlock/ringlock.toml")).expect("it is legal");
    assert_eq!(warnings, []);
    let expected = Config {
        crypto: Crypto {
            multibuffer: Multibuffer::Auto,
            made_ahead: MadeAhead::Auto,
        },
        tickets: TICKETS,
        global: Global {
            workers: Workers::Auto,
            io: Io::Auto,
            admin: Some(AdminAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9180)))),
            drain_timeout: Duration::from_secs(30),
            user: Some("ringlock".to_owned()),
            group: None,
            given_up: EVERYTHING,
            watch_files: true,
            stapling: Stapling {
                dir: Some("/var/lib/ringlock/ocsp".into()),
                proxy: Some(OcspProxy {
                    host: "proxy.internal".to_owned(),
                    port: 3128,
                }),
                must_staple: MustStaple::Refuse,
            },
            log: Log {
                format: LogFormat::Json,
                level: LogLevel::Info,
                file: None,
                connections: ConnectionLog::All,
                connections_sample: 1.0,
            },
        },
        listeners: vec![Listener {
            name: "edge".to_owned(),
            addresses: vec![SocketAddr::from(([0, 0, 0, 0], 443))],
            accept_proxy: false,
            identities: vec![IdentityId(0), IdentityId(1)],
            strict_sni: false,
            upstream: UpstreamId(0),
            routes: vec![
                Route {
                    sni: vec![NamePattern::Wildcard("api.example.com".to_owned())],
                    upstream: UpstreamId(1),
                    client_auth: None,
                },
                Route {
                    sni: vec![
                        NamePattern::Exact("admin.example.com".to_owned()),
                        NamePattern::Wildcard("admin.example.com".to_owned()),
                    ],
                    upstream: UpstreamId(1),
                    client_auth: Some(Some(ClientAuth {
                        required: false,
                        ca: "/etc/ringlock/admins.pem".into(),
                        crl: vec![],
                        verify_depth: 6,
                        crl_check: CrlCheck::Chain,
                        accepts_expired_crls: false,
                        allow: None,
                        deny: vec![],
                        close_revoked: false,
                    })),
                },
                Route {
                    sni: vec![NamePattern::Exact("open.example.com".to_owned())],
                    upstream: UpstreamId(0),
                    client_auth: Some(None),
                },
            ],
            connections_max: 100_000,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(5),
            connection_age_max: None,
            congestion_control: Some("cubic".to_owned()),
            tls: Tls {
                min_version: TlsVersion::Tls12,
                max_version: TlsVersion::Tls13,
                cipher_suites: None,
                groups: None,
                alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                tickets: true,
                session_cache: None,
            },
            client_auth: Some(ClientAuth {
                required: true,
                ca: "/etc/ringlock/clients-ca.pem".into(),
                crl: vec!["/etc/ringlock/clients.crl".into(), "/etc/crl/other.crl".into()],
                verify_depth: 2,
                crl_check: CrlCheck::Leaf,
                accepts_expired_crls: true,
                deny: vec![client_name("serial:0a1b")],
                close_revoked: true,
                allow: Some(
                    [
                        "spiffe://example.org/ns/prod/*",
                        "dns:*.clients.example.com",
                        "cn:batch-7",
                    ]
                    .map(client_name)
                    .into(),
                ),
            }),
        }],
        identities: vec![
            Identity {
                name: "site".to_owned(),
                certificate: CertificateSource::File("/etc/ringlock/fullchain.pem".into()),
                key: KeySource::File("/etc/keys/privkey.pem".into()),
                passphrase: None,
                ocsp: Ocsp::Auto,
            },
            Identity {
                name: "token".to_owned(),
                certificate: CertificateSource::File("/etc/ringlock/fullchain.pem".into()),
                key: KeySource::Tokens(InTokens {
                    tokens: vec![TokenId(0)],
                    object: ObjectMatch {
                        label: Some("site".to_owned()),
                        id: None,
                    },
                    uri: "pkcs11:token=edge;object=site;type=private".to_owned(),
                }),
                passphrase: None,
                ocsp: Ocsp::File("/etc/ringlock/staple.der".into()),
            },
        ],
        upstreams: vec![
            Upstream {
                name: "app".to_owned(),
                servers: vec![
                    ServerAddress::Host("127.0.0.1".to_owned(), 8080),
                    ServerAddress::Host("::1".to_owned(), 8081),
                    ServerAddress::Unix("/etc/ringlock/app.sock".into()),
                ],
                balance: Balance::RoundRobin,
                connect_timeout: Duration::from_millis(250),
                connect_on: ConnectOn::FirstByte,
                send_proxy: SendProxy::V2 { certificates: false },
            },
            Upstream {
                name: "api".to_owned(),
                servers: vec![ServerAddress::Host("api.internal".to_owned(), 80)],
                balance: Balance::LeastConnections,
                connect_timeout: Duration::from_secs(1),
                connect_on: ConnectOn::Handshake,
                send_proxy: SendProxy::Off,
            },
        ],
        tokens: vec![TokenConfig {
            name: "edge".to_owned(),
            module: "/usr/lib/softhsm/libsofthsm2.so".into(),
            find: TokenMatch {
                label: Some("edge".to_owned()),
                ..TokenMatch::default()
            },
            group: None,
            pin: Some(PinSource::File("/etc/ringlock/pin".into())),
            sessions: 8,
            isolation: Isolation::Process,
            timeout: Duration::from_secs(2),
            queue: 1024,
            when_down: WhenDown::Wait,
            keep_alive: Some(Duration::from_secs(20)),
            user: None,
            sandbox: true,
        }],
        places: config.places.clone(),
    };
    assert_eq!(config, expected);
}

#[test]
fn absent_keys_have_their_defaults() {
    let (config, warnings) = changed("", "").expect("it is legal");
    assert_eq!(warnings, []);
    assert_eq!(
        config.global,
        Global {
            workers: Workers::Auto,
            io: Io::Auto,
            admin: None,
            drain_timeout: Duration::from_secs(30),
            user: None,
            group: None,
            given_up: EVERYTHING,
            watch_files: true,
            stapling: Stapling {
                dir: None,
                proxy: None,
                must_staple: MustStaple::Warn,
            },
            log: Log {
                format: LogFormat::Text,
                level: LogLevel::Info,
                file: None,
                connections: ConnectionLog::All,
                connections_sample: 1.0,
            },
        }
    );
    let edge = &config.listeners[0];
    assert!(!edge.accept_proxy && !edge.strict_sni && edge.routes.is_empty());
    assert_eq!(edge.connections_max, 100_000);
    let seconds = [
        edge.handshake_timeout,
        edge.idle_timeout,
        edge.write_timeout,
        edge.linger_timeout,
    ];
    assert_eq!(seconds.map(|duration| duration.as_secs()), [10, 300, 30, 5]);
    assert_eq!(
        (edge.congestion_control.as_deref(), edge.connection_age_max),
        (None, None)
    );
    assert_eq!(
        edge.tls,
        Tls {
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
            cipher_suites: None,
            groups: None,
            alpn: vec![],
            tickets: true,
            session_cache: None,
        }
    );
    assert_eq!(config.tickets, TICKETS);
}

#[test]
fn the_other_forms_of_values_are_read() {
    let text = r#"
        global.workers = "0-1,4"
        global.io = "epoll"
        global.admin = "run/admin.sock"
        global.watch_files = false
        global.log = { file = "a.log", level = "debug", connections = "failures" }
        listener = [
            { name = "a", address = ["127.0.0.1:1", "[::1]:1"], identities = ["two", "one"], upstream = "app",
              accept_proxy = true, strict_sni = true, connections_max = 1_000, linger_timeout = "0s", connection_age_max = "1d",
              tls = { min_version = "1.3", cipher_suites = ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"],
                      groups = ["secp384r1", "X25519"], alpn = [], tickets = false },
              client_auth = { mode = "off", ca = "ca.pem" } },
            { name = "b", address = "127.0.0.1:2", identities = ["one"], upstream = "app",
              tls = { max_version = "1.2", cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], session_cache = "64MiB" },
              client_auth = { mode = "optional", ca = "ca.pem" } },
        ]
        identity = [{ name = "one", certificate = "c", key = "k", ocsp = "auto" }, { name = "two", certificate = "c", key = "k" }]
        upstream = [{ name = "app", servers = ["app:1"] }]
        crypto = { multibuffer = "off", made_ahead = "off" }
        tickets = { secret = "file:tickets.secret", rotation = "90s", lifetime = "7d" }
    "#;
    let (config, warnings) = parse(text, Path::new("conf/ringlock.toml")).expect("it is legal");
    assert_eq!(warnings, []);
    assert_eq!(config.global.workers, Workers::Cpus(vec![0, 1, 4]));
    assert_eq!(config.global.io, Io::Epoll);
    assert!(!config.global.watch_files);
    assert_eq!(
        config.global.admin,
        Some(AdminAddress::Unix("conf/run/admin.sock".into()))
    );
    assert_eq!(config.global.log.file, Some("conf/a.log".into()));
    let ocsp: Vec<&Ocsp> = config.identities.iter().map(|identity| &identity.ocsp).collect();
    assert_eq!(ocsp, [&Ocsp::Auto, &Ocsp::Off]);
    assert_eq!(config.global.log.connections, ConnectionLog::Failures);
    let tickets = Tickets {
        secret: TicketSecret::File("conf/tickets.secret".into()),
        rotation: Duration::from_secs(90),
        lifetime: Duration::from_secs(7 * 86_400),
    };
    assert_eq!(config.tickets, tickets);
    let [a, b] = config.listeners.as_slice() else {
        panic!("two listeners: {:?}", config.listeners)
    };
    assert_eq!(
        a.addresses,
        [
            SocketAddr::from(([127, 0, 0, 1], 1)),
            "[::1]:1".parse().expect("an address")
        ]
    );
    assert_eq!(a.identities, [IdentityId(1), IdentityId(0)]);
    assert!(a.accept_proxy && a.strict_sni);
    assert_eq!((a.connections_max, a.linger_timeout), (1000, Duration::ZERO));
    assert_eq!(a.connection_age_max, Some(Duration::from_secs(86_400)));
    assert_eq!(a.tls.min_version, TlsVersion::Tls13);
    assert_eq!(
        a.tls.cipher_suites,
        Some(vec![
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_128_GCM_SHA256
        ])
    );
    assert_eq!(a.client_auth, None);
    assert_eq!(
        b.client_auth,
        Some(ClientAuth {
            required: false,
            ca: "conf/ca.pem".into(),
            crl: Vec::new(),
            verify_depth: 6,
            crl_check: CrlCheck::Chain,
            accepts_expired_crls: false,
            allow: None,
            deny: Vec::new(),
            close_revoked: false,
        })
    );
    assert_eq!(a.tls.groups, Some(vec![NamedGroup::secp384r1, NamedGroup::X25519]));
    assert_eq!(
        b.tls.cipher_suites,
        Some(vec![CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256])
    );

    let (config, _) = changed("", "global.workers = 3\n").expect("it is legal");
    assert_eq!(
        config.global.workers,
        Workers::Count(NonZeroUsize::new(3).expect("three"))
    );
}

#[test]
fn what_bounds_all_queues_together_is_as_the_documentation_has_it() {
    let thousands = crate::limits::SUSPENDED_CALLS_MAX / 1000;
    let bound = format!("{thousands},{:03}", crate::limits::SUSPENDED_CALLS_MAX % 1000);
    let page = include_str!("../../docs/configuration.md");
    let row = page.lines().find(|line| line.starts_with("| `queue` |"));
    assert!(row.is_some_and(|row| row.contains(&bound)), "{bound}");
    let mut keys = keys::sections().into_iter().flat_map(|(_, section)| section.keys);
    let key = keys.find(|key| key.name == "queue");
    assert!(key.is_some_and(|key| key.doc.contains(&bound)), "{bound}");
}

#[test]
fn the_example_in_the_documentation_is_legal_and_shows_every_key_once() {
    let text = include_str!("../../docs/ringlock.example.toml");
    let (config, warnings) = parse(text, Path::new("ringlock.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings, []);
    assert_eq!(config.upstreams.len(), 2);
    for key in keys::sections()
        .into_iter()
        .flat_map(|(_, section)| section.keys.iter())
    {
        let shown = text.lines().any(|line| {
            let line = line
                .trim_start_matches(['#', ' ', '[', '{'])
                .trim_start_matches("listener.")
                .trim_start_matches("global.");
            line.strip_prefix(key.name)
                .is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
        });
        assert!(shown, "{:?} is in the example", key.name);
    }
    // What the example calls the default is the default.
    let without_values: String = text
        .lines()
        .filter(|line| {
            let kept = [
                "name",
                "address",
                "identities",
                "upstream",
                "certificate",
                "key",
                "servers",
                "alpn",
                "module",
                "[",
                "]",
            ];
            kept.iter().any(|start| line.starts_with(start)) || line.starts_with("routes") || line.starts_with("    {")
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let (defaults, _) =
        parse(&without_values, Path::new("ringlock.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(
        Config {
            places: Places::default(),
            ..config
        },
        Config {
            places: Places::default(),
            ..defaults
        }
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = r#"
[global]
workers = 0
[[listener]]
name = "edge"
address = "nowhere"
identities = ["site"]
upstream = "app"
colour = "red"
[listener.tls]
alpn = [7]
[[identity]]
name = "site"
certificate = ""
key = "k"
[[upstream]]
name = "app"
servers = ["app"]
balance = 1
"#;
    let problems = parse(text, Path::new("ringlock.toml")).expect_err("it has problems");
    let places: Vec<(usize, &str)> = problems
        .iter()
        .map(|problem| {
            (
                problem.position.as_ref().expect("each has a place").line,
                problem.key.as_str(),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            (3, "global.workers"),
            (6, "listener \"edge\": address"),
            (9, "listener \"edge\": colour"),
            (11, "listener \"edge\": tls.alpn[0]"),
            (14, "identity \"site\": certificate"),
            (18, "upstream \"app\": servers[0]"),
            (19, "upstream \"app\": balance"),
        ]
    );
}

#[test]
fn syntax_errors_are_told_once_a_line_and_are_bounded() {
    let problems = parse("a = \nb = [1,,]\nc = 1\n", Path::new("ringlock.toml")).expect_err("it is no TOML");
    let lines: Vec<usize> = problems
        .iter()
        .map(|p| p.position.as_ref().expect("a place").line)
        .collect();
    assert_eq!(lines, [1, 2]);
    let problems = parse(&"= = =\n".repeat(1000), Path::new("ringlock.toml")).expect_err("it is no TOML");
    assert_eq!(problems.as_slice().len(), SYNTAX_ERRORS_MAX);
}

#[test]
fn files_that_are_deep_or_long_are_refused_without_harm() {
    let deep = format!("a = {}", "[".repeat(100_000));
    parse(&deep, Path::new("ringlock.toml")).expect_err("it is too deep");
    let deep = format!("{} = 1", vec!["a"; 50_000].join("."));
    parse(&deep, Path::new("ringlock.toml")).expect_err("it is too deep");
    let unknown: String = (0..10_000).map(|number| format!("key_{number} = 1\n")).collect();
    let problems = parse(&unknown, Path::new("ringlock.toml")).expect_err("they are unknown");
    assert_eq!(
        problems.as_slice().len(),
        10_001,
        "each of them, and that there is no listener"
    );
}

#[test]
fn positions_count_characters_and_bytes() {
    let problems = changed("", "global.user = \"é\"\nglobal.log = { level = \"é\", format = 1 }\n").expect_err("two");
    let [level, format] = problems.as_slice() else {
        panic!("two problems: {problems}")
    };
    let position = |problem: &Problem| problem.position.clone().expect("a place");
    assert_eq!(
        position(level),
        Position {
            line: 2,
            column: 24,
            span: 42..46
        }
    );
    assert_eq!(
        position(format),
        Position {
            line: 2,
            column: 38,
            span: 57..58
        }
    );
}

#[test]
fn places_are_known_after_reading() {
    let (config, _) = changed("", "").expect("it is legal");
    let line = |key: &str| config.places.position(key).map(|position| position.line);
    assert_eq!(line("listener \"edge\": identities[0]"), Some(4));
    assert_eq!(line("identity \"site\": key"), Some(10));
    assert_eq!(
        line("identity \"site\": ocsp"),
        Some(7),
        "an absent key is at its table"
    );
    assert_eq!(line("upstream \"app\": servers[0]"), Some(14));
    assert_eq!(line("nothing"), None);
    let problem = config
        .places
        .problem("identity \"site\": key", "an RSA key", "an ECDSA key", "change it");
    assert_eq!(
        problem.to_string(),
        "ringlock.toml:10: identity \"site\": key: found an RSA key, expected an ECDSA key; change it"
    );
    let warning = config
        .places
        .warning("identity \"site\": key", "everyone can read it", "chmod 600");
    assert_eq!(
        warning.to_string(),
        "ringlock.toml:10: identity \"site\": key: everyone can read it; chmod 600"
    );
}

#[test]
fn a_file_is_loaded_relative_to_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ringlock.toml");
    std::fs::write(&path, BASE).expect("written");
    let (config, _) = load(&path).expect("it is legal");
    assert_eq!(
        config.identities[0].key,
        KeySource::File(folder.path().join("site.key"))
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let problems = load(Path::new("/nonexistent/ringlock.toml")).expect_err("it does not exist");
    assert_eq!(
        problems.to_string(),
        "/nonexistent/ringlock.toml: found that it cannot be read (No such file or directory (os error 2)), \
         expected a TOML file; check the path and its permissions"
    );
}

#[test]
fn a_file_that_is_no_utf_8_or_too_long_is_a_problem() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ringlock.toml");
    std::fs::write(&path, b"[global]\nuser = \"\xff\"\n").expect("written");
    let problems = load(&path).expect_err("it is no UTF-8").to_string();
    assert!(
        problems.ends_with("ringlock.toml:2: found bytes that are no UTF-8, expected UTF-8; save the file as UTF-8"),
        "{problems}"
    );
    let long = " ".repeat(usize::try_from(FILE_BYTES_MAX).expect("it fits") + 1);
    std::fs::write(&path, long).expect("written");
    let problems = load(&path).expect_err("it is too long").to_string();
    assert!(
        problems.contains("found more than 1048576 bytes, expected a TOML file"),
        "{problems}"
    );
}

#[test]
fn a_pin_is_in_no_message() {
    for value in [
        "pkcs11:object=a?pin-value=1234",
        "PKCS11:object=a?pin-value=1234",
        "pkcs11:object=a;pin-value=1234",
        "pkcs11:object=a?pinvalue=1234",
        "pkcs11:object=a?pin-source=1234",
        "pkcs11:object=a?1234",
    ] {
        let problems = changed("site.key", value).expect_err("it is refused");
        assert!(
            !problems.to_string().contains("1234") && !format!("{problems:?}").contains("1234"),
            "{problems}"
        );
    }
}

mod any_text {
    use proptest::prelude::*;

    use super::CONTRACT;
    use crate::config::*;

    /// Values of every type, right and wrong ones.
    const VALUES: &[&str] = &[
        "true",
        "0",
        "-1",
        "99999999999999999999",
        "1.5",
        "nan",
        "1979-05-27",
        "[]",
        "[[]]",
        "{}",
        "[{}]",
        "\"\"",
        "\"10s\"",
        "\"auto\"",
        "\"edge\"",
        "\"*.\"",
        "\"[::\"",
        "\"unix:\"",
        "[\"a\", 1, \"a\"]",
        "\"0-99999999999\"",
        "\"-\"",
        "'''\n\n'''",
        "\"\\u0000é\"",
    ];

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = parse(&text, Path::new("ringlock.toml")).map_err(|problems| problems.to_string());
        }

        #[test]
        fn made_of_what_files_are_made_of_never_panics(
            parts in prop::collection::vec(
                prop_oneof![
                    (0..CONTRACT.lines().count()).prop_map(|line| CONTRACT.lines().nth(line).expect("in range").to_owned()),
                    ("[a-z_]{1,6}", prop::sample::select(VALUES)).prop_map(|(key, value)| format!("{key} = {value}")),
                    "[\\[\\]{}=\",.\n a-z#']{0,12}",
                ],
                0..40,
            )
        ) {
            let _ = parse(&parts.join("\n"), Path::new("ringlock.toml")).map_err(|problems| problems.to_string());
        }

        /// The value of one key of a right file is exchanged: that is read or refused at the line of the key.
        #[test]
        fn a_wrong_value_is_refused_where_it_stands(index in 0usize..60, value in prop::sample::select(VALUES)) {
            let lines: Vec<&str> = CONTRACT.lines().collect();
            let keys: Vec<usize> = (0..lines.len()).filter(|&line| lines[line].contains(" = ")).collect();
            let line = keys[index % keys.len()];
            let key = lines[line].split(" = ").next().expect("it has one");
            let mut changed: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
            changed[line] = format!("{key} = {value}");
            if let Err(problems) = parse(&changed.join("\n"), Path::new("ringlock.toml")) {
                // A wrong name is refused where it is used, too.
                prop_assert!(
                    key == "name" || problems.iter().any(|p| p.position.as_ref().is_some_and(|p| p.line == line + 1)),
                    "{key} = {value}: {problems}"
                );
            }
        }
    }
}
