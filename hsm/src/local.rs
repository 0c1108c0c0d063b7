//! Keys in files: loaded into this process, signed with by aws-lc.

use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use zeroize::Zeroize;

use crate::KeyError;

pub(crate) fn load_der(key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, KeyError> {
    let loaded = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key);
    wipe(key);
    loaded.map_err(|error| KeyError::Unsupported(error.to_string()))
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
    fn debug_shows_the_algorithm_and_nothing_else() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = KeyRef::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(key.algorithm(), SignatureAlgorithm::ECDSA);
        assert_eq!(format!("{key:?}"), "KeyRef(ECDSA)");
    }
}
