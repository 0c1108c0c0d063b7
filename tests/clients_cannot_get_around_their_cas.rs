//! What certificates of clients were refused for too late elsewhere: names that a CA must not give, lists of other distribution points,
//! paths that cost too much to try.

use std::time::Duration;

use crate::support::*;
use rcgen::{
    CertificateParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DnType, GeneralSubtree,
    NameConstraints, SanType,
};
use rustls::AlertDescription as Alert;

both_drivers!(
    names_are_those_that_a_ca_may_give,
    a_list_counts_for_the_certificates_that_it_is_about,
    crossed_paths_cost_little,
);

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn email(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

fn names_are_those_that_a_ca_may_give(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let gateway = files.setup(io, &origin, "").start();
    let constrained = |permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>| {
        files.root.below_with("constrained", KeyKind::Ecdsa, |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: permitted,
                excluded_subtrees: excluded,
            });
        })
    };
    let named = |ca: &Authority, names: Vec<SanType>| {
        ca.client_with(KeyKind::Ecdsa, |params| {
            params.distinguished_name.push(DnType::CommonName, "www.b.example");
            params.subject_alt_names = names;
        })
    };
    let only = |name: &str| vec![GeneralSubtree::DnsName(name.into())];
    let permitted = constrained(only("a.example"), Vec::new());
    let excluded = constrained(Vec::new(), only("b.example"));
    let of_host = constrained(only("www.a.example"), Vec::new());
    let without_host = constrained(Vec::new(), only("www.b.example"));
    let of_email = constrained(vec![GeneralSubtree::Rfc822Name("a.example".into())], Vec::new());
    for (ca, names) in [
        (&permitted, vec![dns("www.a.example")]),
        (&permitted, vec![dns("*.a.example")]),
        (&excluded, vec![dns("www.a.example")]),
        // Names of a kind that is not constrained.
        (&permitted, vec![uri("spiffe://b.example/x")]),
        // A common name is of no kind that these constrain (RFC 5280, 4.2.1.10): only `cn:` makes anything of it.
        (&permitted, Vec::new()),
        (&excluded, Vec::new()),
    ] {
        let_in(&gateway, &named(ca, names));
    }
    let words = "with a name that one of its CAs must not give (name constraints)";
    for (ca, names) in [
        (&permitted, vec![dns("www.b.example")]),
        (&permitted, vec![dns("nota.example")]),
        (&permitted, vec![dns("*.b.example")]),
        (&permitted, vec![dns("www.a.example"), dns("www.b.example")]),
        (&excluded, vec![dns("b.example")]),
        (&excluded, vec![dns("*.b.example")]),
        (&excluded, vec![dns("WWW.B.EXAMPLE")]),
        // A wildcard has more names than the one that is permitted, and the one that is excluded among them.
        (&of_host, vec![dns("*.a.example")]),
        (&without_host, vec![dns("*.b.example")]),
        (&of_email, vec![email("ops@b.example")]),
    ] {
        refused(&gateway, &named(ca, names), Alert::CertificateUnknown, words);
    }
}

fn a_list_counts_for_the_certificates_that_it_is_about(io: Io) {
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let point = |name: &str| CrlDistributionPoint {
        uris: vec![format!("http://crl.example/{name}")],
    };
    let client = |points: &[&str]| {
        files
            .root
            .client_with(KeyKind::Ecdsa, |params: &mut CertificateParams| {
                params.crl_distribution_points = points.iter().map(|name| point(name)).collect();
            })
    };
    let list_of = |shown: &Shown, name: &str, scope: Option<CrlScope>| {
        files.root.list_with(&[&shown.chain[0]], |params| {
            params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
                distribution_point: point(name),
                scope,
            });
        })
    };
    let decoy = client(&["one"]);
    let (one, several, other) = (client(&["one"]), client(&["other", "one"]), client(&["other"]));
    let revoked = "revoked (serial ";
    let unknown = "whose revocation is unknown";
    for (shown, scope, words) in [
        (&one, None, Some(revoked)),
        (&several, None, Some(revoked)),
        (&one, Some(CrlScope::UserCertsOnly), Some(revoked)),
        // Lists of the CA that say nothing of this certificate are not taken for one that does.
        (&other, None, Some(unknown)),
        (&one, Some(CrlScope::CaCertsOnly), Some(unknown)),
        (&decoy, None, None),
    ] {
        // The last is not on the list.
        let listed = if words.is_none() { &one } else { shown };
        files.write("clients.crl", list_of(listed, "one", scope));
        let gateway = files
            .setup(io, &origin, &format!("crl = [{:?}]", files.path("clients.crl")))
            .start();
        match words {
            None => let_in(&gateway, shown),
            Some(words) => {
                let alert = if words == revoked {
                    Alert::CertificateRevoked
                } else {
                    Alert::UnknownCA
                };
                refused(&gateway, shown, alert, words);
            }
        }
    }
}

/// Each CA of a level has signed each of the next, all with one name and one key: the number of paths is a power.
fn crossed_paths_cost_little(io: Io) {
    const LEVELS: usize = 6;
    const CAS: usize = 12;
    let origin = Origin::echo();
    let files = ClientFiles::new();
    let gateway = files.setup(io, &origin, "verify_depth = 6").start();
    let stranger = Authority::root("others");
    let mut last = stranger.below("level 0", KeyKind::Ecdsa);
    let mut crossed = vec![last.der().clone()];
    for level in 1..LEVELS {
        let name = format!("level {level}");
        let twins = last.twins_below(&name, CAS);
        crossed.extend(twins.iter().map(|twin| twin.der().clone()));
        last = twins.into_iter().next_back().expect("there are some");
    }
    let shown = last.client();
    let own = shown.chain[0].clone();
    let shown = shown.with_chain([own].into_iter().chain(crossed).collect());
    let before = cpu_time(gateway.pid());
    for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
        client.shows(&shown).refused_after_its_flight();
    }
    let spent = cpu_time(gateway.pid()) - before;
    // Without a bound it takes longer than the client waits.
    assert!(spent < Duration::from_secs(5), "{spent:?}");
    let_in(&gateway, &files.root.client());
}
