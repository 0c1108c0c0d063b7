//! What will make clients refuse a certificate, or somebody else have its key: found before it is used. Facts in, findings out.

use std::collections::HashMap;
use std::path::PathBuf;

use super::Identity;
use super::expiry::{Stage, Validity, span};
use super::facts::{CertificateFacts, Facts, KeyFacts, KeyKind};
use crate::config::NamePattern;

/// Clients whose clocks are this much behind refuse a certificate that is younger.
const CLOCK_SKEW_SECONDS: i64 = 5 * 60;

/// Smaller RSA keys are refused by clients (CA/Browser Forum, since 2014).
const RSA_BITS_MIN: usize = 2048;

/// Something that is legal and probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind: those of one kind are told alike.
    pub check: Check,
    /// What was found and what follows from it; the certificate or the file comes in front.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The order of the chain.
    Order,
    /// Certificates that belong to no place of the chain.
    LeftOut,
    /// Whether the chain has what clients need besides the root.
    Incomplete,
    /// The end of the validity.
    Expiry,
    /// The beginning of the validity.
    NotYetValid,
    /// Names that clients can ask for.
    Names,
    /// Sizes of keys.
    WeakKey,
    /// Hashes of signatures.
    WeakSignature,
    /// What the certificate may be used for.
    Usage,
    /// A certificate that may issue others.
    Authority,
    /// Several certificates for one name.
    Duplicate,
    /// A route for whose name there is no certificate.
    Route,
    /// Who can read the key.
    Exposed,
    /// Who can put another file in its place.
    Replaceable,
    /// What a reload will not be able to read.
    Unreadable,
}

/// What is known of the files of an identity besides their content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// The file of the key, when others than its owner and its group can read or write it.
    pub exposed: Option<PathBuf>,
    /// Folders above the files in which others than owner and group can replace what is there.
    pub replaceable: Vec<PathBuf>,
    /// The user that the gateway becomes, and files or folders that it may not read.
    pub unreadable: Option<(String, Vec<PathBuf>)>,
    /// A file beside that of the certificate which by its name has the whole chain.
    pub full_chain: Option<PathBuf>,
}

/// Looks at the certificates of an identity, at `now` in seconds since 1970.
#[must_use]
pub fn of_chain(facts: &Facts, files: &FileFacts, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    order(facts, &mut findings);
    completeness(facts, files, &mut findings);
    findings.extend(validity(facts, now));
    names(facts, &mut findings);
    strength(facts, &mut findings);
    usage(facts, &mut findings);
    findings
}

/// Looks at who can do what with the files of an identity.
#[must_use]
pub fn of_files(files: &FileFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(path) = &files.exposed {
        findings.push(Finding {
            check: Check::Exposed,
            what: format!("others than owner and group can read or write {}", path.display()),
            remedy: format!(
                "take that from them: chmod o= {}, and replace a key that they may have read",
                path.display()
            ),
        });
    }
    for folder in &files.replaceable {
        findings.push(Finding {
            check: Check::Replaceable,
            what: format!(
                "others than owner and group can write into {}: they can put another file in the place of this one",
                folder.display()
            ),
            remedy: format!("take that from them: chmod o-w {}", folder.display()),
        });
    }
    if let Some((user, paths)) = &files.unreadable {
        for path in paths {
            findings.push(Finding {
                check: Check::Unreadable,
                what: format!("user \"{user}\" may not read {}: the start works, and a reload will fail", path.display()),
                remedy: "let the user's group read it (chgrp, chmod g+r; g+x for folders), or use key_isolation with another user"
                    .to_owned(),
            });
        }
    }
    findings
}

