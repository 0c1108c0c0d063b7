//! CPU time of the calling thread, and where it runs.
//!
//! CPU time, because other programs share the machine: what they take is not counted. What they do to the caches and to the
//! clock of the processor still is.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time that this thread has used, user and kernel. Reading it is a system call: time many units between two readings.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time is not negative");
    let nanoseconds = u32::try_from(time.tv_nsec).expect("a timespec has fewer than 10^9 nanoseconds");
    Duration::new(seconds, nanoseconds)
}

/// Runs `work` and adds the CPU time that it takes to `spent`.
pub(crate) fn timed<R>(spent: &mut Duration, work: impl FnOnce() -> R) -> R {
    let before = thread_cpu();
    let result = work();
    *spent += thread_cpu() - before;
    result
}

/// CPU time of so many runs, which are short.
pub(crate) fn repeated(count: u64, run: &dyn Fn()) -> Duration {
    let mut spent = Duration::ZERO;
    timed(&mut spent, || (0..count).for_each(|_| run()));
    spent
}

/// Which processor a thread is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// The first one allowed: what is measured.
    Measured,
    /// The last one allowed: what drives it. With one processor it is the same.
    Other,
}

/// Keeps this thread where it belongs. Without permission it stays free, which adds noise and no error.
pub(crate) fn pin(place: Place) {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let id = match place {
        Place::Measured => ids.first(),
        Place::Other => ids.last(),
    };
    if let Some(&id) = id {
        core_affinity::set_for_current(id);
    }
}
