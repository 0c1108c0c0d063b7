//! Who clients must be: the CAs whose certificates are asked for, and what is said of those that are refused.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::limits::CLIENT_CA_NAMES_BYTES_MAX;

/// The verification of client certificates of one listener.
#[derive(Debug)]
pub struct ClientAuth {
    roots: Arc<RootCertStore>,
    required: bool,
    authorities: Vec<Authority>,
}

/// A trust anchor, for people.
#[derive(Debug)]
pub struct Authority {
    /// Subject of the certificate.
    pub subject: String,
    /// Last second of its validity, seconds since 1970. It is trusted all the same after that.
    pub not_after: i64,
}

impl ClientAuth {
    /// Trusts every certificate of the file. Unless they are `required`, clients may send none.
    ///
    /// # Errors
    /// What was found in place of usable certificates.
    pub fn from_pem(pem: &[u8], required: bool) -> Result<ClientAuth, String> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("text that is no valid PEM ({error})"))?;
        if certificates.is_empty() {
            return Err("no certificate".into());
        }
        let mut roots = RootCertStore::empty();
        let mut authorities = Vec::with_capacity(certificates.len());
        for (number, certificate) in (1..).zip(certificates) {
            let unusable =
                |error: &dyn std::fmt::Display| format!("certificate {number}, which cannot be used ({error}),");
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unusable(&error))?;
            authorities.push(Authority {
                subject: parsed.subject().to_string(),
                not_after: parsed.validity().not_after.timestamp(),
            });
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        Ok(ClientAuth {
            roots: Arc::new(roots),
            required,
            authorities,
        })
    }

    /// TEMP
    #[must_use]
    pub fn policy(&self) -> [u8; 32] {
        let mut roots: Vec<Vec<u8>> = self
            .roots
            .roots
            .iter()
            .map(|r| r.subject_public_key_info.as_ref().to_vec())
            .collect();
        roots.sort();
        let parts: Vec<&[u8]> = roots
            .iter()
            .map(Vec::as_slice)
            .chain([if self.required { &b"1"[..] } else { b"0" }])
            .collect();
        crate::crypto::sha256::digest(&parts)
    }

    /// TEMP
    #[must_use]
    pub fn revocation(&self) -> [u8; 16] {
        [0; 16]
    }

    /// In the order of the file.
    #[must_use]
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// What rustls asks.
    ///
    /// # Panics
    /// Never: there is a trust anchor, and no revocation list that could be malformed.
    #[must_use]
    pub fn verifier(&self, provider: &Arc<CryptoProvider>) -> Arc<dyn ClientCertVerifier> {
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(provider));
        if !self.required {
            builder = builder.allow_unauthenticated();
        }
        let names: usize = self.roots.subjects().iter().map(|name| name.as_ref().len()).sum();
        if names > CLIENT_CA_NAMES_BYTES_MAX {
            builder = builder.clear_root_hint_subjects();
        }
        builder
            .build()
            .expect("there is a trust anchor, and no revocation list")
    }
}

/// Why a client's certificate is refused, to be read behind "client certificate".
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has more errors than webpki gives for a client's certificate"
)]
pub fn refusal(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::ExpiredContext { time, not_after } => {
            let ago = span(time.as_secs().saturating_sub(not_after.as_secs()));
            format!("expired {ago} ago (it, or one of its chain)")
        }
        E::Expired => "expired (it, or one of its chain)".into(),
        E::NotValidYetContext { time, not_before } => {
            let left = span(not_before.as_secs().saturating_sub(time.as_secs()));
            format!("not valid yet, for another {left} (it, or one of its chain)")
        }
        E::NotValidYet => "not valid yet (it, or one of its chain)".into(),
        E::UnknownIssuer => "of an unknown issuer (none in ca, or an intermediate is missing)".into(),
        E::BadSignature => {
            "with a signature that is wrong (of its issuer, or the client's own in this handshake)".into()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "not for clients (its extended key usage lacks clientAuth)".into()
        }
        E::BadEncoding => "malformed".into(),
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "with a signature algorithm that is not supported".into()
        }
        E::Other(inner) => format!("not acceptable ({})", inner.0),
        other => format!("not acceptable ({other})"),
    }
}

/// In the largest unit that is not zero.
fn span(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        ..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..DAY => format!("{} h", seconds / HOUR),
        DAY.. => format!("{} d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn authority(name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn spans_are_short() {
        let shown = [0, 59, 60, 7199, 7200, 86_399, 86_400, 864_000].map(span);
        assert_eq!(shown, ["0 s", "59 s", "1 min", "1 h", "2 h", "23 h", "1 d", "10 d"]);
    }

    #[test]
    fn what_is_no_authority_is_told() {
        let error = |pem: &str| ClientAuth::from_pem(pem.as_bytes(), true).unwrap_err();
        assert_eq!(error(""), "no certificate");
        assert_eq!(error("hello"), "no certificate");
        let cut = "-----BEGIN CERTIFICATE-----\nMII";
        assert!(error(cut).contains("no valid PEM"), "{}", error(cut));
        let garbage = format!(
            "{}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
            authority("one")
        );
        assert!(error(&garbage).starts_with("certificate 2, "), "{}", error(&garbage));
    }

    /// A list of names has 16 bits for its length; clients take less.
    #[test]
    fn names_are_sent_as_long_as_there_are_few() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = |count: usize| {
            let pem: String = (0..count)
                .map(|n| authority(&format!("{n}{}", "x".repeat(1000))))
                .collect();
            let auth = ClientAuth::from_pem(pem.as_bytes(), false).unwrap();
            assert_eq!(auth.authorities().len(), count);
            auth.verifier(&provider)
        };
        assert_eq!(verifier(2).root_hint_subjects().len(), 2);
        let many = verifier(80);
        assert!(many.root_hint_subjects().is_empty());
        assert!(many.offer_client_auth() && !many.client_auth_mandatory());
    }
}
