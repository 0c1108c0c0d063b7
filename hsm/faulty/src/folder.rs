//! What is on the disk: the module's view of a token's folder, and that of the test that made it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::abort;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use cryptoki_sys::{CK_RV, CKR_GENERAL_ERROR};
use tempfile::TempDir;

use crate::cue::{Cue, Fault, Operation};

/// The variable of the environment that names the folder.
pub const VARIABLE: &str = "RINGLOCK_FAULTY";

const CUE: &str = "cue";
const CALLS: &str = "calls";
const FIRED: &str = "fired";
const PIN: &str = "pin";
const PIN_FAILURES: &str = "pin_failures";

/// How often a call that hangs looks whether the cue has changed.
const HANG_LOOK: Duration = Duration::from_millis(2);

const FILE_NAME: &str = "libringlock_faulty.so";

/// Where cargo has put the module for the test or bench that runs.
///
/// # Panics
/// The package of the test does not have this one among its dev-dependencies.
#[must_use]
pub fn module_file() -> PathBuf {
    let own = std::env::current_exe().expect("Linux tells a program's own path");
    let file = own.with_file_name(FILE_NAME);
    assert!(
        file.is_file(),
        "{} is missing: add ringlock-faulty to the dev-dependencies",
        file.display()
    );
    file
}

/// The folder of the tokens, for the module: [`VARIABLE`] names it, or it is the one that the module's file is in.
pub(crate) fn of_module() -> io::Result<PathBuf> {
    if let Some(folder) = std::env::var_os(VARIABLE) {
        return Ok(folder.into());
    }
    let here = of_module as fn() -> _ as usize;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let file = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let file = (address(from)?..address(to)?)
            .contains(&here)
            .then(|| rest.find('/'))??;
        Some(PathBuf::from(&rest[file..]))
    });
    let folder = file.and_then(|file| Some(file.parent()?.to_owned()));
    folder.ok_or_else(|| io::Error::other(format!("set {VARIABLE} to the folder of the tokens")))
}

/// Tokens in the making, in a temporary folder of their own, with a copy of the module beside them.
#[derive(Debug)]
pub struct Folder(TempDir);

/// What tests do. Each of these panics when the disk does not let it.
#[allow(clippy::missing_panics_doc, reason = "said above for all of them")]
impl Folder {
    /// No tokens.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Folder {
        let folder = TempDir::new().expect("the system has a place for temporary folders");
        fs::copy(module_file(), folder.path().join(FILE_NAME)).expect("the module can be copied");
        Folder(folder)
    }

    /// The module for these tokens. As a copy it has a state of its own in whichever process loads it, and needs no variable.
    #[must_use]
    pub fn module(&self) -> PathBuf {
        self.0.path().join(FILE_NAME)
    }

    /// For a module in another place: name and value of the variable that leads it to these tokens.
    #[must_use]
    pub fn environment(&self) -> (&'static str, String) {
        (VARIABLE, self.0.path().display().to_string())
    }

    /// Makes a token; `None`: it wants no PIN. There from the next `C_Initialize` on.
    pub fn token(&self, token: &str, pin: Option<&str>) {
        let folder = self.0.path().join(token);
        fs::create_dir_all(&folder).expect("the folder can be made");
        if let Some(pin) = pin {
            write_private(&folder.join(PIN), pin.as_bytes()).expect("the PIN can be written");
        }
    }

    /// Puts a key pair in, in PEM.
    pub fn key(&self, token: &str, label: &str, pem: &str) {
        let file = self.0.path().join(token).join(format!("{label}.pem"));
        write_private(&file, pem.as_bytes()).expect("the key can be written");
    }

    /// Puts certificates in, in PEM; the first one is that of the key with this label.
    pub fn certificates(&self, token: &str, label: &str, pem: &str) {
        let file = self.0.path().join(token).join(format!("{label}.crt.pem"));
        fs::write(file, pem).expect("the certificates can be written");
    }

    /// The file that holds a token's PIN.
    #[must_use]
    pub fn pin_file(&self, token: &str) -> PathBuf {
        self.0.path().join(token).join(PIN)
    }

    /// How often a token's PIN was wrong since it was last right.
    #[must_use]
    pub fn pin_failures(&self, token: &str) -> u64 {
        length(&self.0.path().join(token).join(PIN_FAILURES))
    }

    /// From the next call on a token does this, and nothing of what it was told before. Lines:
    ///
    /// - `latency_ms = 20`: a signature takes that much longer, in its own session only.
    /// - `hang = sign`: such calls do not return before the cue changes. `hang = all`: none does.
    /// - `fail = CKR_DEVICE_REMOVED`: every call fails; `fail_sign = …`, `fail_login = …`: only such calls. Kinds of calls: `initialize`,
    ///   `list`, `info`, `open`, `close`, `login`, `find`, `read`, `sign`.
    /// - `crash`, `crash = sign`: the process aborts.
    /// - `wrong`: signatures have one bit flipped.
    /// - `times = 3`: the faults above happen three times, in whichever processes, and then no more.
    /// - `absent`: the token is not there and its sessions are lost; `absent = sticky`: it stays away until the module is initialized anew.
    /// - `drop_idle_ms = 500`: sessions that are idle for longer are lost.
    /// - `sessions_max = 4`: the token has no more sessions.
    ///
    /// # Panics
    /// A line that is none of these.
    pub fn cue(&self, token: &str, lines: &str) {
        write_cue(&self.0.path().join(token), lines);
    }

    /// The same for calls that concern no token: kinds `initialize`, `list` and `info`.
    ///
    /// # Panics
    /// As [`Folder::cue`].
    pub fn module_cue(&self, lines: &str) {
        write_cue(self.0.path(), lines);
    }

    /// How often a function was called for a token, such as `C_Login`. Questions for a signature's length are not counted as `C_Sign`.
    #[must_use]
    pub fn calls(&self, token: &str, function: &str) -> usize {
        count(&self.0.path().join(token), function)
    }

    /// How often a function that concerns no token was called, such as `C_Initialize`.
    #[must_use]
    pub fn module_calls(&self, function: &str) -> usize {
        count(self.0.path(), function)
    }
}

