//! What is known of a certificate chain from reading it: said to operators, and judged by the checks before it is used.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER;
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::prelude::{AlgorithmIdentifier, FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::signature_algorithm::SignatureAlgorithm;

use super::chain::Arranged;
use crate::config::serial_digits;
use crate::crypto::sha256;

const OCSP: Oid<'static> = oid!(1.3.6.1.5.5.7.48.1);
const CA_ISSUERS: Oid<'static> = oid!(1.3.6.1.5.5.7.48.2);
/// RFC 7633.
const TLS_FEATURE: Oid<'static> = oid!(1.3.6.1.5.5.7.1.24);
/// `status_request` as a TLS feature: the extension's number (RFC 6066).
const STATUS_REQUEST: u16 = 5;
const ECDSA_WITH_SHA1: Oid<'static> = oid!(1.2.840.10045.4.1);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'static> = oid!(1.3.132.0.34);
const P521: Oid<'static> = oid!(1.3.132.0.35);
const ED25519: Oid<'static> = oid!(1.3.101.112);

/// What is known of a leaf and of the certificates behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where the chain came from, for people: a path, or the URI of an object in a token.
    pub source: String,
    /// Where the key is, likewise.
    pub key_source: String,
    /// The leaf, and behind it the others as they are sent. Never empty.
    pub chain: Vec<CertificateFacts>,
    /// Subjects in the order in which they were found; none when that was the right one.
    pub order_found: Vec<String>,
    /// Subjects of certificates that were found beside the chain and belong to no place of it.
    pub left_out: Vec<String>,
    /// The leaf's DNS names and IP addresses (subjectAltName), as text, in its order.
    pub names: Vec<String>,
    /// The leaf's extended key usages by name ("serverAuth"), or as object identifiers. Empty when it has none, which means all.
    pub extended_key_usages: Vec<String>,
    /// Where the leaf's issuer says whether it is revoked; mostly none.
    pub ocsp_urls: Vec<String>,
    /// Where the leaf says that its issuer's certificate is. Public CAs say it.
    pub issuer_urls: Vec<String>,
    /// A log of public CAs has the leaf (RFC 6962): its issuer is no root.
    pub logged: bool,
    /// Clients are to refuse the leaf without a staple (RFC 7633).
    pub must_staple: bool,
}

/// What is known of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// For people: "O=Example, CN=a.example".
    pub subject: String,
    /// For people.
    pub issuer: String,
    /// The first common name of the subject.
    pub common_name: Option<String>,
    /// In hexadecimal.
    pub serial: String,
    /// First second of its validity, seconds since 1970.
    pub not_before: i64,
    /// Last second of its validity, seconds since 1970.
    pub not_after: i64,
    /// Its public key.
    pub key: KeyFacts,
    /// What its issuer has signed it with: "ecdsa-with-SHA256".
    pub signature_algorithm: String,
    /// It was signed over a hash for which others with the same hash can be made: MD5 or SHA-1.
    pub weak_signature: bool,
    /// It may issue others (basicConstraints).
    pub is_ca: bool,
    /// Subject and issuer are the same, as in roots.
    pub self_signed: bool,
    /// SHA-256 of the whole certificate in hexadecimal.
    pub fingerprint: String,
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// What kind.
    pub kind: KeyKind,
    /// Of the modulus or the curve; 0 when unknown.
    pub bits: usize,
}

/// Kinds of public keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA on a curve of NIST.
    Ecdsa,
    /// Ed25519.
    Ed25519,
    /// Nothing that TLS as it is here could use.
    Other,
}

impl fmt::Display for KeyFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            KeyKind::Rsa => write!(f, "RSA-{}", self.bits),
            KeyKind::Ecdsa => write!(f, "P-{}", self.bits),
            KeyKind::Ed25519 => f.write_str("Ed25519"),
            KeyKind::Other => f.write_str("unknown"),
        }
    }
}

