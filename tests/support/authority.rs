//! CAs of clients, their intermediates, and what clients show.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RevocationReason, RevokedCertParams, RsaKeySize,
};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::KeyKind;

/// One day.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA of clients: a root, or one below another.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Before any change.
    params: CertificateParams,
    /// What clients send behind their own certificate: from this CA up to the root, without it.
    intermediates: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// A root with a P-256 key.
    pub(crate) fn root(name: &str) -> Authority {
        Authority::root_of(name, KeyKind::Ecdsa)
    }

    /// A root with a key of this kind.
    pub(crate) fn root_of(name: &str, kind: KeyKind) -> Authority {
        Authority {
            issuer: CertifiedIssuer::self_signed(authority(name), key(kind)).unwrap(),
            params: authority(name),
            intermediates: Vec::new(),
        }
    }

    /// A CA below this one, with a key of this kind.
    pub(crate) fn below(&self, name: &str, kind: KeyKind) -> Authority {
        self.below_with(name, kind, |_| {})
    }

    /// The same after a change.
    pub(crate) fn below_with(
        &self,
        name: &str,
        kind: KeyKind,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Authority {
        let mut params = authority(name);
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, key(kind), &self.issuer).unwrap();
        let own = [issuer.der().clone()];
        Authority {
            intermediates: own.into_iter().chain(self.intermediates.clone()).collect(),
            params: authority(name),
            issuer,
        }
    }

    /// CAs below this one, all of one name and with one key: each has signed what one of them has.
    pub(crate) fn twins_below(&self, name: &str, count: usize) -> Vec<Authority> {
        let shared = key(KeyKind::Ecdsa).serialize_der();
        let twin = |_| {
            let key = KeyPair::try_from(shared.as_slice()).unwrap();
            let issuer = CertifiedIssuer::signed_by(authority(name), key, &self.issuer).unwrap();
            let own = [issuer.der().clone()];
            Authority {
                intermediates: own.into_iter().chain(self.intermediates.clone()).collect(),
                params: authority(name),
                issuer,
            }
        };
        (0..count).map(twin).collect()
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Its certificate.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// Its private key.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A revocation list with these certificates, in force for a day.
    pub(crate) fn list(&self, revoked: &[&CertificateDer<'_>]) -> Vec<u8> {
        self.list_with(revoked, |_| {})
    }

    /// The same after a change.
    pub(crate) fn list_with(
        &self,
        revoked: &[&CertificateDer<'_>],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Vec<u8> {
        let now = SystemTime::now();
        let entry = |certificate: &&CertificateDer<'_>| RevokedCertParams {
            serial_number: serial(certificate).into(),
            revocation_time: now.into(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let mut params = CertificateRevocationListParams {
            this_update: (now - DAY).into(),
            next_update: (now + 2 * DAY).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        // Also where the CA's certificate has no such right.
        let signer = Issuer::from_params(&self.params, self.issuer.key());
        params.signed_by(&signer).unwrap().der().to_vec()
    }

    /// A client with a P-256 key and the whole chain.
    pub(crate) fn client(&self) -> Shown {
        self.client_with(KeyKind::Ecdsa, |_| {})
    }

    /// A client with a key of this kind, and a certificate after a change.
    pub(crate) fn client_with(&self, kind: KeyKind, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = client();
        change(&mut params);
        let key = key(kind);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let own = [certificate.der().clone()];
        Shown {
            chain: own.into_iter().chain(self.intermediates.clone()).collect(),
            key: Arc::new(key),
        }
    }
}

/// What a client shows: a chain, and signatures by a key that should be the leaf's.
#[derive(Clone)]
pub(crate) struct Shown {
    /// The leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: Arc<KeyPair>,
}

impl Shown {
    /// A certificate that its own key has signed.
    pub(crate) fn self_signed() -> Shown {
        let key = key(KeyKind::Ecdsa);
        Shown {
            chain: vec![client().self_signed(&key).unwrap().der().clone()],
            key: Arc::new(key),
        }
    }

    /// The same chain, with the signatures of another.
    pub(crate) fn signing_as(mut self, other: &Shown) -> Shown {
        self.key = Arc::clone(&other.key);
        self
    }

    /// The same key with another chain.
    pub(crate) fn with_chain(mut self, chain: Vec<CertificateDer<'static>>) -> Shown {
        self.chain = chain;
        self
    }

    /// Writes `NAME.pem` (the chain) and `NAME.key`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (chain, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        let pem = |der: &CertificateDer<'_>| pem_of(der);
        std::fs::write(&chain, self.chain.iter().map(pem).collect::<String>()).unwrap();
        std::fs::write(&key, self.key.serialize_pem()).unwrap();
        (chain, key)
    }

    /// For a client of rustls, which sends it whatever it is asked for.
    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(Always(self.certified()))
    }

    /// As rustls has it.
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A certificate as a PEM file has it.
pub(crate) fn pem_of(der: &[u8]) -> String {
    let text = super::run("openssl", &["x509", "-inform", "DER"], der).ok();
    text.stdout
}

/// A revocation list as a PEM file has it.
pub(crate) fn pem_of_list(der: &[u8]) -> String {
    super::run("openssl", &["crl", "-inform", "DER"], der).ok().stdout
}

/// The serial number of a certificate, in bytes.
pub(crate) fn serial(certificate: &CertificateDer<'_>) -> Vec<u8> {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    parsed.raw_serial().to_vec()
}

fn key(kind: KeyKind) -> KeyPair {
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size);
    let key = match kind {
        KeyKind::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        KeyKind::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
        KeyKind::Rsa => rsa(RsaKeySize::_2048),
        KeyKind::Rsa3072 => rsa(RsaKeySize::_3072),
        KeyKind::Rsa4096 => rsa(RsaKeySize::_4096),
    };
    key.unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn client() -> CertificateParams {
    let mut params = params("a client");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn params(name: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - DAY).into();
    params.not_after = (now + 30 * DAY).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
