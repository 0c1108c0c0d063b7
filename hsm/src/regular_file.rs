//! Files with keys and secrets, which others may replace by anything.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// Why a file was not read: what was found in its place.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there, or may not be read.
    #[error("nothing readable ({0})")]
    Io(#[from] io::Error),
    /// A folder, a pipe, a device.
    #[error("no regular file")]
    NotRegular,
    /// More bytes than a file of its kind has.
    #[error("{size} bytes, more than {max},")]
    TooLarge {
        /// Of the file.
        size: u64,
        /// What was allowed.
        max: u64,
    },
}

/// Opens a file; none when it is no regular file. A pipe that nobody writes to is not waited for.
///
/// # Errors
/// It is not there, or may not be read.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let is_regular = file.metadata()?.is_file();
    Ok(is_regular.then_some(file))
}

/// Reads a file of at most so many bytes into memory that is wiped, and that is large enough from the start: what grows leaves
/// copies behind.
///
/// # Errors
/// It cannot be read, is no regular file, or is larger.
pub fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let mut file = open(path)?.ok_or(ReadError::NotRegular)?;
    let size = file.metadata()?.len();
    if size > bytes_max {
        return Err(ReadError::TooLarge { size, max: bytes_max });
    }
    let capacity = usize::try_from(size).expect("what may be read fits into memory");
    let mut bytes = Zeroizing::new(vec![0; capacity]);
    let used = fill(&mut file, &mut bytes)?;
    bytes.truncate(used);
    Ok(bytes)
}

/// Reads until the end or until the buffer is full: how many bytes there were.
pub(crate) fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut used = 0;
    while used < buffer.len() {
        match file.read(&mut buffer[used..]) {
            Ok(0) => break,
            Ok(read) => used += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(used)
}

/// Others than its owner and its group can read or write it.
#[must_use]
pub fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o006 != 0)
}