impl Facts {
    /// Reads a chain that came from `source`, whose key is in `key_source`.
    ///
    /// # Errors
    /// What was found in place of a certificate.
    pub fn of(arranged: &Arranged, source: &str, key_source: &str) -> Result<Facts, String> {
        let chain = &arranged.chain;
        let (_, leaf) =
            X509Certificate::from_der(&chain[0]).map_err(|error| format!("a malformed first certificate ({error})"))?;
        let mut facts = Facts {
            source: source.to_owned(),
            key_source: key_source.to_owned(),
            order_found: arranged.order_found.clone(),
            left_out: arranged.left_out.clone(),
            chain: Vec::with_capacity(chain.len()),
            names: Vec::new(),
            extended_key_usages: Vec::new(),
            ocsp_urls: Vec::new(),
            issuer_urls: Vec::new(),
            logged: false,
            must_staple: false,
        };
        for (number, certificate) in (1..).zip(chain) {
            let certificate = CertificateFacts::of(certificate)
                .map_err(|error| format!("a certificate {number} of the chain that is malformed ({error})"))?;
            facts.chain.push(certificate);
        }
        facts.read_extensions(&leaf);
        Ok(facts)
    }

    /// What is known of the leaf by itself.
    #[must_use]
    pub fn leaf(&self) -> &CertificateFacts {
        &self.chain[0]
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "there are more extensions than anybody asks for"
    )]
    fn read_extensions(&mut self, leaf: &X509Certificate<'_>) {
        for extension in leaf.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(alternative) => {
                    self.names = alternative.general_names.iter().filter_map(name).collect();
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let known = [
                        (usage.any, "anyExtendedKeyUsage"),
                        (usage.server_auth, "serverAuth"),
                        (usage.client_auth, "clientAuth"),
                        (usage.code_signing, "codeSigning"),
                        (usage.email_protection, "emailProtection"),
                        (usage.time_stamping, "timeStamping"),
                        (usage.ocsp_signing, "OCSPSigning"),
                    ];
                    let known = known
                        .into_iter()
                        .filter(|(has, _)| *has)
                        .map(|(_, name)| name.to_owned());
                    self.extended_key_usages = known.chain(usage.other.iter().map(Oid::to_id_string)).collect();
                }
                ParsedExtension::AuthorityInfoAccess(access) => {
                    let urls = |method: &Oid<'_>| {
                        let descriptions = access.iter().filter(|description| description.access_method == *method);
                        descriptions
                            .filter_map(|description| match &description.access_location {
                                GeneralName::URI(url) => Some((*url).to_owned()),
                                _ => None,
                            })
                            .collect()
                    };
                    (self.ocsp_urls, self.issuer_urls) = (urls(&OCSP), urls(&CA_ISSUERS));
                }
                ParsedExtension::SCT(_) => self.logged = true,
                _ if extension.oid == TLS_FEATURE => {
                    let features = Vec::<u16>::from_der(extension.value);
                    self.must_staple = features.is_ok_and(|(_, features)| features.contains(&STATUS_REQUEST));
                }
                _ => {}
            }
        }
    }
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is malformed; the text says where.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<CertificateFacts, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let common_name = parsed.subject().iter_common_name().next();
        Ok(CertificateFacts {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            common_name: common_name.and_then(|name| Some(name.as_str().ok()?.to_owned())),
            serial: serial_digits(parsed.raw_serial()),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            key: key(&parsed),
            signature_algorithm: algorithm_name(&parsed.signature_algorithm.algorithm),
            weak_signature: is_weak(&parsed.signature_algorithm),
            is_ca: parsed.is_ca(),
            self_signed: parsed.subject().as_raw() == parsed.issuer().as_raw(),
            fingerprint: HEXLOWER.encode(&sha256::digest(&[certificate])),
        })
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "clients of TLS ask for hosts and addresses, whatever else there is"
)]
fn name(name: &GeneralName<'_>) -> Option<String> {
    match *name {
        GeneralName::DNSName(name) => Some(name.to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
            let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn key(certificate: &X509Certificate<'_>) -> KeyFacts {
    let info = certificate.public_key();
    let known = |kind, bits| KeyFacts { kind, bits };
    if info.algorithm.algorithm == ED25519 {
        return known(KeyKind::Ed25519, 256);
    }
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let modulus = key.modulus;
            let zeroes = modulus.iter().take_while(|&&byte| byte == 0).count();
            let bits = modulus.get(zeroes).map_or(0, |first| {
                8 * (modulus.len() - zeroes) - usize::try_from(first.leading_zeros()).expect("it is at most 8")
            });
            known(KeyKind::Rsa, bits)
        }
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            let curves = [(P256, 256), (P384, 384), (P521, 521)];
            let bits = curves.into_iter().find(|(known, _)| curve.as_ref() == Some(known));
            bits.map_or(known(KeyKind::Other, 0), |(_, bits)| known(KeyKind::Ecdsa, bits))
        }
        _ => known(KeyKind::Other, 0),
    }
}

