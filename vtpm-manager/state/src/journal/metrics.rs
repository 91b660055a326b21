//! What the writer has done so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the writer has done so far.
#[derive(Debug, Default)]
pub struct JournalMetrics {
    commits: AtomicU64,
    changes: AtomicU64,
    failures: AtomicU64,
    held_back: AtomicU64,
    microseconds: AtomicU64,
}

impl JournalMetrics {
    /// Batches made durable.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Changes made durable.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Batches that could not be written.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Changes that waited because their vRoT had used its share of the disk.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Counts such a change.
    pub fn count_held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch of so many changes that took this long.
    pub(super) fn count(&self, took: Duration, changes: usize, is_durable: bool) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(took, Ordering::Relaxed);
        if is_durable {
            self.commits.fetch_add(1, Ordering::Relaxed);
            self.changes.fetch_add(changes as u64, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Time spent committing.
    pub fn seconds(&self) -> f64 {
        Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64()
    }
}
