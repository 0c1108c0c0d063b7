//! Who can read the files of identities, and who can replace them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid, getgrouplist};
use ringlock_hsm::regular_file;

use crate::identity::preflight::FileFacts;

/// What others may do with a file or folder, and with the content of a folder.
const OTHERS_WRITE: u32 = 0o002;
/// Only owners may remove or rename what is in such a folder.
const STICKY: u32 = 0o1000;
const READ: u32 = 0o4;
const SEARCH: u32 = 0o1;

/// What certbot calls the file with the whole chain.
const FULL_CHAIN: &str = "fullchain.pem";

/// Looks at files; at each folder once.
pub(super) struct Examiner {
    /// Who has to read them after the start; none when that is who reads them now.
    later: Option<Reader>,
    folders: BTreeMap<PathBuf, Folder>,
}

struct Reader {
    name: String,
    uid: u32,
    groups: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Folder {
    replaceable: bool,
    searchable: bool,
}

impl Examiner {
    /// For a gateway that becomes this user.
    pub(super) fn new(user: Option<&str>) -> Examiner {
        let later = user.filter(|_| geteuid().is_root()).and_then(Reader::of);
        Examiner {
            later,
            folders: BTreeMap::new(),
        }
    }

    /// What is to be known of files that the gateway reads: of a certificate, and of a key or pass phrase.
    pub(super) fn examine(&mut self, certificate: Option<&Path>, secrets: &[&Path]) -> FileFacts {
        let mut facts = FileFacts {
            exposed: secrets
                .iter()
                .find(|path| regular_file::is_exposed(path))
                .map(|path| path.to_path_buf()),
            full_chain: certificate.and_then(full_chain_beside),
            ..FileFacts::default()
        };
        let mut unreadable = Vec::new();
        let mut files: Vec<&Path> = certificate.into_iter().chain(secrets.iter().copied()).collect();
        files.dedup();
        for file in files {
            self.examine_place(file, &mut facts.replaceable, &mut unreadable);
        }
        if let Some(reader) = self.later.as_ref().filter(|_| !unreadable.is_empty()) {
            facts.unreadable = Some((reader.name.clone(), unreadable));
        }
        facts
    }

    /// Looks at the folders above a file, and at those above what it is a link to.
    fn examine_place(&mut self, file: &Path, replaceable: &mut Vec<PathBuf>, unreadable: &mut Vec<PathBuf>) {
        let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        // A bare name lies in a folder that has none; what it is a link to has all of them.
        let named = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folders = named.into_iter().chain(real.ancestors().skip(1));
        let note = |list: &mut Vec<PathBuf>, path: &Path| {
            if !list.iter().any(|known| known == path) {
                list.push(path.to_owned());
            }
        };
        for folder in folders {
            let facts = self.folder(folder);
            if facts.replaceable {
                note(replaceable, folder);
            }
            if !facts.searchable {
                note(unreadable, folder);
            }
        }
        let may = |reader: &Reader| file.metadata().is_ok_and(|file| reader.may(READ, &file));
        if self.later.as_ref().is_some_and(|reader| !may(reader)) {
            note(unreadable, file);
        }
    }

    fn folder(&mut self, path: &Path) -> Folder {
        if let Some(known) = self.folders.get(path) {
            return *known;
        }
        let metadata = path.metadata();
        let folder = Folder {
            replaceable: metadata
                .as_ref()
                .is_ok_and(|metadata| metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0),
            searchable: self.later.as_ref().is_none_or(|reader| {
                let metadata = metadata.as_ref();
                metadata.is_ok_and(|metadata| reader.may(SEARCH, metadata))
            }),
        };
        self.folders.insert(path.to_owned(), folder);
        folder
    }
}

impl Reader {
    /// None when there is no such user, which is told elsewhere, or when it is root.
    fn of(name: &str) -> Option<Reader> {
        let user = User::from_name(name).ok()??;
        if user.uid.is_root() {
            return None;
        }
        let groups = getgrouplist(&CString::new(name).ok()?, user.gid).ok()?;
        Some(Reader {
            name: name.to_owned(),
            uid: user.uid.as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        })
    }

    /// By the permission bits; access control lists may allow more.
    fn may(&self, what: u32, file: &std::fs::Metadata) -> bool {
        let shift = if file.uid() == self.uid {
            6
        } else if self.groups.contains(&file.gid()) {
            3
        } else {
            0
        };
        (file.mode() >> shift) & what != 0
    }
}

fn full_chain_beside(certificate: &Path) -> Option<PathBuf> {
    let beside = certificate.with_file_name(FULL_CHAIN);
    (beside != certificate && beside.exists()).then_some(beside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_in_which_files_can_be_replaced_are_found_behind_links_too() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, live) = (folder.path().join("archive"), folder.path().join("live"));
        for sub in [&archive, &live] {
            std::fs::create_dir(sub).unwrap();
        }
        std::fs::write(archive.join("a1.pem"), "").unwrap();
        let link = live.join("a.pem");
        std::os::unix::fs::symlink("../archive/a1.pem", &link).unwrap();
        let replaceable = || Examiner::new(None).examine(Some(&link), &[]).replaceable;
        assert!(replaceable().is_empty());
        set_mode(&archive, 0o777);
        assert_eq!(replaceable(), [archive.canonicalize().unwrap()]);
        set_mode(&archive, 0o1777);
        assert!(replaceable().is_empty());
        set_mode(&live, 0o707);
        assert_eq!(replaceable(), [live]);
    }

    #[test]
    fn a_key_that_others_can_read_and_a_full_chain_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("privkey.pem"));
        let full = folder.path().join("fullchain.pem");
        for file in [&certificate, &key, &full] {
            std::fs::write(file, "").unwrap();
        }
        set_mode(&key, 0o640);
        let examine = || Examiner::new(None).examine(Some(&certificate), &[&key]);
        assert_eq!(examine().exposed, None);
        assert_eq!(examine().full_chain, Some(full.clone()));
        set_mode(&key, 0o644);
        assert_eq!(examine().exposed, Some(key.clone()));
        assert_eq!(Examiner::new(None).examine(Some(&full), &[]).full_chain, None);
    }

    #[test]
    fn permission_bits_are_those_of_the_owner_else_of_the_group_else_of_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let reader = |uid, group| Reader {
            name: String::new(),
            uid,
            groups: vec![group],
        };
        let (owner, group) = (metadata.uid(), metadata.gid());
        for (mode, owner_may, group_may, others_may) in [
            (0o400, true, false, false),
            (0o040, false, true, false),
            (0o004, false, false, true),
            (0o640, true, true, false),
        ] {
            set_mode(file.path(), mode);
            let metadata = file.as_file().metadata().unwrap();
            assert_eq!(reader(owner, group + 1).may(READ, &metadata), owner_may, "{mode:o}");
            assert_eq!(reader(owner + 1, group).may(READ, &metadata), group_may, "{mode:o}");
            assert_eq!(
                reader(owner + 1, group + 1).may(READ, &metadata),
                others_may,
                "{mode:o}"
            );
        }
    }
}
