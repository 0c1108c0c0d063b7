//! Any bytes as a file of certificates and keys: read or refused, put in order and judged, without a panic.
#![no_main]

mod seeds;

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use p12_keystore::{Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use ringlock::identity::chain;
use ringlock::identity::facts::Facts;
use ringlock::identity::preflight::{self, FileFacts};
use ringlock_hsm::formats;
use x509_parser::prelude::{FromDer, X509Certificate};

const PASSPHRASE: &[u8] = b"correct horse";

/// A chain with its key, in all formats.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "a CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(["site.example".to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
    let pkcs12 = |passphrase: &str, algorithm: EncryptionAlgorithm| {
        let key = PrivateKey::from_der(&key.serialize_der()).expect("a key");
        let certificate = Certificate::from_der(leaf.der()).expect("a certificate");
        let mut store = KeyStore::new();
        let chain = PrivateKeyChain::new([1].as_slice(), key, [certificate]);
        store.add_entry("one", KeyStoreEntry::PrivateKeyChain(chain));
        let writer = store.writer(passphrase).encryption_iterations(2).mac_iterations(2);
        writer.encryption_algorithm(algorithm).write().expect("it can be written")
    };
    let phrase = std::str::from_utf8(PASSPHRASE).expect("it is ASCII");
    let mut seeds = vec![
        (leaf.pem() + &ca.pem() + &key.serialize_pem()).into_bytes(),
        (ca.pem() + &leaf.pem()).into_bytes(),
        leaf.der().to_vec(),
        key.serialize_der(),
    ];
    for phrase in [phrase, "", "another"] {
        seeds.push(pkcs12(phrase, EncryptionAlgorithm::PbeWithHmacSha256AndAes256));
        seeds.push(pkcs12(phrase, EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc));
    }
    seeds
});

fuzz_target!(|file: &[u8]| {
    for passphrase in [None, Some(&b"wrong"[..])] {
        let _ = formats::certificates(file, passphrase);
        let _ = formats::private_key(file, passphrase);
    }
    let key = formats::private_key(file, Some(PASSPHRASE));
    assert!(key.is_err() || formats::has_private_key(file));
    let Ok(certificates) = formats::certificates(file, Some(PASSPHRASE)) else {
        return;
    };
    for leaf in &certificates {
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
            continue;
        };
        let Ok(arranged) = chain::arrange(&certificates, parsed.public_key().raw) else {
            continue;
        };
        assert_eq!(arranged.chain.len() + arranged.left_out.len(), certificates.len());
        if let Ok(facts) = Facts::of(&arranged, "fuzz.pem", "fuzz.key") {
            assert_eq!(facts.chain.len(), arranged.chain.len());
            let _ = preflight::of_chain(&facts, &FileFacts::default(), 1_800_000_000);
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    seeds::mutate(data, size, max_size, seed, &SEEDS)
});
