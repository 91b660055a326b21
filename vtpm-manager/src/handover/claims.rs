//! Things of which each is one task's at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is claimed.
#[derive(Debug)]
pub(super) struct Claims<K: Ord>(Mutex<BTreeSet<K>>);

/// A claim; given up when dropped.
#[derive(Debug)]
pub(super) struct Claim<K: Ord + Clone> {
    of: Arc<Claims<K>>,
    key: K,
}

impl<K: Ord + Clone> Claims<K> {
    /// Claims it, unless somebody has it.
    pub(super) fn claim(self: &Arc<Self>, key: K) -> Option<Claim<K>> {
        let is_new = self.all().insert(key.clone());
        is_new.then(|| Claim {
            of: Arc::clone(self),
            key,
        })
    }

    /// Whether somebody has it.
    pub(super) fn has(&self, key: &K) -> bool {
        self.all().contains(key)
    }

    fn all(&self) -> MutexGuard<'_, BTreeSet<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Default for Claims<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Drop for Claim<K> {
    fn drop(&mut self) {
        self.of.all().remove(&self.key);
    }
}
