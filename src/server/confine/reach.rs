//! Which files stay within reach (Landlock): the folders of configured files, and what the C library needs to look up names.
//!
//! Folders, not files: a certificate that is renewed is another file of that name. Where a symbolic link leads to its neighbour, as
//! releases and Kubernetes' volumes have it, the folder with both stays within reach, because the next one lies there; and with the links of
//! certbot's `live/NAME/`, if all of `live` is configured, what has the `NAME/` that they lead to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use rustix::fs::{CWD, Mode, OFlags};

use crate::config::{AdminAddress, CertificateSource, Config, Problem};
use crate::limits::FOLDER_MESSAGES_MAX;
use crate::server::links::{self, Folders};

/// Read when host names are looked up again, and users: settings and modules of the C library. They are for everybody to read.
const SYSTEM: &[&str] = &[
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/run/NetworkManager",
];

/// A file that this is a link to is replaced by its makers.
const RESOLVER: &str = "/etc/resolv.conf";

/// Accesses that are forbidden everywhere else: those of this version, as far as the kernel knows them. Connecting to UNIX sockets is none
/// of them.
const HANDLED: ABI = ABI::V5;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// A log is appended to, and made anew when something has moved it away.
const APPEND: BitFlags<AccessFs> = make_bitflags!(AccessFs::{WriteFile | MakeReg});
const REMOVE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{RemoveFile});
/// Files are made, replaced and removed.
const KEEP: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | RemoveFile});
const REMOVE_FOLDER: BitFlags<AccessFs> = make_bitflags!(AccessFs::{RemoveDir});

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    read: BTreeSet<PathBuf>,
    append: BTreeSet<PathBuf>,
    remove: BTreeSet<PathBuf>,
    keep: BTreeSet<PathBuf>,
    remove_folders: BTreeSet<PathBuf>,
}

impl Reach {
    /// What this configuration needs. The folder `temporary` is to be removed at the end.
    pub(super) fn of(config: &Config, temporary: Option<&Path>) -> Reach {
        let mut reach = Reach::default();
        reach.read.extend(SYSTEM.iter().map(PathBuf::from));
        let files = config.places.files().filter(|(key, _)| !AT_START.contains(key));
        let files = files.map(|(_, path)| path);
        for file in files.chain([config.places.file(), Path::new(RESOLVER)]) {
            reach.read.extend(folders(file));
        }
        if let Some(file) = &config.global.log.file {
            reach.append.extend(folders(file));
        }
        match &config.global.admin {
            Some(AdminAddress::Unix(socket)) => reach.remove.extend(folders(socket)),
            Some(AdminAddress::Tcp(_)) | None => {}
        }
        reach.keep.extend(config.global.stapling.dir.clone());
        if cfg!(feature = "profiling") {
            // Samples lie in a temporary file, and the program's own file has the names of functions.
            reach.keep.insert(std::env::temp_dir());
            reach.read.extend(std::env::current_exe());
        }
        if let Some(temporary) = temporary {
            reach.remove.insert(temporary.to_owned());
            reach.remove_folders.extend(temporary.parent().map(Path::to_owned));
        }
        reach
    }

    /// Puts everything else out of reach, of this thread and those that it starts, and has no signals sent to other processes. Returns
    /// the version of Landlock; none: the kernel has no Landlock.
    pub(super) fn enforce(&self) -> Result<Option<i32>, RulesetError> {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(HANDLED))?
            .scope(Scope::Signal)?
            .create()?
            .add_rules(path_beneath_rules(&self.read, READ))?
            .add_rules(path_beneath_rules(&self.append, APPEND))?
            .add_rules(path_beneath_rules(&self.remove, REMOVE))?
            .add_rules(path_beneath_rules(&self.keep, KEEP))?
            .add_rules(path_beneath_rules(&self.remove_folders, REMOVE_FOLDER))?
            .restrict_self()?;
        Ok(match (status.ruleset, status.landlock) {
            (RulesetStatus::NotEnforced, _) | (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => None,
            (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as i32),
        })
    }
}

