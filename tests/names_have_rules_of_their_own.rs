//! On one listener, some names want other certificates of their clients than others do: the name that a client asks for decides whether it
//! is let in and where it gets, and neither its sessions nor its certificate open another door.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::PathBuf;

use crate::support::{Alert as Answer, *};
use rustls::{AlertDescription as Alert, NamedGroup};
use tempfile::TempDir;

both_drivers!(
    the_name_decides_who_gets_where,
    other_peoples_clients_are_let_in_by_name,
    a_name_cannot_be_changed_on_the_way,
    what_is_no_name_is_no_way_in,
    no_session_of_one_name_is_resumed_at_another,
    no_session_kept_here_is_resumed_at_another_name,
    a_route_whose_rules_change_declines_its_sessions,
);

/// No route.
const PLAIN: &str = "plain.example";
const ADMIN: &str = "admin.example";
/// Of the wildcard's route.
const INSIDE: &str = "a.inside.example";
/// An exception from it.
const OPEN: &str = "open.inside.example";
/// The same rules as [`ADMIN`].
const TWIN: &str = "twin.example";
const OPTIONAL: &str = "optional.example";

/// Two CAs of clients, a client of each, and one of neither.
struct Clients {
    admin: Shown,
    inside: Shown,
    stranger: Shown,
    folder: TempDir,
}

impl Clients {
    fn new() -> Clients {
        let folder = TempDir::new().unwrap();
        let [admin, inside] = ["admins", "insiders"].map(|name| {
            let ca = Authority::root(name);
            std::fs::write(folder.path().join(format!("{name}.pem")), ca.pem()).unwrap();
            ca.client()
        });
        let stranger = Authority::root("others").client();
        Clients {
            admin,
            inside,
            stranger,
            folder,
        }
    }

    fn ca(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    /// `{ mode = "required", ca = … }`
    fn rules(&self, mode: &str, ca: &str) -> String {
        format!("{{ mode = {mode:?}, ca = {:?} }}", self.ca(ca))
    }
}

/// A gateway whose names lead to servers that tell who they are.
struct Site {
    gateway: Gateway,
    clients: Clients,
    _origins: [Origin; 3],
}

impl Site {
    fn new(io: Io, tls: &str) -> Site {
        let clients = Clients::new();
        let origins = ["plain", "admin", "inside"].map(telling);
        let [plain, admin, inside] = origins.each_ref().map(Origin::address);
        let required = clients.rules("required", "admins");
        let mut routes = String::new();
        for (names, upstream, rules) in [
            (format!("[{ADMIN:?}]"), "admin", Some(&required)),
            (format!("{TWIN:?}"), "admin", Some(&required)),
            (
                "\"*.inside.example\"".into(),
                "inside",
                Some(&clients.rules("required", "insiders")),
            ),
            (format!("{OPEN:?}"), "app", None),
            (
                format!("[{OPTIONAL:?}, \"*.optional.example\"]"),
                "inside",
                Some(&clients.rules("optional", "insiders")),
            ),
        ] {
            let rules = rules
                .map(|rules| format!(", client_auth = {rules}"))
                .unwrap_or_default();
            let _ = write!(routes, "{{ sni = {names}, upstream = {upstream:?}{rules} }}, ");
        }
        let names = [PLAIN, ADMIN, TWIN, OPTIONAL, "*.optional.example", "*.inside.example"];
        let gateway = Setup::new(io, &[plain])
            .no_identities()
            // One certificate for all: it is not what keeps them apart.
            .identity("all", &[&names[..], &[SITE]].concat(), KeyKind::Ecdsa)
            .listener(&format!("routes = [{routes}]"))
            .tls(tls)
            .more(&format!(
                "[[upstream]]\nname = \"admin\"\nservers = [\"{admin}\"]\n\
                 [[upstream]]\nname = \"inside\"\nservers = [\"{inside}\"]\n"
            ))
            .start();
        Site {
            gateway,
            clients,
            _origins: origins,
        }
    }

