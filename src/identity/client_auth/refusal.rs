//! What is said of certificates that are refused: the alert to the client, words to the operator, and which counter has it.
//!
//! rustls takes a [`CertificateError`], from which the alert follows, and gives it back. It has no room for the rest, which is
//! left beside, on the thread, from where the error is made to where it has come up through rustls. In between, nothing else runs
//! on the thread.

use std::cell::RefCell;
use std::fmt::Write;
use std::mem::discriminant;
use std::sync::Arc;

use rustls::{CertificateError, OtherError};
use webpki::Error;

use crate::config::{ClientName, NameKind, quoted};
use crate::error::ClientRefusal;
use crate::limits::{CLIENT_NAME_CHARS_SHOWN_MAX, CLIENT_NAMES_SHOWN_MAX};

thread_local! {
    static LAST: RefCell<Option<Refusal>> = const { RefCell::new(None) };
}

/// A certificate is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    error: CertificateError,
    reason: ClientRefusal,
    words: String,
}

impl Refusal {
    /// With the alert that belongs to `error`, and in these words.
    pub(super) fn new(error: CertificateError, reason: ClientRefusal, words: impl Into<String>) -> Refusal {
        let words = words.into();
        Refusal { error, reason, words }
    }

    /// OpenSSL's alert for a path that is too long is that of an unknown CA.
    pub(super) fn too_deep(depth: usize, max: usize) -> Refusal {
        let words = format!("with too many CAs between it and one in ca: depth {depth} > {max} (verify_depth)");
        Refusal::new(CertificateError::UnknownIssuer, ClientRefusal::Depth, words)
    }

    /// The alert is access_denied: nothing is wrong with the certificate.
    pub(super) fn not_allowed(names: &[(NameKind, String)]) -> Refusal {
        let mut words = "not on the allow-list: ".to_owned();
        // Every certificate has one, and nobody is allowed by it.
        let names: Vec<_> = names.iter().filter(|(kind, _)| *kind != NameKind::Serial).collect();
        if names.is_empty() {
            words += "it has no name that could be";
        }
        for (number, (kind, name)) in names.iter().take(CLIENT_NAMES_SHOWN_MAX).enumerate() {
            let between = if number == 0 { "" } else { ", " };
            let kind = match kind {
                NameKind::Uri => "URI",
                NameKind::Dns => "DNS",
                NameKind::Email => "email",
                NameKind::CommonName => "CN",
                NameKind::Organization => "O",
                NameKind::OrganizationalUnit => "OU",
                NameKind::PublicKey => "spki",
                NameKind::Issuer => "issuer",
                NameKind::Serial => "serial",
            };
            write!(words, "{between}{kind} {}", shown(name)).expect("a string takes whatever is written");
        }
        if let Some(more @ 1..) = names.len().checked_sub(CLIENT_NAMES_SHOWN_MAX) {
            write!(words, " and {more} more").expect("a string takes whatever is written");
        }
        Refusal::new(
            CertificateError::ApplicationVerificationFailure,
            ClientRefusal::NotAllowed,
            words,
        )
    }

    /// The alert is access_denied: nothing is wrong with the certificate.
    pub(super) fn denied(by: &ClientName, is_leaf: bool) -> Refusal {
        Refusal::new(
            CertificateError::ApplicationVerificationFailure,
            ClientRefusal::Denied,
            denied(by, is_leaf),
        )
    }

    /// `issuer` is where the chain that was sent ends.
    pub(super) fn unknown_issuer(issuer: &str) -> Refusal {
        let words = format!(
            "of an unknown issuer: {} is not in ca, or an intermediate is missing",
            shown(issuer)
        );
        Refusal::new(CertificateError::UnknownIssuer, ClientRefusal::UnknownIssuer, words)
    }

    /// OpenSSL's alert for keys that are too short is bad_certificate.
    pub(super) fn weak_key(bits: usize) -> Refusal {
        let words =
            format!("with a key that is too short (RSA, {bits} bits; 2048 is the least), its own or one of its chain");
        Refusal::new(CertificateError::BadEncoding, ClientRefusal::WeakKey, words)
    }

