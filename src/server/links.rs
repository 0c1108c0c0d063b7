//! Where files really are: follows the symbolic links on the way to them, for whoever has to notice that they change and for whoever decides
//! what stays within reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::limits::SYMLINKS_MAX;

/// Folders that decide what is found at some paths.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folders {
    /// Where the files are, by their names and really: what is a link may become a file. A folder that is named itself stands for itself.
    pub(super) of_files: BTreeSet<PathBuf>,
    /// Those with a link on the way there, and those that a named folder is in.
    pub(super) on_the_way: BTreeSet<PathBuf>,
    /// Those with a link to a neighbour, as releases and Kubernetes' volumes have it: the next neighbour comes there.
    pub(super) of_neighbours: BTreeSet<PathBuf>,
    /// For a named folder whose `NAME/` has links to files in another folder of that name, as certbot's `live/NAME/` has to
    /// `archive/NAME/`: what that one is in. The next name comes there.
    pub(super) of_namesakes: BTreeSet<PathBuf>,
}

impl Folders {
    /// Follows each path, and the links in those that are folders.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Folders {
        let mut links = Links::default();
        for path in paths {
            links.add(path, false);
            for folder in folders_among(&inside(path)) {
                links.add(&folder, true);
            }
        }
        links.folders
    }
}

/// What is in a folder; nothing if it is none.
pub(super) fn inside(folder: &Path) -> Vec<(PathBuf, Option<fs::FileType>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.file_type().ok())).collect()
}

/// Those that are folders or lead to one: what is in them counts as well, and nothing below.
pub(super) fn folders_among(entries: &[(PathBuf, Option<fs::FileType>)]) -> Vec<PathBuf> {
    let is_folder = |path: &Path, kind: fs::FileType| kind.is_dir() || (kind.is_symlink() && path.is_dir());
    let folders = entries
        .iter()
        .filter(|(path, kind)| kind.is_some_and(|kind| is_folder(path, kind)));
    folders.map(|(path, _)| path.clone()).collect()
}

/// The links in a named folder and in the folders in it.
pub(super) fn links_inside(folder: &Path) -> Vec<PathBuf> {
    let entries = inside(folder);
    let below = folders_among(&entries);
    let all = entries
        .into_iter()
        .chain(below.iter().flat_map(|folder| inside(folder)));
    let links = all.filter(|(_, kind)| kind.is_some_and(|kind| kind.is_symlink()));
    links.map(|(path, _)| path).collect()
}

/// Resolves paths, and remembers the folders that it has met.
#[derive(Default)]
struct Links {
    folders: Folders,
    /// Folders by the paths that lead to them.
    known: BTreeMap<PathBuf, PathBuf>,
}

impl Links {
    /// A path that is named, or a folder in one.
    fn add(&mut self, path: &Path, is_below: bool) {
        // A path that is relative to nothing leads nowhere.
        let Ok(absolute) = std::path::absolute(path) else {
            return;
        };
        let place = self.follow(&absolute, SYMLINKS_MAX);
        if !place.is_dir() {
            let named = absolute.parent().map(|folder| self.follow(folder, SYMLINKS_MAX));
            let folders = named.into_iter().chain(place.parent().map(Path::to_owned));
            self.folders.of_files.extend(folders);
            return;
        }
        self.folders.on_the_way.extend(place.parent().map(Path::to_owned));
        for (entry, kind) in inside(&place) {
            if !kind.is_some_and(|kind| kind.is_symlink()) {
                continue;
            }
            let target = self.follow(&entry, SYMLINKS_MAX);
            let Some(folder) = target.parent() else { continue };
            if target.is_dir() {
                // One that counts is added by itself.
                self.folders.on_the_way.insert(folder.to_owned());
                continue;
            }
            self.folders.of_files.insert(folder.to_owned());
            if is_below && folder != place && folder.file_name() == path.file_name() {
                self.folders.of_namesakes.extend(folder.parent().map(Path::to_owned));
            }
        }
        self.folders.of_files.insert(place);
    }