    fn client(&self, version: &str, name: Option<&str>) -> Client<'_> {
        let client = Client::new(&self.gateway);
        let client = match name {
            Some(name) => client.name(name),
            None => client.no_name(),
        };
        if version == "1.2" {
            client.tls12()
        } else {
            client.tls13()
        }
    }
}

/// Tells its name to whoever asks for it, and echoes everything else.
fn telling(name: &'static str) -> Origin {
    let http = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    Origin::start(move |mut stream| {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let answer = match &buffer[..length] {
                [b'w', b'h', b'o', ..] => name.as_bytes(),
                [b'G', b'E', b'T', ..] => http.as_bytes(),
                other => other,
            };
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    })
}

/// The server that a client is served by.
#[track_caller]
fn served_by(client: &Client<'_>) -> String {
    let mut connection = client.connect();
    connection.send(b"who?");
    String::from_utf8(connection.finish()).unwrap()
}

fn the_name_decides_who_gets_where(io: Io) {
    let site = Site::new(io, "");
    let Clients {
        admin,
        inside,
        stranger,
        ..
    } = &site.clients;
    let required = Err(Alert::CertificateRequired);
    let unknown = Err(Alert::UnknownCA);
    // For nobody, a client of the admins' CA, one of the insiders', one of another.
    let plain = [Ok("plain"); 4];
    for (name, expected) in [
        (Some(PLAIN), plain),
        (Some(SITE), plain),
        (None, plain),
        (Some(OPEN), plain),
        (Some(ADMIN), [required, Ok("admin"), unknown, unknown]),
        (Some("ADMIN.Example"), [required, Ok("admin"), unknown, unknown]),
        (Some(TWIN), [required, Ok("admin"), unknown, unknown]),
        (Some(INSIDE), [required, unknown, Ok("inside"), unknown]),
        (Some("A.INSIDE.example"), [required, unknown, Ok("inside"), unknown]),
        (Some(OPTIONAL), [Ok("inside"), unknown, Ok("inside"), unknown]),
        (
            Some("b.optional.example"),
            [Ok("inside"), unknown, Ok("inside"), unknown],
        ),
    ] {
        for version in ["1.2", "1.3"] {
            let shown = [None, Some(admin), Some(inside), Some(stranger)];
            for (shown, expected) in shown.into_iter().zip(expected) {
                let client = site.client(version, name);
                let client = match shown {
                    Some(shown) => client.shows(shown),
                    None => client,
                };
                match expected {
                    Ok(server) => assert_eq!(served_by(&client), server, "{name:?}"),
                    Err(alert) => assert_eq!(client.refused_after_its_flight(), alert, "{name:?}"),
                }
            }
        }
    }
    site.gateway.wait_until_quiet();
}

fn other_peoples_clients_are_let_in_by_name(io: Io) {
    let site = Site::new(io, "");
    let folder = site.clients.folder.path();
    let (chain, key) = site.clients.admin.write(folder, "client");
    let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
    let ca = site.gateway.ca.file();
    let ca = ca.to_str().unwrap();
    let address = site.gateway.address;
    let shows = ["-cert", chain, "-key", key];

    for version in ["-tls1_2", "-tls1_3"] {
        let openssl = |name, flags: &[&str]| {
            let connect = address.to_string();
            let fixed = [
                "s_client",
                "-connect",
                &connect,
                "-servername",
                name,
                "-CAfile",
                ca,
                version,
            ];
            Program::start("openssl", &[&fixed, flags].concat())
        };
        for (name, flags, server) in [
            (PLAIN, &[][..], "plain"),
            (PLAIN, &shows, "plain"),
            (ADMIN, &shows, "admin"),
        ] {
            let mut client = openssl(name, flags);
            client.send(b"who?\n");
            client.wait_for(&format!("\n{server}"));
            client.finish();
        }
        let refused = openssl(ADMIN, &[]);
        refused.wait_for("alert certificate required");
        refused.finish();
        let refused = openssl(INSIDE, &shows);
        refused.wait_for("alert unknown ca");
        refused.finish();
    }

    // Python's ssl: what it gets of the server, or the reason for which it is refused.
    let script = r#"
import socket, ssl, sys
host, port, ca, name, chain, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if chain:
    context.load_cert_chain(chain, key)
try:
    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=name) as tls:
        tls.sendall(b"who?")
        print(tls.recv(64).decode())
