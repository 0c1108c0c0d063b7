//! OCSP: what is asked about a certificate, and which answers are believed (RFC 6960; RFC 5019 for how they are asked for).
//! Whoever fetches answers, or reads them from files, brings bytes and the time.

mod asn1;

use ::aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use der::asn1::{AnyRef, GeneralizedTime, Null, ObjectIdentifier, OctetStringRef};
use der::{Decode, Encode, Tag, Tagged};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use self::asn1::{
    AlgorithmIdentifier, BASIC, BasicResponse, CertId, OcspRequest, OcspResponse, Request, ResponseData,
    ResponseStatus, RevokedInfo, SingleResponse, TbsRequest,
};
use crate::limits::{OCSP_CLOCK_TOLERANCE_SECONDS, OCSP_RESPONDER_CERTIFICATES_MAX};

/// Names a certificate by hashes of its issuer. SHA-1 is what responders know (RFC 5019, 2.1.1); nothing depends on its strength: what
/// is believed is a signature of the issuer over name and serial number.
const ASKED_BY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// Hashes by which an answer may name a certificate.
const HASHES: [(ObjectIdentifier, &Algorithm); 4] = [
    (ASKED_BY, &SHA1_FOR_LEGACY_USE_ONLY),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), &SHA256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), &SHA384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), &SHA512),
];

/// id-kp-OCSPSigning, 1.3.6.1.5.5.7.3.9, as webpki has it.
const OCSP_SIGNING: KeyUsage = KeyUsage::required(&[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x09]);

/// What is asked about a certificate.
#[derive(Clone, Debug)]
pub struct Question {
    issuer: CertificateDer<'static>,
    /// In DER.
    issuer_name: Box<[u8]>,
    /// The bits of the issuer's public key.
    issuer_key: Box<[u8]>,
    serial: Box<[u8]>,
}

/// What a responder has said, after everything about it was found to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the certificate.
    pub status: Status,
    /// When the responder knew it to be so, seconds since 1970.
    pub this_update: i64,
    /// Until when it may be believed, seconds since 1970.
    pub next_update: i64,
}

/// Of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is not revoked.
    Good,
    /// It is.
    Revoked {
        /// Since when, seconds since 1970.
        since: i64,
    },
    /// The responder does not know it.
    Unknown,
}

/// Why an answer is not believed. What it says ends the sentence "the responder has sent".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No answer but an error.
    #[error("an error instead of an answer: {0}")]
    Responder(&'static str),
    /// No OCSP response.
    #[error("what is no OCSP response ({0})")]
    Malformed(String),
    /// It is about others.
    #[error("an answer about another certificate")]
    OtherCertificate,
    /// Neither the issuer has signed it nor anybody whose certificate comes with it.
    #[error(
        "an answer that neither the certificate's issuer has signed nor a responder whose certificate came with it"
    )]
    Signature,
    /// Its algorithm is none that can be verified.
    #[error(
        "an answer signed with an algorithm that is not accepted: use SHA-256 or better, with RSA of 2,048 bits or more, ECDSA or Ed25519"
    )]
    Algorithm,
    /// Whoever has signed it was not told to by the issuer.
    #[error("an answer of a responder that may not speak for the certificate's issuer: {0}")]
    Delegation(String),
    /// Its time is over.
    #[error("an answer that has expired {0} s ago (nextUpdate)")]
    Expired(i64),
    /// It is from the future.
    #[error("an answer that begins {0} s from now (thisUpdate): check the clocks of this machine and of the responder")]
    NotYetValid(i64),
    /// It does not say until when.
    #[error("an answer that does not say how long it can be believed (nextUpdate)")]
    Endless,
}

impl Status {
    /// In metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Status::Good => "good",
            Status::Revoked { .. } => "revoked",
            Status::Unknown => "unknown",
        }
    }
}

impl Refused {
    /// In metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Refused::Responder(_) => "responder_error",
            Refused::Malformed(_) => "malformed",
            Refused::OtherCertificate => "other_certificate",
            Refused::Signature | Refused::Algorithm => "bad_signature",
            Refused::Delegation(_) => "unauthorized_responder",
            Refused::Expired(_) => "expired",
            Refused::NotYetValid(_) => "not_yet_valid",
            Refused::Endless => "no_next_update",
        }
    }
}

