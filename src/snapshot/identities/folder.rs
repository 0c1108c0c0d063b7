//! A folder of certificates as it is kept for nginx, HAProxy or by certbot, made into pairs of certificate and key.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use ringlock_hsm::formats;

use crate::identity::facts::CertificateFacts;
use crate::limits::{CERTIFICATE_FILE_BYTES_MAX, IDENTITIES_PER_FOLDER_MAX};
use crate::snapshot::read;

/// Files of certificates in a sub-folder, or alone in a folder, each with that of its key: certbot, Kubernetes.
const BY_NAME: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

/// What certbot puts beside them, and is in the first or of no use alone.
const BESIDE_FULL_CHAIN: [&str; 2] = ["cert.pem", "chain.pem"];

/// A certificate and its key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The file's or the sub-folder's.
    pub(super) name: String,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// A file that should have been one of a pair: what was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// As a pair would have had it.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) found: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.found, self.path.display())
    }
}

/// The pairs of a folder by name.
///
/// # Errors
/// What was found in place of a readable folder with pairs.
pub(super) fn pairs(folder: &Path) -> Result<Vec<Result<Pair, Broken>>, String> {
    let unreadable = |error: std::io::Error| format!("no readable folder ({error})");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.insert(name);
        }
        // A pair has two files, and some have others beside them.
        if names.len() > 4 * IDENTITIES_PER_FOLDER_MAX {
            return Err(format!("more than {} files", 4 * IDENTITIES_PER_FOLDER_MAX));
        }
    }
    let mut pairs = Vec::new();
    for name in &names {
        let path = folder.join(name);
        let pair = if path.is_dir() {
            in_sub_folder(&path, name)
        } else {
            of_file(folder, name, &names)
        };
        pairs.extend(pair);
    }
    match pairs.len() {
        0 => Err("no certificate with its key".to_owned()),
        1..=IDENTITIES_PER_FOLDER_MAX => Ok(pairs),
        count => Err(format!("{count} certificates, more than {IDENTITIES_PER_FOLDER_MAX},")),
    }
}

fn in_sub_folder(folder: &Path, name: &OsStr) -> Option<Result<Pair, Broken>> {
    let (certificate, key) = BY_NAME
        .map(|(certificate, key)| (folder.join(certificate), folder.join(key)))
        .into_iter()
        .find(|(certificate, _)| certificate.exists())?;
    Some(Ok(Pair {
        name: name.to_string_lossy().into_owned(),
        certificate,
        key,
    }))
}

fn of_file(folder: &Path, name: &OsStr, names: &BTreeSet<OsString>) -> Option<Result<Pair, Broken>> {
    let has = |name: &str| names.contains(OsStr::new(name));
    if BESIDE_FULL_CHAIN.iter().any(|other| name == *other) && has(BY_NAME[0].0) && has(BY_NAME[0].1) {
        return None;
    }
    let certificate = folder.join(name);
    let pair = |key: PathBuf| {
        Ok(Pair {
            name: name.to_string_lossy().into_owned(),
            certificate: certificate.clone(),
            key,
        })
    };
    if let Some((_, key)) = BY_NAME
        .iter()
        .find(|(known, _)| name == *known)
        .filter(|(_, key)| has(key))
    {
        return Some(pair(folder.join(key)));
    }
    if BY_NAME.iter().any(|(known, key)| name == *key && has(known)) {
        return None;
    }
    let extension = certificate.extension()?.to_ascii_lowercase();
    if extension == "p12" || extension == "pfx" {
        return Some(pair(certificate.clone()));
    }
    if extension != "pem" && extension != "crt" && extension != "cer" {
        return None;
    }
    let mut appended = name.to_owned();
    appended.push(".key");
    let replaced = Path::new(name).with_extension("key").into_os_string();
    if let Some(key) = [appended, replaced].into_iter().find(|key| names.contains(key)) {
        return Some(pair(folder.join(key)));
    }
    let broken = |path: PathBuf, found: String| {
        let name = name.to_string_lossy().into_owned();
        Some(Err(Broken { name, path, found }))
    };
    match is_one_of_a_pair(&certificate) {
        Ok(OnePart::Both) => Some(pair(certificate.clone())),
        Ok(OnePart::Neither) => None,
        Ok(OnePart::Certificate) => {
            let found = "a certificate without its key, which is neither in the file nor beside it";
            broken(certificate, found.to_owned())
        }
        Err(found) => broken(certificate, found),
    }
}

