//! Attempts at a certificate that failed, and when the next one is made.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cert_chain::VrotId;

/// The last attempts that failed, by vRoT.
#[derive(Debug, Default)]
pub(super) struct Failures {
    last: Mutex<BTreeMap<VrotId, Failure>>,
    count: AtomicU64,
}

#[derive(Debug)]
struct Failure {
    /// None, if the vRoT was only not ready for it.
    reason: Option<String>,
    attempts: u32,
    again: Instant,
}

/// Before the second attempt; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(10 * 60);

impl Failures {
    /// How many attempts failed.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// How many vRoTs there are whose last attempt failed.
    pub(super) fn vrots(&self) -> usize {
        let last = self.last();
        (last.values())
            .filter(|failure| failure.reason.is_some())
            .count()
    }

    /// Why the last attempt for a vRoT failed, if it did.
    pub(super) fn reason(&self, vrot: VrotId) -> Option<String> {
        self.last().get(&vrot)?.reason.clone()
    }

    /// Notes a failure, after which the next attempt is made in `longest` at the latest; whether its
    /// reason is another one than last time.
    pub(super) fn note(&self, vrot: VrotId, reason: &str, longest: Duration) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let last = self.again_later(vrot, Some(reason), longest);
        last.as_deref() != Some(reason)
    }

    /// Notes that a vRoT was not ready.
    pub(super) fn postpone(&self, vrot: VrotId, longest: Duration) {
        self.again_later(vrot, None, longest);
    }

    /// Whether it is time for another attempt.
    pub(super) fn admit(&self, vrot: VrotId) -> bool {
        let last = self.last();
        last.get(&vrot)
            .is_none_or(|failure| failure.again <= Instant::now())
    }

    /// Nothing fails any more for this vRoT.
    pub(super) fn forget(&self, vrot: VrotId) {
        self.last().remove(&vrot);
    }

    /// Forgets all other vRoTs.
    pub(super) fn keep(&self, is_kept: impl Fn(VrotId) -> bool) {
        self.last().retain(|vrot, _| is_kept(*vrot));
    }

    /// The reason of the failure before.
    fn again_later(&self, vrot: VrotId, reason: Option<&str>, longest: Duration) -> Option<String> {
        let mut last = self.last();
        let attempts = (last.get(&vrot)).map_or(1, |failure| failure.attempts.saturating_add(1));
        let pause = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(16));
        let failure = Failure {
            reason: reason.map(str::to_owned),
            attempts,
            again: Instant::now() + pause.min(LONGEST_RETRY).min(longest),
        };
        last.insert(vrot, failure).and_then(|before| before.reason)
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<VrotId, Failure>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
