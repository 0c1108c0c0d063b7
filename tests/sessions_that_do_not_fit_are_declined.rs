//! Tickets that are changed, cut off, somebody else's or for something else: a full handshake follows, none fails, and the metrics tell why.
//! Only what TLS itself forbids is refused.

use std::io::Write;
use std::path::PathBuf;

use crate::support::pre_shared_keys::{Offer, ServerHello};
use crate::support::*;
use rustls::AlertDescription;

both_drivers!(
    a_changed_ticket_is_declined,
    a_ticket_cut_off_or_lengthened_is_declined,
    a_ticket_of_openssl_is_declined,
    a_ticket_of_nginx_is_declined,
    a_ticket_of_the_other_version_is_declined,
    a_ticket_for_another_name_or_suite_is_declined,
    the_last_of_sixteen_tickets_is_found,
    a_client_that_wants_no_key_exchange_is_not_resumed,
    a_wrong_binder_is_refused,
    an_offer_that_breaks_the_rules_is_refused,
    the_extended_master_secret_is_not_mixed,
);

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// As in the module that makes them: secret id, epoch, salt, check; then what is sealed.
const EPOCH: usize = 4;
const SALT: usize = 8;
const CHECK: usize = 24;
const SEALED: usize = 32;

/// A gateway, and a session of it for each version.
struct Resumable {
    gateway: Gateway,
    _origin: Origin,
}

impl Resumable {
    fn start(io: Io) -> Resumable {
        let origin = Origin::echo();
        let gateway = Setup::new(io, &[origin.address()])
            .no_identities()
            .identity("site", &[SITE, "other.example"], KeyKind::Ecdsa)
            .start();
        let this = Resumable {
            gateway,
            _origin: origin,
        };
        for version in VERSIONS {
            this.save(version, &["-sess_out", this.file(version).to_str().unwrap()]);
        }
        this
    }

    fn file(&self, version: &str) -> PathBuf {
        self.gateway.folder().join(format!("session{version}.pem"))
    }

    #[track_caller]
    fn save(&self, version: &str, flags: &[&str]) {
        let said = s_client_echo(&self.gateway, &[&[version], flags].concat());
        assert!(said.contains("New, TLSv1."), "{said}");
    }

    fn session(&self, version: &str) -> SavedSession {
        SavedSession::read(&self.file(version))
    }

    /// OpenSSL offers this session, with these flags; whether it was resumed.
    #[track_caller]
    fn offer(&self, session: &SavedSession, flags: &[&str]) -> bool {
        let file = self.gateway.folder().join("offered.pem");
        session.write(&file);
        let said = s_client_echo(&self.gateway, &[flags, &["-sess_in", file.to_str().unwrap()]].concat());
        let resumed = said.contains("Reused, TLSv1.");
        assert_eq!(said.contains("New, TLSv1."), !resumed, "{said}");
        resumed
    }

    /// The same: it must be declined for this cause, and nothing else may happen.
    #[track_caller]
    fn assert_declined(&self, session: &SavedSession, flags: &[&str], cause: &str) {
        let before = self.gateway.metrics();
        assert!(
            !self.offer(session, flags),
            "it was resumed, and should have been declined: {cause}"
        );
        let after = self.gateway.wait_until_quiet();
        assert_eq!(
            declined(&after, "ticket", cause) - declined(&before, "ticket", cause),
            1,
            "{cause}; {}",
            after.text()
        );
        let all = |metrics: &Metrics| metrics.sum("ringlock_sessions_declined_total", &[]);
        assert_eq!(all(&after) - all(&before), 1.0, "one cause: {cause}");
        let line = self.gateway.wait_for_line(cause, |line| line["not_resumed"] == cause);
        assert_eq!(line["cause_label"], "finished", "{line}");
    }
}

fn a_changed_ticket_is_declined(io: Io) {
    let this = Resumable::start(io);
    for version in VERSIONS {
        let session = this.session(version);
        let last = session.ticket().len() - 1;
        for (position, cause) in [
            (0, "unknown"),
            (EPOCH, "expired"),
            (SALT, "policy"),
            (CHECK, "policy"),
            (SEALED, "corrupt"),
            (last, "corrupt"),
        ] {
            let mut ticket = session.ticket();
            ticket[position] ^= 0x80;
            this.assert_declined(&session.with_ticket(&ticket), &[version], cause);
        }
        assert!(this.offer(&session, &[version]), "the ticket itself is good");
    }
    assert_handshakes(&this.gateway, 2 + 12, 2);
}