enum OnePart {
    Both,
    Certificate,
    Neither,
}

/// What a file without a key beside it has: CAs and Diffie-Hellman parameters are kept there, too.
fn is_one_of_a_pair(path: &Path) -> Result<OnePart, String> {
    let file = read(path, CERTIFICATE_FILE_BYTES_MAX)?;
    let certificates = formats::certificates(&file, None).unwrap_or_default();
    if formats::has_private_key(&file) {
        return Ok(OnePart::Both);
    }
    let is_for_a_server = |certificate: &_| !CertificateFacts::of(certificate).is_ok_and(|facts| facts.is_ca);
    if certificates.iter().any(is_for_a_server) {
        Ok(OnePart::Certificate)
    } else {
        Ok(OnePart::Neither)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    /// Certificate and key of each pair, or what was found, relative to the folder.
    fn found(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let folder = folder(files);
        let relative = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().display().to_string();
        let pairs = pairs(folder.path()).unwrap().into_iter();
        pairs
            .map(|pair| match pair {
                Ok(pair) => (relative(pair.certificate), relative(pair.key)),
                Err(broken) => (relative(broken.path), broken.found),
            })
            .collect()
    }

    fn names(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|&(one, other)| (one.to_owned(), other.to_owned()))
            .collect()
    }

    fn certificate() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn all_kinds_of_pairs_are_found_in_the_order_of_their_names() {
        let (certificate, key) = certificate();
        let both = format!("{certificate}{key}");
        let pairs = found(&[
            ("d.pem", &both),
            ("c.crt", &certificate),
            ("c.key", &key),
            ("b.pem", &certificate),
            ("b.pem.key", &key),
            ("a.p12", ""),
            ("e/fullchain.pem", ""),
            ("e/privkey.pem", ""),
            ("f/tls.crt", ""),
            ("f/tls.key", ""),
        ]);
        let expected = [
            ("a.p12", "a.p12"),
            ("b.pem", "b.pem.key"),
            ("c.crt", "c.key"),
            ("d.pem", "d.pem"),
            ("e/fullchain.pem", "e/privkey.pem"),
            ("f/tls.crt", "f/tls.key"),
        ];
        assert_eq!(pairs, names(&expected));
    }

    #[test]
    fn a_folder_of_certbot_or_kubernetes_is_one_pair() {
        let certbot = [
            ("cert.pem", "x"),
            ("chain.pem", "x"),
            ("fullchain.pem", "x"),
            ("privkey.pem", "x"),
        ];
        assert_eq!(found(&certbot), names(&[("fullchain.pem", "privkey.pem")]));
        let kubernetes = [
            ("..data/tls.crt", ""),
            ("tls.crt", "x"),
            ("tls.key", "x"),
            ("ca.crt", "x"),
        ];
        assert_eq!(found(&kubernetes), names(&[("tls.crt", "tls.key")]));
    }

    #[test]
    fn what_is_no_pair_is_ignored_and_what_should_be_one_is_told() {
        let (certificate, key) = certificate();
        let authority = {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        let pairs = found(&[
            ("a.crt", &certificate),
            ("a.key", &key),
            ("ca.pem", &authority),
            (
                "dhparam.pem",
                "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
            ),
            ("lonely.pem", &certificate),
            (".hidden.pem", &certificate),
            ("README", "text"),
            ("other.key", &key),
            ("empty/README", "text"),
            ("deep/er/fullchain.pem", &certificate),
        ]);
        let expected = [
            ("a.crt", "a.key"),
            (
                "lonely.pem",
                "a certificate without its key, which is neither in the file nor beside it",
            ),
        ];
        assert_eq!(pairs, names(&expected));
    }

    #[test]
    fn a_folder_without_pairs_is_told() {
        assert_eq!(
            pairs(folder(&[("README", "text")]).path()).unwrap_err(),
            "no certificate with its key"
        );
        let missing = pairs(Path::new("/nonexistent")).unwrap_err();
        assert!(missing.starts_with("no readable folder"), "{missing}");
    }
}
