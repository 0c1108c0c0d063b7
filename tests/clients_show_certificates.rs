//! Client certificates: who is let in, who is not and what it is told, with and without batches.

use crate::support::multibuffer;

use std::path::PathBuf;
use std::time::SystemTime;

use crate::support::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, NameConstraints, SanType};
use rustls::AlertDescription as Alert;
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;

both_drivers!(
    whoever_shows_a_right_one_is_let_in,
    whoever_is_refused_is_told_why,
    certificates_that_break_the_rules_are_refused,
    optional_means_none_or_a_right_one,
    off_means_that_nobody_is_asked,
    how_the_chain_is_cut_into_records_does_not_matter,
    a_chain_that_costs_too_much_is_given_up,
);

/// A folder with a file `ca.pem`, in which one root is trusted.
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
        std::fs::write(clients.ca(), clients.root.pem()).unwrap();
        clients
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Gateways in this mode, one without the library and one with it, where there is one.
    fn gateways(&self, io: Io, mode: &str, origin: &Origin) -> Vec<Gateway> {
        let start = |multibuffer: &str| {
            Setup::new(io, &[origin.address()])
                .listener(&format!("client_auth = {{ mode = {mode:?}, ca = {:?} }}", self.ca()))
                .more(&format!("[crypto]\nmultibuffer = {multibuffer:?}"))
                .start()
        };
        let library = multibuffer::library().map(|path| path.display().to_string());
        ["off".to_owned()]
            .into_iter()
            .chain(library)
            .map(|multibuffer| start(&multibuffer))
            .collect()
    }
}

/// One of each version.
fn both_versions<'g>(gateway: &'g Gateway) -> [Client<'g>; 2] {
    [Client::new(gateway).tls12(), Client::new(gateway).tls13()]
}

#[track_caller]
fn let_in(client: &Client<'_>) {
    try_exchange(client).unwrap();
}

fn refused(gateway: &Gateway) -> u64 {
    gateway
        .metrics()
        .count("ringlock_handshake_failures_total", &[("cause", "client_certificate")])
}

fn whoever_shows_a_right_one_is_let_in(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let root = &clients.root;
    let mut shown = vec![root.client()];
    for kind in [KeyKind::Ecdsa, KeyKind::P384, KeyKind::Rsa, KeyKind::Ed25519] {
        shown.push(root.client_with(kind, |_| {}));
        let below = root.below("below", kind);
        shown.push(below.client());
        shown.push(below.client_with(KeyKind::P384, |_| {}));
        shown.push(below.below("two below", KeyKind::Ecdsa).client());
    }
    // No extended key usage allows all.
    shown.push(root.client_with(KeyKind::Ecdsa, |params| params.extended_key_usages.clear()));
    // Whoever sends the root as well sends more than is needed.
    let whole = root.client();
    let chain = [whole.chain.clone(), vec![root.der().clone()]].concat();
    shown.push(whole.with_chain(chain));
    for gateway in clients.gateways(io, "required", &origin) {
        for client in both_versions(&gateway) {
            for shown in &shown {
                let_in(&client.clone().shows(shown));
            }
        }
        assert_eq!(refused(&gateway), 0);
        gateway.wait_until_quiet();
    }
}

