//! The clock of appraisals, which goes on while the system is suspended.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now. What is measured from one call to another has the time in it for which the system was suspended;
/// [`Instant::now`] leaves that out on Linux, as do timers. So these are compared with each other only.
pub(crate) fn now() -> Instant {
    static START: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), since_boot()));
    let (start, booted) = *START;
    start + since_boot().saturating_sub(booted)
}

fn since_boot() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or_default(),
        u32::try_from(tv_nsec).unwrap_or_default(),
    )
}