/// Folders in which this file is, or will be. A file of the root folder stands for itself, because all files are below that.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    if file.parent().is_none() {
        return BTreeSet::new();
    }
    let Folders {
        of_files,
        // What leads to files is found without being read.
        on_the_way: _,
        of_neighbours,
        of_namesakes,
    } = Folders::of([file]);
    let all = of_files.into_iter().chain(of_neighbours).chain(of_namesakes);
    let is_root = |folder: &PathBuf| folder.parent().is_none();
    let (roots, mut found): (BTreeSet<_>, BTreeSet<_>) = all.partition(is_root);
    if !roots.is_empty() {
        found.insert(file.to_owned());
    }
    found
}

/// Problems for files of a new configuration that are out of reach.
pub(super) fn forbidden(config: &Config) -> Vec<Problem> {
    let files = config.places.files().filter(|(key, _)| !AT_START.contains(key));
    let itself = [("", config.places.file())];
    files
        .chain(itself)
        .filter(|(_, path)| is_forbidden(path))
        .map(|(key, path)| problem(config, key, path))
        .collect()
}

/// Problems for links in configured folders that lead out of reach: not all of them have to be read, so they are told when something in the
/// folder cannot be.
pub(super) fn forbidden_in_folders(config: &Config) -> Vec<Problem> {
    let folders = config
        .identities
        .iter()
        .filter_map(|identity| match &identity.certificate {
            CertificateSource::Folder(folder) => {
                Some((format!("identity \"{}\": certificates", identity.name), folder))
            }
            CertificateSource::File(_) | CertificateSource::Tokens(_) => None,
        });
    folders
        .flat_map(|(key, folder)| {
            let links = links::links_inside(folder).into_iter();
            let forbidden = links.filter(|link| is_forbidden(link));
            forbidden.map(move |link| problem(config, &key, &link))
        })
        .take(FOLDER_MESSAGES_MAX)
        .collect()
}

/// Used at the start only.
const AT_START: &[&str] = &["global.log.file", "crypto.multibuffer"];

/// Whether the owner and permissions of a file let this process read it, and something else does not.
pub(super) fn is_forbidden(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::ACCESS) => {
            rustix::fs::accessat(CWD, path, rustix::fs::Access::READ_OK, rustix::fs::AtFlags::empty()).is_ok()
        }
        Ok(_) | Err(_) => false,
    }
}

fn problem(config: &Config, key: &str, path: &Path) -> Problem {
    let target = fs::canonicalize(path).ok().filter(|target| target != path);
    let place = target.map_or(String::new(), |target| format!(" (really \"{}\")", target.display()));
    config.places.problem(
        key,
        format!(
            "\"{}\"{place}, which the sandbox of this process forbids (Landlock): it was made for the folders that were configured at the start",
            path.display()
        ),
        "a file in one of those folders",
        "restart the gateway or move the file; with global.unsafe_no_landlock = true no file is forbidden",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_within_reach_where_they_are_and_where_the_next_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let set = |paths: &[&str]| paths.iter().map(|path| root.join(path)).collect::<BTreeSet<_>>();
        for made in ["plain", "live/site", "archive/site", "volume/..1"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        assert_eq!(folders(&root.join("plain/later")), set(&["plain"]));
        assert_eq!(folders(&root.join("plain")), set(&["plain"]));
        symlink("../../archive/site/a1", root.join("live/site/a")).unwrap();
        assert_eq!(folders(&root.join("live/site/a")), set(&["live/site", "archive/site"]));
        let all = set(&["live", "live/site", "archive", "archive/site"]);
        assert_eq!(folders(&root.join("live")), all);
        symlink("..1", root.join("volume/..data")).unwrap();
        symlink("..data/a", root.join("volume/a")).unwrap();
        assert_eq!(folders(&root.join("volume/a")), set(&["volume", "volume/..1"]));
    }

    #[test]
    fn the_root_folder_is_never_within_reach() {
        assert_eq!(folders(Path::new("/")), BTreeSet::new());
        assert!(!folders(Path::new("/no-such-file")).contains(Path::new("/")));
        assert!(!folders(Path::new("/etc")).contains(Path::new("/")));
    }

    #[test]
    fn a_file_that_is_not_there_or_may_be_read_is_not_forbidden() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_forbidden(file.path()));
        assert!(!is_forbidden(Path::new("/no-such-file")));
    }
}
