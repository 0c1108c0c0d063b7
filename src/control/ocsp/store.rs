//! Responses on disk, so that a restart does not begin without staples. Files have the SHA-256 of their certificate as name; what
//! is read is verified like what is fetched.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ringlock_hsm::regular_file;
use tempfile::NamedTempFile;

use crate::limits::{OCSP_FILE_AGE_MAX, OCSP_RESPONSE_BYTES_MAX};

const EXTENSION: &str = "der";

/// What was kept for the certificate with this fingerprint.
pub(super) fn read(dir: &Path, fingerprint: &str) -> Option<Vec<u8>> {
    let file = regular_file::open(&path(dir, fingerprint)).ok().flatten()?;
    let mut response = Vec::new();
    file.take(OCSP_RESPONSE_BYTES_MAX as u64)
        .read_to_end(&mut response)
        .ok()?;
    Some(response)
}

/// Replaces what is kept for a certificate.
pub(super) fn write(dir: &Path, fingerprint: &str, response: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(response)?;
    file.persist(path(dir, fingerprint))?;
    Ok(())
}

/// Keeps nothing more for a certificate.
pub(super) fn remove(dir: &Path, fingerprint: &str) {
    // What stays is verified when it is read.
    let _ = std::fs::remove_file(path(dir, fingerprint));
}

/// Removes old files of certificates that are not in use.
pub(super) fn clean(dir: &Path, in_use: impl Fn(&str) -> bool, now: SystemTime) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION);
        let fingerprint = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_fingerprint = fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = written.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > OCSP_FILE_AGE_MAX));
        if is_ours && is_fingerprint && is_old && !in_use(fingerprint) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn path(dir: &Path, fingerprint: &str) -> PathBuf {
    dir.join(fingerprint).with_extension(EXTENSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(read(folder.path(), &one), None);
        write(folder.path(), &one, b"first").unwrap();
        write(folder.path(), &one, b"second").unwrap();
        write(folder.path(), &other, b"other").unwrap();
        assert_eq!(read(folder.path(), &one).as_deref(), Some(&b"second"[..]));
        remove(folder.path(), &one);
        assert_eq!(read(folder.path(), &one), None);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[test]
    fn old_files_of_nobody_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let (used, unused) = ("a".repeat(64), "b".repeat(64));
        write(folder.path(), &used, b"used").unwrap();
        write(folder.path(), &unused, b"unused").unwrap();
        std::fs::write(folder.path().join("readme.der"), "somebody's").unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let in_use = |fingerprint: &str| fingerprint == used;
        clean(folder.path(), in_use, SystemTime::now());
        assert_eq!(files(), 3);
        clean(folder.path(), in_use, SystemTime::now() + OCSP_FILE_AGE_MAX * 2);
        assert_eq!(files(), 2);
        assert_eq!(read(folder.path(), &unused), None);
    }
}