/// Looks at the identities of a listener together: names that several have, and routes for whose names there is none.
#[must_use]
pub fn of_listener<'a>(
    identities: impl Iterator<Item = &'a Identity> + Clone,
    routes: impl Iterator<Item = &'a NamePattern>,
    strict_sni: bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut holders: HashMap<(&NamePattern, (u8, usize)), &Identity> = HashMap::new();
    for identity in identities.clone() {
        let first = identity.names.iter().find_map(|name| {
            let first = *holders
                .entry((name, kind(identity.facts.leaf().key)))
                .or_insert(identity);
            (!std::ptr::eq(first, identity)).then_some((name, first))
        });
        if let Some((name, first)) = first {
            findings.push(Finding {
                check: Check::Duplicate,
                what: format!(
                    "identity \"{}\" has the name {} and the kind of key ({}) of identity \"{}\", which comes first and is used",
                    identity.name,
                    name,
                    identity.facts.leaf().key,
                    first.name
                ),
                remedy: "remove one of the two".to_owned(),
            });
        }
    }
    for route in routes {
        let has_it = |identity: &Identity| {
            identity
                .names
                .iter()
                .any(|name| name.covers(route) || route.covers(name))
        };
        if !identities.clone().any(has_it) {
            let consequence = match strict_sni {
                true => "strict_sni refuses clients that ask for it",
                false => "clients that ask for it get the default, and refuse it",
            };
            findings.push(Finding {
                check: Check::Route,
                what: format!("no identity of the listener has the name {}: {consequence}", route),
                remedy: "add an identity with this name, or correct or remove the route".to_owned(),
            });
        }
    }
    findings
}

/// Keys of one kind are of no use beside each other: whoever can verify one can verify the other.
fn kind(key: KeyFacts) -> (u8, usize) {
    match key.kind {
        KeyKind::Rsa => (0, 0),
        KeyKind::Ecdsa => (1, key.bits),
        KeyKind::Ed25519 => (2, 0),
        KeyKind::Other => (3, 0),
    }
}

fn order(facts: &Facts, findings: &mut Vec<Finding>) {
    if !facts.order_found.is_empty() {
        findings.push(Finding {
            check: Check::Order,
            what: format!(
                "has its certificates in this order: {}; they are sent in the right one, the leaf first",
                facts.order_found.join(", then ")
            ),
            remedy: "put them in order: the leaf, then each behind the one that it has issued".to_owned(),
        });
    }
    if !facts.left_out.is_empty() {
        findings.push(Finding {
            check: Check::LeftOut,
            what: format!(
                "has certificates that do not belong to the chain and are not sent: {}",
                facts.left_out.join(", ")
            ),
            remedy: "remove them".to_owned(),
        });
    }
}

fn completeness(facts: &Facts, files: &FileFacts, findings: &mut Vec<Finding>) {
    let leaf = facts.leaf();
    if facts.chain.len() > 1 || leaf.self_signed {
        return;
    }
    let what = format!(
        "has the leaf only, and not its issuer {}: clients that do not know that already will refuse it",
        leaf.issuer
    );
    let remedy = if let Some(path) = &files.full_chain {
        format!("use {}", path.display())
    } else if !facts.left_out.is_empty() {
        "add the certificate of the issuer instead of the others".to_owned()
    } else if facts.logged || !facts.issuer_urls.is_empty() {
        match facts.issuer_urls.first() {
            Some(url) => format!("append the certificate of the issuer, which is at {url}"),
            None => "append the certificate of the issuer".to_owned(),
        }
    } else {
        // It may have been issued by the root itself, which clients know.
        return;
    };
    findings.push(Finding {
        check: Check::Incomplete,
        what,
        remedy,
    });
}

/// Looks at the validity of every certificate of a chain.
#[must_use]
pub fn validity(facts: &Facts, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (position, certificate) in facts.chain.iter().enumerate() {
        let (whose, it) = if position == 0 {
            (String::new(), "it")
        } else {
            (
                format!("has the CA {}, which ", certificate.subject),
                "its CA's certificate",
            )
        };
        let mut find = |check, what: String, remedy: &str| {
            let (what, remedy) = (format!("{whose}{what}"), remedy.to_owned());
            findings.push(Finding { check, what, remedy });
        };
        if certificate.not_after < now {
            let what = format!(
                "has expired {} ago: clients will refuse it",
                span(now - certificate.not_after)
            );
            find(Check::Expiry, what, "renew it");
        } else if Validity::of(certificate).stage(now) != Stage::Fresh && !(position > 0 && certificate.self_signed) {
            let what = format!("expires in {}", span(certificate.not_after - now));
            find(
                Check::Expiry,
                what,
                "renew it, and find out why that has not happened yet",
            );
        }
        if certificate.not_before > now {
            let what = format!(
                "is not valid yet, for another {}: clients will refuse it",
                span(certificate.not_before - now)
            );
            find(
                Check::NotYetValid,
                what,
                "check the clock of this machine and of the issuer",
            );
        } else if position == 0 && certificate.not_before > now - CLOCK_SKEW_SECONDS {
            let what = format!(
                "is valid since {} only: clients whose clocks are behind will refuse {it}",
                span(now - certificate.not_before)
            );
            let remedy =
                "have certificates issued with a beginning in the past, such as an hour, or use them a little later";
            find(Check::NotYetValid, what, remedy);
        }
    }
    findings
}