except ssl.SSLError as error:
    print(error.reason)
"#;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    for (name, chain, key, says) in [
        (PLAIN, "", "", "plain"),
        (PLAIN, chain, key, "plain"),
        (ADMIN, chain, key, "admin"),
        (ADMIN, "", "", "CERTIFICATE_REQUIRED"),
        (INSIDE, chain, key, "TLSV1_ALERT_UNKNOWN_CA"),
    ] {
        let said = python(script, &[&host, &port, ca, name, chain, key]);
        assert!(said.contains(says), "{name}: {said}");
    }

    // curl goes by the name in its URL.
    let curl = |name: &str, flags: &[&str]| {
        let resolve = format!("{name}:{port}:{host}");
        let url = format!("https://{name}:{port}/");
        let fixed = ["-sS", "--max-time", "20", "--cacert", ca, "--resolve", &resolve];
        run("curl", &[&fixed, flags, &[&url]].concat(), b"")
    };
    let shows = ["--cert", chain, "--key", key];
    for (name, flags, server) in [
        (PLAIN, &[][..], "plain"),
        (PLAIN, &shows, "plain"),
        (ADMIN, &shows, "admin"),
    ] {
        assert_eq!(curl(name, flags).ok().stdout, server);
    }
    let refused = curl(ADMIN, &[]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
}

/// RFC 8446 section 4.1.2: a second ClientHello, which the gateway has asked for because it lacks a share, has to have the name of the first.
fn a_name_cannot_be_changed_on_the_way(io: Io) {
    assert_eq!(PLAIN.len(), ADMIN.len(), "one can be put in place of the other");
    let site = Site::new(io, "groups = [\"secp256r1\"]");
    let groups = [NamedGroup::X25519, NamedGroup::secp256r1];
    let client = |name: &str| site.client("1.3", Some(name)).groups(&groups);
    assert_eq!(served_by(&client(ADMIN).shows(&site.clients.admin)), "admin");
    let second = |first: &str, change: &dyn Fn(&mut [u8], usize)| {
        let mut connection = client(first).open();
        let first_hello = connection.take_outgoing();
        connection.stream.write_all(&first_hello).unwrap();
        connection.tls.read_tls(&mut connection.stream).unwrap();
        connection.tls.process_new_packets().unwrap();
        let mut hello = connection.take_outgoing();
        let at = hello.windows(first.len()).position(|bytes| bytes == first.as_bytes());
        change(&mut hello, at.expect("the second ClientHello has the name"));
        connection.stream.write_all(&hello).unwrap();
        connection
    };
    for (first, then) in [(PLAIN, ADMIN), (ADMIN, PLAIN)] {
        let change = |hello: &mut [u8], at: usize| hello[at..at + then.len()].copy_from_slice(then.as_bytes());
        let mut connection = second(first, &change);
        assert_refused(&mut connection);
        // No name at all: its extension becomes one that nobody knows.
        let change = |hello: &mut [u8], at: usize| hello[at - 9..at - 7].copy_from_slice(&[0x5a, 0x5a]);
        let mut connection = second(first, &change);
        assert_refused(&mut connection);
    }
    // Unchanged, it is no reason to refuse.
    let mut connection = second(PLAIN, &|_, _| {});
    connection.handshake().unwrap();
    drop(connection);
    site.gateway.wait_until_quiet();
}

#[track_caller]
fn assert_refused(connection: &mut Connection) {
    let mut answer = Vec::new();
    connection.stream.read_to_end(&mut answer).unwrap();
    let alert = u8::from(Alert::IllegalParameter);
    assert!(answer.ends_with(&[21, 3, 3, 0, 2, 2, alert]), "{answer:?}");
}