    fn follow(&mut self, path: &Path, links_left: usize) -> PathBuf {
        let Some(parent) = path.parent() else {
            return path.to_owned();
        };
        let folder = match self.known.get(parent) {
            Some(folder) => folder.clone(),
            None => {
                let folder = self.follow(parent, links_left);
                self.known.insert(parent.to_owned(), folder.clone());
                folder
            }
        };
        let entry = match path.components().next_back() {
            Some(Component::Normal(name)) => folder.join(name),
            Some(Component::ParentDir) => return folder.parent().unwrap_or(&folder).to_owned(),
            Some(Component::CurDir | Component::RootDir | Component::Prefix(_)) | None => return folder,
        };
        match fs::read_link(&entry) {
            Ok(target) if links_left > 0 => {
                if let Some(Component::Normal(_)) = target.components().next() {
                    self.folders.of_neighbours.insert(folder.clone());
                }
                let target = folder.join(target);
                self.folders.on_the_way.insert(folder);
                self.follow(&target, links_left - 1)
            }
            Ok(_) | Err(_) => entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let at = |path: &str| root.join(path).components().as_path().to_owned();
        let set = |paths: &[&str]| paths.iter().map(|path| at(path)).collect::<BTreeSet<_>>();
        for made in [
            "plain",
            "volume/..1",
            "live/site",
            "live/other",
            "archive/site",
            "elsewhere",
            "releases/1",
        ] {
            fs::create_dir_all(at(made)).unwrap();
        }
        let files = [
            "plain/a",
            "volume/..1/a",
            "archive/site/a1",
            "elsewhere/a",
            "releases/1/a",
        ];
        for file in files {
            fs::write(at(file), "").unwrap();
        }
        let links = [
            ("..1", "volume/..data"),
            ("..data/a", "volume/a"),
            ("../../archive/site/a1", "live/site/a"),
            ("../../elsewhere/a", "live/other/a"),
            ("releases/1", "current"),
            ("loop", "loop"),
        ];
        for (target, link) in links {
            symlink(target, at(link)).unwrap();
        }
        symlink(at("releases/1"), at("absolute")).unwrap();
        let check =
            |path: &str, of_files: &[&str], on_the_way: &[&str], of_neighbours: &[&str], of_namesakes: &[&str]| {
                let expected = Folders {
                    of_files: set(of_files),
                    on_the_way: set(on_the_way),
                    of_neighbours: set(of_neighbours),
                    of_namesakes: set(of_namesakes),
                };
                assert_eq!(Folders::of([&*at(path)]), expected, "{path}");
            };
        check("plain/a", &["plain"], &[], &[], &[]);
        check("plain/later", &["plain"], &[], &[], &[]);
        check("missing/file", &["missing"], &[], &[], &[]);
        check("plain", &["plain"], &[""], &[], &[]);
        // As Kubernetes has it.
        check("volume/a", &["volume", "volume/..1"], &["volume"], &["volume"], &[]);
        // As certbot has it: one name, and all of them. A folder of another name is no archive.
        check("live/site/a", &["live/site", "archive/site"], &["live/site"], &[], &[]);
        let all = ["live", "live/site", "live/other", "archive/site", "elsewhere"];
        check(
            "live",
            &all,
            &["", "live", "live/site", "live/other"],
            &[],
            &["archive"],
        );
        check(
            "live/site",
            &["live/site", "archive/site"],
            &["live", "live/site"],
            &[],
            &[],
        );
        // A release, and a link to it that is absolute: its place is not where the next one will be.
        check("current/a", &["releases/1"], &[""], &[""], &[]);
        check("absolute/a", &["releases/1"], &[""], &[], &[]);
        assert_eq!(Folders::of([&*at("loop")]).of_files, set(&[""]), "and it ends");
    }
}