    /// OpenSSL's alert for SHA-1 and its like is bad_certificate.
    pub(super) fn unsupported_algorithm(name: &str) -> Refusal {
        let words = format!("with a signature algorithm that is not supported ({name}), its own or one of its chain");
        Refusal::new(CertificateError::BadEncoding, ClientRefusal::Algorithm, words)
    }

    /// The certificate may be anybody's.
    pub(super) fn no_proof() -> Refusal {
        let words = "with a signature that is wrong (the client's own in this handshake: it does not hold the key)";
        Refusal::new(CertificateError::BadSignature, ClientRefusal::Proof, words)
    }

    /// What rustls is told.
    pub(super) fn raise(self) -> rustls::Error {
        let error = self.error.clone();
        LAST.set(Some(self));
        rustls::Error::InvalidCertificate(error)
    }
}

/// By which rule.
pub(super) fn denied(by: &ClientName, is_leaf: bool) -> String {
    let whose = if is_leaf { "denied" } else { "below a CA that is denied" };
    format!("{whose}: {} (deny)", shown(&by.to_string()))
}

/// As rustls' own verifier does, but that what is wrong with a revocation list has the alert of OpenSSL (unknown_ca), not
/// handshake_failure.
impl From<Error> for Refusal {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "webpki has more errors than there are alerts"
    )]
    fn from(error: Error) -> Refusal {
        use CertificateError as E;
        use ClientRefusal as R;
        match error {
            Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => {
                Refusal::new(E::BadEncoding, R::Malformed, "malformed")
            }
            Error::CertExpired { time, not_after } => {
                let ago = span(time.as_secs().saturating_sub(not_after.as_secs()));
                let words = format!("expired {ago} ago (it, or one of its chain)");
                Refusal::new(E::ExpiredContext { time, not_after }, R::Expired, words)
            }
            Error::InvalidCertValidity => Refusal::new(
                E::Expired,
                R::Expired,
                "that ends before it begins (it, or one of its chain)",
            ),
            Error::CertNotValidYet { time, not_before } => {
                let left = span(not_before.as_secs().saturating_sub(time.as_secs()));
                let words = format!("not valid yet, for another {left} (it, or one of its chain)");
                Refusal::new(E::NotValidYetContext { time, not_before }, R::NotYetValid, words)
            }
            Error::UnknownIssuer => Refusal::new(
                E::UnknownIssuer,
                R::UnknownIssuer,
                "of an unknown issuer (none in ca, or an intermediate is missing)",
            ),
            Error::CaUsedAsEndEntity => Refusal::new(
                E::Other(OtherError(Arc::new(error))),
                R::Invalid,
                "that is a CA's own and not a client's (basicConstraints CA:TRUE, as `openssl req -x509` makes them)",
            ),
            Error::InvalidSignatureForPublicKey => Refusal::new(
                E::BadSignature,
                R::Signature,
                "with a signature that is wrong (its issuer's, or one of its chain)",
            ),
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Refusal::unsupported_algorithm("unknown"),
            Error::RequiredEkuNotFoundContext(_) => Refusal::new(
                E::InvalidPurpose,
                R::Purpose,
                "not for clients (its extended key usage lacks clientAuth)",
            ),
            Error::CertRevoked => Refusal::new(E::Revoked, R::Revoked, "revoked (it, or one of its chain)"),
            Error::UnknownRevocationStatus => Refusal::new(
                E::UnknownRevocationStatus,
                R::CrlMissing,
                "whose revocation is unknown: no list in crl is about it, or about one of its chain",
            ),
            Error::CrlExpired { time, next_update } => {
                let ago = span(time.as_secs().saturating_sub(next_update.as_secs()));
                let words = format!("whose CA's revocation list (or that of one of its chain) has expired {ago} ago");
                let error = E::ExpiredRevocationListContext { time, next_update };
                Refusal::new(error, R::CrlExpired, words)
            }
            Error::IssuerNotCrlSigner => Refusal::new(
                E::UnknownRevocationStatus,
                R::CrlUnusable,
                "whose CA signs its revocation lists and must not (its key usage lacks cRLSign)",
            ),
            Error::InvalidCrlSignatureForPublicKey => Refusal::new(
                E::UnknownRevocationStatus,
                R::CrlUnusable,
                "whose CA has not signed the revocation list with its name",
            ),
            Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => Refusal::new(
                E::UnknownRevocationStatus,
                R::CrlUnusable,
                "whose CA signs its revocation lists with an algorithm that is not supported",
            ),
            Error::NameConstraintViolation => {
                let words = "with a name that one of its CAs must not give (name constraints)";
                Refusal::new(E::Other(OtherError(Arc::new(error))), R::NameConstraints, words)
            }
            other => {
                let words = format!("not acceptable ({other})");
                Refusal::new(E::Other(OtherError(Arc::new(other))), R::Invalid, words)
            }
        }
    }
}