impl Question {
    /// About the first certificate of a chain, whose issuer is the second; none when it is not.
    #[must_use]
    pub fn about(chain: &[CertificateDer<'_>]) -> Option<Question> {
        let [leaf, issuer, ..] = chain else { return None };
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        let (_, parsed) = X509Certificate::from_der(issuer).ok()?;
        if leaf.issuer().as_raw() != parsed.subject().as_raw() {
            return None;
        }
        Some(Question {
            issuer_name: leaf.issuer().as_raw().into(),
            issuer_key: parsed.public_key().subject_public_key.data.as_ref().into(),
            serial: leaf.raw_serial().into(),
            issuer: issuer.clone().into_owned(),
        })
    }

    /// What is sent to the responder: no nonce, so that it may answer with what it has signed before.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        let (name_hash, key_hash) = self.hashes(&SHA1_FOR_LEGACY_USE_ONLY);
        let encoded = || {
            let certificate = CertId {
                hash_algorithm: AlgorithmIdentifier {
                    oid: ASKED_BY,
                    parameters: Some(Null.into()),
                },
                issuer_name_hash: OctetStringRef::new(name_hash.as_ref())?,
                issuer_key_hash: OctetStringRef::new(key_hash.as_ref())?,
                serial: AnyRef::new(Tag::Integer, &self.serial)?,
            };
            let tbs = TbsRequest {
                requests: vec![Request { certificate }],
            };
            OcspRequest { tbs }.to_der()
        };
        encoded().expect("hashes and a serial number are short enough for DER")
    }

    /// What this response says at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn read(&self, response: &[u8], now: i64) -> Result<Answer, Refused> {
        let response = OcspResponse::from_der(response).map_err(malformed)?;
        let error = match response.status {
            ResponseStatus::Successful => None,
            ResponseStatus::MalformedRequest => Some("malformedRequest"),
            ResponseStatus::InternalError => Some("internalError"),
            ResponseStatus::TryLater => Some("tryLater"),
            ResponseStatus::SigRequired => Some("sigRequired (it answers signed requests only)"),
            ResponseStatus::Unauthorized => Some("unauthorized (it does not know the certificate)"),
        };
        if let Some(error) = error {
            return Err(Refused::Responder(error));
        }
        let bytes = response
            .bytes
            .filter(|bytes| bytes.kind == BASIC)
            .ok_or_else(|| Refused::Malformed("it has no basic response".into()))?;
        let basic = BasicResponse::from_der(bytes.response.as_bytes()).map_err(malformed)?;
        let signed = basic.signed.to_der().map_err(malformed)?;
        let data = ResponseData::from_der(&signed).map_err(malformed)?;
        let of_other = || Refused::OtherCertificate;
        let single = data
            .responses
            .iter()
            .find(|single| self.is_about(&single.certificate))
            .ok_or_else(of_other)?;
        let extensions = [&data.extensions, &single.extensions];
        if let Some(critical) = extensions
            .into_iter()
            .flatten()
            .flatten()
            .find(|extension| extension.critical)
        {
            return Err(Refused::Malformed(format!("a critical extension {}", critical.id)));
        }
        self.verify(&basic, &signed, now)?;
        read_single(single, now)
    }

    /// By the hashes that it was asked by, or by better ones.
    fn is_about(&self, certificate: &CertId<'_>) -> bool {
        let Some((_, hash)) = HASHES.iter().find(|(oid, _)| *oid == certificate.hash_algorithm.oid) else {
            return false;
        };
        let (name_hash, key_hash) = self.hashes(hash);
        certificate.issuer_name_hash.as_bytes() == name_hash.as_ref()
            && certificate.issuer_key_hash.as_bytes() == key_hash.as_ref()
            && certificate.serial.tag() == Tag::Integer
            && certificate.serial.value() == &*self.serial
    }

    fn hashes(&self, hash: &'static Algorithm) -> (digest::Digest, digest::Digest) {
        (
            digest::digest(hash, &self.issuer_name),
            digest::digest(hash, &self.issuer_key),
        )
    }

    /// The issuer has signed it, or somebody to whom the issuer has given a certificate for just that (RFC 6960, 4.2.2.2).
    fn verify(&self, basic: &BasicResponse<'_>, signed: &[u8], now: i64) -> Result<(), Refused> {
        let signature = basic.signature.as_bytes().ok_or(Refused::Signature)?;
        let provider = aws_lc_rs::default_provider().signature_verification_algorithms;
        let wanted = basic.signature_algorithm.value();
        let algorithms: Vec<&dyn SignatureVerificationAlgorithm> = provider
            .all
            .iter()
            .copied()
            .filter(|one| one.signature_alg_id().as_ref() == wanted)
            .collect();
        if algorithms.is_empty() {
            return Err(Refused::Algorithm);
        }
        let has_signed = |certificate: &CertificateDer<'_>| {
            let Ok(certificate) = EndEntityCert::try_from(certificate) else {
                return false;
            };
            algorithms
                .iter()
                .any(|algorithm| certificate.verify_signature(*algorithm, signed, signature).is_ok())
        };
        if has_signed(&self.issuer) {
            return Ok(());
        }
        let certificates = basic
            .certificates
            .iter()
            .flatten()
            .take(OCSP_RESPONDER_CERTIFICATES_MAX);
        for certificate in certificates {
            let der = CertificateDer::from(certificate.to_der().map_err(malformed)?);
            if has_signed(&der) {
                return self.has_delegated(&der, now);
            }
        }
        Err(Refused::Signature)
    }

    fn has_delegated(&self, responder: &CertificateDer<'_>, now: i64) -> Result<(), Refused> {
        let refused = |error: webpki::Error| Refused::Delegation(unauthorized(&error));
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.max(0).unsigned_abs()));
        let anchor = anchor_from_trusted_cert(&self.issuer).map_err(refused)?;
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let certificate = EndEntityCert::try_from(responder).map_err(refused)?;
        certificate
            .verify_for_usage(algorithms, &[anchor], &[], now, OCSP_SIGNING, None, None)
            .map_err(refused)?;
        Ok(())
    }
}

