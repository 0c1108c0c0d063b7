//! A reload makes an identity again only when a file of it has changed, and many certificates take bounded memory.

use std::path::Path;
use std::sync::Arc;

use ringlock::config::{self, Config};
use ringlock::snapshot::Snapshot;
use ringlock_hsm::custody::Custody;

use crate::support::*;

/// So many, in a folder of their own, with a configuration for all.
fn make(folder: &Path, count: usize) -> Config {
    let certificates = folder.join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    let ca = Ca::new(&certificates);
    for number in 0..count {
        ca.issue(&format!("{number:05}"), &[&format!("{number}.example")], KeyKind::Ecdsa);
    }
    let text = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\nidentities = [\"all\"]\nupstream = \"app\"\n\
                [[identity]]\nname = \"all\"\ncertificates = \"certificates\"\n\
                [[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:9\"]\n";
    config::parse(text, &folder.join("ringlock.toml")).unwrap().0
}

fn load(config: &Config, previous: Option<&Snapshot>) -> Snapshot {
    Snapshot::load(config.clone(), 1, previous, &mut Custody::without_signers())
        .unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn what_has_not_changed_is_the_same_and_what_has_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = make(folder.path(), 20);
    let first = load(&config, None);
    assert_eq!(first.identities.len(), 20, "the CA is none of them");
    let again = load(&config, Some(&first));
    for (old, new) in first.identities.iter().zip(&again.identities) {
        assert!(Arc::ptr_eq(old, new), "{}", old.name);
    }
    // A new pair in the place of the eighth.
    let ca = Ca::new(&folder.path().join("certificates"));
    ca.issue("00007", &["7.example"], KeyKind::Ecdsa);
    let renewed = load(&config, Some(&again));
    for (number, (old, new)) in first.identities.iter().zip(&renewed.identities).enumerate() {
        assert_eq!(Arc::ptr_eq(old, new), number != 7, "{}", old.name);
    }
    assert_ne!(
        first.identities[7].facts.leaf().fingerprint,
        renewed.identities[7].facts.leaf().fingerprint
    );
    assert_eq!(renewed.identities[7].facts.names, ["7.example"]);
}

#[test]
fn a_pass_phrase_that_is_wrong_now_is_told_although_the_key_is_the_same() {
    let pki = Pki::new();
    let text = pki
        .served(
            "site",
            "certificate = \"PKI/formats/modern.p12\"\npassphrase_file = \"PKI/passphrase\"",
        )
        .toml
        + "[[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:9\"]\n";
    let config = config::parse(&text, &pki.file("ringlock.toml")).unwrap().0;
    let first = load(&config, None);
    let again = load(&config, Some(&first));
    assert!(Arc::ptr_eq(&first.identities[0], &again.identities[0]));
    std::fs::write(pki.file("passphrase"), "another\n").unwrap();
    let problems = Snapshot::load(config, 1, Some(&again), &mut Custody::without_signers()).unwrap_err();
    assert!(
        problems[0].found.contains("the pass phrase does not open"),
        "{problems:?}"
    );
}

#[test]
fn a_thousand_certificates_take_bounded_memory() {
    const COUNT: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let config = make(folder.path(), COUNT);
    let before = resident_bytes();
    let snapshot = load(&config, None);
    let taken = resident_bytes().saturating_sub(before);
    assert_eq!(snapshot.identities.len(), COUNT);
    // Measured: see docs/performance.md. Twice as much is a mistake.
    assert!(taken / COUNT < 32 * 1024, "{} bytes for each", taken / COUNT);
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}
