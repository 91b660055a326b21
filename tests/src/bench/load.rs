//! Load: guests that use their TPM, as fast as they are answered or at their own pace.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::samples::Samples;
use crate::vmm::Vmm;

/// How guests use their TPM.
#[derive(Clone, Copy, Debug)]
pub(super) enum Habit {
    /// One write after the other.
    Writing,
    /// They think between two commands, and now and then one asks the host for evidence.
    Living {
        /// For so long.
        think: Duration,
    },
}

/// What guests have seen so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// How long each answer took; guests bring theirs when they end.
    took_ms: Mutex<Samples>,
}

/// A thousand guests have a thousand threads, which do next to nothing.
const STACK: usize = 128 * 1024;
/// After a refused command; without it a guest would do nothing but be refused.
const PAUSE: Duration = Duration::from_millis(10);
/// One command in so many asks for evidence: a thousand guests that think for a second then bring
/// ten requests a second, which leaves the physical TPM time for others.
const EVIDENCE: u64 = 100;

impl Progress {
    /// Commands that succeeded.
    pub(super) fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Commands that were refused or not answered at all.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How long each answer took, in milliseconds.
    pub(super) fn into_times(self) -> Samples {
        self.took_ms
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Habit {
    fn think(self) -> Duration {
        match self {
            Self::Writing => Duration::ZERO,
            Self::Living { think } => think,
        }
    }

    fn asks_for_evidence(self, command: u64) -> bool {
        matches!(self, Self::Living { .. }) && command.is_multiple_of(EVIDENCE)
    }
}

/// Does something while every guest uses its TPM, each one command at a time. Guests finish the
/// command under way before this returns; that still counts.
pub(super) fn under_load<T>(
    vmms: &mut [Vmm],
    habit: Habit,
    during: impl FnOnce(&Progress) -> Result<T>,
) -> Result<(T, Progress)> {
    let progress = Progress::default();
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let count = u32::try_from(vmms.len()).context("counting guests")?;
        for (number, vmm) in (0..count).zip(vmms.iter_mut()) {
            // Guests that think do not all ask at the same moment.
            let first = habit.think() / count * number;
            let (progress, stop) = (&progress, &stop);
            let guest = thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    thread::sleep(first);
                    live(vmm, habit, u64::from(number), progress, stop);
                });
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

/// Writes a second that succeed, over such a time; none may fail.
pub(super) fn rate(vmms: &mut [Vmm], window: Duration) -> Result<f64> {
    let (rate, progress) = under_load(vmms, Habit::Writing, |progress| {
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

/// A guest's life; `command` is the number that its first command has.
fn live(vmm: &mut Vmm, habit: Habit, mut command: u64, progress: &Progress, stop: &AtomicBool) {
    let mut took = Samples::default();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let answer = if habit.asks_for_evidence(command) {
            vmm.request_evidence()
        } else {
            vmm.write()
        };
        took.add_ms(begin.elapsed());
        command += 1;
        match answer {
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
                break;
            }
        }
        if !habit.think().is_zero() {
            thread::sleep(habit.think());
        }
    }
    let times = &progress.took_ms;
    times
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(took.into_values());
}
