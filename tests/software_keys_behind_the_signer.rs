//! `key_isolation = "process"`: a key in a file is in the signer's memory and not in the gateway's.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::support::*;
use rustix::process::Signal;

both_drivers!(
    every_kind_of_key_serves,
    the_key_is_in_the_memory_of_the_signer_alone,
    the_gateway_needs_no_right_to_read_the_file,
    a_renewed_key_is_served_after_a_reload,
);

const ISOLATED: &str = "key_isolation = \"process\"";

const KINDS: [(KeyKind, &str); 6] = [
    (KeyKind::Ecdsa, "p256.example"),
    (KeyKind::P384, "p384.example"),
    (KeyKind::Ed25519, "ed25519.example"),
    (KeyKind::Rsa, "rsa2048.example"),
    (KeyKind::Rsa3072, "rsa3072.example"),
    (KeyKind::Rsa4096, "rsa4096.example"),
];

/// With one more identity, whose key is in a file that the signer reads.
fn with_isolated(setup: Setup, name: &str, dns_name: &str, kind: KeyKind) -> Setup {
    setup.ca().issue(name, &[dns_name], kind);
    setup.issued_identity(name, &format!("{name}.pem"), &format!("{name}.key"), ISOLATED)
}

fn every_kind_of_key_serves(io: Io) {
    let origin = Origin::echo();
    let setup = Setup::new(io, &[origin.address()]).no_identities().workers(2);
    let setup = KINDS
        .into_iter()
        .fold(setup, |setup, (kind, name)| with_isolated(setup, name, name, kind));
    let gateway = setup.start();
    let signers = signers(&gateway);
    assert_eq!(signers.len(), 1, "one for all files: {signers:?}");
    for (_, name) in KINDS {
        for client in [Client::new(&gateway).tls12(), Client::new(&gateway).tls13()] {
            let client = client.name(name);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        try_exchange(&client).unwrap_or_else(|error| panic!("{name}: {error}\n{}", gateway.log()));
                    });
                }
            });
        }
    }
    let metrics = gateway.wait_until_quiet();
    let labels = [("group", "files"), ("result", "signed")];
    let signed = metrics.count("ringlock_key_requests_total", &labels);
    assert_eq!(signed, 2 * 4 * KINDS.len() as u64, "{}", metrics.text());
}

/// A private part of the key, as a program may keep it: as it is in the file, in numbers of either byte order, and as text.
fn traces(file: &Path, kind: KeyKind) -> Vec<Vec<u8>> {
    let path = file.to_str().unwrap();
    let pem = fs::read_to_string(file).unwrap();
    let text = run("openssl", &["pkey", "-in", path, "-noout", "-text"], b"")
        .ok()
        .stdout;
    let part = match kind {
        KeyKind::Ecdsa | KeyKind::P384 | KeyKind::Ed25519 => "priv:",
        KeyKind::Rsa | KeyKind::Rsa3072 | KeyKind::Rsa4096 => "prime1:",
    };
    let lines = text.lines().skip_while(|line| *line != part).skip(1);
    let digits: String = lines
        .take_while(|line| line.starts_with(' '))
        .flat_map(|line| line.chars().filter(char::is_ascii_hexdigit))
        .collect();
    let bytes: Vec<u8> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect();
    let bytes = match bytes.as_slice() {
        // The sign of a number whose first bit is set.
        [0, rest @ ..] => rest.to_vec(),
        all => all.to_vec(),
    };
    assert!(bytes.len() >= 31, "{text}");
    let backwards = bytes.iter().rev().copied().collect();
    let line = pem.lines().nth(1).expect("a line of the key").as_bytes().to_vec();
    vec![bytes, backwards, line]
}

fn the_key_is_in_the_memory_of_the_signer_alone(io: Io) {
    for kind in [KeyKind::Ecdsa, KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa] {
        let origin = Origin::echo();
        let setup = Setup::new(io, &[origin.address()]).no_identities();
        let gateway = with_isolated(setup, "site", SITE, kind).start();
        exchange(&gateway);
        let signer = signers(&gateway)[0];
        let traces = traces(&gateway.ca.key_file("site"), kind);
        assert!(memory_holds(signer, &traces), "{kind:?}: whoever signs has the key");
        assert!(
            !memory_holds(gateway.pid(), &traces),
            "{kind:?}: the gateway has it, too"
        );
        // Nothing of the file is left as text where it was read.
        assert!(
            !memory_holds(signer, &traces[2..]),
            "{kind:?}: the file's text is left over"
        );
    }
    // Without isolation it is the gateway that has it: this test can fail.
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    exchange(&gateway);
    let traces = traces(&gateway.ca.key_file("site"), KeyKind::Ecdsa);
    assert!(memory_holds(gateway.pid(), &traces));
}

/// Users of every Debian system.
const GATEWAYS: (&str, u32) = ("www-data", 33);

/// The signer becomes whom the gateway becomes; until then both are root. A file that only root can read is enough for the start.
fn the_gateway_needs_no_right_to_read_the_file(io: Io) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test has to run as root: it is about another user"
    );
    let origin = Origin::echo();
    let (name, number) = GATEWAYS;
    let setup = Setup::new(io, &[origin.address()])
        .no_identities()
        .global(&format!("user = \"{name}\""));
    let setup = with_isolated(setup, "site", SITE, KeyKind::Ecdsa);
    let key = setup.ca().key_file("site");
    chown(&key, Some(number), Some(number)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    let gateway = setup.start();
    let signer = signers(&gateway)[0];
    assert_eq!((user(gateway.pid()), user(signer)), (number, number));
    exchange(&gateway);
}

fn a_renewed_key_is_served_after_a_reload(io: Io) {
    let origin = Origin::echo();
    let setup = Setup::new(io, &[origin.address()]).no_identities().workers(2);
    let gateway = with_isolated(setup, "site", SITE, KeyKind::Ecdsa).start();
    let old = Client::new(&gateway).connect();
    let old_certificate = old.certificate().to_owned();
    for kind in [KeyKind::Ecdsa, KeyKind::Rsa, KeyKind::Ed25519] {
        gateway.ca.issue("site", &[SITE], kind);
        // Until it is told to, the gateway serves what it has loaded.
        exchange(&gateway);
        let epoch = gateway.metrics().sum("ringlock_configuration_epoch", &[]);
        gateway.signal(Signal::HUP);
        wait_for_metric(&gateway, "ringlock_configuration_epoch", &[], epoch + 1.0);
        eventually("the new certificate", || {
            let new = Client::new(&gateway).connect();
            let pem = fs::read(gateway.ca.certificate_file("site")).unwrap();
            let is_new = rustls_pki_types::pem::PemObject::from_pem_slice(&pem)
                .is_ok_and(|wanted: rustls_pki_types::CertificateDer<'_>| *wanted == *new.certificate());
            new.finish();
            is_new.then_some(())
        });
        exchange(&gateway);
    }
    assert_ne!(Client::new(&gateway).connect().certificate(), old_certificate);
    assert_eq!(signers(&gateway).len(), 1, "the same signer serves old and new");
    let _ = old.finish();
    // A key that does not fit is not taken over.
    let certificate = fs::read(gateway.ca.certificate_file("site")).unwrap();
    gateway.ca.issue("site", &[SITE], KeyKind::Ecdsa);
    fs::write(gateway.ca.certificate_file("site"), certificate).unwrap();
    gateway.signal(Signal::HUP);
    let labels = [("result", "failed")];
    wait_for_metric(&gateway, "ringlock_configuration_reloads_total", &labels, 1.0);
    exchange(&gateway);
}
