//! A session ends with the first of these: its lifetime, counted from the full handshake it began with; a certificate of the
//! client's chain; a revocation list that the client was looked up in. A full handshake follows, in which the client is judged anew.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::support::*;
use rcgen::CertificateParams;
use rustls::AlertDescription as Alert;
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
const SOON: Duration = Duration::from_secs(6);
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

/// Comes again and again until it is not resumed any more. What came then, and how many sessions it had to offer: none when the
/// last one ended during the handshake in which it was resumed.
#[track_caller]
fn until_not_resumed(client: &Client<'_>, wallet: &Wallet) -> (Visit, u64) {
    let begin = Instant::now();
    loop {
        let offered = wallet.count() as u64;
        let visit = client.visit();
        if visit != Visit::Resumed {
            return (visit, offered);
        }
        assert!(begin.elapsed() < PATIENCE, "it is resumed for ever");
        std::thread::sleep(PAUSE);
    }
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
        let mut in_vain = 0;
        for version in VERSIONS {
            let wallet = Wallet::new(&gateway.ca);
            let client = client(&gateway, version, &wallet);
            let before = Instant::now();
            assert_eq!(client.visit(), Visit::Full);
            let made = Instant::now();
            let mut last = made;
            loop {
                let (begin, offered) = (Instant::now(), wallet.count() as u64);
                if client.visit() == Visit::Full {
                    in_vain += offered;
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
        assert_eq!(declined(&gateway, "expired"), in_vain, "{kept}");
    }
}

/// Clients that have shown `short` are resumed, until it is over. What they show then, and what comes of that.
#[track_caller]
fn all_end(gateways: &[Gateway], short: &Shown, then: &[(Option<&Shown>, Visit)]) {
    let mut clients = Vec::new();
    for gateway in gateways {
        for version in VERSIONS {
            for &(shown, expected) in then {
                let wallet = Wallet::new(&gateway.ca);
                let client = client(gateway, version, &wallet);
                assert_eq!(client.clone().shows(short).visit(), Visit::Full, "{version}");
                let client = match shown {
                    Some(shown) => client.shows(shown),
                    None => client,
                };
                assert_eq!(client.visit(), Visit::Resumed, "{version}");
                clients.push((client, wallet, expected));
            }
        }
    }
    let mut in_vain = 0;
    for (client, wallet, expected) in &clients {
        let (visit, offered) = until_not_resumed(client, wallet);
        assert_eq!(visit, *expected);
        let is_served = *expected == Visit::Full;
        in_vain += offered * u64::from(is_served);
        assert_eq!(wallet.count(), usize::from(is_served), "what it had was offered");
        assert_eq!(client.visit(), if is_served { Visit::Resumed } else { *expected });
    }
    let declined: u64 = gateways
        .iter()
        .map(|gateway| declined(gateway, "client_certificate"))
        .sum();
    assert_eq!(declined, in_vain, "of those whose handshake went on");
}

fn a_session_ends_with_the_certificate_of_its_client(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateways = KEPT.map(|kept| clients.setup(io, &origin, false).tls(kept).start());
    let short = clients.root.client_with(KeyKind::Ecdsa, soon);
    let new = clients.root.client();
    // Who shows a new one, or none where that is allowed, is served.
    let then = [
        (Some(&short), Visit::Refused(Alert::CertificateExpired)),
        (Some(&new), Visit::Full),
        (None, Visit::Full),
    ];
    all_end(&gateways, &short, &then);
}

fn a_session_ends_with_a_certificate_that_signed_its_client(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let gateways = KEPT.map(|kept| clients.setup(io, &origin, false).tls(kept).start());
    let short = clients.root.below_with("below", KeyKind::Ecdsa, soon).client();
    let refused = Visit::Refused(Alert::CertificateExpired);
    all_end(&gateways, &short, &[(Some(&short), refused)]);
}

fn a_session_ends_with_the_list_that_its_client_was_looked_up_in(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let list = clients
        .root
        .list_with(&[], |params| params.next_update = (SystemTime::now() + SOON).into());
    std::fs::write(clients.file("list.crl"), list).unwrap();
    let gateways = KEPT.map(|kept| clients.setup(io, &origin, true).tls(kept).start());
    let wallet = Wallet::new(&gateways[0].ca);
    let nobody = client(&gateways[0], "1.3", &wallet);
    assert_eq!(nobody.visit(), Visit::Full);
    let shown = clients.root.client();
    // Whose revocation is unknown is trusted by nobody.
    let refused = Visit::Refused(Alert::UnknownCA);
    all_end(&gateways, &shown, &[(Some(&shown), refused)]);
    assert_eq!(nobody.visit(), Visit::Resumed, "no list could name it");
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
        let (visit, offered) = until_not_resumed(&client, &wallet);
        assert_eq!(visit, Visit::Full);
        assert_eq!(declined(&gateway, "expired"), before + offered);
    }
}
