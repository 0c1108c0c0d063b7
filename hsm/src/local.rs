//! Keys in files: loaded into this process, signed with by aws-lc.

use std::sync::Arc;

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::signature::RsaKeyPair;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use zeroize::Zeroize;

use crate::KeyError;

pub(crate) fn load_der(key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, KeyError> {
    let loaded = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| {
        KeyError::Unsupported(if is_short_rsa(key.secret_der()) {
            "RSA of fewer than 2,048 bits".to_owned()
        } else {
            error.to_string()
        })
    });
    wipe(key);
    loaded
}

/// rustls says of these keys that they cannot be read.
fn is_short_rsa(der: &[u8]) -> bool {
    let rejected = |result: Result<RsaKeyPair, KeyRejected>| result.is_err_and(|error| error.to_string() == "TooSmall");
    rejected(RsaKeyPair::from_pkcs8(der)) || rejected(RsaKeyPair::from_der(der))
}

fn wipe(mut key: PrivateKeyDer<'static>) {
    key.zeroize();
}

#[cfg(test)]
mod tests {
    use rustls::SignatureAlgorithm;

    use super::*;
    use crate::KeyRef;

    const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";

    #[test]
    fn a_file_without_a_key_says_so() {
        let error = KeyRef::from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap_err();
        assert_eq!(error, KeyError::Missing);
        assert_eq!(error.to_string(), "no private key");
    }

    #[test]
    fn an_encrypted_key_is_named_as_such() {
        assert_eq!(KeyRef::from_pem(ENCRYPTED).unwrap_err(), KeyError::Encrypted);
    }

    #[test]
    fn a_short_key_is_named_as_such() {
        let short = |kind: &[&str]| {
            let mut openssl = std::process::Command::new("openssl");
            let made = openssl.args(["genrsa"]).args(kind).arg("1024").output().unwrap();
            KeyRef::from_pem(&made.stdout).unwrap_err().to_string()
        };
        let expected = "a private key that cannot be used (RSA of fewer than 2,048 bits)";
        assert_eq!(short(&[]), expected);
        assert_eq!(short(&["-traditional"]), expected);
    }

    #[test]
    fn debug_shows_the_algorithm_and_nothing_else() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = KeyRef::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(key.algorithm(), SignatureAlgorithm::ECDSA);
        assert_eq!(format!("{key:?}"), "KeyRef(ECDSA)");
    }
}
