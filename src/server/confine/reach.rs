//! Which files stay within reach (Landlock): the folders of configured files, and what the C library needs to look up names.
//!
//! Folders, not files: a certificate that is renewed is another file of that name. Where a folder is a symbolic link to its neighbour, as
//! releases and Kubernetes' volumes have it, the folder with both stays within reach, because the next one lies there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use rustix::fs::{CWD, Mode, OFlags};

use crate::config::{AdminAddress, Config, Problem};

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
        let files = config.places.files().map(|(_, path)| path);
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

/// Folders with this file: the one that its path names, the one where it really is, and those where links to their neighbours are. A file
/// of the root folder stands for itself.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut keep = |path: &Path| {
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let folder = match folder {
            None => return,
            Some(folder) if folder == Path::new("") => Path::new("."),
            // All files are below it.
            Some(folder) if folder.parent().is_none() => path,
            Some(folder) => folder,
        };
        if let Ok(real) = fs::canonicalize(folder)
            && real.parent().is_some()
        {
            found.insert(real);
        }
    };
    keep(file);
    if let Ok(real) = fs::canonicalize(file) {
        keep(&real);
    }
    for ancestor in file.ancestors() {
        let Ok(target) = fs::read_link(ancestor) else { continue };
        let mut parts = target.components();
        if let Some(Component::Normal(_)) = parts.next() {
            keep(&ancestor.with_file_name("."));
        }
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
    config.places.problem(
        key,
        format!(
            "\"{}\", which the sandbox of this process forbids (Landlock): it was made for the folders that were configured at the start",
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
    fn folders_are_those_of_the_name_of_the_file_and_of_links_between_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let sorted = |paths: &[&str]| paths.iter().map(|path| root.join(path)).collect::<BTreeSet<_>>();
        for made in ["plain", "live/site", "archive/site", "releases/1", "volume/..1"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        for file in ["plain/a", "archive/site/a1", "releases/1/a", "volume/..1/a"] {
            fs::write(root.join(file), "").unwrap();
        }
        assert_eq!(folders(&root.join("plain/a")), sorted(&["plain"]));
        assert_eq!(folders(&root.join("plain/later")), sorted(&["plain"]));
        assert_eq!(folders(&root.join("plain")), sorted(&["plain"]));
        // As certbot has it.
        symlink("../../archive/site/a1", root.join("live/site/a")).unwrap();
        assert_eq!(
            folders(&root.join("live/site/a")),
            sorted(&["live/site", "archive/site"])
        );
        // As Kubernetes has it.
        symlink("..1", root.join("volume/..data")).unwrap();
        symlink("..data/a", root.join("volume/a")).unwrap();
        assert_eq!(folders(&root.join("volume/a")), sorted(&["volume", "volume/..1"]));
        // A release, and a link to it that is absolute: its place is not where the next one will be.
        symlink("releases/1", root.join("current")).unwrap();
        symlink(root.join("releases/1"), root.join("absolute")).unwrap();
        assert_eq!(folders(&root.join("current/a")), sorted(&["", "releases/1"]));
        assert_eq!(folders(&root.join("absolute/a")), sorted(&["releases/1"]));
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