/// What is shown, the alert, and how the log says why.
type Refusal = (Option<Shown>, Alert, &'static str);

#[track_caller]
fn all_are_refused(io: Io, clients: &Clients, refusals: &[Refusal]) {
    let origin = Origin::echo();
    for (before, gateway) in clients.gateways(io, "required", &origin).into_iter().enumerate() {
        let mut number = 0;
        for client in both_versions(&gateway) {
            for (shown, alert, words) in refusals {
                let client = match shown {
                    Some(shown) => client.clone().shows(shown),
                    None => client.clone(),
                };
                assert_eq!(client.refused_after_its_flight(), *alert, "{words}");
                gateway.wait_until_quiet();
                number += 1;
                assert_eq!(refused(&gateway), number, "{words}");
                let line = gateway.wait_for_line(words, |line| {
                    let cause = line["cause"].as_str().unwrap_or_default();
                    line["message"] == "connection" && cause.starts_with(words)
                });
                assert_eq!(line["fault"], "peer", "{line}");
            }
        }
        assert_eq!(origin.accepted(), before, "nothing of them reaches a server");
        let_in(&Client::new(&gateway).shows(&clients.root.client()));
        gateway.wait_until_quiet();
    }
}

fn whoever_is_refused_is_told_why(io: Io) {
    let clients = Clients::new();
    let root = &clients.root;
    let now = SystemTime::now();
    let with = |change: &dyn Fn(&mut rcgen::CertificateParams)| root.client_with(KeyKind::Ecdsa, change);
    let old = |params: &mut rcgen::CertificateParams, days: u32| {
        params.not_before = (now - 30 * DAY).into();
        params.not_after = (now - days * DAY).into();
    };
    let expired = with(&|params| old(params, 3));
    let early = with(&|params| params.not_before = (now + 3 * DAY - DAY / 2).into());
    let of_a_server = with(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let old_intermediate = root.below_with("old", KeyKind::Ecdsa, |params| old(params, 2));
    let below = root.below("below", KeyKind::Ecdsa).client();
    let leaf_only = below.clone().with_chain(below.chain[..1].to_vec());
    let unknown = "client certificate of an unknown issuer";
    let wrong = "client certificate with a signature that is wrong";
    // The chain is somebody's, the signature is somebody else's.
    let stolen = root.client().signing_as(&root.client());
    let stolen_below = below.signing_as(&root.client());
    // Another CA of the same name.
    let namesake = Authority::root("clients").client();
    all_are_refused(
        io,
        &clients,
        &[
            (
                None,
                Alert::CertificateRequired,
                "client sent no certificate, which is required",
            ),
            (
                Some(expired),
                Alert::CertificateExpired,
                "client certificate expired 3 d ago",
            ),
            (
                Some(early),
                Alert::CertificateExpired,
                "client certificate not valid yet, for another 2 d",
            ),
            (
                Some(old_intermediate.client()),
                Alert::CertificateExpired,
                "client certificate expired 2 d ago",
            ),
            (
                Some(of_a_server),
                Alert::UnsupportedCertificate,
                "client certificate not for clients",
            ),
            (Some(Authority::root("others").client()), Alert::UnknownCA, unknown),
            (Some(Shown::self_signed()), Alert::UnknownCA, unknown),
            (Some(leaf_only), Alert::UnknownCA, unknown),
            (Some(namesake), Alert::DecryptError, wrong),
            (Some(stolen), Alert::DecryptError, wrong),
            (Some(stolen_below), Alert::DecryptError, wrong),
        ],
    );
}

fn certificates_that_break_the_rules_are_refused(io: Io) {
    let clients = Clients::new();
    let root = &clients.root;
    let good = root.client();
    let chain = |bytes: &[u8]| Some(good.clone().with_chain(vec![CertificateDer::from(bytes.to_vec())]));
    let mut changed = good.chain[0].to_vec();
    // In the middle of the key.
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let cut = &good.chain[0][..good.chain[0].len() - 1];
    let constrained = root.below_with("constrained", KeyKind::Ecdsa, |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("a.example".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    let named = |name: &str| {
        constrained.client_with(KeyKind::Ecdsa, |params| {
            params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        })
    };
    let short = root.below_with("short", KeyKind::Ecdsa, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let ca = root.client_with(KeyKind::Ecdsa, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
    });
    // A client that signs certificates.
    let leaf = root.below_with("no CA", KeyKind::Ecdsa, |params| params.is_ca = IsCa::NoCa);
    let not = "client certificate not acceptable (";
    all_are_refused(
        io,
        &clients,
        &[
            (chain(b""), Alert::BadCertificate, "client certificate malformed"),
            (
                chain(b"no certificate"),
                Alert::BadCertificate,
                "client certificate malformed",
            ),
            (chain(cut), Alert::BadCertificate, "client certificate malformed"),
            (
                chain(&changed),
                Alert::DecryptError,
                "client certificate with a signature that is wrong",
            ),
            (
                Some(named("b.example")),
                Alert::CertificateUnknown,
                "client certificate with a name that one of its CAs must not give (name constraints)",
            ),
            (
                Some(short.below("too deep", KeyKind::Ecdsa).client()),
                Alert::CertificateUnknown,
                not,
            ),
            (Some(ca), Alert::CertificateUnknown, not),
            (Some(leaf.client()), Alert::CertificateUnknown, not),
        ],
    );
    let origin = Origin::echo();
    for gateway in clients.gateways(io, "required", &origin) {
        let_in(&Client::new(&gateway).shows(&named("host.a.example")));
        let_in(&Client::new(&gateway).shows(&short.client()));
    }
}

fn optional_means_none_or_a_right_one(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    for gateway in clients.gateways(io, "optional", &origin) {
        for client in both_versions(&gateway) {
            let_in(&client);
            let_in(&client.clone().shows(&clients.root.client()));
            let stranger = client.clone().shows(&Authority::root("others").client());
            assert_eq!(stranger.refused_after_its_flight(), Alert::UnknownCA);
            let stolen = clients.root.client().signing_as(&clients.root.client());
            assert_eq!(client.shows(&stolen).refused_after_its_flight(), Alert::DecryptError);
        }
        assert_eq!(refused(&gateway), 4);
        gateway.wait_until_quiet();
    }
}

fn off_means_that_nobody_is_asked(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    for gateway in clients.gateways(io, "off", &origin) {
        for client in both_versions(&gateway) {
            // One that would be refused if it were asked for.
            let_in(&client.shows(&Authority::root("others").client()));
        }
        gateway.wait_until_quiet();
    }
}

fn how_the_chain_is_cut_into_records_does_not_matter(io: Io) {
    let origin = Origin::echo();
    let clients = Clients::new();
    let shown = clients.root.below("below", KeyKind::Ecdsa).client();
    let stolen = shown.clone().signing_as(&clients.root.client());
    // As long as a chain can be: more than a record holds.
    let long = [shown.chain.clone(), vec![clients.root.der().clone(); 60]].concat();
    let long = shown.clone().with_chain(long);
    for gateway in clients.gateways(io, "required", &origin) {
        for client in both_versions(&gateway) {
            for bytes in [64, 300, 1000] {
                let client = client.clone().fragments(bytes);
                let_in(&client.clone().shows(&shown));
                let_in(&client.clone().shows(&long));
                assert_eq!(client.shows(&stolen).refused_after_its_flight(), Alert::DecryptError);
            }
            let_in(&client.clone().shows(&long));
            // Each byte by itself.
            let mut connection = client.clone().shows(&shown).fragments(200).open();
            while connection.tls.is_handshaking() || connection.tls.wants_write() {
                for byte in connection.take_outgoing() {
                    std::io::Write::write_all(&mut connection.stream, &[byte]).unwrap();
                }
                if connection.tls.is_handshaking() {
                    assert!(connection.tls.read_tls(&mut connection.stream).unwrap() > 0);
                    connection.tls.process_new_packets().unwrap();
                }
            }
            connection.send(b"there and back");
            assert_eq!(connection.receive(14), b"there and back");
            connection.finish();
        }
        gateway.wait_until_quiet();
    }
}

/// Many CAs of one name, none of which has signed the next: every path between them would have to be tried.
fn a_chain_that_costs_too_much_is_given_up(io: Io) {
    let clients = Clients::new();
    let namesakes: Vec<Authority> = (0..40)
        .map(|_| Authority::root("clients").below("below", KeyKind::Ecdsa))
        .collect();
    let mut chain = namesakes[0].client().chain;
    chain.truncate(1);
    chain.extend(namesakes.iter().skip(1).map(|namesake| namesake.der().clone()));
    let shown = namesakes[0].client().with_chain(chain);
    let words = "client certificate ";
    let origin = Origin::echo();
    for gateway in clients.gateways(io, "required", &origin) {
        for client in both_versions(&gateway) {
            client.shows(&shown).refused_after_its_flight();
        }
        gateway.wait_for_line("it is refused", |line| {
            line["cause"].as_str().is_some_and(|cause| cause.starts_with(words))
        });
        let operations = gateway.metrics().sum("ringlock_crypto_operations_total", &[]);
        assert!(operations < 500.0, "{operations}");
        let_in(&Client::new(&gateway).shows(&clients.root.client()));
        gateway.wait_until_quiet();
    }
}