fn a_ticket_cut_off_or_lengthened_is_declined(io: Io) {
    let this = Resumable::start(io);
    for version in VERSIONS {
        let session = this.session(version);
        let ticket = session.ticket();
        for length in [1, SEALED - 1, SEALED, SEALED + 15, ticket.len() - 1] {
            this.assert_declined(&session.with_ticket(&ticket[..length]), &[version], "corrupt");
        }
        let longer = [&ticket[..], b"."].concat();
        this.assert_declined(&session.with_ticket(&longer), &[version], "corrupt");
        // As long as a ClientHello may be.
        let longest = [&ticket[..], &[0; 15_000]].concat();
        this.assert_declined(&session.with_ticket(&longest), &[version], "corrupt");
        this.assert_declined(&session.with_ticket(&[0; 15_000]), &[version], "unknown");
    }
}

fn a_ticket_of_openssl_is_declined(io: Io) {
    let this = Resumable::start(io);
    for version in VERSIONS {
        let session = SavedSession::of_openssl(&this.gateway, version, &[]);
        this.assert_declined(&session, &[version], "unknown");
    }
}

fn a_ticket_of_nginx_is_declined(io: Io) {
    let this = Resumable::start(io);
    let folder = this.gateway.folder().display().to_string();
    let address = free_address();
    let _nginx = Balancer::nginx(
        &format!(
            "http {{ server {{ listen {address} ssl; ssl_certificate {folder}/site.pem; ssl_certificate_key {folder}/site.key;
             ssl_protocols TLSv1.2 TLSv1.3; location / {{ return 200 'a page'; }} }} }}"
        ),
        address,
    );
    for version in VERSIONS {
        let file = this.gateway.folder().join("nginx.pem");
        let (address, saved) = (address.to_string(), file.display().to_string());
        let fixed = ["s_client", "-connect", &address, "-servername", SITE, version];
        let request = b"GET / HTTP/1.0\r\n\r\n";
        run(
            "openssl",
            &[&fixed[..], &["-sess_out", &saved, "-ign_eof"]].concat(),
            request,
        )
        .says("a page");
        this.assert_declined(&SavedSession::read(&file), &[version], "unknown");
    }
}

fn a_ticket_of_the_other_version_is_declined(io: Io) {
    let this = Resumable::start(io);
    let [tls12, tls13] = VERSIONS.map(|version| this.session(version));
    this.assert_declined(&tls13.with_ticket(&tls12.ticket()), &["-tls1_3"], "parameters");
    this.assert_declined(&tls12.with_ticket(&tls13.ticket()), &["-tls1_2"], "parameters");
    // A session of TLS 1.2, offered as one by a client that has learnt TLS 1.3 since: it is not looked at.
    assert!(!this.offer(&tls12, &[]));
    assert_handshakes(&this.gateway, 5, 0);
}

fn a_ticket_for_another_name_or_suite_is_declined(io: Io) {
    let this = Resumable::start(io);
    for version in VERSIONS {
        let session = this.session(version);
        // The later flag wins.
        this.assert_declined(&session, &[version, "-servername", "other.example"], "parameters");
    }
    let session = this.session("-tls1_3");
    let suite = ["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"];
    this.assert_declined(&session, &suite, "parameters");
}

/// What the gateway answers to a ClientHello made by hand.
#[track_caller]
fn answer(gateway: &Gateway, hello: &[u8]) -> ServerHello {
    let mut stream = gateway.connect_tcp();
    stream.write_all(hello).unwrap();
    ServerHello::read(&mut stream)
}

#[track_caller]
fn refused(gateway: &Gateway, hello: &[u8]) -> Alert {
    let mut stream = gateway.connect_tcp();
    stream.write_all(hello).unwrap();
    read_alert(&mut stream)
}

/// As many bytes of tickets as a ClientHello may have, most of them not ours.
fn the_last_of_sixteen_tickets_is_found(io: Io) {
    let this = Resumable::start(io);
    let session = this.session("-tls1_3");
    let good = session.ticket();
    let mut changed = good.clone();
    changed[SEALED] ^= 1;
    let mut tickets = vec![vec![0; 950]; 14];
    tickets.extend([changed, good]);
    let offer = Offer::new(&session.secret(), tickets);
    let hello = offer.record();
    assert!(hello.len() > 14_000, "{} bytes", hello.len());
    assert_eq!(answer(&this.gateway, &hello).selected, Some(15));
    let first = Offer::new(&session.secret(), vec![session.ticket(), vec![0; 950]]);
    assert_eq!(answer(&this.gateway, &first.record()).selected, Some(0));
}

