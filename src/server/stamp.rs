//! Whether a file is another than the one that was read, and whether whoever replaces it is done.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Of content, owner or permissions: what could not be read may be readable now.
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The file that this path leads to, through links; none where there is no such file.
    pub(super) fn at(path: &Path) -> io::Result<Option<Stamp>> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(Stamp::of(&metadata))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A file as it was read last, and as it was found since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    /// As it was when it was read, whatever came of that; none when it was not there.
    read: Option<Stamp>,
    /// As it was found last and since when, if that is another.
    found: Option<(Option<Stamp>, Instant)>,
}

/// What a look at a file has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is what was read.
    Same,
    /// It is another, perhaps not whole: to be looked at again then.
    Changing(Instant),
    /// It is another, and has been so for a while.
    Settled,
}

impl Sighting {
    /// A file that was read when it was so.
    pub(super) fn new(read: Option<Stamp>) -> Sighting {
        Sighting { read, found: None }
    }

    /// It is so now. One that is being written or replaced is left alone until it has stayed as it is for `settle`.
    pub(super) fn look(&mut self, now: Instant, stamp: Option<Stamp>, settle: Duration) -> Look {
        if stamp == self.read {
            self.found = None;
            return Look::Same;
        }
        let since = match self.found {
            Some((found, since)) if found == stamp => since,
            Some(_) | None => now,
        };
        self.found = Some((stamp, since));
        if now >= since + settle {
            Look::Settled
        } else {
            Look::Changing(since + settle)
        }
    }

    /// It is going to be read, or was, as it was found last.
    pub(super) fn read(&mut self) {
        if let Some((found, _)) = self.found.take() {
            self.read = found;
        }
    }

    /// It was not there when it was read last.
    pub(super) fn is_missing(&self) -> bool {
        self.read.is_none() && self.found.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_millis(250);

    fn stamp(bytes: u64) -> Option<Stamp> {
        let (device, inode, changed) = (1, 2, (3, 4));
        Some(Stamp {
            device,
            inode,
            bytes,
            changed,
        })
    }

    #[test]
    fn what_changes_again_is_waited_for() {
        let start = Instant::now();
        let mut file = Sighting::new(stamp(1));
        assert_eq!(file.look(start, stamp(1), SETTLE), Look::Same);
        assert_eq!(file.look(start, stamp(2), SETTLE), Look::Changing(start + SETTLE));
        let later = start + SETTLE;
        assert_eq!(file.look(later, stamp(3), SETTLE), Look::Changing(later + SETTLE));
        assert_eq!(file.look(later, None, SETTLE), Look::Changing(later + SETTLE));
        assert_eq!(file.look(later + SETTLE, None, SETTLE), Look::Settled);
        file.read();
        assert!(file.is_missing());
        assert_eq!(file.look(later + SETTLE, None, SETTLE), Look::Same);
    }

    #[test]
    fn what_becomes_again_what_it_was_has_not_changed() {
        let start = Instant::now();
        let mut file = Sighting::new(stamp(1));
        assert_eq!(file.look(start, None, SETTLE), Look::Changing(start + SETTLE));
        assert_eq!(file.look(start, stamp(1), SETTLE), Look::Same);
        let later = start + SETTLE;
        assert_eq!(file.look(later, None, SETTLE), Look::Changing(later + SETTLE));
    }
}
