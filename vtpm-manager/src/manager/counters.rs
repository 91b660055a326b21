//! What has happened since the manager started, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened since the manager started.
#[derive(Debug, Default)]
pub struct Counters {
    created: AtomicU64,
    started: AtomicU64,
    stopped: AtomicU64,
    deleted: AtomicU64,
    backends_ended: AtomicU64,
    refused: AtomicU64,
}

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// vRoTs manufactured.
    Created,
    /// vRoTs started.
    Started,
    /// vRoTs stopped on demand.
    Stopped,
    /// vRoTs deleted.
    Deleted,
    /// Backends that ended by themselves.
    BackendsEnded,
    /// Requests refused.
    Refused,
}

impl Counter {
    /// Everything that is counted.
    pub const ALL: [Self; 6] = [
        Self::Created,
        Self::Started,
        Self::Stopped,
        Self::Deleted,
        Self::BackendsEnded,
        Self::Refused,
    ];
}

impl Counters {
    /// How often it happened.
    pub fn count(&self, counter: Counter) -> u64 {
        self.cell(counter).load(Ordering::Relaxed)
    }

    /// It happened once more.
    pub fn increment(&self, counter: Counter) {
        self.cell(counter).fetch_add(1, Ordering::Relaxed);
    }

    fn cell(&self, counter: Counter) -> &AtomicU64 {
        match counter {
            Counter::Created => &self.created,
            Counter::Started => &self.started,
            Counter::Stopped => &self.stopped,
            Counter::Deleted => &self.deleted,
            Counter::BackendsEnded => &self.backends_ended,
            Counter::Refused => &self.refused,
        }
    }
}
