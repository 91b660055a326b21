//! How it stands with the store's writer: what it waits for, and for how long still.

use std::error::Error;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use api_types::WithCauses;

/// Why nothing becomes durable at the moment.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// When it began.
    pub since: Instant,
    /// What the last attempt failed with.
    pub reason: String,
    /// Who tries again.
    pub cure: Cure,
}

/// Who tries again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// The writer itself, and everybody else waits behind it: the TPM does not answer.
    WriterTries,
    /// Whoever brought the change: the disk did not take it.
    NextChange,
}

/// Shared by the writer and by those who ask about it. Nothing here waits for a commit.
#[derive(Debug, Default)]
pub(super) struct Health {
    trouble: Mutex<Option<Trouble>>,
    /// When the manager ends, whatever is not durable by then.
    deadline: OnceLock<Instant>,
}

impl Health {
    pub(super) fn failed(&self, error: &dyn Error, cure: Cure) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let since = trouble
            .as_ref()
            .map_or_else(Instant::now, |trouble| trouble.since);
        *trouble = Some(Trouble {
            since,
            reason: WithCauses(error).to_string(),
            cure,
        });
    }

    pub(super) fn recovered(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
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