fn a_client_that_wants_no_key_exchange_is_not_resumed(io: Io) {
    let this = Resumable::start(io);
    let session = this.session("-tls1_3");
    let offer = Offer::new(&session.secret(), vec![session.ticket()]);
    // psk_ke alone
    assert_eq!(
        answer(&this.gateway, &offer.clone().modes(&[0]).record()).selected,
        None
    );
    assert_eq!(answer(&this.gateway, &offer.modes(&[0, 1]).record()).selected, Some(0));
}

fn a_wrong_binder_is_refused(io: Io) {
    let this = Resumable::start(io);
    let session = this.session("-tls1_3");
    let mut secret = session.secret();
    secret[0] ^= 1;
    let stolen = Offer::new(&secret, vec![session.ticket()]).record();
    assert_eq!(
        refused(&this.gateway, &stolen),
        Alert::Fatal(AlertDescription::DecryptError)
    );
    // The binder of a ticket that is declined is not looked at.
    let unknown = Offer::new(&secret, vec![vec![0; 200]]).record();
    assert_eq!(answer(&this.gateway, &unknown).selected, None);
}

fn an_offer_that_breaks_the_rules_is_refused(io: Io) {
    let this = Resumable::start(io);
    let session = this.session("-tls1_3");
    let offer = Offer::new(&session.secret(), vec![session.ticket()]);
    let empty = Offer::new(&session.secret(), vec![Vec::new()]);
    let none = Offer::new(&session.secret(), Vec::new());
    for (what, offer, alert) in [
        (
            "no modes",
            offer.clone().without_modes(),
            AlertDescription::MissingExtension,
        ),
        (
            "two tickets, one binder",
            offer.clone().more(&session.ticket()),
            AlertDescription::IllegalParameter,
        ),
        ("an empty ticket", empty, AlertDescription::DecodeError),
        ("no ticket", none, AlertDescription::DecodeError),
        (
            "not the last extension",
            offer.not_last(),
            AlertDescription::IllegalParameter,
        ),
    ] {
        assert_eq!(refused(&this.gateway, &offer.record()), Alert::Fatal(alert), "{what}");
    }
}

/// RFC 7627 section 5.3: with it, a session made without is declined; without it, a session made with it is refused.
fn the_extended_master_secret_is_not_mixed(io: Io) {
    let this = Resumable::start(io);
    let name = [&[0, 15, 0, 0, 12], SITE.as_bytes()].concat();
    let hello = |ticket: Vec<u8>| Hello::new(0x0303).extension(0, name.clone()).extension(35, ticket);
    let ticket = this.session("-tls1_2").ticket();
    assert_eq!(
        refused(&this.gateway, &hello(ticket).record()),
        Alert::Fatal(AlertDescription::IllegalParameter)
    );
    assert_eq!(answer(&this.gateway, &hello(Vec::new()).record()).selected, None);
    let script = r#"
import socket, ssl, sys
ip, port, name, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.maximum_version = ssl.TLSVersion.TLSv1_2
NO_EXTENDED_MASTER_SECRET = 1
session = None
for options in [context.options | NO_EXTENDED_MASTER_SECRET, context.options]:
    context.options = options
    plain = socket.create_connection((ip, int(port)), timeout=30)
    with context.wrap_socket(plain, server_hostname=name, session=session) as tls:
        tls.sendall(b"there and back")
        assert tls.recv(64) == b"there and back"
        print(tls.session_reused)
        session = tls.session
        tls.unwrap()
"#;
    let address = this.gateway.address;
    let (ip, port, ca) = (
        address.ip().to_string(),
        address.port().to_string(),
        this.gateway.ca.file(),
    );
    let before = this.gateway.metrics();
    let said = python(script, &[&ip, &port, SITE, ca.to_str().unwrap()]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["False", "False"]);
    let after = this.gateway.wait_until_quiet();
    let parameters = |metrics: &Metrics| declined(metrics, "ticket", "parameters");
    assert_eq!(parameters(&after) - parameters(&before), 1);
}