fn names(facts: &Facts, findings: &mut Vec<Finding>) {
    if !facts.names.is_empty() {
        return;
    }
    let what = match &facts.leaf().common_name {
        Some(name) => format!(
            "has no DNS name (subjectAltName) and only the common name {name:?}, which clients do not look at: all will refuse it"
        ),
        None => "has no DNS name (subjectAltName): no client can ask for it by name".to_owned(),
    };
    findings.push(Finding {
        check: Check::Names,
        what,
        remedy: "have it issued with the names that clients use".to_owned(),
    });
}

fn strength(facts: &Facts, findings: &mut Vec<Finding>) {
    for certificate in &facts.chain {
        let CertificateFacts { subject, key, .. } = certificate;
        if key.kind == KeyKind::Rsa && key.bits < RSA_BITS_MIN {
            findings.push(Finding {
                check: Check::WeakKey,
                what: format!("has a key of {} bits in {subject}: clients will refuse it", key.bits),
                remedy: format!("use RSA with {RSA_BITS_MIN} bits or more, or ECDSA"),
            });
        }
        // Nobody verifies the signature of a root on itself.
        if certificate.weak_signature && !certificate.self_signed {
            findings.push(Finding {
                check: Check::WeakSignature,
                what: format!(
                    "has a signature that can be forged ({}) in {subject}: clients will refuse it",
                    certificate.signature_algorithm
                ),
                remedy: "have it issued with SHA-256".to_owned(),
            });
        }
    }
}

