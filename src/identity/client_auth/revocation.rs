//! Revocation lists as files have them.

use std::sync::OnceLock;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateRevocationListDer, InvalidSignature, SignatureVerificationAlgorithm,
};
use webpki::{CertRevocationList, Error, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::crypto::sha256;
use crate::limits::HANDSHAKE_BYTES_MAX;

/// What a CA says it has revoked. Whether it was the CA that has said so is found out when a certificate of the CA is verified.
#[derive(Debug)]
pub struct RevocationList {
    /// The CA that it is of.
    pub issuer: String,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// When the next one is due at the latest, seconds since 1970. It is not believed after that.
    pub next_update: i64,
    /// The file that it was in, for people.
    pub source: String,
    /// There is a newer one of the CA for the same certificates: only that is asked.
    pub is_replaced: bool,
    /// Of all of it.
    pub(super) digest: [u8; 32],
    /// What its CA has signed, and with what result.
    signed: Box<[u8]>,
    signature: Box<[u8]>,
    /// Whose signature it is: known when the first certificate of the CA has been verified.
    signer: OnceLock<Signer>,
    pub(super) list: CertRevocationList<'static>,
}

/// A key that has signed.
#[derive(Debug, PartialEq, Eq)]
struct Signer {
    key: Box<[u8]>,
    key_algorithm: AlgorithmIdentifier,
    signature_algorithm: AlgorithmIdentifier,
}

/// An algorithm that does not verify the signature of a list again: webpki asks for it with every certificate, which costs as much as the
/// certificate's own, and more where the list is long.
#[derive(Debug)]
pub(super) struct Remembering<'l> {
    pub(super) algorithm: &'static dyn SignatureVerificationAlgorithm,
    pub(super) lists: &'l [RevocationList],
}

impl SignatureVerificationAlgorithm for Remembering<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let verify = || self.algorithm.verify_signature(key, message, signature);
        let Some(list) = self.list_of(message, signature) else {
            return verify();
        };
        let signer = Signer {
            key: key.into(),
            key_algorithm: self.algorithm.public_key_alg_id(),
            signature_algorithm: self.algorithm.signature_alg_id(),
        };
        if list.signer.get() == Some(&signer) {
            return Ok(());
        }
        verify()?;
        // Another worker may have been first.
        let _ = list.signer.set(signer);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

impl Remembering<'_> {
    /// The list that has been signed, if it is one.
    fn list_of(&self, message: &[u8], signature: &[u8]) -> Option<&RevocationList> {
        let is_alike = |list: &&RevocationList| *list.signature == *signature && list.signed.len() == message.len();
        let mut alike = self.lists.iter().filter(is_alike);
        // No client has sent this: it is from one of the lists, and only one could it be. Comparing a list of some megabytes takes longer than
        // the rest of the handshake.
        if message.len() > HANDSHAKE_BYTES_MAX
            && let (Some(list), None) = (alike.next(), alike.next())
        {
            return Some(list);
        }
        self.lists.iter().filter(is_alike).find(|list| *list.signed == *message)
    }
}

impl RevocationList {
    /// Every list of a file, which is PEM, or DER with one list; `source` is the name of the file.
    ///
    /// # Errors
    /// What was found in place of usable lists.
    pub fn all_in(file: &[u8], source: &str) -> Result<Vec<RevocationList>, String> {
        const PEM_BEGINS: &[u8] = b"-----BEGIN ";
        let lists = if file.windows(PEM_BEGINS.len()).any(|bytes| bytes == PEM_BEGINS) {
            CertificateRevocationListDer::pem_slice_iter(file)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("text that is no valid PEM ({error})"))?
        } else if file.first() == Some(&DER_SEQUENCE) {
            vec![CertificateRevocationListDer::from(file)]
        } else {
            Vec::new()
        };
        if lists.is_empty() {
            return Err("no revocation list".into());
        }
        (1..)
            .zip(lists)
            .map(|(number, der)| {
                RevocationList::from_der(&der, source).map_err(|what| format!("revocation list {number}, {what},"))
            })
            .collect()
    }

    /// Whether both are about the same certificates.
    pub(super) fn is_like(&self, other: &RevocationList) -> bool {
        let scope = |list: &RevocationList| list.list.issuing_distribution_point().map(<[u8]>::to_vec);
        self.list.issuer() == other.list.issuer() && scope(self) == scope(other)
    }

    fn from_der(der: &[u8], source: &str) -> Result<RevocationList, String> {
        let (_, parsed) =
            CertificateRevocationList::from_der(der).map_err(|error| format!("which cannot be read ({error})"))?;
        // webpki says of both that they are malformed.
        if parsed.version().is_none() {
            return Err("which is of version 1".into());
        }
        let Some(next_update) = parsed.next_update() else {
            return Err("which does not say when the next one is due (nextUpdate)".into());
        };
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| unusable(&error))?;
        Ok(RevocationList {
            issuer: parsed.issuer().to_string(),
            this_update: parsed.last_update().timestamp(),
            next_update: next_update.timestamp(),
            source: source.to_owned(),
            is_replaced: false,
            digest: sha256::digest(&[der]),
            signed: parsed.tbs_cert_list.as_ref().into(),
            signature: parsed.signature_value.data.as_ref().into(),
            signer: OnceLock::new(),
            list: list.into(),
        })
    }
}

