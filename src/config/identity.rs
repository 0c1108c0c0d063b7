//! `[[identity]]`

use std::path::PathBuf;

use ringlock_hsm::uri::{ObjectKind, Uri};

use super::names::Names;
use super::ocsp;
use super::read::{Item, Report, Table, choice, path};
use super::tokens::{self, Tokens};
use super::{CertificateSource, Identity, InTokens, KeySource};

/// Where a certificate or a key is.
enum Source {
    File(PathBuf),
    Tokens(InTokens),
}

/// One `[[identity]]`.
pub(super) fn read(table: &mut Table<'_, '_>, names: &mut Names, tokens: &mut Tokens) -> Option<Identity> {
    let name = names.define(table);
    let certificate = table.read("certificate", |report, item| {
        source(report, item, tokens, ObjectKind::Certificate)
    });
    let key = table.read("key", |report, item| source(report, item, tokens, ObjectKind::Private));
    let in_signer = table.read("key_isolation", choice(&[("none", false), ("process", true)]));
    let ocsp = table.read("ocsp", ocsp::source);
    let key = match (key?, in_signer?) {
        (Source::File(path), false) => KeySource::File(path),
        (Source::File(path), true) => KeySource::Signer(path),
        (Source::Tokens(object), false) => KeySource::Tokens(object),
        (Source::Tokens(_), true) => {
            let at = table.at("key_isolation");
            table.report.refuse(
                &at,
                "\"process\" beside a key in a token",
                "that it is absent: the token's table says by isolation where its keys are used",
                "remove it",
            );
            return None;
        }
    };
    Some(Identity {
        name: name?,
        certificate: match certificate? {
            Source::File(path) => CertificateSource::File(path),
            Source::Tokens(object) => CertificateSource::Tokens(object),
        },
        key,
        ocsp: ocsp?,
    })
}

/// The path of a PEM file or the URI of an object of this kind. What is refused is not repeated: a URI can hold a PIN, and pasted
/// PEM text a key.
fn source(report: &mut Report, item: Item<'_>, tokens: &mut Tokens, kind: ObjectKind) -> Option<Source> {
    let text = item.value.as_str().unwrap_or_default();
    let extension = text
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    let (found, remedy) = if text.contains("-----BEGIN") {
        (
            "PEM text itself",
            "write it to a file that only its owner can read, and its path here",
        )
    } else if Uri::is_meant(text) {
        return object(report, &item, text, tokens, kind).map(Source::Tokens);
    } else if matches!(extension.as_deref(), Some("p12" | "pfx")) {
        (
            "a PKCS#12 file, which is not supported yet",
            "convert it: openssl pkcs12 -in FILE -nodes -out site.pem",
        )
    } else {
        return path(report, item).map(Source::File);
    };
    report.refuse(&item.at, found, item.kind.expected(), remedy);
    None
}

fn object(report: &mut Report, item: &Item<'_>, text: &str, tokens: &mut Tokens, kind: ObjectKind) -> Option<InTokens> {
    let uri = tokens::uri(report, item, text)?;
    if let Some(other) = uri.kind.filter(|&other| other != kind) {
        report.refuse(
            &item.at,
            format!("a pkcs11: URI with type={}", other.name()),
            format!("one with type={}, or without type", kind.name()),
            "correct the URI",
        );
        return None;
    }
    tokens.refer(report, &item.at, uri)
}
