//! Certificates and private keys as they come in files: PEM, DER, PKCS#12. What a file is, is seen from its content and not from
//! its name.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Reader, SliceReader, Tag, Tagged};
use p12_keystore::{Pkcs12Archive, error::Error as Pkcs12Error};
use pkcs8::pkcs5::pbes2::{Kdf, PBES2_OID, Parameters};
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spki::AlgorithmIdentifierRef;

use crate::KeyError;

/// A format that is not read, and what makes another of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Foreign {
    pub(crate) name: &'static str,
    pub(crate) conversion: &'static str,
}

static TRADITIONAL: Foreign = Foreign {
    name: "a private key in OpenSSL's old encryption (Proc-Type: 4,ENCRYPTED)",
    conversion: "convert it; it stays encrypted: openssl pkcs8 -topk8 -in FILE -out NEW",
};
static TRUSTED: Foreign = Foreign {
    name: "a certificate in OpenSSL's own form (TRUSTED CERTIFICATE)",
    conversion: "convert it: openssl x509 -in FILE -out NEW",
};
static PKCS7: Foreign = Foreign {
    name: "PKCS#7",
    conversion: "convert it: openssl pkcs7 -print_certs -in FILE -out NEW, with -inform DER if it is no text",
};
static INDEFINITE: Foreign = Foreign {
    name: "BER with indefinite lengths, where DER is expected",
    conversion: "convert it: openssl pkcs12 -in FILE -out NEW, which is PEM",
};
static JAVA: Foreign = Foreign {
    name: "a Java keystore (JKS)",
    conversion: "convert it: keytool -importkeystore -srckeystore FILE -destkeystore NEW -deststoretype PKCS12",
};

const JAVA_MAGIC: &[u8] = &[0xfe, 0xed, 0xfe, 0xed];
const TRADITIONAL_MARK: &str = "Proc-Type: 4,ENCRYPTED";
const ENCRYPTED_BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const ENCRYPTED_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
const TOO_DEAR: &str = "it takes more work or memory than any key needs";

/// Work of this size takes seconds, in iterations of PBKDF2; more is asked for by a file that is broken. OpenSSL's default is 2,048.
const ITERATIONS_MAX: u64 = 10_000_000;

/// Memory that scrypt may take; OpenSSL's default takes 16 MiB.
const SCRYPT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What scrypt fills in the time of an iteration of PBKDF2, about.
const SCRYPT_BYTES_PER_ITERATION: u64 = 64;

/// How deep the parts of PKCS#12 lie in each other, the algorithms of keys the deepest: whatever is deeper is not read.
const PKCS12_LEVELS: usize = 16;

/// What a file is.
enum Format {
    Pem,
    Certificate,
    Key,
    EncryptedKey,
    Pkcs12,
}

/// The certificates of a file, in its order; none when it has only keys. The pass phrase is for PKCS#12, where it is empty when
/// there is none.
///
/// # Errors
/// The file is of no format that is known, is broken, or is not opened by the pass phrase.
pub fn certificates(file: &[u8], passphrase: Option<&[u8]>) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    match recognise(file)? {
        Format::Pem => {
            let found = CertificateDer::pem_slice_iter(file).collect::<Result<Vec<_>, _>>();
            match (found, unread_pem(file)) {
                (Ok(found), None) => Ok(found),
                (Ok(found), Some(_)) if !found.is_empty() => Ok(found),
                (_, Some(foreign)) => Err(KeyError::Foreign(foreign)),
                (Err(error), None) => Err(KeyError::Pem(error.to_string())),
            }
        }
        Format::Certificate => Ok(vec![CertificateDer::from(file.to_vec())]),
        Format::Key | Format::EncryptedKey => Ok(Vec::new()),
        Format::Pkcs12 => {
            let bags = archive(file, passphrase)?.certs.into_iter();
            Ok(bags
                .map(|bag| CertificateDer::from(bag.cert.as_der().to_vec()))
                .collect())
        }
    }
}

