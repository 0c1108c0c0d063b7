//! Profiles on demand: which functions this process spends its processor time in, as a flame graph. The admin server takes one for a request,
//! SIGUSR2 begins and ends one. Only in builds with the feature `profiling` (docs/profiling.md); the others say so.

#[cfg(feature = "profiling")]
mod sampling;
#[cfg(not(feature = "profiling"))]
#[path = "profile/not_built.rs"]
mod sampling;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use self::sampling::Sampling;
use crate::limits::PROFILE_TIME_MAX;
use crate::timestamp::Timestamp;

pub(crate) use self::sampling::prepare;

/// How long a profile takes when a request does not say.
const USUAL_TIME: Duration = Duration::from_secs(10);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The feature is off.
    #[error(
        "this gateway was built without profiles; build it with `cargo build --release --features profiling`, or use `perf` (docs/profiling.md)"
    )]
    NotBuilt,
    /// One at a time.
    #[error("another profile is being taken; ask again when it has ended")]
    Busy,
    /// No sample was taken.
    #[error("nothing was sampled, because the gateway used next to no processor time; ask again while it has work")]
    Idle,
    /// What stands behind the question mark.
    #[error("found ?{found}, expected a whole number of seconds up to {}, such as ?seconds=30", PROFILE_TIME_MAX.as_secs())]
    Query {
        /// As sent.
        found: String,
    },
    /// The kernel or the library refuses.
    #[error("the profile cannot be taken: {0}")]
    Failed(String),
    /// It was taken.
    #[error("the profile cannot be written to {}: {source}; it is lost", path.display())]
    File {
        /// Where it should be.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ProfileError {
    /// What this is in an answer of HTTP.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            ProfileError::NotBuilt => StatusCode::NOT_IMPLEMENTED,
            ProfileError::Busy => StatusCode::CONFLICT,
            ProfileError::Idle => StatusCode::SERVICE_UNAVAILABLE,
            ProfileError::Query { .. } => StatusCode::BAD_REQUEST,
            ProfileError::Failed(_) | ProfileError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// For how long a request wants a profile.
pub(super) fn wanted(query: Option<&str>) -> Result<Duration, ProfileError> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(USUAL_TIME);
    };
    let seconds = query.strip_prefix("seconds=").and_then(|seconds| seconds.parse().ok());
    let time = seconds.map(Duration::from_secs);
    let possible = time.filter(|time| !time.is_zero() && *time <= PROFILE_TIME_MAX);
    possible.ok_or_else(|| ProfileError::Query {
        found: query.to_owned(),
    })
}

/// Takes a profile that lasts this long: a flame graph as SVG. Ends early when it is dropped.
pub(super) async fn take(time: Duration) -> Result<Vec<u8>, ProfileError> {
    let sampling = Sampling::begin()?;
    tokio::time::sleep(time).await;
    let drawn = tokio::task::spawn_blocking(|| sampling.draw()).await;
    drawn.unwrap_or_else(|error| Err(ProfileError::Failed(error.to_string())))
}

/// A profile that a signal began, and the next one ends.
pub(super) struct Signalled {
    folder: PathBuf,
    running: Option<(Sampling, Instant)>,
}

impl Signalled {
    /// None runs. Profiles are written beside the log file, or where there is none into the folder for temporary files: both are within reach of
    /// a gateway that is confined.
    pub(super) fn new(log: Option<&Path>) -> Signalled {
        let beside_log = log.and_then(Path::parent);
        Signalled {
            folder: beside_log.map_or_else(std::env::temp_dir, Path::to_owned),
            running: None,
        }
    }

    /// Ends a profile that nobody has ended.
    pub(super) fn end_if_overdue(&mut self) {
        let overdue = |(_, begun): &(Sampling, Instant)| begun.elapsed() >= PROFILE_TIME_MAX;
        if self.running.as_ref().is_some_and(overdue) {
            self.end();
        }
    }

    /// Begins a profile, or ends the one that runs; the log says which, or why not.
    pub(super) fn toggle(&mut self) {
        if self.running.is_some() {
            return self.end();
        }
        match Sampling::begin() {
            Ok(sampling) => {
                self.running = Some((sampling, Instant::now()));
                let most_s = PROFILE_TIME_MAX.as_secs();
                tracing::info!(most_s, "a profile is being taken, until the next SIGUSR2");
            }
            Err(error) => tracing::warn!(error = %error, "no profile is taken"),
        }
    }

    fn end(&mut self) {
        let Some((sampling, begun)) = self.running.take() else {
            return;
        };
        let took_s = begun.elapsed().as_secs();
        let path = self.folder.join(format!("ringlock-profile-{}.svg", Timestamp::now()));
        tokio::task::spawn_blocking(move || match sampling.draw().and_then(|graph| write(&path, &graph)) {
            Ok(()) => tracing::info!(file = %path.display(), took_s, "the profile is written"),
            Err(error) => tracing::error!(error = %error, "there is no profile"),
        });
    }
}

/// Into a file that was not there: in a folder that everybody may write to, one that is there may be somebody else's.
fn write(path: &Path, graph: &[u8]) -> Result<(), ProfileError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(graph))
        .map_err(|source| ProfileError::File {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_for_how_long_within_bounds() {
        assert_eq!(wanted(None).unwrap(), USUAL_TIME);
        assert_eq!(wanted(Some("")).unwrap(), USUAL_TIME);
        assert_eq!(wanted(Some("seconds=1")).unwrap(), Duration::from_secs(1));
        assert_eq!(wanted(Some("seconds=300")).unwrap(), PROFILE_TIME_MAX);
        for wrong in [
            "seconds=0",
            "seconds=301",
            "seconds=-1",
            "seconds=1.5",
            "seconds",
            "s=1",
        ] {
            let error = wanted(Some(wrong)).unwrap_err().to_string();
            assert!(
                error.contains(&format!("?{wrong}")) && error.contains("?seconds=30"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.svg");
        write(&path, b"first").unwrap();
        let error = write(&path, b"second").unwrap_err().to_string();
        assert!(error.contains("profile.svg"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }
}
