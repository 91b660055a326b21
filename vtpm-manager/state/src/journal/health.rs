//! Whether the store's writer gets its work done, and how long it may still try.

use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Why nothing becomes durable at the moment.
#[derive(Clone, Debug)]
pub struct Stall {
    /// When it began.
    pub since: Instant,
    /// What the last attempt failed with.
    pub error: Arc<dyn Error + Send + Sync>,
    /// Which side tries again.
    pub retried_by: RetriedBy,
}

/// Which side tries again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetriedBy {
    /// The writer, and all changes wait behind it: the TPM does not answer.
    Writer,
    /// The one that brought the change: the disk did not take it.
    Caller,
}

/// Shared by the writer and its handles. Nothing here waits for a commit.
#[derive(Debug, Default)]
pub(super) struct Health {
    stall: Mutex<Option<Stall>>,
    /// When the manager ends, whatever is not durable by then.
    deadline: OnceLock<Instant>,
}

impl Health {
    pub(super) fn failed(&self, error: Arc<dyn Error + Send + Sync>, retried_by: RetriedBy) {
        let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        let since = stall
            .as_ref()
            .map_or_else(Instant::now, |stall| stall.since);
        *stall = Some(Stall {
            since,
            error,
            retried_by,
        });
    }

    pub(super) fn recovered(&self) {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn stall(&self) -> Option<Stall> {
        let stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        stall.clone()
    }

    /// The first deadline counts.
    pub(super) fn end_within(&self, time: Duration) {
        self.deadline.get_or_init(|| Instant::now() + time);
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.deadline
            .get()
            .is_some_and(|deadline| *deadline <= Instant::now())
    }
}
