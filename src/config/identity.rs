//! `[[identity]]`

use std::path::PathBuf;

use super::Identity;
use super::names::Names;
use super::read::{Item, Report, Table, choice, path};

/// One `[[identity]]`.
pub(super) fn read(table: &mut Table<'_, '_>, names: &mut Names) -> Option<Identity> {
    let name = names.define(table);
    let certificate = table.read("certificate", pem_path);
    let key = table.read("key", pem_path);
    let ocsp = table.read("ocsp", choice(&[("off", ())]));
    ocsp?;
    Some(Identity {
        name: name?,
        certificate: certificate?,
        key: key?,
    })
}

/// The path of a PEM file. What is refused here is not repeated: a PKCS#11 URI can hold a PIN, and pasted PEM text a key.
fn pem_path(report: &mut Report, item: Item<'_>) -> Option<PathBuf> {
    let later = "write the path of a PEM file until a later version supports it";
    let text = item.value.as_str().unwrap_or_default();
    let starts_with = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let extension = text
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    let (found, remedy) = if text.contains("-----BEGIN") {
        (
            "PEM text itself",
            "write it to a file that only its owner can read, and its path here",
        )
    } else if starts_with("pkcs11:") {
        ("a pkcs11: URI, which is not supported yet", later)
    } else if matches!(extension.as_deref(), Some("p12" | "pfx")) {
        (
            "a PKCS#12 file, which is not supported yet",
            "convert it: openssl pkcs12 -in FILE -nodes -out site.pem",
        )
    } else {
        return path(report, item);
    };
    report.refuse(&item.at, found, item.kind.expected(), remedy);
    None
}
