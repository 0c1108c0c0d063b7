//! What is said of certificates that are refused: the alert to the client, words to the operator.
//!
//! rustls takes a [`CertificateError`], from which the alert follows, and gives it back. Most of those that go with the right
//! alert have no room for words: these are left beside, on the thread, from where the error is made to where it has come up
//! through rustls. In between, nothing else runs on the thread.

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;

use rustls::{CertificateError, OtherError};
use webpki::Error;

use crate::config::NameKind;
use crate::limits::{CLIENT_NAME_CHARS_SHOWN_MAX, CLIENT_NAMES_SHOWN_MAX};

thread_local! {
    static WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A certificate is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    error: CertificateError,
    words: Option<String>,
}

impl Refusal {
    /// With the alert that belongs to `error`, and in these words.
    pub(super) fn new(error: CertificateError, words: String) -> Refusal {
        let words = Some(words);
        Refusal { error, words }
    }

    /// OpenSSL's alert for a path that is too long is that of an unknown CA.
    pub(super) fn too_deep(depth: usize, max: usize) -> Refusal {
        let words = format!("with too many CAs between it and one in ca: depth {depth} > {max} (verify_depth)");
        Refusal::new(CertificateError::UnknownIssuer, words)
    }

    /// The alert is access_denied: nothing is wrong with the certificate.
    pub(super) fn not_allowed(names: &[(NameKind, String)]) -> Refusal {
        let mut words = "not on the allow-list: ".to_owned();
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
            };
            write!(words, "{between}{kind} {}", shown(name)).expect("a string takes whatever is written");
        }
        if let Some(more @ 1..) = names.len().checked_sub(CLIENT_NAMES_SHOWN_MAX) {
            write!(words, " and {more} more").expect("a string takes whatever is written");
        }
        Refusal::new(CertificateError::ApplicationVerificationFailure, words)
    }

    /// What rustls is told.
    pub(super) fn raise(self) -> rustls::Error {
        WORDS.set(self.words);
        rustls::Error::InvalidCertificate(self.error)
    }
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
        let about_lists = |words: &str| Refusal::new(E::UnknownRevocationStatus, words.to_owned());
        let error = match error {
            Error::IssuerNotCrlSigner => {
                return about_lists("whose CA signs its revocation lists and must not (its key usage lacks cRLSign)");
            }
            Error::InvalidCrlSignatureForPublicKey => {
                return about_lists("whose CA has not signed the revocation list with its name");
            }
            Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
                return about_lists("whose CA signs its revocation lists with an algorithm that is not supported");
            }
            Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => E::BadEncoding,
            Error::CertNotValidYet { time, not_before } => E::NotValidYetContext { time, not_before },
            Error::CertExpired { time, not_after } => E::ExpiredContext { time, not_after },
            Error::InvalidCertValidity => E::Expired,
            Error::UnknownIssuer => E::UnknownIssuer,
            Error::CertRevoked => E::Revoked,
            Error::UnknownRevocationStatus => E::UnknownRevocationStatus,
            Error::CrlExpired { time, next_update } => E::ExpiredRevocationListContext { time, next_update },
            Error::InvalidSignatureForPublicKey => E::BadSignature,
            Error::UnsupportedSignatureAlgorithmContext(context) => E::UnsupportedSignatureAlgorithmContext {
                signature_algorithm_id: context.signature_algorithm_id,
                supported_algorithms: context.supported_algorithms,
            },
            Error::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => {
                E::UnsupportedSignatureAlgorithmForPublicKeyContext {
                    signature_algorithm_id: context.signature_algorithm_id,
                    public_key_algorithm_id: context.public_key_algorithm_id,
                }
            }
            Error::RequiredEkuNotFoundContext(_) => E::InvalidPurpose,
            other => E::Other(OtherError(Arc::new(other))),
        };
        Refusal { error, words: None }
    }
}

/// Why a client's certificate is refused, to be read behind "client certificate". To be called once, when the error has come up.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has more errors than webpki gives for a client's certificate"
)]
pub fn refusal(error: &CertificateError) -> String {
    use CertificateError as E;
    let or = |otherwise: &str| WORDS.take().unwrap_or_else(|| otherwise.to_owned());
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
        // None of these four comes from anything but the verifier, which has said just before what it means.
        E::UnknownIssuer => or("of an unknown issuer (none in ca, or an intermediate is missing)"),
        E::Revoked => or("revoked (it, or one of its chain)"),
        E::UnknownRevocationStatus => {
            or("whose revocation is unknown: no list in crl is about it, or about one of its chain")
        }
        E::ApplicationVerificationFailure => or("not on the allow-list"),
        E::ExpiredRevocationListContext { time, next_update } => {
            let ago = span(time.as_secs().saturating_sub(next_update.as_secs()));
            format!("whose CA's revocation list (or that of one of its chain) has expired {ago} ago")
        }
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

/// Text that others have written, in quotes, on one line and bounded.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(CLIENT_NAME_CHARS_SHOWN_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
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
    use super::*;

    fn words(refused: Refusal) -> String {
        let rustls::Error::InvalidCertificate(error) = refused.raise() else {
            panic!("it is about a certificate")
        };
        refusal(&error)
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
        assert!(refusal(&CertificateError::BadSignature).starts_with("with a signature that is wrong"));
        drop(forgotten);
        assert_eq!(
            words(Refusal::too_deep(2, 1)),
            "with too many CAs between it and one in ca: depth 2 > 1 (verify_depth)"
        );
    }
}