/// Why a client's certificate is refused, the words to be read behind "client certificate". To be called once, when the error has come up.
#[must_use]
pub fn refusal(error: &CertificateError) -> (ClientRefusal, String) {
    match LAST.take() {
        Some(refusal) if discriminant(&refusal.error) == discriminant(error) => (refusal.reason, refusal.words),
        // Not of our verifier: rustls reads certificates, too.
        Some(_) | None if matches!(error, CertificateError::BadEncoding) => {
            (ClientRefusal::Malformed, "malformed".into())
        }
        Some(_) | None => (ClientRefusal::Invalid, format!("not acceptable ({error})")),
    }
}

/// Text that others have written, in quotes, on one line and bounded.
pub(super) fn shown(text: &str) -> String {
    quoted(text, CLIENT_NAME_CHARS_SHOWN_MAX)
}

/// A number of seconds in the largest unit that is not zero.
#[must_use]
pub fn span(seconds: u64) -> String {
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
    use super::*;

    fn words(refused: Refusal) -> String {
        let rustls::Error::InvalidCertificate(error) = refused.raise() else {
            panic!("it is about a certificate")
        };
        refusal(&error).1
    }

    #[test]
    fn spans_are_short() {
        let shown = [0, 59, 60, 7199, 7200, 86_399, 86_400, 864_000].map(span);
        assert_eq!(shown, ["0 s", "59 s", "1 min", "1 h", "2 h", "23 h", "1 d", "10 d"]);
    }

    #[test]
    fn names_are_bounded_and_on_one_line() {
        let name = |name: &str| (NameKind::CommonName, name.to_owned());
        let of = |names: &[(NameKind, String)]| words(Refusal::not_allowed(names));
        assert_eq!(of(&[]), "not on the allow-list: it has no name that could be");
        assert_eq!(
            of(&[name("batch-9"), (NameKind::Dns, "a\nlevel=INFO\0".into())]),
            r#"not on the allow-list: CN "batch-9", DNS "a\nlevel=INFO\0""#
        );
        assert_eq!(
            of(&["a", "b", "c", "d"].map(name)),
            r#"not on the allow-list: CN "a", CN "b", CN "c", CN "d""#
        );
        let many = of(&vec![name(&"\u{202e}".repeat(100_000)); 1000]);
        assert!(many.len() < 3000, "{many}");
        assert!(!many.contains('\u{202e}') && many.ends_with(" and 996 more"), "{many}");
    }

    /// Words that nobody has asked for are not said of another client's certificate.
    #[test]
    fn words_are_those_of_the_last_refusal() {
        let forgotten = Refusal::too_deep(3, 2).raise();
        assert_eq!(
            words(Refusal::from(Error::UnknownIssuer)),
            "of an unknown issuer (none in ca, or an intermediate is missing)"
        );
        drop(forgotten);
        let forgotten = Refusal::too_deep(3, 2).raise();
        let (reason, words_of_other) = refusal(&CertificateError::BadSignature);
        assert_eq!(reason, ClientRefusal::Invalid);
        assert!(words_of_other.starts_with("not acceptable ("), "{words_of_other}");
        drop(forgotten);
        assert_eq!(
            words(Refusal::too_deep(2, 1)),
            "with too many CAs between it and one in ca: depth 2 > 1 (verify_depth)"
        );
    }
}