/// The first byte of a list in DER.
const DER_SEQUENCE: u8 = 0x30;

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki has more errors than an operator can act on"
)]
fn unusable(error: &Error) -> String {
    match error {
        Error::UnsupportedDeltaCrl => "a delta list, which has only what has changed".into(),
        Error::UnsupportedIndirectCrl => "an indirect list, which is of other CAs' certificates".into(),
        Error::UnsupportedRevocationReasonsPartitioning => "which is for some reasons of revocation only".into(),
        Error::UnsupportedCrlIssuingDistributionPoint => "whose distribution point has no full name".into(),
        other => format!("which cannot be used ({other})"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CrlDistributionPoint,
        CrlIssuingDistributionPoint, CrlScope, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, date_time_ymd,
    };
    use rustls::pki_types::alg_id;

    use super::*;

    fn params() -> CertificateRevocationListParams {
        let revoked = |serial: u64| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: Some(rcgen::RevocationReason::KeyCompromise),
            invalidity_date: Some(date_time_ymd(2025, 12, 1)),
        };
        CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 2),
            next_update: date_time_ymd(2026, 1, 3),
            crl_number: 7.into(),
            issuing_distribution_point: Some(CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint {
                    uris: vec!["http://a.example/crl".into()],
                },
                scope: Some(CrlScope::UserCertsOnly),
            }),
            revoked_certs: vec![revoked(1), revoked(u64::MAX), revoked(300)],
            key_identifier_method: KeyIdMethod::Sha256,
        }
    }

    /// A list of a CA that is forgotten.
    pub(in crate::identity::client_auth) fn der() -> Vec<u8> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        params().signed_by(&ca).unwrap().der().to_vec()
    }

    /// As `openssl` writes it.
    fn pem(der: &[u8]) -> String {
        let mut openssl = Command::new("openssl")
            .args(["crl", "-inform", "DER"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut openssl.stdin.take().unwrap(), der).unwrap();
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn pem_and_der_are_read() {
        let (one, two) = (der(), der());
        let lists = RevocationList::all_in(&one, "a.crl").unwrap();
        let [list] = lists.as_slice() else { panic!("one list") };
        assert_eq!(list.issuer, "CN=rcgen self signed cert");
        assert_eq!(list.source, "a.crl");
        assert_eq!(list.next_update, date_time_ymd(2026, 1, 3).unix_timestamp());
        assert_eq!(list.this_update, date_time_ymd(2026, 1, 2).unix_timestamp());
        let text = format!("A list:\n{}and another:\n{}", pem(&one), pem(&two));
        let lists = RevocationList::all_in(text.as_bytes(), "a.crl").unwrap();
        assert_eq!(lists.len(), 2);
        assert_eq!(lists[0].digest, list.digest);
        assert_ne!(lists[1].digest, list.digest);
    }

    /// Says that everything is right, and counts how often it is asked.
    #[derive(Debug)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, key: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if key == b"wrong" { Err(InvalidSignature) } else { Ok(()) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    #[test]
    fn only_what_was_right_is_remembered() {
        static COUNTING: Counting = Counting(AtomicUsize::new(0));
        let lists = RevocationList::all_in(&der(), "a.crl").unwrap();
        let remembering = Remembering {
            algorithm: &COUNTING,
            lists: &lists,
        };
        let (message, signature) = (lists[0].signed.to_vec(), lists[0].signature.to_vec());
        let asked = |key: &[u8], message: &[u8], signature: &[u8]| {
            let before = COUNTING.0.load(Ordering::Relaxed);
            let right = remembering.verify_signature(key, message, signature).is_ok();
            (right, COUNTING.0.load(Ordering::Relaxed) - before)
        };
        for _ in 0..2 {
            assert_eq!(asked(b"wrong", &message, &signature), (false, 1));
        }
        assert_eq!(asked(b"right", &message, &signature), (true, 1));
        assert_eq!(asked(b"right", &message, &signature), (true, 0));
        assert_eq!(asked(b"wrong", &message, &signature), (false, 1));
        assert_eq!(asked(b"another", &message, &signature), (true, 1));
        assert_eq!(asked(b"right", &message[1..], &signature), (true, 1));
        assert_eq!(asked(b"right", &message, &signature[1..]), (true, 1));
        assert_eq!(asked(b"right", &message, &signature), (true, 0));
    }

    /// A list that is longer than what a client can send is known by its signature, unless there are two of them.
    #[test]
    fn of_two_long_lists_with_one_signature_neither_stands_for_the_other() {
        static COUNTING: Counting = Counting(AtomicUsize::new(0));
        let mut params = params();
        params.revoked_certs = (1..5000_u64)
            .map(|serial| RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let der = params.signed_by(&ca).unwrap().der().to_vec();
        let mut one = RevocationList::all_in(&der, "a.crl").unwrap();
        let long = one[0].signed.to_vec();
        assert!(long.len() > HANDSHAKE_BYTES_MAX, "{}", long.len());
        let signature = one[0].signature.to_vec();
        let mut other = long.clone();
        *other.last_mut().unwrap() ^= 1;
        let asked = |lists: &[RevocationList], message: &[u8]| {
            let algorithm = &COUNTING;
            let before = COUNTING.0.load(Ordering::Relaxed);
            let verified = Remembering { algorithm, lists }.verify_signature(b"right", message, &signature);
            assert!(verified.is_ok());
            COUNTING.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(asked(&one, &long), 1);
        assert_eq!(asked(&one, &long), 0);
        let mut forged = RevocationList::all_in(&der, "b.crl").unwrap();
        forged[0].signed = other.clone().into();
        one.extend(forged);
        assert_eq!(asked(&one, &long), 0);
        assert_eq!(asked(&one, &other), 1, "it is verified by itself");
        assert_eq!(asked(&one, &other), 0);
    }

    #[test]
    fn what_is_no_list_is_told() {
        let error = |file: &[u8]| RevocationList::all_in(file, "a.crl").unwrap_err();
        assert_eq!(error(b""), "no revocation list");
        assert_eq!(error(b"hello"), "no revocation list");
        let whole = pem(&der());
        let cut = &whole[..whole.len() - 30];
        assert!(
            error(cut.as_bytes()).starts_with("text that is no valid PEM ("),
            "{}",
            error(cut.as_bytes())
        );
        let label = "X509 CRL";
        let certificate = whole.replace(label, "CERTIFICATE");
        assert_eq!(error(certificate.as_bytes()), "no revocation list");
        let garbage = format!("{whole}-----BEGIN {label}-----\naGVsbG8=\n-----END {label}-----\n");
        assert!(error(garbage.as_bytes()).starts_with("revocation list 2, which cannot be read ("));
        let mut longer = der();
        longer.push(0);
        assert!(
            error(&longer).starts_with("revocation list 1, which cannot be used ("),
            "{}",
            error(&longer)
        );
    }

    proptest! {
        /// Whatever is in a file, it is read or refused.
        #[test]
        fn cut_and_changed_lists_are_harmless(
            cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            insert in prop::option::of((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..8))),
            whole in any::<bool>(),
        ) {
            use std::sync::LazyLock;
            static DER: LazyLock<Vec<u8>> = LazyLock::new(der);
            let mut bytes = DER.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some((at, inserted)) = insert {
                let at = at.index(bytes.len());
                bytes.splice(at..at, inserted);
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            let read = RevocationList::all_in(&bytes, "a.crl");
            if let Ok(lists) = read {
                for list in lists {
                    for serial in [&[1][..], &[1, 44], &[]] {
                        let _ = list.list.find_serial(serial);
                    }
                }
            }
        }

        #[test]
        fn files_of_any_bytes_are_harmless(mut bytes in prop::collection::vec(any::<u8>(), 0..200), der in any::<bool>()) {
            if der && !bytes.is_empty() {
                bytes[0] = DER_SEQUENCE;
            }
            let _ = RevocationList::all_in(&bytes, "a.crl");
        }
    }
}
