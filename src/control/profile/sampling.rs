//! Samples by SIGPROF, with pprof: the kernel sends the signal to a thread that uses processor time, and its handler notes the calls that the
//! thread is in, found by the unwinding tables of the program. Those need no frame pointers, which AWS-LC's assembly has none of.

use pprof::{ProfilerGuard, ProfilerGuardBuilder, flamegraph};
use rustix::process::{Signal, getpid, kill_process};

use super::ProfileError;

/// Samples for each second of processor time. Not 100, so that nothing that happens every 10 ms is always or never seen.
const SAMPLES_PER_S: i32 = 99;

/// A profile that is being taken. Sampling ends when it is dropped.
pub(super) struct Sampling(ProfilerGuard<'static>);

/// Has the unwinding tables read, which the handler does with the first sample: here, because later the files are out of reach, and a handler
/// that interrupts the allocator must not allocate. There is to be no other thread yet, or the signal may go to it.
pub(crate) fn prepare() {
    // The timer's first signal would come after a second of processor time.
    let prepared = ProfilerGuardBuilder::default()
        .frequency(1)
        .build()
        .map_err(failed)
        .and_then(|guard| {
            kill_process(getpid(), Signal::PROF).map_err(failed)?;
            let report = guard.report().build_unresolved().map_err(failed)?;
            if report.data.is_empty() {
                return Err(failed("a first sample shows nothing"));
            }
            Ok(())
        });
    if let Err(error) = prepared {
        tracing::warn!(error = %error, "profiles may be of no use");
    }
}

impl Sampling {
    pub(super) fn begin() -> Result<Sampling, ProfileError> {
        let guard = ProfilerGuardBuilder::default().frequency(SAMPLES_PER_S).build();
        guard.map(Sampling).map_err(|error| match error {
            pprof::Error::Running => ProfileError::Busy,
            pprof::Error::NixError(_)
            | pprof::Error::IoError(_)
            | pprof::Error::CreatingError
            | pprof::Error::NotRunning => failed(error),
        })
    }

    /// The flame graph as SVG. Takes a while: functions get their names now.
    pub(super) fn draw(self) -> Result<Vec<u8>, ProfileError> {
        let report = self.0.report().build().map_err(failed)?;
        let samples: isize = report.data.values().sum();
        if samples == 0 {
            return Err(ProfileError::Idle);
        }
        let mut options = flamegraph::Options::default();
        options.title = "Ringlock: processor time".to_owned();
        options.subtitle = Some(format!("{samples} samples in {} s", report.timing.duration.as_secs()));
        let mut graph = Vec::new();
        let drawn = report.flamegraph_with_options(&mut graph, &mut options);
        drawn.map(|()| graph).map_err(failed)
    }
}

fn failed(why: impl ToString) -> ProfileError {
    ProfileError::Failed(why.to_string())
}