/// An address instead of a name is no name; what no name can be is refused, whatever it would be without the rest.
fn what_is_no_name_is_no_way_in(io: Io) {
    let site = Site::new(io, "");
    let send = |name: &[u8]| {
        let length = |extra: usize| u16::try_from(name.len() + extra).unwrap().to_be_bytes();
        let body = [&length(3)[..], &[0], &length(0), name].concat();
        let mut stream = site.gateway.connect_tcp();
        stream
            .write_all(&Hello::new(0x0303).extension(0, body).record())
            .unwrap();
        stream
    };
    for name in [
        &b"admin.example."[..],
        b"admin.example\0",
        b"\0admin.example",
        b"admin\xc2\xad.example",
        b"\xffadmin.example",
        b"admin .example",
        b"admin..example",
        b".admin.example",
        b"*.inside.example",
        b"",
    ] {
        let answer = read_alert(&mut send(name));
        assert_eq!(answer, Answer::Fatal(Alert::DecodeError), "{}", name.escape_ascii());
    }
    // It is asked for a certificate exactly where one is wanted: that is what the gateway's first flight has or has not.
    let asks = |name: &[u8]| {
        let mut stream = send(name);
        let mut flight = Vec::new();
        let mut buffer = [0; 4096];
        // ServerHelloDone is the last.
        while !flight.ends_with(&[14, 0, 0, 0]) {
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "{}: {flight:?}", name.escape_ascii());
            flight.extend_from_slice(&buffer[..length]);
        }
        flight.windows(8).any(|bytes| bytes == b"insiders")
    };
    for (name, expected) in [
        (&b"127.0.0.1"[..], false),
        (b"::1", false),
        (b"inside.example", false),
        (b"a.b.inside.example", false),
        (b"open.inside.example", false),
        (b"a.inside.example", true),
        (b"A.INSIDE.EXAMPLE", true),
    ] {
        assert_eq!(asks(name), expected, "{}", name.escape_ascii());
    }
}

fn no_session_of_one_name_is_resumed_at_another(io: Io) {
    sessions_stay_with_their_names(io, "");
}

fn no_session_kept_here_is_resumed_at_another_name(io: Io) {
    sessions_stay_with_their_names(io, "tickets = false\nsession_cache = \"4MiB\"");
}

/// Every pair of names, before and after a reload. The gateway shows one certificate for all of them.
fn sessions_stay_with_their_names(io: Io, tls: &str) {
    let site = Site::new(io, tls);
    let Clients { admin, inside, .. } = &site.clients;
    let doors = [
        (None, admin),
        (Some(PLAIN), inside),
        (Some(OPEN), admin),
        (Some(ADMIN), admin),
        (Some(TWIN), admin),
        (Some(INSIDE), inside),
        (Some("b.inside.example"), inside),
        (Some(OPTIONAL), inside),
    ];
    for version in ["1.2", "1.3"] {
        let mut sessions = Vec::new();
        for (name, shown) in doors {
            let wallet = Wallet::new(&site.gateway.ca);
            let client = site.client(version, name).wallet(&wallet).shows(shown);
            let get = |_| {
                assert_eq!(client.visit(), Visit::Full, "{name:?}");
                wallet.take()
            };
            let own: Vec<Session> = (0..2 * doors.len()).map(get).collect();
            sessions.push((wallet, own));
        }
        for _ in 0..2 {
            for (name, shown) in doors {
                for ((made_for, _), (wallet, own)) in doors.iter().zip(&mut sessions) {
                    wallet.clear();
                    wallet.put(own.pop().expect("there are two for each door"));
                    let visit = site.client(version, name).wallet(wallet).shows(shown).visit();
                    let expected = if name == *made_for { Visit::Resumed } else { Visit::Full };
                    assert_eq!(visit, expected, "{version}: of {made_for:?} at {name:?}");
                }
            }
            reload(&site.gateway);
            // The only worker has heard of it after its next turn.
            let _ = Client::new(&site.gateway).try_connect();
        }
        // What was made without a certificate opens no door that wants one.
        let wallet = Wallet::new(&site.gateway.ca);
        let nobody = |name| site.client(version, Some(name)).wallet(&wallet);
        assert_eq!(nobody(OPTIONAL).visit(), Visit::Full);
        assert_eq!(nobody(OPTIONAL).visit(), Visit::Resumed);
        assert_eq!(wallet.count(), 1);
        assert_eq!(nobody(INSIDE).visit(), Visit::Refused(Alert::CertificateRequired));
    }
}