/// The private key of a file: of several in PEM the first.
///
/// # Errors
/// There is none, it is encrypted and the pass phrase does not open it, or the file is of no format that is known.
pub fn private_key(file: &[u8], passphrase: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, KeyError> {
    match recognise(file)? {
        Format::Pem => key_in_pem(file, passphrase),
        Format::Certificate => Err(KeyError::Missing),
        Format::Key => {
            let key = PrivateKeyDer::try_from(file);
            key.map(|key| key.clone_key())
                .map_err(|error| KeyError::Unsupported(error.to_owned()))
        }
        Format::EncryptedKey => decrypt(file, passphrase),
        Format::Pkcs12 => {
            let keys = archive(file, passphrase)?.keys;
            match keys.as_slice() {
                [] => Err(KeyError::Missing),
                [bag] => Ok(PrivatePkcs8KeyDer::from(bag.key.as_der().to_vec()).into()),
                several => Err(KeyError::Several(several.len())),
            }
        }
    }
}

/// Whether a file has a private key in it, encrypted or not. What cannot be read has none.
#[must_use]
pub fn has_private_key(file: &[u8]) -> bool {
    match recognise(file) {
        Ok(Format::Pem) => String::from_utf8_lossy(file)
            .lines()
            .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with("PRIVATE KEY-----")),
        Ok(Format::Key | Format::EncryptedKey | Format::Pkcs12) => true,
        Ok(Format::Certificate) | Err(_) => false,
    }
}

fn recognise(file: &[u8]) -> Result<Format, KeyError> {
    if find(file, "-----BEGIN ").is_some() {
        return Ok(Format::Pem);
    }
    let foreign = if file.starts_with(&[0x30, 0x80]) {
        Some(&INDEFINITE)
    } else if file.starts_with(JAVA_MAGIC) {
        Some(&JAVA)
    } else if is_pkcs7(file) {
        Some(&PKCS7)
    } else {
        None
    };
    match foreign {
        Some(foreign) => Err(KeyError::Foreign(foreign)),
        None => of_der(file).ok().flatten().ok_or(KeyError::Unknown),
    }
}

/// The first two elements tell.
fn of_der(file: &[u8]) -> Result<Option<Format>, der::Error> {
    let outer = AnyRef::from_der(file)?;
    let mut elements = SliceReader::new(outer.value())?;
    let (first, second) = (AnyRef::decode(&mut elements)?, AnyRef::decode(&mut elements)?);
    const PFX_VERSION: &[u8] = &[3];
    Ok(match (outer.tag(), first.tag(), second.tag()) {
        (Tag::Sequence, Tag::Integer, Tag::Sequence) if first.value() == PFX_VERSION => Some(Format::Pkcs12),
        (Tag::Sequence, Tag::Integer, Tag::Sequence | Tag::Integer | Tag::OctetString) => Some(Format::Key),
        (Tag::Sequence, Tag::Sequence, Tag::OctetString) => Some(Format::EncryptedKey),
        (Tag::Sequence, Tag::Sequence, Tag::Sequence) => Some(Format::Certificate),
        _ => None,
    })
}

fn is_pkcs7(file: &[u8]) -> bool {
    const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
    let first = AnyRef::from_der(file).and_then(|outer| {
        let mut elements = SliceReader::new(outer.value())?;
        elements.decode::<ObjectIdentifier>()
    });
    first == Ok(SIGNED_DATA)
}

/// Blocks that are of another format than what is read.
fn unread_pem(file: &[u8]) -> Option<&'static Foreign> {
    let known = [
        (TRADITIONAL_MARK, &TRADITIONAL),
        ("-----BEGIN TRUSTED CERTIFICATE-----", &TRUSTED),
        ("-----BEGIN PKCS7-----", &PKCS7),
    ];
    known
        .into_iter()
        .find(|(mark, _)| find(file, mark).is_some())
        .map(|(_, foreign)| foreign)
}

