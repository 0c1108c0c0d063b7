//! A CA, and the certificates that it signs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    PublicKeyData, RsaKeySize, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};

/// The kind of an identity's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// ECDSA on P-256.
    Ecdsa,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA with 2,048 bits.
    Rsa,
    /// RSA with 3,072 bits.
    Rsa3072,
    /// RSA with 4,096 bits.
    Rsa4096,
}

impl KeyKind {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            KeyKind::Ecdsa => &PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &PKCS_ECDSA_P384_SHA384,
            KeyKind::Ed25519 => &PKCS_ED25519,
            KeyKind::Rsa | KeyKind::Rsa3072 | KeyKind::Rsa4096 => &PKCS_RSA_SHA256,
        }
    }
}

/// The public half of a key that is elsewhere.
struct Elsewhere {
    bits: Vec<u8>,
    kind: KeyKind,
}

impl PublicKeyData for Elsewhere {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.kind.algorithm()
    }
}

/// A certificate authority whose certificate is `ca.pem` in its folder.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Ca {
    /// Makes one.
    pub(crate) fn new(folder: &Path) -> Ca {
        let mut params = params(&[], "Ringlock test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Ca {
            issuer,
            folder: folder.to_owned(),
        }
    }

    /// The file of its certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Its certificate.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Writes `NAME.pem` and `NAME.key` for these DNS names. A second call with the same name replaces them.
    pub(crate) fn issue(&self, name: &str, dns_names: &[&str], kind: KeyKind) {
        let rsa = |size| KeyPair::generate_rsa_for(kind.algorithm(), size);
        let key = match kind {
            KeyKind::Ecdsa | KeyKind::P384 => KeyPair::generate_for(kind.algorithm()),
            // Without the public key beside it, which other people's programs do not expect there.
            KeyKind::Ed25519 => {
                let key = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
                KeyPair::try_from(key.as_ref())
            }
            KeyKind::Rsa => rsa(RsaKeySize::_2048),
            KeyKind::Rsa3072 => rsa(RsaKeySize::_3072),
            KeyKind::Rsa4096 => rsa(RsaKeySize::_4096),
        };
        let key = key.unwrap();
        self.sign(name, dns_names, &key);
        std::fs::write(self.key_file(name), key.serialize_pem()).unwrap();
        std::fs::set_permissions(self.key_file(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Where [`Ca::issue`] writes a key.
    pub(crate) fn key_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Where [`Ca::issue`] writes a certificate.
    pub(crate) fn certificate_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    /// Writes `NAME.pem` for these DNS names and a key that is elsewhere, given by its SubjectPublicKeyInfo in DER.
    pub(crate) fn certify(&self, name: &str, dns_names: &[&str], kind: KeyKind, public_key: &[u8]) {
        let (_, info) = SubjectPublicKeyInfo::from_der(public_key).unwrap();
        let bits = info.subject_public_key.data.into_owned();
        self.sign(name, dns_names, &Elsewhere { bits, kind });
    }

    /// Writes `NAME.pem`, in which this certificate authority comes second, and `NAME.key`, for a certificate after a change.
    pub(crate) fn issue_with(&self, name: &str, dns_names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        self.sign_with(name, dns_names, &key, change);
        let file = self.certificate_file(name);
        let leaf = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, leaf + &self.issuer.pem()).unwrap();
        std::fs::write(self.key_file(name), key.serialize_pem()).unwrap();
    }

    /// Writes its own key to `ca.key`.
    pub(crate) fn write_key(&self) -> PathBuf {
        let file = self.key_file("ca");
        std::fs::write(&file, self.issuer.key().serialize_pem()).unwrap();
        file
    }

    fn sign(&self, name: &str, dns_names: &[&str], key: &impl PublicKeyData) {
        self.sign_with(name, dns_names, key, |_| {});
    }

    fn sign_with(
        &self,
        name: &str,
        dns_names: &[&str],
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let mut params = params(dns_names, dns_names.first().copied().unwrap_or(name));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        std::fs::write(self.certificate_file(name), certificate.pem()).unwrap();
    }
}

/// The first certificate of a PEM file.
pub(crate) fn leaf_in(file: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(file).unwrap().to_vec()
}

fn params(dns_names: &[&str], common_name: &str) -> CertificateParams {
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    let names: Vec<String> = dns_names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = (now - day).into();
    params.not_after = (now + 30 * day).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
