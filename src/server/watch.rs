//! The files that a snapshot was made from: when they change, when they have settled, and what is wrong with them. What the kernel
//! tells of folders (inotify) are hints to look at once; that something has changed is seen in the files, at which is looked every
//! few seconds anyway: network and overlay file systems tell nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::stamp::{Look, Sighting, Stamp};
use crate::limits::{
    FILES_ALARM_AFTER, FILES_LOOK_INTERVAL, FILES_LOOK_INTERVAL_HINTED, FILES_RETRY_INTERVAL, FILES_SETTLE,
    SYMLINKS_MAX,
};
use crate::snapshot::Failure;

/// Files and folders, as they are before they are read.
#[derive(Debug)]
pub(super) struct Seen {
    roots: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Sighting>,
}

/// See the module.
pub(super) struct Watch {
    roots: BTreeSet<PathBuf>,
    /// The roots, and what is in those that are folders.
    files: BTreeMap<PathBuf, Sighting>,
    folders: Option<Folders>,
    look_at: Instant,
    /// Hints are not followed before: looking at many files takes its time.
    rested_at: Instant,
    troubles: Vec<Trouble>,
}

/// What cannot be loaded since some of its files have changed.
struct Trouble {
    files: BTreeSet<PathBuf>,
    what: String,
    since: Instant,
    retry_at: Instant,
    /// The operator has been told of what is there now.
    told: bool,
}

/// What is to be said of files that were loaded again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is wrong for so long now that somebody has to act: told once for each content.
    pub(super) alarms: Vec<String>,
    /// What is wrong and may be right in a moment: a certificate that has come before its key.
    pub(super) not_yet: Vec<String>,
}

impl Seen {
    /// Looks at files that are going to be read.
    pub(super) fn now(roots: BTreeSet<PathBuf>) -> Seen {
        let files = stamps(&roots).into_iter();
        let files = files.map(|(path, stamp)| (path, Sighting::new(stamp.unwrap_or_default())));
        Seen {
            files: files.collect(),
            roots,
        }
    }
}

impl Watch {
    /// Watches nothing yet.
    pub(super) fn new(now: Instant) -> Watch {
        let folders = Folders::new().inspect_err(|error| {
            tracing::warn!(
                "the kernel does not tell of changed files ({error}; fs.inotify.max_user_instances): they are looked at every {} ms",
                FILES_LOOK_INTERVAL.as_millis()
            );
        });
        Watch {
            roots: BTreeSet::new(),
            files: BTreeMap::new(),
            folders: folders.ok(),
            look_at: now,
            rested_at: now,
            troubles: Vec::new(),
        }
    }

