//! Finding the library, and why it is not used.

use std::path::{Path, PathBuf};

use super::library::{self, Library};
use crate::crypto::cpu::Processor;

impl Processor {
    /// What the library's eight-wide code uses and this has not, in words; nothing when it has all of it.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let features = [
            ("BMI2", self.bmi2),
            ("AVX-512 F", self.avx512f),
            ("AVX-512 DQ", self.avx512dq),
            ("AVX-512 BW", self.avx512bw),
            ("AVX-512 IFMA", self.avx512ifma),
            ("AVX-512 VBMI2", self.avx512vbmi2),
        ];
        let missing: Vec<&str> = features.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

/// Why there is no batch. Everything works without it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is no such file, or none where libraries are.
    #[error(
        "no libcrypto_mb (looked for {looked_for}): install it with `scripts/setup-multibuffer` or from your \
         distribution, and name the file if it is elsewhere"
    )]
    NoLibrary {
        /// Files and names.
        looked_for: String,
    },
    /// The file cannot be opened as a library, or one that it needs cannot.
    #[error("{} cannot be opened as a library: {reason}; install it again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// In the loader's words, or ours.
        reason: String,
    },
    /// A version that has not been looked at.
    #[error("{} is libcrypto_mb {found}, expected 1.1 to 2.x", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// As the library says.
        found: String,
    },
    /// The processor lacks something.
    #[error("this processor lacks {missing}, or the system hides it: the batch cannot run here")]
    NotApplicable {
        /// Names of instruction sets.
        missing: String,
    },
    /// A function is not there.
    #[error("{} lacks the function {name}: it is no complete libcrypto_mb 1.1 to 2.x", path.display())]
    Symbol {
        /// The file.
        path: PathBuf,
        /// The function's.
        name: String,
    },
    /// It computes something else than aws-lc. It must not be used.
    #[error("{} gives a wrong result for {operation}: do not use it, and report it", path.display())]
    SelfCheck {
        /// The file.
        path: PathBuf,
        /// What was computed.
        operation: String,
    },
}

/// The library's name by version of its interface, newest first.
const NAMES: [&str; 2] = ["libcrypto_mb.so.13", "libcrypto_mb.so.12"];

/// Where Intel's installers and a local build put it.
const FOLDERS: [&str; 3] = [
    "/opt/intel/oneapi/ippcp/latest/lib",
    "/usr/local/lib64",
    "/usr/local/lib",
];

/// Opens the library at `path`, a file or the folder that holds it; without one, where libraries are.
pub(super) fn find(path: Option<&Path>) -> Result<(PathBuf, Library), LoadError> {
    let named = |path: &Path| library::open(path).map(|library| (path.to_owned(), library));
    if let Some(path) = path {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let files: Vec<PathBuf> = if absolute.is_dir() {
            NAMES.iter().map(|name| absolute.join(name)).collect()
        } else {
            vec![absolute]
        };
        return match files.iter().find(|file| file.exists()) {
            Some(file) => named(file),
            None => Err(LoadError::NoLibrary {
                looked_for: list(&files),
            }),
        };
    }
    let bare: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    let placed: Vec<PathBuf> = FOLDERS
        .iter()
        .flat_map(|folder| NAMES.iter().map(move |name| Path::new(folder).join(name)))
        .collect();
    for name in &bare {
        match named(name) {
            // The loader does not tell what is not there from what it cannot open.
            Err(LoadError::Broken { .. }) => {}
            other => return other,
        }
    }
    match placed.iter().find(|file| file.exists()) {
        Some(file) => named(file),
        None => Err(LoadError::NoLibrary {
            looked_for: format!("{} among the system's libraries, {}", list(&bare), list(&placed)),
        }),
    }
}

fn list(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}
