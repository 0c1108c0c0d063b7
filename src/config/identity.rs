//! `[[identity]]`

use std::path::PathBuf;

use ringlock_hsm::uri::{ObjectKind, Uri};

use super::keys::{CERTIFICATE, PRIVATE_KEY};
use super::names::Names;
use super::ocsp;
use super::read::{Item, Report, Table, choice, path};
use super::tokens::{self, Tokens};
use super::{CertificateSource, Identity, InTokens, KeySource, Ocsp};

/// Where a certificate or a key is.
enum Source {
    File(PathBuf),
    Tokens(InTokens),
}

/// One `[[identity]]`.
pub(super) fn read(table: &mut Table<'_, '_>, names: &mut Names, tokens: &mut Tokens) -> Option<Identity> {
    let name = names.define(table);
    let certificate = table.read_optional("certificate", |report, item| {
        source(report, item, tokens, ObjectKind::Certificate)
    });
    let folder = table.read_optional("certificates", path);
    let key = table.read_optional("key", |report, item| source(report, item, tokens, ObjectKind::Private));
    let passphrase = table.read_optional("passphrase_file", path);
    let in_signer = table.read("key_isolation", choice(&[("none", false), ("process", true)]));
    let ocsp = table.read("ocsp", ocsp::source);
    let (passphrase, in_signer) = (passphrase?, in_signer?);
    let in_file = if in_signer { KeySource::Signer } else { KeySource::File };
    let (certificate, key) = match (certificate?, folder?, key?) {
        (Some(Source::File(certificate)), None, key) => {
            let key = key.unwrap_or_else(|| Source::File(certificate.clone()));
            if in_signer && matches!(&key, Source::File(path) if *path == certificate) {
                return refuse_isolation(
                    table,
                    "\"process\" beside a key in the file of the certificate",
                    KEY_APART,
                );
            }
            (CertificateSource::File(certificate), key)
        }
        (Some(Source::Tokens(certificate)), None, Some(key)) => (CertificateSource::Tokens(certificate), key),
        (Some(Source::Tokens(_)), None, None) => {
            return refuse(table, "key", "nothing", PRIVATE_KEY, "add \"key\" to this table");
        }
        (None, Some(folder), None) => (CertificateSource::Folder(folder.clone()), Source::File(folder)),
        (None, Some(_), Some(_)) => {
            let expected = "nothing: the folder in certificates has the keys, too";
            return refuse(
                table,
                "key",
                "a key",
                expected,
                "remove it, or name one file by certificate",
            );
        }
        (Some(_), Some(_), _) => {
            let expected = "either certificate or certificates";
            return refuse(
                table,
                "certificates",
                "a folder beside certificate",
                expected,
                "remove one of the two",
            );
        }
        (None, None, _) => {
            let remedy = "add \"certificate\" to this table, or \"certificates\" with the path of a folder";
            return refuse(table, "certificate", "nothing", CERTIFICATE, remedy);
        }
    };
    let key = match key {
        Source::File(path) => in_file(path),
        Source::Tokens(_) if in_signer => {
            let found = "\"process\" beside a key in a token";
            return refuse_isolation(table, found, TOKEN_APART);
        }
        Source::Tokens(object) => KeySource::Tokens(object),
    };
    if passphrase.is_some()
        && matches!(
            (&certificate, &key),
            (CertificateSource::Tokens(_), KeySource::Tokens(_))
        )
    {
        let expected = "nothing: both certificate and key are in tokens, which have PINs (pin_source)";
        return refuse(
            table,
            "passphrase_file",
            "the file of a pass phrase",
            expected,
            "remove it",
        );
    }
    let ocsp = ocsp?;
    if matches!((&certificate, &ocsp), (CertificateSource::Folder(_), Ocsp::File(_))) {
        let expected = "\"off\" or \"auto\": a response is about one certificate, and a folder has any number";
        return refuse(
            table,
            "ocsp",
            "the path of a response",
            expected,
            "set it to \"auto\", or name one file by certificate",
        );
    }
    Some(Identity {
        name: name?,
        certificate,
        key,
        passphrase,
        ocsp,
    })
}

/// What is expected, and what to do.
const KEY_APART: (&str, &str) = (
    "the key in a file of its own, which the gateway does not read",
    "write the key to another file and name it by key",
);
const TOKEN_APART: (&str, &str) = (
    "that it is absent: the token's table says by isolation where its keys are used",
    "remove it",
);

fn refuse_isolation(table: &mut Table<'_, '_>, found: &str, (expected, remedy): (&str, &str)) -> Option<Identity> {
    refuse(table, "key_isolation", found, expected, remedy)
}

fn refuse(table: &mut Table<'_, '_>, key: &'static str, found: &str, expected: &str, remedy: &str) -> Option<Identity> {
    let at = table.at(key);
    table.report.refuse(&at, found, expected, remedy);
    None
}

/// The path of a file or the URI of an object of this kind. What is refused is not repeated: a URI can hold a PIN, and pasted
/// PEM text a key.
fn source(report: &mut Report, item: Item<'_>, tokens: &mut Tokens, kind: ObjectKind) -> Option<Source> {
    let text = item.value.as_str().unwrap_or_default();
    if text.contains("-----BEGIN") {
        let remedy = "write it to a file that only its owner can read, and its path here";
        report.refuse(&item.at, "PEM text itself", item.kind.expected(), remedy);
        None
    } else if Uri::is_meant(text) {
        object(report, &item, text, tokens, kind).map(Source::Tokens)
    } else {
        path(report, item).map(Source::File)
    }
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