    /// What the kernel tells.
    pub(super) fn hints(&self) -> Option<BorrowedFd<'_>> {
        Some(self.folders.as_ref()?.inotify.as_fd())
    }

    /// It has told something: it is time to look.
    pub(super) fn hinted(&mut self, now: Instant) {
        self.look_at = self.look_at.min(now.max(self.rested_at));
    }

    /// All of these have been read since they were seen, and are good.
    pub(super) fn follow(&mut self, seen: Seen, now: Instant) {
        let Seen { roots, files } = seen;
        self.roots = roots;
        self.files = files;
        self.troubles.clear();
        self.look_at = now;
        self.follow_links();
    }

    /// Some of what is watched could not be loaded.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.troubles.iter().any(|trouble| trouble.told)
    }

    /// When to call [`Watch::tick`] again.
    pub(super) fn due(&self) -> Option<Instant> {
        let retries = self.troubles.iter().map(|trouble| trouble.retry_at);
        (!self.roots.is_empty()).then(|| retries.fold(self.look_at, Instant::min))
    }

    /// Files that have changed and settled, or are worth another attempt: they are going to be read.
    pub(super) fn tick(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        if self.roots.is_empty() {
            return BTreeSet::new();
        }
        let mut due = BTreeSet::new();
        if now >= self.look_at {
            due = self.look(now);
            for trouble in &mut self.troubles {
                trouble.told &= trouble.files.is_disjoint(&due);
            }
        }
        let retried = self.troubles.iter().filter(|trouble| now >= trouble.retry_at);
        due.extend(retried.flat_map(|trouble| trouble.files.iter().cloned()));
        due
    }

    fn look(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        let began = Instant::now();
        let mut found = stamps(&self.roots);
        for path in self.files.keys() {
            // What was in a folder and is gone.
            found.entry(path.clone()).or_insert(Some(None));
        }
        self.look_at = now + self.interval();
        let mut settled = BTreeSet::new();
        let mut others = false;
        for (path, stamp) in found {
            // What cannot be looked at stays as it was: it could not be read either.
            let Some(stamp) = stamp else { continue };
            let sighting = self.files.entry(path.clone()).or_insert(Sighting::new(None));
            let look = sighting.look(now, stamp, FILES_SETTLE);
            others |= look != Look::Same;
            match look {
                Look::Same => {}
                Look::Changing(until) => self.look_at = self.look_at.min(until),
                Look::Settled => {
                    sighting.read();
                    settled.insert(path);
                }
            }
        }
        let roots = &self.roots;
        self.files
            .retain(|path, sighting| !sighting.is_missing() || roots.contains(path));
        if others {
            self.follow_links();
        }
        self.rested_at = now + began.elapsed() * 10;
        settled
    }

    /// Has the kernel tell of the folders that the files are in now, and of those of links on the way to them.
    fn follow_links(&mut self) {
        let Some(folders) = &mut self.folders else {
            return;
        };
        if let Err(error) = folders.watch(folders_of(&self.roots)) {
            tracing::warn!(
                "the kernel does not tell of changed files any more ({error}; fs.inotify.max_user_watches): they are looked at every {} ms",
                FILES_LOOK_INTERVAL.as_millis()
            );
            self.folders = None;
        }
    }

    fn interval(&self) -> Duration {
        match self.folders {
            Some(_) => FILES_LOOK_INTERVAL_HINTED,
            None => FILES_LOOK_INTERVAL,
        }
    }

    /// These files have been loaded again, but for what has failed.
    pub(super) fn loaded(&mut self, files: &BTreeSet<PathBuf>, failures: Vec<Failure>, now: Instant) -> Verdict {
        let (concerned, mut troubles): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.troubles).into_iter().partition(|trouble| {
                let again = |failure: &Failure| failure.files.iter().all(|file| trouble.files.contains(file));
                !trouble.files.is_disjoint(files) || failures.iter().any(again)
            });
        let mut verdict = Verdict::default();
        for failure in failures {
            let files: BTreeSet<PathBuf> = failure.files.into_iter().collect();
            let known = concerned.iter().find(|trouble| trouble.files == files);
            let since = known.map_or(now, |trouble| trouble.since);
            let alarm = now >= since + FILES_ALARM_AFTER;
            let what = failure.problem.to_string();
            let told = known.is_some_and(|trouble| trouble.told && trouble.what == what);
            let heard = known.is_some_and(|trouble| trouble.what == what);
            if alarm && !told {
                verdict.alarms.push(what.clone());
            } else if !alarm && !heard {
                verdict.not_yet.push(what.clone());
            }
            troubles.push(Trouble {
                files,
                what,
                since,
                retry_at: if alarm {
                    now + FILES_RETRY_INTERVAL
                } else {
                    since + FILES_ALARM_AFTER
                },
                told: alarm,
            });
        }
        self.troubles = troubles;
        verdict
    }
}

/// What is at these paths, and what is in those of them that are folders; none for what cannot be looked at.
fn stamps(roots: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Option<Option<Stamp>>> {
    let mut found = BTreeMap::new();
    for root in roots {
        let within = inside(root);
        for folder in folders_among(&within) {
            found.extend(inside(&folder).into_iter().map(|(path, _)| stamped(path)));
        }
        found.extend(within.into_iter().map(|(path, _)| stamped(path)));
        found.extend([stamped(root.clone())]);
    }
    found
}

fn stamped(path: PathBuf) -> (PathBuf, Option<Option<Stamp>>) {
    let stamp = Stamp::at(&path).ok();
    (path, stamp)
}

/// What is in a folder; nothing if it is none.
fn inside(folder: &Path) -> Vec<(PathBuf, Option<fs::FileType>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.file_type().ok())).collect()
}

/// Those that are folders or lead to one: what is in them is watched as well, and nothing below.
fn folders_among(entries: &[(PathBuf, Option<fs::FileType>)]) -> Vec<PathBuf> {
    let is_folder = |path: &Path, kind: fs::FileType| kind.is_dir() || (kind.is_symlink() && path.is_dir());
    let folders = entries
        .iter()
        .filter(|(path, kind)| kind.is_some_and(|kind| is_folder(path, kind)));
    folders.map(|(path, _)| path.clone()).collect()
}