fn key_in_pem(file: &[u8], passphrase: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, KeyError> {
    if find(file, TRADITIONAL_MARK).is_some() {
        return Err(KeyError::Foreign(&TRADITIONAL));
    }
    match PrivateKeyDer::from_pem_slice(file) {
        Ok(key) => return Ok(key),
        Err(PemError::NoItemsFound) => {}
        Err(error) => return Err(KeyError::Pem(error.to_string())),
    }
    // Everything but base64 and the marks may be of any encoding: names and comments of certificates.
    let begin = find(file, ENCRYPTED_BEGIN).ok_or(KeyError::Missing)?;
    if passphrase.is_none() {
        return Err(KeyError::Encrypted);
    }
    let length = find(&file[begin..], ENCRYPTED_END)
        .ok_or_else(|| KeyError::Pem(format!("{ENCRYPTED_END} is missing")))?
        + ENCRYPTED_END.len();
    let block = std::str::from_utf8(&file[begin..begin + length]).map_err(|error| KeyError::Pem(error.to_string()))?;
    let (_, encrypted) = SecretDocument::from_pem(block).map_err(|error| KeyError::Pem(error.to_string()))?;
    decrypt(encrypted.as_bytes(), passphrase)
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

/// Opens an encrypted PKCS#8 key (PBES2).
fn decrypt(der: &[u8], passphrase: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, KeyError> {
    let unsupported = |why: String| KeyError::Unsupported(format!("its encryption is not known: {why}"));
    let passphrase = passphrase.ok_or(KeyError::Encrypted)?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|error| unsupported(error.to_string()))?;
    let parameters = encrypted
        .encryption_algorithm
        .pbes2()
        .ok_or_else(|| unsupported("it is that of PKCS#5 before version 2".to_owned()))?;
    if iterations(parameters) > ITERATIONS_MAX {
        return Err(unsupported(TOO_DEAR.to_owned()));
    }
    let key = encrypted.decrypt(passphrase).map_err(|_| KeyError::Passphrase)?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// What a derivation of keys costs.
fn iterations(parameters: &Parameters) -> u64 {
    match &parameters.kdf {
        Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count.into(),
        Kdf::Scrypt(scrypt) => {
            let bytes = 128_u64
                .checked_mul(scrypt.cost_parameter)
                .and_then(|bytes| bytes.checked_mul(scrypt.block_size.into()))
                .filter(|&bytes| bytes <= SCRYPT_BYTES_MAX);
            bytes.map_or(u64::MAX, |bytes| {
                bytes * u64::from(scrypt.parallelization) / SCRYPT_BYTES_PER_ITERATION
            })
        }
        _ => u64::MAX,
    }
}

/// What opening PKCS#12 costs, as far as it is seen in the file as it is. What lies in an encrypted part is not: only who knows the pass
/// phrase can put anything there.
fn iterations_in(der: &[u8], levels: usize) -> u64 {
    const WITH_SHA1_AND_ANY_CIPHER: &str = "1.2.840.113549.1.12.1.";
    /// Two for the key of Triple DES, and one for its initialization vector.
    const DERIVATIONS: u64 = 3;
    let Some(levels) = levels.checked_sub(1) else { return 0 };
    let Ok(mut elements) = SliceReader::new(der) else {
        return 0;
    };
    let mut total = 0_u64;
    while let Ok(element) = AnyRef::decode(&mut elements) {
        let of_algorithm = element
            .decode_as::<AlgorithmIdentifierRef<'_>>()
            .ok()
            .and_then(|algorithm| {
                let parameters = algorithm.parameters?;
                if algorithm.oid == PBES2_OID {
                    return Parameters::try_from(parameters)
                        .ok()
                        .map(|parameters| iterations(&parameters));
                }
                if !algorithm.oid.to_string().starts_with(WITH_SHA1_AND_ANY_CIPHER) {
                    return None;
                }
                let mut parts = SliceReader::new(parameters.value()).ok()?;
                AnyRef::decode(&mut parts).ok()?;
                Some(u64::from(u32::decode(&mut parts).ok()?) * DERIVATIONS)
            });
        let tag = element.tag();
        let has_parts = tag.is_constructed() || tag.is_context_specific() || tag == Tag::OctetString;
        let inside = if has_parts && of_algorithm.is_none() {
            iterations_in(element.value(), levels)
        } else {
            0
        };
        total = total
            .saturating_add(of_algorithm.unwrap_or_default())
            .saturating_add(inside);
    }
    total
}

/// Opens PKCS#12. The library bounds memory, and the work for each part but not for all; it does not wipe what it has decrypted.
fn archive(file: &[u8], passphrase: Option<&[u8]>) -> Result<Pkcs12Archive, KeyError> {
    let given = passphrase.unwrap_or_default();
    let text = std::str::from_utf8(given).map_err(|_| KeyError::Passphrase)?;
    if iterations_in(file, PKCS12_LEVELS) > ITERATIONS_MAX {
        return Err(KeyError::Unsupported(format!("PKCS#12: {TOO_DEAR}")));
    }
    Pkcs12Archive::from_pkcs12(file, text).map_err(|error| {
        if !matches!(error, Pkcs12Error::MacError(_)) {
            KeyError::Unsupported(format!("PKCS#12: {error}"))
        } else if passphrase.is_none() {
            KeyError::Encrypted
        } else {
            KeyError::Passphrase
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use der::Encode;
    use p12_keystore::{Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const PASSPHRASE: &[u8] = b"secret";

    struct Made {
        key: KeyPair,
        certificate: CertificateDer<'static>,
    }

    fn made() -> Made {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().der().clone();
        Made { key, certificate }
    }

    fn pkcs12(made: &[Made], algorithm: EncryptionAlgorithm) -> Vec<u8> {
        let mut store = KeyStore::new();
        for (number, Made { key, certificate }) in made.iter().enumerate() {
            let key = PrivateKey::from_der(&key.serialize_der()).unwrap();
            let certificate = Certificate::from_der(certificate).unwrap();
            let chain = PrivateKeyChain::new([u8::try_from(number).unwrap()].as_slice(), key, [certificate]);
            store.add_entry(&number.to_string(), KeyStoreEntry::PrivateKeyChain(chain));
        }
        let writer = store.writer(std::str::from_utf8(PASSPHRASE).unwrap());
        let writer = writer.encryption_iterations(2).mac_iterations(2);
        writer.encryption_algorithm(algorithm).write().unwrap()
    }

    fn der_of(key: &PrivateKeyDer<'_>) -> Vec<u8> {
        key.secret_der().to_vec()
    }

    #[test]
    fn pem_and_der_are_told_apart_by_their_content() {
        let Made { key, certificate } = made();
        let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        let both = format!("comment\n{pem}{}", key.serialize_pem());
        for file in [both.as_bytes(), key.serialize_pem().as_bytes(), &key.serialize_der()] {
            assert_eq!(der_of(&private_key(file, None).unwrap()), key.serialize_der());
            assert!(has_private_key(file));
        }
        assert_eq!(certificates(both.as_bytes(), None).unwrap().len(), 1);
        assert_eq!(
            certificates(&certificate, None).unwrap(),
            std::slice::from_ref(&certificate)
        );
        assert_eq!(private_key(&certificate, None).unwrap_err(), KeyError::Missing);
        assert!(!has_private_key(&certificate) && !has_private_key(pem.as_bytes()));
        assert_eq!(certificates(&key.serialize_der(), None).unwrap(), []);
    }

    #[test]
    fn pkcs12_opens_with_its_pass_phrase_only() {
        use EncryptionAlgorithm::{
            PbeWithHmacSha256AndAes256, PbeWithShaAnd3KeyTripleDesCbc, PbeWithShaAnd40BitRc4Cbc,
        };
        for algorithm in [
            PbeWithHmacSha256AndAes256,
            PbeWithShaAnd3KeyTripleDesCbc,
            PbeWithShaAnd40BitRc4Cbc,
        ] {
            let made = [made()];
            let file = pkcs12(&made, algorithm);
            let found = private_key(&file, Some(PASSPHRASE)).unwrap();
            assert_eq!(der_of(&found), made[0].key.serialize_der());
            assert_eq!(
                certificates(&file, Some(PASSPHRASE)).unwrap(),
                [made[0].certificate.clone()]
            );
            assert!(has_private_key(&file));
            assert_eq!(private_key(&file, Some(b"other")).unwrap_err(), KeyError::Passphrase);
            assert_eq!(private_key(&file, None).unwrap_err(), KeyError::Encrypted);
            assert_eq!(certificates(&file, None).unwrap_err(), KeyError::Encrypted);
        }
    }

    #[test]
    fn of_several_keys_in_pkcs12_none_is_guessed() {
        let file = pkcs12(&[made(), made()], EncryptionAlgorithm::PbeWithHmacSha256AndAes256);
        assert_eq!(private_key(&file, Some(PASSPHRASE)).unwrap_err(), KeyError::Several(2));
    }

    #[test]
    fn other_formats_are_named_with_what_converts_them() {
        let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let trusted = "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n";
        let pkcs7 = "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n";
        let signed_data = b"\x30\x0f\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x02\x30\x00";
        let foreign = |file: &[u8]| match certificates(file, None) {
            Err(KeyError::Foreign(foreign)) => foreign,
            other => panic!("{other:?}"),
        };
        for (file, expected) in [
            (traditional.as_bytes(), &TRADITIONAL),
            (trusted.as_bytes(), &TRUSTED),
            (pkcs7.as_bytes(), &PKCS7),
            (signed_data, &PKCS7),
            (b"\x30\x80\x02\x01\x03", &INDEFINITE),
            (b"\xfe\xed\xfe\xed\0\0\0\x02", &JAVA),
        ] {
            assert_eq!(foreign(file), expected);
        }
        let key = private_key(traditional.as_bytes(), Some(PASSPHRASE)).unwrap_err();
        assert_eq!(key, KeyError::Foreign(&TRADITIONAL));
        assert!(key.remedy().contains("openssl pkcs8 -topk8"), "{}", key.remedy());
        for nothing in [&b""[..], b"hello\n", b"\x30\x00", &[0; 100]] {
            assert_eq!(private_key(nothing, None).unwrap_err(), KeyError::Unknown);
        }
    }

    #[test]
    fn what_would_take_too_long_is_refused_at_once() {
        // PBKDF2 of 2^31 - 1 iterations.
        let derivation =
            b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c\x30\x10\x04\x08saltsalt\x02\x04\x7f\xff\xff\xff";
        let work = element(0x30, &[pbes2(derivation), element(0x04, &[0; 16])].concat());
        let error = private_key(&work, Some(PASSPHRASE)).unwrap_err();
        assert!(error.to_string().contains("more work or memory"), "{error}");
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let tag = Tag::from_der(&[tag]).unwrap();
        AnyRef::new(tag, content).unwrap().to_der().unwrap()
    }

    /// PKCS#12 without a MAC, with so many keys, each encrypted so.
    fn pkcs12_of(keys: usize, algorithm: &[u8]) -> Vec<u8> {
        const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
        const SHROUDED_KEY: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02";
        let of_data = |data: &[u8]| {
            let octets = element(0xa0, &element(0x04, data));
            element(0x30, &[DATA, &octets].concat())
        };
        let key = element(0x30, &[algorithm, &element(0x04, &[0; 16])].concat());
        let bag = element(0x30, &[SHROUDED_KEY, &element(0xa0, &key)].concat());
        let safes = element(0x30, &of_data(&element(0x30, &bag.repeat(keys))));
        element(0x30, &[b"\x02\x01\x03", &*of_data(&safes)].concat())
    }

    fn pbes2(derivation: &[u8]) -> Vec<u8> {
        const PBES2: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d";
        const AES: &[u8] = b"\x30\x1d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x01\x2a\x04\x100123456789abcdef";
        let parameters = element(0x30, &[&element(0x30, derivation), AES].concat());
        element(0x30, &[PBES2, &parameters].concat())
    }

    /// The library would take a million iterations for each key of a file that has thousands.
    #[test]
    fn what_would_take_too_long_in_many_parts_is_refused_at_once() {
        let million = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c\x30\x0f\x04\x08saltsalt\x02\x03\x0f\x42\x40";
        let million_of_sha1 =
            b"\x30\x1d\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x03\x30\x0f\x04\x08saltsalt\x02\x03\x0f\x42\x40";
        // 128 MiB, sixteen times.
        let scrypt = b"\x06\x09\x2b\x06\x01\x04\x01\xda\x47\x04\x0b\x30\x15\x04\x08saltsalt\x02\x03\x02\x00\x00\x02\x01\x08\x02\x01\x10";
        for (keys, algorithm, expected) in [
            (10, pbes2(million), 10_000_000),
            (5_000, pbes2(million), 5_000_000_000),
            (3_000, million_of_sha1.to_vec(), 9_000_000_000),
            (1, pbes2(scrypt), 33_554_432),
        ] {
            let file = pkcs12_of(keys, &algorithm);
            assert_eq!(iterations_in(&file, PKCS12_LEVELS), expected);
            if expected > ITERATIONS_MAX {
                for passphrase in [None, Some(PASSPHRASE)] {
                    let error = private_key(&file, passphrase).unwrap_err();
                    assert!(error.to_string().contains("more work or memory"), "{error}");
                    assert!(certificates(&file, passphrase).is_err());
                }
            }
        }
        let deep = (0..10_000).fold(Vec::new(), |inside, _| element(0x30, &inside));
        assert_eq!(iterations_in(&deep, PKCS12_LEVELS), 0);
    }

    /// What is changed in a file costs no more than the file may, whatever it says.
    #[test]
    fn whatever_bit_is_changed_a_file_is_read_or_refused() {
        use EncryptionAlgorithm::{PbeWithHmacSha256AndAes256, PbeWithShaAnd3KeyTripleDesCbc};
        let one = made();
        let pem = CertificateParams::default().self_signed(&one.key).unwrap().pem() + &one.key.serialize_pem();
        let (key, certificate) = (one.key.serialize_der(), one.certificate.to_vec());
        let files = [
            pem.into_bytes(),
            key,
            certificate,
            pkcs12(&[made()], PbeWithHmacSha256AndAes256),
            pkcs12(&[made()], PbeWithShaAnd3KeyTripleDesCbc),
        ];
        let read = |file: &[u8]| {
            // A million iterations are allowed, and take a second; there are few bytes that ask for them.
            let is_cheap = iterations_in(file, PKCS12_LEVELS) < 1_000;
            for passphrase in [None, Some(PASSPHRASE), Some(&b""[..])] {
                if is_cheap {
                    let _ = certificates(file, passphrase);
                    let key = private_key(file, passphrase);
                    assert!(key.is_err() || has_private_key(file));
                }
            }
            is_cheap
        };
        for file in files {
            assert!(read(&file));
            let (mut cheap, mut changed) = (0, file.clone());
            for position in 0..file.len() {
                for bit in [0x01, 0x80] {
                    changed[position] ^= bit;
                    cheap += usize::from(read(&changed));
                    changed[position] = file[position];
                }
                read(&file[..position]);
            }
            assert!(cheap > 2 * file.len() - 50, "{cheap} of {}", file.len());
        }
    }

    proptest! {
        #[test]
        fn files_of_any_bytes_are_harmless(file in prop::collection::vec(any::<u8>(), 0..200), text in any::<bool>()) {
            let mut file = file;
            if text {
                file.splice(0..0, *b"-----BEGIN PRIVATE KEY-----\n");
            }
            let _ = certificates(&file, Some(PASSPHRASE));
            let _ = private_key(&file, Some(PASSPHRASE));
            let _ = has_private_key(&file);
        }
    }

    // A byte of a number of iterations makes a million of them, which takes seconds.
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn broken_pkcs12_is_harmless(position in any::<prop::sample::Index>(), value in any::<u8>()) {
            static FILE: LazyLock<Vec<u8>> =
                LazyLock::new(|| pkcs12(&[made()], EncryptionAlgorithm::PbeWithHmacSha256AndAes256));
            let mut file = FILE.clone();
            let position = position.index(file.len());
            file[position] = value;
            let _ = private_key(&file, Some(PASSPHRASE));
            let _ = private_key(&file[..position], Some(PASSPHRASE));
        }
    }
}
