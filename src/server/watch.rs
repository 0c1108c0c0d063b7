//! The files that a snapshot was made from: when they change, when they have settled, and what is wrong with them. What the kernel
//! tells of folders (inotify) are hints to look at once; that something has changed is seen in the files, at which is looked every
//! few seconds anyway: network and overlay file systems tell nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::links::{Folders, folders_among, inside};
use super::stamp::{Look, Sighting, Stamp};
use crate::limits::{
    FILES_ALARM_AFTER, FILES_LOOK_INTERVAL, FILES_LOOK_INTERVAL_HINTED, FILES_RETRY_INTERVAL, FILES_SETTLE,
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
    inotify: Option<Inotify>,
    look_at: Instant,
    /// When those that have changed may have settled.
    settle_at: Option<Instant>,
    /// Hints are not followed before: looking at many files takes its time.
    rested_at: Instant,
    /// It has been told that some files cannot be looked at.
    told_hidden: bool,
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
        let inotify = Inotify::new().inspect_err(|error| {
            tracing::warn!(
                "the kernel does not tell of changed files ({error}; fs.inotify.max_user_instances): they are looked at every {} ms",
                FILES_LOOK_INTERVAL.as_millis()
            );
        });
        Watch {
            roots: BTreeSet::new(),
            files: BTreeMap::new(),
            inotify: inotify.ok(),
            look_at: now,
            settle_at: None,
            rested_at: now,
            told_hidden: false,
            troubles: Vec::new(),
        }
    }

    /// What the kernel tells.
    pub(super) fn hints(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inotify.as_ref()?.descriptor.as_fd())
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
        self.told_hidden = false;
        self.look_at = now;
        self.settle_at = None;
        self.follow_links();
    }

    /// Some of what is watched could not be loaded.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.troubles.iter().any(|trouble| trouble.told)
    }

    /// When to call [`Watch::tick`] again.
    pub(super) fn due(&self) -> Option<Instant> {
        let retries = self.troubles.iter().map(|trouble| trouble.retry_at);
        let others = retries.chain(self.settle_at);
        (!self.roots.is_empty()).then(|| others.fold(self.look_at, Instant::min))
    }

    /// Files that have changed and settled, or are worth another attempt: they are going to be read.
    pub(super) fn tick(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        if self.roots.is_empty() {
            return BTreeSet::new();
        }
        let mut due = BTreeSet::new();
        if now >= self.look_at {
            let found = self.look_at_all(now);
            due = self.compare(found, now);
        } else if self.settle_at.is_some_and(|at| now >= at) {
            let changing = self.files.iter().filter(|(_, sighting)| sighting.is_changing());
            let found = changing.map(|(path, _)| (path.clone(), Stamp::at(path).ok()));
            due = self.compare(found.collect(), now);
        }
        for trouble in &mut self.troubles {
            trouble.told &= trouble.files.is_disjoint(&due);
        }
        let retried = self.troubles.iter().filter(|trouble| now >= trouble.retry_at);
        due.extend(retried.flat_map(|trouble| trouble.files.iter().cloned()));
        due
    }

    fn look_at_all(&mut self, now: Instant) -> Stamps {
        let began = Instant::now();
        let mut found = stamps(&self.roots);
        for path in self.files.keys() {
            // What was in a folder and is gone.
            found.entry(path.clone()).or_insert(Some(None));
        }
        if !self.told_hidden
            && let Some((path, _)) = found.iter().find(|(_, stamp)| stamp.is_none())
        {
            self.told_hidden = true;
            tracing::warn!(
                file = %path.display(),
                "a file cannot be looked at, so that nobody will notice when it changes: make it and its folders readable for the user that the gateway has become"
            );
        }
        self.look_at = now + self.interval();
        self.rested_at = now + began.elapsed() * 4;
        found
    }

    /// Notes what is there now, for all files or those that are changing, and gives what has settled.
    fn compare(&mut self, found: Stamps, now: Instant) -> BTreeSet<PathBuf> {
        self.settle_at = None;
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
                Look::Changing(until) => self.settle_at = Some(self.settle_at.map_or(until, |at| at.min(until))),
                Look::Settled => {
                    sighting.read();
                    settled.insert(path);
                }
            }
        }
        if others {
            let roots = &self.roots;
            self.files
                .retain(|path, sighting| !sighting.is_missing() || roots.contains(path));
            self.follow_links();
        }
        settled
    }

    /// Has the kernel tell of the folders that the files are in now, and of those of links on the way to them.
    fn follow_links(&mut self) {
        let Some(inotify) = &mut self.inotify else {
            return;
        };
        let Folders {
            mut of_files,
            on_the_way,
            // Those with links there are on the way.
            of_neighbours: _,
            // Nothing is known yet of what comes there.
            of_namesakes: _,
        } = Folders::of(self.roots.iter().map(PathBuf::as_path));
        of_files.extend(on_the_way);
        if let Err(error) = inotify.watch(of_files) {
            tracing::warn!(
                "the kernel does not tell of changed files any more ({error}; fs.inotify.max_user_watches): they are looked at every {} ms",
                FILES_LOOK_INTERVAL.as_millis()
            );
            self.inotify = None;
        }
    }

    fn interval(&self) -> Duration {
        match self.inotify {
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

/// What is at each path; none for what cannot be looked at.
type Stamps = BTreeMap<PathBuf, Option<Option<Stamp>>>;

/// What is at these paths, and what is in those of them that are folders.
fn stamps(roots: &BTreeSet<PathBuf>) -> Stamps {
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

/// Folders that the kernel tells of.
struct Inotify {
    descriptor: OwnedFd,
    /// By the kernel's numbers.
    watched: BTreeSet<i32>,
}

impl Inotify {
    fn new() -> io::Result<Inotify> {
        Ok(Inotify {
            descriptor: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
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
            match inotify::add_watch(&self.descriptor, &folder, changes) {
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
            let _ = inotify::remove_watch(&self.descriptor, number);
        }
        self.watched = watched;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::config::Places;

    fn set<const N: usize>(files: [&Path; N]) -> BTreeSet<PathBuf> {
        files.map(Path::to_owned).into()
    }

    #[test]
    fn the_kernel_tells_of_each_way_to_replace_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let mut inotify = Inotify::new().unwrap();
        inotify.watch(set([folder.path()])).unwrap();
        let told = || {
            let mut events = [0; 4096];
            let mut any = false;
            while rustix::io::read(&inotify.descriptor, &mut events).is_ok_and(|bytes| bytes > 0) {
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