/// The folders whose entries decide what is found at these paths: where the files are, and where links on the way to them are.
fn folders_of(roots: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let mut links = Links::default();
    let below = roots.iter().flat_map(|root| folders_among(&inside(root)));
    for root in roots.iter().cloned().chain(below) {
        // A path that is relative to nothing leads nowhere.
        let Ok(absolute) = std::path::absolute(&root) else {
            continue;
        };
        let file = links.follow(&absolute, SYMLINKS_MAX);
        links.folders.extend(file.parent().map(Path::to_owned));
        if file.is_dir() {
            // Links in it lead to where the files are, as certbot's do.
            for (entry, kind) in inside(&file) {
                if kind.is_some_and(|kind| kind.is_symlink()) {
                    let target = links.follow(&entry, SYMLINKS_MAX);
                    links.folders.extend(target.parent().map(Path::to_owned));
                }
            }
            links.folders.insert(file);
        }
    }
    links.folders
}

/// Resolves paths, and remembers the folders of the links that it has met.
#[derive(Default)]
struct Links {
    folders: BTreeSet<PathBuf>,
    /// Folders by the paths that lead to them.
    known: BTreeMap<PathBuf, PathBuf>,
}

impl Links {
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
                let target = folder.join(target);
                self.folders.insert(folder);
                self.follow(&target, links_left - 1)
            }
            Ok(_) | Err(_) => entry,
        }
    }
}

/// Folders that the kernel tells of.
struct Folders {
    inotify: OwnedFd,
    /// By the kernel's numbers.
    watched: BTreeSet<i32>,
}

impl Folders {
    fn new() -> io::Result<Folders> {
        Ok(Folders {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            watched: BTreeSet::new(),
        })
    }

    /// These and no others. One that is not there is looked for by whoever looks for its files.
    fn watch(&mut self, folders: BTreeSet<PathBuf>) -> io::Result<()> {
        let changes = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut watched = BTreeSet::new();
        for folder in folders {
            match inotify::add_watch(&self.inotify, &folder, changes) {
                Ok(number) => _ = watched.insert(number),
                Err(Errno::NOSPC | Errno::NOMEM) => return Err(Errno::NOSPC.into()),
                // It is gone, or may not be read: then its files are looked at as often as those of other file systems.
                Err(error) => {
                    tracing::debug!(folder = %folder.display(), error = %error, "the kernel does not tell of a folder")
                }
            }
        }
        for &number in self.watched.difference(&watched) {
            // One that is gone is not watched any more.
            let _ = inotify::remove_watch(&self.inotify, number);
        }
        self.watched = watched;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Places;

    fn set<const N: usize>(files: [&Path; N]) -> BTreeSet<PathBuf> {
        files.map(Path::to_owned).into()
    }

    #[test]
    fn links_are_followed_and_their_folders_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| fs::canonicalize(folder.path()).unwrap().join(path);
        for made in ["volume/..1", "live/site", "archive/site", "folder"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("volume/..1/tls.crt"), "").unwrap();
        symlink("..1", at("volume/..data")).unwrap();
        symlink("..data/tls.crt", at("volume/tls.crt")).unwrap();
        symlink("../../archive/site/cert1.pem", at("live/site/cert.pem")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let of = |path: &str| folders_of(&set([&at(path)]));
        assert_eq!(of("volume/tls.crt"), set([&at("volume"), &at("volume/..1")]));
        assert_eq!(of("live/site/cert.pem"), set([&at("live/site"), &at("archive/site")]));
        assert_eq!(
            of("folder"),
            set([&at(""), &at("folder")].map(|path| path.components().as_path()))
        );
        assert_eq!(of("missing/file"), set([&at("missing")]));
        assert!(of("loop").len() == 1, "and it ends");
    }

    #[test]
    fn the_kernel_tells_of_each_way_to_replace_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let mut folders = Folders::new().unwrap();
        folders.watch(set([folder.path()])).unwrap();
        let told = || {
            let mut events = [0; 4096];
            let mut any = false;
            while rustix::io::read(&folders.inotify, &mut events).is_ok_and(|bytes| bytes > 0) {
                any = true;
            }
            any
        };
        assert!(!told());
        let changes: [(&str, &dyn Fn()); 6] = [
            ("made", &|| fs::write(at("a"), "1").unwrap()),
            ("written to", &|| fs::write(at("a"), "2").unwrap()),
            ("linked", &|| symlink("a", at("link")).unwrap()),
            ("moved", &|| fs::rename(at("a"), at("b")).unwrap()),
            ("permitted", &|| {
                let mut permissions = fs::metadata(at("b")).unwrap().permissions();
                permissions.set_readonly(true);
                fs::set_permissions(at("b"), permissions).unwrap();
            }),
            ("removed", &|| fs::remove_file(at("b")).unwrap()),
        ];
        for (how, change) in changes {
            change();
            assert!(told(), "{how}");
            assert!(!told(), "once");
        }
        fs::read_dir(folder.path()).unwrap().for_each(drop);
        assert!(!told(), "that somebody looks is no change");
    }