fn algorithm_name(algorithm: &Oid<'_>) -> String {
    // It is in no table of names.
    if *algorithm == ECDSA_WITH_SHA1 {
        return "ecdsa-with-SHA1".to_owned();
    }
    oid2sn(algorithm, oid_registry()).map_or_else(|_| algorithm.to_id_string(), str::to_owned)
}

fn is_weak(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    let name = match SignatureAlgorithm::try_from(algorithm) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => algorithm_name(parameters.hash_algorithm_oid()),
        Ok(_) | Err(_) => algorithm_name(&algorithm.algorithm),
    };
    let name = name.to_ascii_lowercase().replace('-', "");
    ["md2", "md4", "md5"].iter().any(|hash| name.contains(hash))
        || name.ends_with("sha1")
        || name.starts_with("sha1with")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};

    use super::*;

    fn params() -> CertificateParams {
        let mut params = CertificateParams::new(["a.example".to_owned(), "*.b.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "a.example");
        params
    }

    fn facts_of(chain: Vec<CertificateDer<'static>>) -> Result<Facts, String> {
        let arranged = Arranged {
            chain,
            order_found: Vec::new(),
            left_out: Vec::new(),
        };
        Facts::of(&arranged, "site.pem", "site.key")
    }

    fn facts(params: &CertificateParams, key: &KeyPair) -> Facts {
        facts_of(vec![params.self_signed(key).unwrap().der().clone()]).unwrap()
    }

    #[test]
    fn a_leaf_is_read() {
        let mut params = params();
        params.serial_number = Some(vec![1, 0xab].into());
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params
            .subject_alt_names
            .push(SanType::IpAddress("::1".parse().unwrap()));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::Other(vec![1, 2, 3]),
        ];
        let facts = facts(&params, &KeyPair::generate().unwrap());
        assert_eq!(facts.source, "site.pem");
        assert_eq!(facts.names, ["a.example", "*.b.example", "127.0.0.1", "::1"]);
        assert_eq!(facts.extended_key_usages, ["serverAuth", "1.2.3"]);
        assert!(facts.ocsp_urls.is_empty() && !facts.must_staple);
        let leaf = facts.leaf();
        assert_eq!(leaf.subject, "CN=a.example");
        assert_eq!(leaf.common_name.as_deref(), Some("a.example"));
        assert_eq!(leaf.serial, "01ab");
        assert_eq!(leaf.key.to_string(), "P-256");
        assert_eq!(leaf.signature_algorithm, "ecdsa-with-SHA256");
        assert!(leaf.self_signed && !leaf.is_ca && !leaf.weak_signature);
        assert_eq!(leaf.not_after, params.not_after.unix_timestamp());
        assert_eq!(leaf.fingerprint.len(), 64);
    }

    #[test]
    fn ocsp_and_must_staple_are_read() {
        let mut params = params();
        // AuthorityInfoAccess with one OCSP URL; TLS feature with status_request.
        let access = b"\x30\x16\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x01\x86\x08http://o";
        params.custom_extensions = vec![
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access.to_vec()),
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]),
        ];
        let facts = facts(&params, &KeyPair::generate().unwrap());
        assert_eq!(facts.ocsp_urls, ["http://o"]);
        assert!(facts.must_staple);
    }

    #[test]
    fn each_kind_of_key_has_its_name() {
        for (algorithm, name) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384"),
            (&rcgen::PKCS_ECDSA_P521_SHA512, "P-521"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
            (&rcgen::PKCS_RSA_SHA256, "RSA-2048"),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(facts(&params(), &key).leaf().key.to_string(), name);
        }
    }

    #[test]
    fn a_chain_is_read_to_its_end() {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut root = CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "root");
        let root_der = root.self_signed(&root_key).unwrap().der().clone();
        let leaf = params()
            .signed_by(&key, &Issuer::from_params(&root, &root_key))
            .unwrap();
        let facts = facts_of(vec![leaf.der().clone(), root_der]).unwrap();
        let [leaf, root] = &facts.chain[..] else {
            panic!("{} certificates", facts.chain.len())
        };
        assert!(leaf.issuer == root.subject && !leaf.self_signed);
        assert!(root.self_signed && root.is_ca);
        let broken = facts_of(vec![CertificateDer::from(vec![0x30, 0])]);
        assert!(broken.unwrap_err().contains("malformed"));
    }
}
