//! Load: guests that write to their TPM as fast as they are answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::vmm::Vmm;

/// What guests have seen so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

/// A thousand guests have a thousand threads, which do next to nothing.
const STACK: usize = 128 * 1024;
/// After a refused command; without it a guest would do nothing but be refused.
const PAUSE: Duration = Duration::from_millis(10);

impl Progress {
    /// Commands that succeeded.
    pub(super) fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Commands that were refused or not answered at all.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Does something while every guest writes, each one command at a time. Guests finish the
/// command under way before this returns; that still counts.
pub(super) fn under_load<T>(
    vmms: &mut [Vmm],
    during: impl FnOnce(&Progress) -> Result<T>,
) -> Result<(T, Progress)> {
    let progress = Progress::default();
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        for vmm in vmms.iter_mut() {
            let (progress, stop) = (&progress, &stop);
            let guest = thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || write_until(vmm, progress, stop));
            if let Err(error) = guest {
                stop.store(true, Ordering::Relaxed);
                return Err(error).context("starting a guest's thread");
            }
        }
        let outcome = during(&progress);
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok((outcome, progress))
}

/// Commands a second that succeed, over such a time; none may fail.
pub(super) fn rate(vmms: &mut [Vmm], window: Duration) -> Result<f64> {
    let (rate, progress) = under_load(vmms, |progress| {
        // The first answers come before all guests ask.
        thread::sleep(window / 5);
        let (before, begin) = (progress.succeeded(), Instant::now());
        thread::sleep(window);
        let (after, took) = (progress.succeeded(), begin.elapsed());
        Ok(number(after - before)? / took.as_secs_f64())
    })?;
    ensure!(
        progress.failed() == 0,
        "{} commands failed under load",
        progress.failed()
    );
    Ok(rate)
}

/// A count as a number to calculate with.
pub(super) fn number(count: impl TryInto<u32>) -> Result<f64> {
    count
        .try_into()
        .map(f64::from)
        .ok()
        .context("more than four billion")
}

fn write_until(vmm: &mut Vmm, progress: &Progress, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match vmm.write() {
            Ok(code) if code.is_success() => {
                progress.succeeded.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {
                progress.failed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
            Err(_) => {
                // The connection is gone, or out of step.
                progress.failed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
