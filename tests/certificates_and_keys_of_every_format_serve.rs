//! Certificates and keys as openssl writes them, in each of its formats, are served to openssl; and what is not read is named with
//! the command that converts it.

use crate::support::*;

both_drivers!(every_format_is_served, chains_in_disorder_are_served_in_order);

const P256: &str = "certificate = \"PKI/server/p256.pem\"";
const RSA: &str = "certificate = \"PKI/server/rsa2048.pem\"";
const PASSPHRASE: &str = "passphrase_file = \"PKI/passphrase\"";

/// Name of the leaf, and the lines of an identity.
fn formats() -> Vec<(&'static str, String)> {
    let key = |name: &str| format!("{P256}\nkey = \"PKI/formats/{name}\"");
    let rsa_key = |name: &str| format!("{RSA}\nkey = \"PKI/formats/{name}\"");
    let alone = |name: &str| format!("certificate = \"PKI/formats/{name}\"");
    let isolated = "key_isolation = \"process\"";
    let mut formats = vec![
        ("p256", alone("combined.pem")),
        (
            "p256",
            format!("{}\nkey = \"PKI/formats/combined.pem\"", alone("combined.pem")),
        ),
        ("p256", key("sec1.key")),
        ("p256", key("sec1-key.der")),
        ("p256", key("pkcs8-key.der")),
        ("rsa2048", rsa_key("pkcs1.key")),
        ("rsa2048", rsa_key("pkcs1-key.der")),
        ("p256", alone("no-passphrase.p12")),
        ("p256", format!("{}\n{PASSPHRASE}\n{isolated}", key("encrypted.key"))),
        ("p256", format!("{}\n{PASSPHRASE}\n{isolated}", key("modern.p12"))),
    ];
    for encrypted in [
        "encrypted.key",
        "encrypted-key.der",
        "scrypt.key",
        "des3.key",
        "modern.p12",
    ] {
        formats.push(("p256", format!("{}\n{PASSPHRASE}", key(encrypted))));
    }
    for pkcs12 in ["modern.p12", "legacy.p12"] {
        formats.push(("p256", format!("{}\n{PASSPHRASE}", alone(pkcs12))));
    }
    for kind in ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"] {
        let lines = format!("certificate = \"PKI/server/{kind}.pem\"\nkey = \"PKI/server/{kind}.key\"");
        formats.push((kind, lines));
    }
    formats
}

/// Serves all of these, each to openssl.
fn serves(io: Io, pki: &Pki, identities: &[(&str, String)]) {
    let origin = Origin::echo();
    let served: Vec<Served> = (0..)
        .zip(identities)
        .map(|(number, (_, lines))| pki.served(&format!("format-{number}"), lines))
        .collect();
    let sections: String = served.iter().map(|served| served.toml.as_str()).collect();
    let gateway = Setup::new(io, &[origin.address()]).more(&sections).start();
    for ((leaf, lines), served) in identities.iter().zip(&served) {
        let ran = pki.openssl(served.address, &format!("{leaf}.example"));
        assert!(
            ran.text().contains("Verify return code: 0 (ok)"),
            "{lines}\n{ran:?}\n{}",
            gateway.log()
        );
    }
}

fn every_format_is_served(io: Io) {
    serves(io, &Pki::new(), &formats());
}

fn chains_in_disorder_are_served_in_order(io: Io) {
    let lines = |name| format!("certificate = \"PKI/mistakes/{name}.pem\"\nkey = \"PKI/mistakes/{name}.key\"");
    let chains = [("p256", lines("wrong-order")), ("p256", lines("with-stranger"))];
    serves(io, &Pki::new(), &chains);
}

#[test]
fn a_certificate_in_der_is_read_without_its_chain() {
    let pki = Pki::new();
    let ran = pki.check("certificate = \"PKI/formats/certificate.der\"\nkey = \"PKI/formats/pkcs8-key.der\"");
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(ran.stderr.contains("has the leaf only"), "{ran:?}");
}

#[test]
fn what_is_not_read_is_named_with_what_to_do() {
    let pki = Pki::new();
    std::fs::write(pki.file("wrong"), "battery staple\n").unwrap();
    std::fs::write(pki.file("empty"), "\n").unwrap();
    let key = |name: &str| format!("{P256}\nkey = \"PKI/formats/{name}\"");
    let pipe = pki.file("pipe");
    run("mkfifo", &[&pipe], b"").ok();
    for (lines, parts) in [
        (
            format!("{RSA}\nkey = \"PKI/formats/traditional.key\""),
            [
                "key: found a private key in OpenSSL's old encryption",
                "openssl pkcs8 -topk8 -in FILE -out NEW",
            ],
        ),
        (
            key("encrypted.key"),
            ["encrypted with a pass phrase", "set passphrase_file"],
        ),
        (
            key("modern.p12"),
            ["encrypted with a pass phrase", "set passphrase_file"],
        ),
        (
            format!("{}\npassphrase_file = \"PKI/wrong\"", key("encrypted.key")),
            [
                "what the pass phrase does not open",
                "correct the first line of passphrase_file",
            ],
        ),
        (
            format!("{}\npassphrase_file = \"PKI/wrong\"", key("legacy.p12")),
            [
                "what the pass phrase does not open",
                "correct the first line of passphrase_file",
            ],
        ),
        (
            format!("{}\npassphrase_file = \"PKI/empty\"", key("encrypted.key")),
            [
                "passphrase_file: found no pass phrase (the first line is empty)",
                "write the pass phrase",
            ],
        ),
        (
            format!("{}\n{PASSPHRASE}", key("pbes1.key")),
            ["encryption", "openssl pkcs8 -topk8 -v2"],
        ),
        (
            format!("{}\n{PASSPHRASE}\nkey_isolation = \"process\"", key("traditional.key")),
            [
                "key: found a private key in OpenSSL's old encryption",
                "openssl pkcs8 -topk8",
            ],
        ),
        (
            "certificate = \"PKI/formats/chain.p7b\"\nkey = \"PKI/server/p256.key\"".to_owned(),
            ["certificate: found PKCS#7", "openssl pkcs7 -print_certs"],
        ),
        (
            "certificate = \"PKI/formats/combined.pem\"\nkey = \"PKI/server/p256.key\"\nkey_isolation = \"process\""
                .to_owned(),
            ["certificate: found a private key", "write the key to a file of its own"],
        ),
        (
            "certificate = \"PKI/server/p256.pem\"\nkey = \"PKI/pipe\"".to_owned(),
            ["key: found no regular file", "check the path"],
        ),
        (
            "certificate = \"PKI/pipe\"\nkey = \"PKI/server/p256.key\"".to_owned(),
            ["certificate: found no regular file", "check the path"],
        ),
        (
            "certificate = \"PKI/server/p256.pem\"\nkey = \"PKI/server/p384.key\"".to_owned(),
            ["key: found a key that does not belong", "renewed together"],
        ),
    ] {
        let ran = pki.check(&lines);
        assert_eq!(ran.status.code(), Some(1), "{lines}\n{ran:?}");
        for part in parts {
            assert!(ran.stderr.contains(part), "{part:?} is missing\n{lines}\n{ran:?}");
        }
        assert!(!ran.text().contains("battery staple"), "{ran:?}");
    }
}
