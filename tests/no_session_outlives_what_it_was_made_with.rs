//! A session ends with the first of these: its lifetime, counted from the full handshake it began with; a certificate of the
//! client's chain; a revocation list that the client was looked up in. A full handshake follows, in which the client is judged anew.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute only; helpers here are tests, too"
)]

#[macro_use]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rcgen::CertificateParams;
use rustls::AlertDescription as Alert;
use support::*;
use tempfile::TempDir;

both_drivers!(
    renewal_does_not_make_a_session_older,
    a_session_ends_with_the_certificate_of_its_client,
    a_session_ends_with_a_certificate_that_signed_its_client,
    a_session_ends_with_the_list_that_its_client_was_looked_up_in,
    a_reloaded_list_ends_sessions,
    what_does_not_expire_ends_with_the_lifetime_only,
);

const VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// Where sessions are kept.
const KEPT: [&str; 2] = ["tickets = true", "tickets = false\nsession_cache = \"4MiB\""];
/// How long what expires in a test is good for.
const SOON: Duration = Duration::from_secs(4);
/// Between two visits.
const PAUSE: Duration = Duration::from_millis(100);

/// A root, in `ca.pem` of a folder, with a list of nobody in `list.crl`.
struct Clients {
    root: Authority,
    folder: TempDir,
}

impl Clients {
    fn new() -> Clients {
        let clients = Clients {
            root: Authority::root("clients"),
            folder: TempDir::new().unwrap(),
        };
        std::fs::write(clients.file("ca.pem"), clients.root.pem()).unwrap();
        std::fs::write(clients.file("list.crl"), clients.root.list(&[])).unwrap();
        clients
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn setup(&self, io: Io, origin: &Origin, with_list: bool) -> Setup {
        let list = if with_list {
            format!(", crl = [{:?}]", self.file("list.crl"))
        } else {
            String::new()
        };
        let ca = self.file("ca.pem");
        Setup::new(io, &[origin.address()])
            .listener(&format!("client_auth = {{ mode = \"optional\", ca = {ca:?}{list} }}"))
    }
}

fn client<'g>(gateway: &'g Gateway, version: &str, wallet: &Wallet) -> Client<'g> {
    let client = Client::new(gateway).wallet(wallet);
    if version == "1.2" {
        client.tls12()
    } else {
        client.tls13()
    }
}

fn declined(gateway: &Gateway, cause: &str) -> u64 {
    gateway
        .metrics()
        .count("ringlock_sessions_declined_total", &[("cause", cause)])
}

/// Comes again and again until it is not resumed any more. How often it was, and what then came.
#[track_caller]
fn until_not_resumed(client: &Client<'_>) -> (usize, Visit) {
    let begin = Instant::now();
    for resumed in 0.. {
        let visit = client.visit();
        if visit != Visit::Resumed {
            return (resumed, visit);
        }
        assert!(begin.elapsed() < PATIENCE, "it is resumed for ever");
        std::thread::sleep(PAUSE);
    }
    unreachable!("there are more numbers than visits")
}

fn soon(params: &mut CertificateParams) {
    params.not_after = (SystemTime::now() + SOON).into();
}

fn renewal_does_not_make_a_session_older(io: Io) {
    let origin = Origin::echo();
    for kept in KEPT {
        let gateway = Setup::new(io, &[origin.address()])
            .tls(kept)
            .more("[tickets]\nlifetime = \"2s\"")
            .start();
        for version in VERSIONS {
            let wallet = Wallet::new(&gateway.ca);
            let client = client(&gateway, version, &wallet);
            let before = Instant::now();
            assert_eq!(client.visit(), Visit::Full);
            let made = Instant::now();
            let mut last = made;
            loop {
                let begin = Instant::now();
                if client.visit() == Visit::Full {
                    break;
                }
                last = begin;
                assert!(begin - made < PATIENCE, "it is resumed for ever");
                std::thread::sleep(PAUSE);
            }
            // The gateway counts whole seconds.
            assert!(last - made < Duration::from_secs(2), "{version}, {kept}: too old");
            assert!(
                before.elapsed() > Duration::from_secs(1),
                "{version}, {kept}: too early"
            );
            assert_eq!(
                client.visit(),
                Visit::Resumed,
                "a new session, with a lifetime of its own"
            );
        }
        assert_eq!(declined(&gateway, "expired"), 2, "{kept}");
    }
}

/// What the client gets once its session is over is what a client without a session gets.
#[track_caller]
fn ends_with(gateway: &Gateway, version: &str, shown: &Shown, refusal: Alert) {
    let wallet = Wallet::new(&gateway.ca);
    let client = client(gateway, version, &wallet).shows(shown);
    assert_eq!(client.visit(), Visit::Full);
    let (resumed, then) = until_not_resumed(&client);
    assert!(resumed > 0, "{version}");
    assert_eq!(then, Visit::Refused(refusal), "{version}");
    assert_eq!(wallet.count(), 0, "{version}: it was offered");
    assert_eq!(client.visit(), Visit::Refused(refusal), "{version}");
}