fn write_cue(folder: &Path, lines: &str) {
    if let Err(error) = Cue::parse(lines) {
        panic!("{error}");
    }
    // The count begins anew before the cue that it is for, and the cue is there whole or not at all.
    let _ = fs::remove_file(folder.join(FIRED));
    let next = folder.join("cue.next");
    fs::write(&next, lines).expect("the cue can be written");
    fs::rename(&next, folder.join(CUE)).expect("the cue can be put in its place");
}

fn count(folder: &Path, function: &str) -> usize {
    let calls = fs::read_to_string(folder.join(CALLS)).unwrap_or_default();
    calls.lines().filter(|call| *call == function).count()
}

fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(bytes)
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |data| data.len())
}

/// The folder of a token, or the outer one, as the module sees it.
pub(crate) struct Place {
    folder: PathBuf,
    calls: File,
    seen: Mutex<(Option<Stamp>, Arc<Cue>)>,
}

/// Tells one cue file from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
    length: u64,
}

impl Place {
    pub(crate) fn open(folder: &Path) -> io::Result<Place> {
        Ok(Place {
            folder: folder.to_owned(),
            calls: OpenOptions::new().append(true).create(true).open(folder.join(CALLS))?,
            seen: Mutex::new((None, Arc::default())),
        })
    }

    /// The folders of the tokens in this one, by name.
    pub(crate) fn tokens(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let mut tokens = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                tokens.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
            }
        }
        Ok(tokens)
    }

    /// Label and PEM of what is in this token: keys, and certificates.
    #[allow(clippy::type_complexity, reason = "two lists of the same kind")]
    pub(crate) fn contents(&self) -> io::Result<(BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>)> {
        let (mut keys, mut certificates) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(label) = name.strip_suffix(".crt.pem") {
                certificates.insert(label.to_owned(), fs::read(&path)?);
            } else if let Some(label) = name.strip_suffix(".pem") {
                keys.insert(label.to_owned(), fs::read(&path)?);
            }
        }
        Ok((keys, certificates))
    }

    /// The PIN, if this token wants one.
    pub(crate) fn pin(&self) -> Option<Vec<u8>> {
        let text = fs::read(self.folder.join(PIN)).ok()?;
        text.split(|&byte| byte == b'\n').next().map(<[u8]>::to_vec)
    }

    pub(crate) fn pin_failures(&self) -> u64 {
        length(&self.folder.join(PIN_FAILURES))
    }

    pub(crate) fn count_pin_failure(&self) -> io::Result<()> {
        append(&self.folder.join(PIN_FAILURES)).map(drop)
    }

    pub(crate) fn forget_pin_failures(&self) {
        let _ = fs::remove_file(self.folder.join(PIN_FAILURES));
    }

    /// Notes that a function was called.
    pub(crate) fn count_call(&self, function: &str) {
        let _ = (&self.calls).write_all(format!("{function}\n").as_bytes());
    }

    /// What the cue says now. One that cannot be understood fails every call, and says so on standard error.
    pub(crate) fn cue(&self) -> Arc<Cue> {
        let file = self.folder.join(CUE);
        let stamp = fs::metadata(&file).ok().map(|data| Stamp {
            inode: data.ino(),
            seconds: data.mtime(),
            nanoseconds: data.mtime_nsec(),
            length: data.len(),
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != stamp {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let cue = Cue::parse(&text).unwrap_or_else(|error| {
                eprintln!("ringlock-faulty: {}: {error}", file.display());
                Cue::parse("fail = CKR_GENERAL_ERROR").expect("a cue of that form")
            });
            *seen = (stamp, Arc::new(cue));
        }
        Arc::clone(&seen.1)
    }

    /// Does what the cue wants of a call of this kind: hangs, ends the process, fails, or lets it pass.
    pub(crate) fn obey(&self, operation: Operation) -> Result<(), CK_RV> {
        loop {
            let cue = self.cue();
            match cue.fault(operation).filter(|_| self.fires(&cue)) {
                None => return Ok(()),
                Some(Fault::Fail(code)) => return Err(code),
                Some(Fault::Crash) => abort(),
                Some(Fault::Hang) => {
                    while Arc::ptr_eq(&cue, &self.cue()) {
                        sleep(HANG_LOOK);
                    }
                }
            }
        }
    }

    /// Whether one more fault of this cue happens. What was counted is a file's length, so it holds for all processes.
    pub(crate) fn fires(&self, cue: &Cue) -> bool {
        let Some(times) = cue.times else {
            return true;
        };
        append(&self.folder.join(FIRED)).is_ok_and(|count| count <= times)
    }
}

/// Adds a byte to a file, and tells its length after that.
fn append(file: &Path) -> io::Result<u64> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(b".")?;
    file.stream_position()
}

/// An error of the disk, as the module reports it.
pub(crate) fn disk(error: &io::Error) -> CK_RV {
    eprintln!("ringlock-faulty: {error}");
    CKR_GENERAL_ERROR
}
