//! The verification of a client's certificate: by webpki, and by the rules of the listener.

use std::cell::Cell;
use std::iter;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    Cert, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::oid::db::DB;
use x509_cert::der::{Decode, SliceReader};
use x509_parser::nom::Parser;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificateParser};
use x509_parser::public_key::PublicKey;

use super::refusal::{self, Refusal, shown};
use super::revocation::Remembering;
use super::{Trust, names};
use crate::config::{ClientName, CrlCheck, NameKind};
use crate::error::ClientRefusal;
use crate::limits::CLIENT_INTERMEDIATES_MAX;
use crate::tls::resumption::note_client;

/// AWS-LC verifies no signatures of shorter keys.
const RSA_BITS_MIN: usize = 2048;

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
            .map(|until| {
                note_client(until);
                ClientCertVerified::assertion()
            })
            .map_err(Refusal::raise)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, certificate, signed, &self.algorithms);
        verified.map_err(|error| unproven(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, certificate, signed, &self.algorithms);
        verified.map_err(|error| unproven(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// The last second at which the client would be accepted, in seconds since 1970.
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<u64, Refusal> {
        let trust = &*self.trust;
        let leaf = EndEntityCert::try_from(end_entity).map_err(Refusal::from)?;
        let mut distinct: Vec<CertificateDer<'_>> = Vec::new();
        for certificate in intermediates {
            if distinct.len() < CLIENT_INTERMEDIATES_MAX && !distinct.contains(certificate) {
                distinct.push(certificate.clone());
            }
        }
        let lists: Vec<&CertRevocationList<'static>> = trust.lists.iter().map(|list| &list.list).collect();
        // Without a list there is nothing to build from: nothing is revoked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(match trust.crl_check {
                    CrlCheck::Chain => RevocationCheckDepth::Chain,
                    CrlCheck::Leaf => RevocationCheckDepth::EndEntity,
                })
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(if trust.accepts_expired_lists {
                    ExpirationPolicy::Ignore
                } else {
                    ExpirationPolicy::Enforce
                })
                .build()
        });
        let remembering: Vec<Remembering<'_>> = (self.algorithms.all.iter())
            .map(|&algorithm| Remembering {
                algorithm,
                lists: &trust.lists,
            })
            .collect();
        let algorithms: Vec<&dyn SignatureVerificationAlgorithm> =
            remembering.iter().map(|algorithm| algorithm as _).collect();
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
                &algorithms,
                &trust.roots.roots,
                &distinct,
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
        for certificate in path.intermediate_certificates() {
            if let Some(rule) = trust.denial_of_ca(&certificate.der())? {
                return Err(Refusal::denied(rule, false));
            }
        }
        if !trust.deny.is_empty() || trust.allow.is_some() {
            let names = trust.names(end_entity)?;
            if let Some(rule) = trust.denial(&names) {
                return Err(Refusal::denied(rule, true));
            }
            if !trust.allows(&names) {
                return Err(Refusal::not_allowed(&names));
            }
        }
        Ok(self.accepted(&path))
    }

    /// The last second at which all certificates of a path that is accepted are valid, and the revocation lists of their CAs in force.
    fn accepted(&self, path: &VerifiedPath<'_>) -> u64 {
        let end_entity: &Cert<'_> = path.end_entity();
        let chain = iter::once(end_entity).chain(path.intermediate_certificates());
        let untils = chain.enumerate().flat_map(|(position, certificate)| {
            let is_asked = self.trust.looks_up(position) && !self.trust.accepts_expired_lists;
            let lists = self.trust.lists.iter().filter(move |_| is_asked);
            let in_use = lists.filter(|list| !list.is_replaced && list.list.issuer() == certificate.issuer());
            // A list is no more in force in the second that it names.
            let in_force = in_use.map(|list| seconds(list.next_update.saturating_sub(1)));
            in_force.chain([not_after(&certificate.der())])
        });
        untils.min().unwrap_or_default()
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
        let refusal = match &error {
            webpki::Error::CertRevoked => sent.enumerate().find_map(|(position, der)| {
                let words = self.trust.revocation_of(position, der)?;
                Some(Refusal::new(CertificateError::Revoked, ClientRefusal::Revoked, words))
            }),
            webpki::Error::UnknownRevocationStatus => sent.find_map(|der| {
                let issuer = self.issuer_without_list(der)?;
                let words = format!("whose revocation is unknown: crl has no list of {}", shown(&issuer));
                let error = CertificateError::UnknownRevocationStatus;
                Some(Refusal::new(error, ClientRefusal::CrlMissing, words))
            }),
            webpki::Error::UnknownIssuer => {
                issuer_of_the_last(end_entity, intermediates).map(|name| Refusal::unknown_issuer(&name))
            }
            // AWS-LC verifies nothing with such a key, and says no more.
            webpki::Error::InvalidSignatureForPublicKey => sent.find_map(weak_key).map(Refusal::weak_key),
            webpki::Error::UnsupportedSignatureAlgorithmContext(context) => Some(Refusal::unsupported_algorithm(
                &name_of(&context.signature_algorithm_id),
            )),
            webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => Some(
                Refusal::unsupported_algorithm(&name_of(&context.signature_algorithm_id)),
            ),
            _ => None,
        };
        refusal.unwrap_or_else(|| Refusal::from(error))
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

impl Trust {
    /// The certificate at this position of a client's chain is looked up in lists.
    fn looks_up(&self, position: usize) -> bool {
        match self.crl_check {
            CrlCheck::Chain => true,
            CrlCheck::Leaf => position == 0,
        }
    }

    /// What rules can say of a client's own certificate.
    fn names(&self, certificate: &CertificateDer<'_>) -> Result<Vec<(NameKind, String)>, Refusal> {
        // One that is not understood could be one that is denied.
        let unread = || Refusal::from(webpki::Error::BadDer);
        names::of(certificate, |kind| self.kinds.contains(&kind)).ok_or_else(unread)
    }

    fn allows(&self, names: &[(NameKind, String)]) -> bool {
        let one_of = |allow: &Vec<ClientName>| allow.iter().any(|rule| matches_one(rule, names));
        self.allow.as_ref().is_none_or(one_of)
    }

    fn denial(&self, names: &[(NameKind, String)]) -> Option<&ClientName> {
        self.deny.iter().find(|rule| matches_one(rule, names))
    }

    /// A CA is denied by its serial number and its key; its names are not those of clients.
    fn denial_of_ca(&self, certificate: &CertificateDer<'_>) -> Result<Option<&ClientName>, Refusal> {
        let is_of_cas = |rule: &&ClientName| matches!(rule.kind(), NameKind::Serial | NameKind::PublicKey);
        if !self.deny.iter().any(|rule| is_of_cas(&rule)) {
            return Ok(None);
        }
        let names = names::of_ca(certificate, |kind| self.kinds.contains(&kind));
        let names = names.ok_or_else(|| Refusal::from(webpki::Error::BadDer))?;
        Ok(self
            .deny
            .iter()
            .filter(is_of_cas)
            .find(|rule| matches_one(rule, &names)))
    }

    /// How the certificate at this position of a client's chain is revoked by a list, if it is.
    fn revocation_of(&self, position: usize, der: &CertificateDer<'_>) -> Option<String> {
        /// RFC 5280 section 4.1.2.2 has no longer ones.
        const SERIAL_BYTES_MAX: usize = 20;
        if !self.looks_up(position) {
            return None;
        }
        let certificate = EndEntityCert::try_from(der).ok()?;
        let has = |list: &CertRevocationList<'_>| matches!(list.find_serial(certificate.serial()), Ok(Some(_)));
        let mut in_use = self
            .lists
            .iter()
            .filter(|list| !list.is_replaced)
            .map(|list| &list.list);
        if !in_use.any(|list| list.issuer() == certificate.issuer() && has(list)) {
            return None;
        }
        let serial = certificate.serial();
        let serial = HEXLOWER.encode(&serial[..serial.len().min(SERIAL_BYTES_MAX)]);
        let whose = if position == 0 {
            "revoked"
        } else {
            "below a CA that is revoked"
        };
        Some(format!("{whose} (serial {serial})"))
    }

    /// How a client that has shown this chain is revoked or denied, if it is. What it has shown beside its path counts, too.
    pub(super) fn revokes(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        chain.iter().enumerate().find_map(|(position, certificate)| {
            let denial = if position == 0 {
                match self.names(certificate) {
                    Ok(names) => self.denial(&names),
                    Err(_) => return Some("that cannot be read".to_owned()),
                }
            } else {
                self.denial_of_ca(certificate).ok().flatten()
            };
            denial
                .map(|rule| refusal::denied(rule, position == 0))
                .or_else(|| self.revocation_of(position, certificate))
        })
    }
}

fn matches_one(rule: &ClientName, names: &[(NameKind, String)]) -> bool {
    names.iter().any(|(kind, name)| rule.matches(*kind, name))
}

/// What is said of a signature of the client's own that is not right.
fn unproven(error: Error, certificate: &CertificateDer<'_>) -> Error {
    if error != Error::InvalidCertificate(CertificateError::BadSignature) {
        return error;
    }
    weak_key(certificate)
        .map_or_else(Refusal::no_proof, Refusal::weak_key)
        .raise()
}

/// Who has issued the last certificate of the chain that begins with the client's own, in whatever order the others were sent.
fn issuer_of_the_last(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Option<String> {
    let mut left: Vec<X509Certificate<'_>> = (others.iter())
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect();
    let (_, mut last) = X509Certificate::from_der(leaf).ok()?;
    // Each is taken once, so this ends.
    while let Some(at) = (left.iter()).position(|other| other.subject().as_raw() == last.issuer().as_raw()) {
        last = left.swap_remove(at);
    }
    Some(last.issuer().to_string())
}

/// The bits of a key that is too short for AWS-LC.
pub(super) fn weak_key(der: &CertificateDer<'_>) -> Option<usize> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()).filter(|&bits| bits < RSA_BITS_MIN),
        Ok(_) | Err(_) => None,
    }
}

/// The name of an algorithm that is given as in certificates, without its outermost tag.
fn name_of(algorithm: &[u8]) -> String {
    /// The one that is met and not in the database.
    const ECDSA_WITH_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");
    let id = SliceReader::new(algorithm).and_then(|mut reader| ObjectIdentifier::decode(&mut reader));
    let Ok(id) = id else {
        return "unknown".to_owned();
    };
    if id == ECDSA_WITH_SHA1 {
        return "ecdsa-with-SHA1".to_owned();
    }
    DB.by_oid(&id).map_or_else(|| id.to_string(), str::to_owned)
}

/// Zero when it cannot be read: what is not understood is not valid for long.
fn not_after(der: &CertificateDer<'_>) -> u64 {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let parsed = parser.parse(der);
    parsed.map_or(0, |(_, certificate)| {
        seconds(certificate.validity().not_after.timestamp())
    })
}

/// Nothing is valid before 1970.
fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
        KeyIdMethod, KeyPair, RevokedCertParams, date_time_ymd,
    };
    use rustls::crypto::aws_lc_rs;

    use super::*;
    use crate::identity::client_auth::{ClientAuth, RevocationList, Rules};

    fn authority(name: &str, last_year: i32) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(last_year, 1, 1);
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    /// The first to end counts, of what the path has and of nothing else.
    #[test]
    fn acceptance_ends_with_the_first_certificate_or_list() {
        let root = CertifiedIssuer::self_signed(authority("root", 2030), key()).unwrap();
        let below = CertifiedIssuer::signed_by(authority("below", 2036), key(), &root).unwrap();
        let aside = CertifiedIssuer::signed_by(authority("aside", 2033), key(), &root).unwrap();
        let list = |issuer: &CertifiedIssuer<'_, KeyPair>, next_year: i32, number: i64| {
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1) + std::time::Duration::from_secs(number.unsigned_abs()),
                next_update: date_time_ymd(next_year, 1, 1),
                crl_number: number.unsigned_abs().into(),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            RevocationList::all_in(params.signed_by(issuer).unwrap().der(), "a.crl").unwrap()
        };
        let until = |leaf_year: i32, lists: Vec<Vec<RevocationList>>| {
            let rules = Rules {
                verify_depth: 1,
                lists: lists.into_iter().flatten().collect(),
                ..Rules::default()
            };
            let auth = ClientAuth::from_pem(root.pem().as_bytes(), rules).unwrap();
            let verifier = Verifier {
                trust: Arc::clone(&auth.trust),
                algorithms: aws_lc_rs::default_provider().signature_verification_algorithms,
                hints: Vec::new(),
            };
            let mut params = CertificateParams::default();
            params.not_after = date_time_ymd(leaf_year, 1, 1);
            let leaf = params.signed_by(&key(), &below).unwrap();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds(
                date_time_ymd(2026, 1, 1).unix_timestamp(),
            )));
            let intermediates = [aside.der().clone(), below.der().clone()];
            verifier.verify(leaf.der(), &intermediates, now).unwrap()
        };
        let start_of = |year: i32| seconds(date_time_ymd(year, 1, 1).unix_timestamp());
        assert_eq!(until(2035, vec![]), start_of(2035));
        assert_eq!(until(2037, vec![]), start_of(2036));
        let of_root = || list(&root, 2034, 2);
        assert_eq!(until(2035, vec![of_root(), list(&below, 2040, 2)]), start_of(2034) - 1);
        assert_eq!(until(2033, vec![of_root(), list(&below, 2040, 2)]), start_of(2033));
        // Lists that nobody is asked for by this path do not count.
        let old = list(&below, 2027, 1);
        let lists = vec![of_root(), list(&below, 2040, 2), old, list(&aside, 2027, 1)];
        assert_eq!(until(2035, lists), start_of(2034) - 1);
    }

    /// A client that is revoked, its CA, and the list that says so.
    static REVOKED: LazyLock<(String, CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
        let root = CertifiedIssuer::self_signed(authority("root", 2030), key()).unwrap();
        let mut params = CertificateParams::default();
        params.serial_number = Some(vec![0x8a, 0x1b].into());
        let leaf = params.signed_by(&key(), &root).unwrap();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2027, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: vec![0x8a, 0x1b].into(),
                revocation_time: date_time_ymd(2025, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&root).unwrap().der().to_vec();
        (root.pem(), leaf.der().clone(), list)
    });

    proptest! {
        /// However a list is damaged, nothing panics, and it lets nobody in whom it revokes.
        #[test]
        fn a_damaged_list_lets_no_revoked_client_in(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            inserted in prop::option::of((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..4))),
            (leaf_only, accepts_expired_lists) in any::<(bool, bool)>(),
        ) {
            let (root, leaf, list) = &*REVOKED;
            let mut bytes = list.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some((at, inserted)) = inserted {
                let at = at.index(bytes.len());
                bytes.splice(at..at, inserted);
            }
            let Ok(lists) = RevocationList::all_in(&bytes, "a.crl") else {
                return Ok(());
            };
            let crl_check = if leaf_only { CrlCheck::Leaf } else { CrlCheck::Chain };
            let rules = Rules { lists, crl_check, accepts_expired_lists, ..Rules::default() };
            let auth = ClientAuth::from_pem(root.as_bytes(), rules).unwrap();
            let verifier = Verifier {
                trust: Arc::clone(&auth.trust),
                algorithms: aws_lc_rs::default_provider().signature_verification_algorithms,
                hints: Vec::new(),
            };
            let now = seconds(date_time_ymd(2026, 1, 1).unix_timestamp());
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
            prop_assert!(verifier.verify(leaf, &[], now).is_err());
            let is_whole = bytes == *list;
            prop_assert!(!is_whole || auth.revokes(std::slice::from_ref(leaf)).is_some());
        }
    }
}
