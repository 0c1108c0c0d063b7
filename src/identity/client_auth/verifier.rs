//! The verification of a client's certificate: by webpki, and by the rules of the listener.

use std::cell::Cell;
use std::iter;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::nom::Parser;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificateParser};

use super::refusal::{Refusal, shown};
use super::{Trust, names};
use crate::tls::resumption::note_client;

/// What rustls asks about the certificates of one listener's clients.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Arc<Trust>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// Names of the trust anchors, unless they are too many.
    pub(super) hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.trust.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now)
            .map(|()| ClientCertVerified::assertion())
            .map_err(Refusal::raise)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let trust = &*self.trust;
        let leaf = EndEntityCert::try_from(end_entity).map_err(Refusal::from)?;
        let lists: Vec<&CertRevocationList<'static>> = trust.lists.iter().map(|list| &list.list).collect();
        // Without a list there is nothing to build from: nothing is revoked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        // The path that counts is the one that was verified, whatever else the client has sent; and another that is shorter will do.
        let too_deep: Cell<Option<usize>> = Cell::new(None);
        let is_short_enough = |path: &VerifiedPath<'_>| {
            let depth = path.intermediate_certificates().count();
            if depth <= trust.verify_depth {
                return Ok(());
            }
            too_deep.set(Some(too_deep.get().map_or(depth, |other| other.min(depth))));
            Err(webpki::Error::MaximumPathDepthExceeded)
        };
        let path = leaf
            .verify_for_usage(
                self.algorithms.all,
                &trust.roots.roots,
                intermediates,
                now,
                KeyUsage::client_auth(),
                revocation,
                Some(&is_short_enough),
            )
            .map_err(|error| match too_deep.get() {
                // All but the length was right.
                Some(depth) => Refusal::too_deep(depth, trust.verify_depth),
                None => self.explained(error, end_entity, intermediates),
            })?;
        if let Some(allow) = &trust.allow {
            let names = names::of(end_entity);
            let is_allowed = |(kind, name): &(_, String)| allow.iter().any(|allowed| allowed.allows(*kind, name));
            if !names.iter().any(is_allowed) {
                return Err(Refusal::not_allowed(&names));
            }
        }
        let intermediates = path.intermediate_certificates().map(|certificate| certificate.der());
        self.accepted(end_entity, intermediates, now);
        Ok(())
    }

    /// Called for each certificate that is accepted, with the intermediates that were used: its sessions end with the first of them
    /// that expires, and with the first list. A full handshake would be refused from then on.
    fn accepted<'c>(
        &self,
        end_entity: &CertificateDer<'c>,
        intermediates: impl Iterator<Item = CertificateDer<'c>>,
        now: UnixTime,
    ) {
        let chain = iter::once(end_entity.clone()).chain(intermediates);
        // A list is in force until just before its successor is due. Those that are over already had no say.
        let next_updates = self
            .trust
            .lists
            .iter()
            .filter_map(|list| u64::try_from(list.next_update).ok());
        let in_force = next_updates.filter(|&next| next > now.as_secs()).map(|next| next - 1);
        let ends = chain.map(|der| not_after(&der)).chain(in_force);
        note_client(ends.min().unwrap_or_default());
    }

    /// Which certificate of those that were sent is meant where webpki does not say.
    #[expect(clippy::wildcard_enum_match_arm, reason = "webpki has more errors than two")]
    fn explained(
        &self,
        error: webpki::Error,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Refusal {
        let mut sent = iter::once(end_entity).chain(intermediates);
        let (alert, words) = match error {
            webpki::Error::CertRevoked => {
                let whose = |(position, der)| {
                    let whose = if position == 0 {
                        "revoked"
                    } else {
                        "below a CA that is revoked"
                    };
                    Some(format!("{whose} (serial {})", self.revoked_serial(der)?))
                };
                (CertificateError::Revoked, sent.enumerate().find_map(whose))
            }
            webpki::Error::UnknownRevocationStatus => {
                let issuer = sent.find_map(|der| self.issuer_without_list(der));
                let words =
                    |issuer: String| format!("whose revocation is unknown: crl has no list of {}", shown(&issuer));
                (CertificateError::UnknownRevocationStatus, issuer.map(words))
            }
            other => return Refusal::from(other),
        };
        match words {
            Some(words) => Refusal::new(alert, words),
            None => Refusal::from(error),
        }
    }

    /// In hexadecimal, when a list has it.
    fn revoked_serial(&self, der: &CertificateDer<'_>) -> Option<String> {
        /// RFC 5280 section 4.1.2.2 has no longer ones.
        const SERIAL_BYTES_MAX: usize = 20;
        let certificate = EndEntityCert::try_from(der).ok()?;
        let of_issuer = |list: &&CertRevocationList<'_>| list.issuer() == certificate.issuer();
        let has = |list: &CertRevocationList<'_>| matches!(list.find_serial(certificate.serial()), Ok(Some(_)));
        let mut lists = self.trust.lists.iter().map(|list| &list.list).filter(of_issuer);
        let serial = certificate.serial().iter().take(SERIAL_BYTES_MAX);
        lists
            .any(has)
            .then(|| serial.map(|byte| format!("{byte:02x}")).collect())
    }

    /// The issuer of a certificate of which there is no list.
    fn issuer_without_list(&self, der: &CertificateDer<'_>) -> Option<String> {
        let certificate = EndEntityCert::try_from(der).ok()?;
        if self
            .trust
            .lists
            .iter()
            .any(|list| list.list.issuer() == certificate.issuer())
        {
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(certificate.issuer().to_string())
    }
}

/// Zero when it cannot be read: nothing is valid for long that we do not understand.
fn not_after(der: &CertificateDer<'_>) -> u64 {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let parsed = parser.parse(der).ok();
    parsed
        .and_then(|(_, certificate)| u64::try_from(certificate.validity().not_after.timestamp()).ok())
        .unwrap_or_default()
}
