//! Any bytes as a file of certificates and keys: read or refused, put in order and judged, without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlock::identity::chain;
use ringlock::identity::facts::Facts;
use ringlock::identity::preflight::{self, FileFacts};
use ringlock_hsm::formats;
use x509_parser::prelude::{FromDer, X509Certificate};

const PASSPHRASE: &[u8] = b"correct horse";

fuzz_target!(|file: &[u8]| {
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