    fn failure(file: &Path, found: &str) -> Failure {
        Failure {
            problem: Places::default().problem("identity \"a\": certificate", found, "a chain", "renew it"),
            files: vec![file.to_owned()],
        }
    }

    #[test]
    fn what_is_wrong_is_told_after_a_while_and_once_for_each_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.pem");
        let all = set([&file]);
        let start = Instant::now();
        let mut watch = Watch::new(start);
        watch.follow(Seen::now(all.clone()), start);
        assert_eq!(watch.tick(start), set([]));

        let change = |watch: &mut Watch, content: &str, at: Instant| {
            fs::write(&file, content).unwrap();
            watch.hinted(at);
            assert_eq!(watch.tick(at), set([]), "it may be half-written");
            let settled = at + FILES_SETTLE;
            assert_eq!(watch.due(), Some(settled));
            assert_eq!(watch.tick(settled), all);
            settled
        };
        let first = change(&mut watch, "1", start + Duration::from_secs(30));
        let verdict = watch.loaded(&all, vec![failure(&file, "half")], first);
        assert_eq!((verdict.alarms.len(), verdict.not_yet.len()), (0, 1));
        assert!(!watch.is_in_trouble());

        // It is tried once more before it is an alarm.
        let alarmed = first + FILES_ALARM_AFTER;
        assert_eq!(watch.tick(alarmed - Duration::from_millis(1)), set([]));
        assert_eq!(watch.tick(alarmed), all);
        let verdict = watch.loaded(&all, vec![failure(&file, "half")], alarmed);
        assert_eq!((verdict.alarms.len(), verdict.not_yet.len()), (1, 0));
        assert!(verdict.alarms[0].contains("found half"), "{verdict:?}");
        assert!(watch.is_in_trouble());

        // Nor does the same content ever become another.
        let again = alarmed + FILES_RETRY_INTERVAL;
        assert_eq!(watch.tick(again), all);
        let verdict = watch.loaded(&all, vec![failure(&file, "half")], again);
        assert_eq!(verdict, Verdict::default());
        assert!(watch.is_in_trouble());

        // Another content that is as bad.
        let next = change(&mut watch, "22", again + Duration::from_secs(30));
        let verdict = watch.loaded(&all, vec![failure(&file, "half")], next);
        assert_eq!(verdict.alarms.len(), 1);

        let last = change(&mut watch, "333", next + Duration::from_secs(30));
        assert_eq!(watch.loaded(&all, Vec::new(), last), Verdict::default());
        assert!(!watch.is_in_trouble());
        assert_eq!(watch.tick(last + FILES_RETRY_INTERVAL), set([]));
    }

    #[test]
    fn what_is_in_a_folder_is_watched_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (root, one, two) = (
            folder.path().to_owned(),
            folder.path().join("1.pem"),
            folder.path().join("2.pem"),
        );
        fs::write(&one, "1").unwrap();
        let mut now = Instant::now();
        let mut watch = Watch::new(now);
        watch.follow(Seen::now(set([&root])), now);
        assert_eq!(watch.tick(now), set([]));
        let mut settled = |watch: &mut Watch| {
            now += Duration::from_secs(10);
            assert_eq!(watch.tick(now), set([]));
            now += FILES_SETTLE;
            watch.tick(now)
        };
        fs::write(&one, "11").unwrap();
        assert_eq!(settled(&mut watch), set([&one]));
        fs::write(&two, "2").unwrap();
        assert_eq!(settled(&mut watch), set([&root, &two]));
        fs::remove_file(&one).unwrap();
        assert_eq!(settled(&mut watch), set([&root, &one]));
        assert_eq!(settled(&mut watch), set([]));
    }
}
