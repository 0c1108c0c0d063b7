//! Many certificates: what loading them takes, at first and again, what memory each has, and the choice of one by name.
//!
//! `cargo bench --bench identities`

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use ringlock::config::{self, Config};
use ringlock::identity::Selector;
use ringlock::snapshot::Snapshot;
use ringlock_hsm::custody::Custody;

const COUNT: usize = 15_000;

fn name(number: usize) -> String {
    format!("customer-{number}.example")
}

/// Pairs of certificate with its intermediate and a P-256 key, in a folder, and a configuration for all.
fn make(folder: &Path) -> Config {
    let certificates = folder.join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.distinguished_name
        .push(DnType::CommonName, "Intermediate CA of a bench");
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    for number in 0..COUNT {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name(number)]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let chain = params.signed_by(&key, &ca).unwrap().pem() + &ca.pem();
        std::fs::write(certificates.join(format!("{number:05}.crt")), chain).unwrap();
        std::fs::write(certificates.join(format!("{number:05}.key")), key.serialize_pem()).unwrap();
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

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let config = make(folder.path());
    let (memory, begin) = (resident_kib(), Instant::now());
    let mut snapshot = load(&config, None);
    let first = begin.elapsed();
    let memory = resident_kib() - memory;
    let begin = Instant::now();
    snapshot = load(&config, Some(&snapshot));
    let again = begin.elapsed();
    let begin = Instant::now();
    let warnings = snapshot.warnings(1_800_000_000);
    let checks = begin.elapsed();
    eprintln!(
        "{COUNT} pairs: loaded in {first:.2?}, again in {again:.2?}; checked in {checks:.2?} ({} warnings); {:.1} KiB each",
        warnings.len(),
        memory as f64 / COUNT as f64
    );
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("lookup");
    for count in [1, 1_000, COUNT] {
        let selector = Selector::new(&snapshot.identities[..count], true);
        // Not in their order: 7,919 is prime.
        let names: Vec<String> = (0..count).map(|number| name(number * 7_919 % count)).collect();
        let mut next = names.iter().cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("among {count}"), |bencher| {
            bencher.iter(|| {
                let name = next.next().map(String::as_str);
                assert!(selector.knows(black_box(name)));
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
