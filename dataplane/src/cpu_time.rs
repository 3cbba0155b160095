//! CPU time, for reports and for choices that are made by it.

use nix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread.
pub(crate) fn thread_cpu_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