fn usage(facts: &Facts, findings: &mut Vec<Finding>) {
    let usages = &facts.extended_key_usages;
    let allows = |usage: &String| usage == "serverAuth" || usage == "anyExtendedKeyUsage";
    if !usages.is_empty() && !usages.iter().any(allows) {
        findings.push(Finding {
            check: Check::Usage,
            what: format!(
                "is not for servers, but for {}: clients will refuse it",
                usages.join(", ")
            ),
            remedy: "have it issued with the extended key usage serverAuth".to_owned(),
        });
    }
    if facts.leaf().is_ca {
        findings.push(Finding {
            check: Check::Authority,
            what: "is of a CA: clients may refuse it, and whoever takes its key can issue certificates".to_owned(),
            remedy: "have a certificate issued for this server".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn certificate(subject: &str, issuer: &str) -> CertificateFacts {
        CertificateFacts {
            subject: subject.to_owned(),
            issuer: issuer.to_owned(),
            common_name: Some(subject.to_owned()),
            serial: "01".to_owned(),
            not_before: NOW - 45 * DAY,
            not_after: NOW + 45 * DAY,
            key: KeyFacts {
                kind: KeyKind::Ecdsa,
                bits: 256,
            },
            signature_algorithm: "ecdsa-with-SHA256".to_owned(),
            weak_signature: false,
            is_ca: false,
            self_signed: subject == issuer,
            fingerprint: String::new(),
        }
    }

    /// A leaf with an intermediate, in order.
    fn facts() -> Facts {
        let mut ca = certificate("ca", "root");
        ca.is_ca = true;
        Facts {
            source: "a.pem".to_owned(),
            key_source: "a.key".to_owned(),
            chain: vec![certificate("leaf", "ca"), ca],
            order_found: Vec::new(),
            left_out: Vec::new(),
            names: vec!["a.example".to_owned()],
            extended_key_usages: vec!["serverAuth".to_owned(), "clientAuth".to_owned()],
            ocsp_urls: Vec::new(),
            issuer_urls: vec!["http://ca/ca.der".to_owned()],
            logged: true,
            must_staple: false,
        }
    }

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = facts();
        change(&mut facts);
        of_chain(&facts, &FileFacts::default(), NOW)
    }

    #[track_caller]
    fn one(check: Check, parts: &[&str], change: impl FnOnce(&mut Facts)) {
        let findings = found(change);
        let [finding] = &findings[..] else {
            panic!("{findings:?}")
        };
        assert_eq!(finding.check, check);
        let text = format!("{}; {}", finding.what, finding.remedy);
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    #[test]
    fn a_chain_in_order_is_not_warned_of() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|facts| facts.extended_key_usages.clear()), []);
        assert_eq!(found(|facts| facts.names = vec!["127.0.0.1".to_owned()]), []);
    }

    #[test]
    fn each_mistake_is_told_with_what_to_do() {
        one(Check::Order, &["order: b, then a;", "the leaf first"], |facts| {
            facts.order_found = vec!["b".to_owned(), "a".to_owned()];
        });
        one(Check::LeftOut, &["not sent: x, y", "remove them"], |facts| {
            facts.left_out = vec!["x".to_owned(), "y".to_owned()];
        });
        one(
            Check::Names,
            &["only the common name \"leaf\"", "names that clients use"],
            |facts| {
                facts.names.clear();
            },
        );
        one(Check::WeakKey, &["1024 bits in leaf"], |facts| {
            facts.chain[0].key = KeyFacts {
                kind: KeyKind::Rsa,
                bits: 1024,
            };
        });
        one(
            Check::WeakSignature,
            &["(sha1WithRSAEncryption) in ca", "SHA-256"],
            |facts| {
                facts.chain[1].weak_signature = true;
                facts.chain[1].signature_algorithm = "sha1WithRSAEncryption".to_owned();
            },
        );
        one(Check::Usage, &["for codeSigning", "serverAuth"], |facts| {
            facts.extended_key_usages = vec!["codeSigning".to_owned()];
        });
        one(Check::Authority, &["of a CA"], |facts| facts.chain[0].is_ca = true);
        one(Check::Expiry, &["has expired 3 days ago"], |facts| {
            facts.chain[0].not_after = NOW - 3 * DAY - 1;
        });
        one(
            Check::Expiry,
            &["has the CA ca, which has expired 1 hour ago"],
            |facts| {
                facts.chain[1].not_after = NOW - HOUR;
            },
        );
        one(Check::NotYetValid, &["for another 5 minutes", "clock"], |facts| {
            facts.chain[0].not_before = NOW + 5 * 60;
        });
        one(Check::NotYetValid, &["since 10 seconds only"], |facts| {
            facts.chain[0].not_before = NOW - 10;
        });
    }

    #[test]
    fn a_leaf_alone_is_warned_of_when_something_tells_of_an_intermediate() {
        one(Check::Incomplete, &["not its issuer ca", "http://ca/ca.der"], |facts| {
            facts.chain.truncate(1);
        });
        let silent = found(|facts| {
            facts.chain.truncate(1);
            facts.issuer_urls.clear();
            facts.logged = false;
        });
        assert_eq!(silent, [], "the root of a private CA may have issued it");
        let mut leaf = facts();
        leaf.chain.truncate(1);
        let files = FileFacts {
            full_chain: Some("/etc/live/fullchain.pem".into()),
            ..FileFacts::default()
        };
        let findings = of_chain(&leaf, &files, NOW);
        assert_eq!(findings[0].remedy, "use /etc/live/fullchain.pem");
    }

    #[test]
    fn a_root_that_is_sent_may_be_of_any_make() {
        let findings = found(|facts| {
            let mut root = certificate("root", "root");
            root.weak_signature = true;
            root.is_ca = true;
            root.not_after = NOW + DAY;
            facts.chain.push(root);
        });
        assert_eq!(findings, []);
    }

    #[test]
    fn files_are_told_with_their_paths() {
        let files = FileFacts {
            exposed: Some("/k/a.key".into()),
            replaceable: vec!["/k".into()],
            unreadable: Some(("www".to_owned(), vec!["/k/a.key".into()])),
            full_chain: None,
        };
        let checks: Vec<_> = of_files(&files).into_iter().map(|finding| finding.check).collect();
        assert_eq!(checks, [Check::Exposed, Check::Replaceable, Check::Unreadable]);
        assert_eq!(of_files(&FileFacts::default()), []);
    }
}