fn a_session_ends_with_the_certificate_of_its_client(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    for kept in KEPT {
        let gateway = clients.setup(io, &origin, false).tls(kept).start();
        for version in VERSIONS {
            let short = clients.root.client_with(KeyKind::Ecdsa, soon);
            ends_with(&gateway, version, &short, Alert::CertificateExpired);
            // Who shows a new one, or none where that is allowed, is served.
            for shown in [Some(clients.root.client()), None] {
                let wallet = Wallet::new(&gateway.ca);
                let short = clients.root.client_with(KeyKind::Ecdsa, soon);
                let before = declined(&gateway, "client_certificate");
                assert_eq!(client(&gateway, version, &wallet).shows(&short).visit(), Visit::Full);
                let with_another = match &shown {
                    Some(shown) => client(&gateway, version, &wallet).shows(shown),
                    None => client(&gateway, version, &wallet),
                };
                assert_eq!(until_not_resumed(&with_another).1, Visit::Full, "{version}");
                assert_eq!(declined(&gateway, "client_certificate"), before + 1);
            }
        }
    }
}

fn a_session_ends_with_a_certificate_that_signed_its_client(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients.setup(io, &origin, false).start();
    for version in VERSIONS {
        let below = clients.root.below_with("below", KeyKind::Ecdsa, soon);
        ends_with(&gateway, version, &below.client(), Alert::CertificateExpired);
    }
}

fn a_session_ends_with_the_list_that_its_client_was_looked_up_in(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    for version in VERSIONS {
        let list = clients
            .root
            .list_with(&[], |params| params.next_update = (SystemTime::now() + SOON).into());
        std::fs::write(clients.file("list.crl"), list).unwrap();
        let gateway = clients.setup(io, &origin, true).start();
        let shown = clients.root.client();
        // Nobody is left in it that could be named.
        let nobodys = Wallet::new(&gateway.ca);
        let nobody = client(&gateway, version, &nobodys);
        assert_eq!(nobody.visit(), Visit::Full);
        ends_with(&gateway, version, &shown, Alert::CertificateUnknown);
        assert_eq!(nobody.visit(), Visit::Resumed, "{version}");
    }
}

fn a_reloaded_list_ends_sessions(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    for kept in KEPT {
        let gateway = clients.setup(io, &origin, true).tls(kept).start();
        for version in VERSIONS {
            let shown = [clients.root.client(), clients.root.client()];
            let wallets = [0, 1].map(|_| Wallet::new(&gateway.ca));
            let [revoked, other] =
                [0, 1].map(|number: usize| client(&gateway, version, &wallets[number]).shows(&shown[number]));
            for one in [&revoked, &other] {
                assert_eq!(one.visit(), Visit::Full);
                assert_eq!(one.visit(), Visit::Resumed);
            }
            let list = clients.root.list(&[&shown[0].chain[0]]);
            std::fs::write(clients.file("list.crl"), list).unwrap();
            reload(&gateway);
            // The worker hears of the reload when somebody comes.
            let _ = Client::new(&gateway).try_connect();
            assert_eq!(wallets.each_ref().map(Wallet::count), [1, 1]);
            assert_eq!(revoked.visit(), Visit::Refused(Alert::CertificateRevoked), "{version}");
            assert_eq!(wallets[0].count(), 0, "{version}: it was offered");
            let before = declined(&gateway, "crl");
            assert_eq!(other.visit(), Visit::Full, "{version}");
            assert_eq!(declined(&gateway, "crl"), before + 1);
            assert_eq!(other.visit(), Visit::Resumed, "{version}");
        }
    }
}

/// RFC 5280 section 4.1.2.5: a certificate without an end has this one.
fn what_does_not_expire_ends_with_the_lifetime_only(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateway = clients
        .setup(io, &origin, true)
        .more("[tickets]\nlifetime = \"2s\"")
        .start();
    for version in VERSIONS {
        let shown = clients.root.client_with(KeyKind::Ecdsa, |params| {
            params.not_after = rcgen::date_time_ymd(9999, 12, 31)
        });
        let wallet = Wallet::new(&gateway.ca);
        let client = client(&gateway, version, &wallet).shows(&shown);
        let before = declined(&gateway, "expired");
        assert_eq!(client.visit(), Visit::Full);
        assert_eq!(client.visit(), Visit::Resumed);
        assert_eq!(until_not_resumed(&client).1, Visit::Full);
        assert_eq!(declined(&gateway, "expired"), before + 1);
    }
}
