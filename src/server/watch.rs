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
        let (concerned, mut troubles): (Vec<_>, Vec<_>) = std::mem::take(&mut self.troubles)
            .into_iter()
            .partition(|trouble| !trouble.files.is_disjoint(files));
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
        if let Ok(entries) = fs::read_dir(root) {
            for path in entries.flatten().map(|entry| entry.path()) {
                let stamp = Stamp::at(&path).ok();
                found.insert(path, stamp);
            }
        }
        found.insert(root.clone(), Stamp::at(root).ok());
    }
    found
}

/// The folders whose entries decide what is found at these paths: where the files are, and where links on the way to them are.
fn folders_of(roots: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let mut links = Links::default();
    for root in roots {
        // A path that is relative to nothing leads nowhere.
        let Ok(absolute) = std::path::absolute(root) else {
            continue;
        };
        let file = links.follow(&absolute, SYMLINKS_MAX);
        links.folders.extend(file.parent().map(Path::to_owned));
        if file.is_dir() {
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
