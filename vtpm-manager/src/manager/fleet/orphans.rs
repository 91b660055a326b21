//! Backends that go on without a manager, because the store that they belong to is not open.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Fleet;
use crate::backend::Backend;
use crate::manager::folders::Folders;

/// Live backends that no manager serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// How many.
    pub backends: u64,
    /// How many of them say that they answered a command before its state was durable.
    pub degraded: u64,
}

/// What was found, and when.
pub(super) type Seen = Option<(Instant, Orphans)>;

/// Looking takes the manager's place at each backend for a moment: scrapes do not do it anew.
const FRESH: Duration = Duration::from_secs(5);
/// A backend that makes an RSA key does not answer; it is counted all the same.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

impl Fleet {
    /// Backends that go on without a manager: none, once the store is open. While it is being opened,
    /// no backend is asked: adoption comes next, and messages that a backend keeps for its next
    /// manager would go to this connection instead.
    pub async fn orphans(&self) -> Orphans {
        if self.guarded.is_open() || self.guarded.store_state().is_opening() {
            return Orphans::default();
        }
        let seen = *self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.map_or_else(Orphans::default, |(_, found)| found);
        if seen.is_some_and(|(at, _)| at.elapsed() < FRESH) {
            return last;
        }
        // A backend takes one manager at a time: looking now would be in the way of its adoption.
        let Some(_not_opened_meanwhile) = self.guarded.try_turn() else {
            return last;
        };
        let found = look(&self.folders).await;
        *self.orphans.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), found));
        found
    }
}

async fn look(folders: &Folders) -> Orphans {
    let folders = match folders.in_use() {
        Ok(folders) => folders,
        Err(error) => {
            tracing::warn!(%error, "nobody knows which backends run");
            return Orphans::default();
        }
    };
    let mut looks = JoinSet::new();
    for folder in folders {
        looks.spawn(async move { Backend::look(&folder, ANSWER_TIMEOUT).await });
    }
    let mut found = Orphans::default();
    for status in looks.join_all().await {
        match status {
            Ok(Some(status)) => {
                found.backends += 1;
                found.degraded += u64::from(status.degraded);
            }
            // Its socket is there: it is at work.
            Err(_) => found.backends += 1,
            Ok(None) => {}
        }
    }
    found
}
