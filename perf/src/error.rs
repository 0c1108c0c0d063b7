//! Why a run could not start or could not be measured. What happens to single connections is a
//! [`crate::connection::Failure`] and is counted, not returned.

use std::fmt::Display;

/// An error of the operator's or of this machine: the run has no result.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// A flag has a value that cannot be used.
    #[error("{flag}: found `{found}`, expected {expected}")]
    Flag {
        /// The flag as typed, for example `--group`.
        flag: &'static str,
        /// The value that was given.
        found: String,
        /// What would be legal, or what to do.
        expected: String,
    },
    /// A scenario cannot be used.
    #[error("{file}:{line}: {problem}")]
    Scenario {
        /// The file, or the name of a built-in one.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What was found and expected.
        problem: String,
    },
    /// What a scenario's flags on the command line say cannot be used.
    #[error(transparent)]
    CommandLine(clap::Error),
    /// A system call or a file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file or address.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is no result of a run.
    #[error("{file}: {problem}")]
    Result {
        /// The file's path.
        file: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// A page or one of its plots could not be made.
    #[error("the HTML page: {0}")]
    Plot(String),
    /// rustls refused the settings.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    /// A process named by `--server-pid` could not be read.
    #[error("process {pid}: {problem}; check --server-pid")]
    Process {
        /// The process id.
        pid: u32,
        /// What could not be read and why.
        problem: String,
    },
    /// The run was given up because nothing but errors came back.
    #[error("gave up: {0}")]
    GaveUp(String),
    /// An attack came to nothing: its result would say nothing of the server.
    #[error("nothing was attacked: {0}")]
    NotAttacked(String),
    /// Connections should have resumed sessions and did not.
    #[error("not resumed: {0}")]
    NotResumed(String),
}

impl PerfError {
    /// A flag has a value that cannot be used.
    pub(crate) fn flag(flag: &'static str, found: impl Display, expected: impl Into<String>) -> Self {
        Self::Flag {
            flag,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }
}
