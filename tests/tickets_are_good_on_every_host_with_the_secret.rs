//! Processes with the same secret file accept each other's tickets, and their own after a restart, also when their clocks differ
//! by up to one rotation. Where they do not agree a full handshake follows.

use std::path::PathBuf;

use crate::support::*;
use tempfile::TempDir;

both_drivers!(
    a_ticket_of_one_process_is_good_for_another,
    a_ticket_survives_a_restart_with_a_file_only,
    clocks_may_be_an_epoch_apart,
    other_settings_make_other_hosts,
);

const VERSIONS: [&str; 2] = ["1.2", "1.3"];
const SECRET: &[u8] = b"a secret of forty-eight bytes, which is no random";

/// What hosts share: an identity and the secret of tickets.
struct Fleet {
    folder: TempDir,
    origin: Origin,
}

impl Fleet {
    fn new() -> Fleet {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("tickets.secret"), SECRET).unwrap();
        Ca::new(folder.path()).issue("shared", &[SITE], KeyKind::Ecdsa);
        Fleet {
            folder,
            origin: Origin::echo(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// With these lines in `[tickets]`.
    fn setup(&self, io: Io, tickets: &str) -> Setup {
        let path = |name| self.file(name).display().to_string();
        Setup::new(io, &[self.origin.address()])
            .no_identities()
            .issued_identity("shared", &path("shared.pem"), &path("shared.key"), "")
            .more(&format!("[tickets]\n{tickets}"))
    }

    fn secret(&self) -> String {
        format!("secret = \"file:{}\"", self.file("tickets.secret").display())
    }

    fn wallet(&self) -> Wallet {
        Wallet::trusting(&self.file("ca.pem"))
    }
}

fn visit(gateway: &Gateway, version: &str, wallet: &Wallet) -> Visit {
    let client = Client::new(gateway).wallet(wallet);
    let client = if version == "1.2" {
        client.tls12()
    } else {
        client.tls13()
    };
    client.visit()
}

fn declined(gateway: &Gateway, cause: &str) -> u64 {
    let labels = [("kind", "ticket"), ("cause", cause)];
    gateway.metrics().count("ringlock_sessions_declined_total", &labels)
}

/// From the first to the second, from the second to the first.
#[track_caller]
fn agree(fleet: &Fleet, a: &Gateway, b: &Gateway) {
    for version in VERSIONS {
        for (from, to) in [(a, b), (b, a)] {
            let wallet = fleet.wallet();
            assert_eq!(visit(from, version, &wallet), Visit::Full);
            assert_eq!(visit(to, version, &wallet), Visit::Resumed, "{version}");
            assert_eq!(
                visit(from, version, &wallet),
                Visit::Resumed,
                "{version}: renewed by the other"
            );
        }
    }
}

/// A ticket of the one is declined by the other for this cause, both ways, and all clients are served.
#[track_caller]
fn disagree(fleet: &Fleet, a: &Gateway, b: &Gateway, cause: &str) {
    for version in VERSIONS {
        for (from, to) in [(a, b), (b, a)] {
            let wallet = fleet.wallet();
            assert_eq!(visit(from, version, &wallet), Visit::Full);
            let before = declined(to, cause);
            assert_eq!(visit(to, version, &wallet), Visit::Full, "{version}");
            assert_eq!(declined(to, cause), before + 1, "{version}");
            assert_eq!(
                visit(to, version, &wallet),
                Visit::Resumed,
                "{version}: its own is good"
            );
        }
    }
}

fn a_ticket_of_one_process_is_good_for_another(io: Io) {
    let fleet = Fleet::new();
    let [a, b] = [0, 1].map(|_| fleet.setup(io, &fleet.secret()).start());
    agree(&fleet, &a, &b);
}

fn a_ticket_survives_a_restart_with_a_file_only(io: Io) {
    let fleet = Fleet::new();
    for (secret, expected) in [
        (fleet.secret(), Visit::Resumed),
        ("secret = \"random\"".into(), Visit::Full),
    ] {
        for version in VERSIONS {
            let wallet = fleet.wallet();
            let gateway = fleet.setup(io, &secret).start();
            assert_eq!(visit(&gateway, version, &wallet), Visit::Full);
            gateway.stop();
            let gateway = fleet.setup(io, &secret).start();
            assert_eq!(visit(&gateway, version, &wallet), expected, "{version}, {secret}");
            assert_eq!(declined(&gateway, "unknown"), u64::from(expected == Visit::Full));
            assert_eq!(visit(&gateway, version, &wallet), Visit::Resumed);
        }
    }
}

fn clocks_may_be_an_epoch_apart(io: Io) {
    let fleet = Fleet::new();
    let tickets = format!("{}\nrotation = \"1h\"", fleet.secret());
    let start = |offset: &str| fleet.setup(io, &tickets).clock(offset).start();
    let epoch = |gateway: &Gateway| gateway.metrics().count("ringlock_ticket_epoch", &[]);
    let right = fleet.setup(io, &tickets).start();
    let [same, ahead, far, behind] = ["+0", "+1h", "+3h", "-3h"].map(start);
    // An hour may have ended between two questions.
    let apart = |gateway: &Gateway| epoch(gateway).abs_diff(epoch(&right));
    assert!(
        apart(&same) <= 1 && (1..=2).contains(&apart(&ahead)),
        "clocks are not faked"
    );
    for far in [&far, &behind] {
        assert!((2..=4).contains(&apart(far)), "clocks are not faked");
    }
    agree(&fleet, &right, &same);
    agree(&fleet, &right, &ahead);
    disagree(&fleet, &right, &far, "expired");
    disagree(&fleet, &right, &behind, "expired");
}

/// The secret is the same, and something else is not.
fn other_settings_make_other_hosts(io: Io) {
    let fleet = Fleet::new();
    let first = fleet.setup(io, &fleet.secret()).start();
    let rotation = fleet
        .setup(io, &format!("{}\nrotation = \"2h\"", fleet.secret()))
        .start();
    disagree(&fleet, &first, &rotation, "unknown");
    // A line end is a byte.
    let other = fleet.file("other.secret");
    std::fs::write(&other, [SECRET, b"\n"].concat()).unwrap();
    let secret = fleet
        .setup(io, &format!("secret = \"file:{}\"", other.display()))
        .start();
    disagree(&fleet, &first, &secret, "unknown");
    let no_certificates = fleet.setup(io, &fleet.secret());
    Authority::root("clients")
        .client()
        .write(no_certificates.folder(), "client");
    let ca = no_certificates.folder().join("client.pem");
    let asks = no_certificates
        .listener(&format!("client_auth = {{ mode = \"optional\", ca = {ca:?} }}"))
        .start();
    disagree(&fleet, &first, &asks, "policy");
    // It does not change what a ticket is; each host goes by its own.
    let lifetime = fleet
        .setup(io, &format!("{}\nlifetime = \"1h\"", fleet.secret()))
        .start();
    agree(&fleet, &first, &lifetime);
}