fn read_single(single: &SingleResponse<'_>, now: i64) -> Result<Answer, Refused> {
    let (this_update, next_update) = (unix(single.this_update), single.next_update.map(unix));
    let next_update = next_update.ok_or(Refused::Endless)?;
    if this_update > now + OCSP_CLOCK_TOLERANCE_SECONDS {
        return Err(Refused::NotYetValid(this_update - now));
    }
    if next_update <= now {
        return Err(Refused::Expired(now - next_update));
    }
    let tag = single.status.tag();
    let status = match tag.number().value() {
        _ if !tag.is_context_specific() => return Err(strange_status(tag)),
        0 => Status::Good,
        1 => {
            // Implicitly tagged: the content of a SEQUENCE.
            let info =
                AnyRef::new(Tag::Sequence, single.status.value()).and_then(|any| any.decode_as::<RevokedInfo<'_>>());
            Status::Revoked {
                since: unix(info.map_err(malformed)?.time),
            }
        }
        2 => Status::Unknown,
        _ => return Err(strange_status(tag)),
    };
    Ok(Answer {
        status,
        this_update,
        next_update,
    })
}

fn strange_status(tag: Tag) -> Refused {
    Refused::Malformed(format!("a status with the tag {tag}"))
}

fn unix(time: GeneralizedTime) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

fn malformed(error: impl std::fmt::Display) -> Refused {
    Refused::Malformed(error.to_string())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki has more errors than an operator can act on"
)]
fn unauthorized(error: &webpki::Error) -> String {
    match error {
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "its certificate is not for that (extended key usage OCSPSigning)".into()
        }
        webpki::Error::UnknownIssuer => "its certificate was not issued by the same CA".into(),
        webpki::Error::InvalidSignatureForPublicKey => "its certificate was not signed by the same CA".into(),
        webpki::Error::CertExpired { .. } => "its certificate has expired".into(),
        webpki::Error::CertNotValidYet { .. } => "its certificate is not valid yet".into(),
        webpki::Error::CaUsedAsEndEntity => "its certificate is one of a CA".into(),
        other => format!("its certificate cannot be used ({other})"),
    }
}

#[cfg(test)]
mod tests;