fn a_route_whose_rules_change_declines_its_sessions(io: Io) {
    let site = Site::new(io, "");
    let both = site.clients.folder.path().join("both.pem");
    let [admins, insiders] = ["admins", "insiders"].map(|ca| std::fs::read_to_string(site.clients.ca(ca)).unwrap());
    std::fs::write(&both, admins + &insiders).unwrap();
    let text = std::fs::read_to_string(site.gateway.config_file()).unwrap();
    let rules = site.clients.rules("required", "admins");
    let in_force = |rules_of_admin: &str| {
        let text = text.replacen(&rules, rules_of_admin, 1);
        std::fs::write(site.gateway.config_file(), text).unwrap();
        reload(&site.gateway);
        let _ = Client::new(&site.gateway).try_connect();
    };
    for version in ["1.2", "1.3"] {
        let wallets = [ADMIN, TWIN].map(|name| (name, Wallet::new(&site.gateway.ca)));
        let visits = |expected: [Visit; 2], what: &str| {
            for ((name, wallet), expected) in wallets.iter().zip(expected) {
                let client = site
                    .client(version, Some(name))
                    .wallet(wallet)
                    .shows(&site.clients.admin);
                assert_eq!(client.visit(), expected, "{version}: {name}: {what}");
            }
        };
        in_force(&rules);
        visits([Visit::Full; 2], "the first time");
        in_force(&rules);
        visits([Visit::Resumed; 2], "nothing has changed");
        for other in [
            format!("{{ mode = \"required\", ca = {both:?} }}"),
            site.clients.rules("optional", "admins"),
            "{ mode = \"off\" }".into(),
            rules.replace(" }", ", verify_depth = 1 }"),
            rules.clone(),
        ] {
            in_force(&other);
            visits([Visit::Full, Visit::Resumed], &other);
        }
    }
}

/// One server behind names with other rules: whoever writes another Host header gets past them.
#[test]
fn check_warns_of_a_server_that_other_names_lead_to() {
    let clients = Clients::new();
    let check = |routes: &str, upstreams: &str| {
        let setup = Setup::new(Io::Epoll, &["127.0.0.1:8080"])
            .identity("admin", &[ADMIN, PLAIN], KeyKind::Ecdsa)
            .listener(routes)
            .more(upstreams);
        setup.try_command("check").text()
    };
    let route = |upstream: &str, rules: &str| {
        format!("routes = [{{ sni = {ADMIN:?}, upstream = {upstream:?}, client_auth = {rules} }}]")
    };
    let required = clients.rules("required", "admins");
    let warning = "routes[0].client_auth: server 127.0.0.1:8080 behind it is also reached by clients that ask for a name without a route, or for none,";
    let own = |servers: &str| format!("[[upstream]]\nname = \"own\"\nservers = [{servers}]");
    for (what, text, is_warned) in [
        ("the same group", check(&route("app", &required), ""), true),
        (
            "servers of its own",
            check(&route("own", &required), &own("\"127.0.0.1:8081\"")),
            false,
        ),
        (
            "the same server in another group",
            check(&route("own", &required), &own("\"127.0.0.1:8081\", \"localhost:8080\"")),
            true,
        ),
        (
            "whoever shows none is let in anyway",
            check(&route("app", &clients.rules("optional", "admins")), ""),
            false,
        ),
        (
            "the same rules",
            check(
                &format!("client_auth = {required}\n{}", route("own", &required)),
                &own("\"127.0.0.1:8080\""),
            ),
            false,
        ),
    ] {
        assert_eq!(text.contains(warning), is_warned, "{what}: {text}");
        assert_eq!(text.contains("behind it is also reached"), is_warned, "{what}: {text}");
    }
    // The listener's own rules, and a route around them.
    let around = format!("client_auth = {required}\n{}", route("app", "{ mode = \"off\" }"));
    let text = check(&around, "");
    let warning = format!(
        "listener \"edge\": client_auth: server 127.0.0.1:8080 behind it is also reached by clients that ask for {ADMIN},"
    );
    assert!(text.contains(&warning), "{text}");
}
