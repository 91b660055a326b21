//! Bounds how long callers wait for the TPM: a request is given up once the TPM takes longer over a
//! command than any TPM needs, and later requests are refused until it answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::error::AnchorError;

/// Measures how long the TPM has been busy with what it was given last.
pub(super) struct Watchdog {
    /// The TPM, for messages.
    tpm: String,
    at: Mutex<Option<Work>>,
    given_up: AtomicU64,
}

/// What the TPM is busy with.
#[derive(Clone, Copy)]
struct Work {
    since: Instant,
    allowance: Duration,
}

/// The TPM is busy for as long as this lives.
pub(super) struct Watch<'a>(&'a Watchdog);

/// Decided once between the caller of a request and the thread that carries it out: either the
/// caller gave it up, and nothing of it is kept, or the thread keeps it, and the caller waits.
#[derive(Clone, Default)]
pub(super) struct Claim(Arc<OnceLock<Decision>>);

/// A request that is waited for. Given up when dropped.
pub(super) struct Waiting {
    watchdog: Arc<Watchdog>,
    claim: Claim,
    /// Whether the TPM is done with it, and only our own part is still to come.
    is_kept: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    GivenUp,
    Kept,
}

/// Some commands in a row, none of which makes a key: a chip takes up to two seconds for them.
pub(super) const COMMANDS: Duration = Duration::from_secs(8);
/// A primary RSA key on a slow chip.
pub(super) const KEY: Duration = Duration::from_secs(90);

impl Watchdog {
    pub(super) fn of(tpm: String) -> Self {
        Self {
            tpm,
            at: Mutex::new(None),
            given_up: AtomicU64::new(0),
        }
    }

    /// The TPM is given something for which it may take this long.
    pub(super) fn begin(&self, allowance: Duration) -> Watch<'_> {
        let since = Instant::now();
        *self.at() = Some(Work { since, allowance });
        Watch(self)
    }

    /// How long it has not answered, if that is longer than it may.
    pub(super) fn silence(&self) -> Option<Duration> {
        let work = (*self.at())?;
        let elapsed = work.since.elapsed();
        (elapsed >= work.allowance).then_some(elapsed)
    }

    /// How long to wait before this is asked again; an error, if it is in vain.
    pub(super) fn time_left(&self) -> Result<Duration, AnchorError> {
        let Some(work) = *self.at() else {
            return Ok(COMMANDS);
        };
        let elapsed = work.since.elapsed();
        match work.allowance.checked_sub(elapsed) {
            Some(left) if !left.is_zero() => Ok(left.max(Duration::from_millis(1))),
            _ => Err(AnchorError::Silent {
                tpm: self.tpm.clone(),
                seconds: elapsed.as_secs(),
            }),
        }
    }

    /// Requests that were given up.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    fn at(&self) -> MutexGuard<'_, Option<Work>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.0.at() = None;
    }
}

impl Waiting {
    /// A request; an error, if it would be in vain.
    pub(super) fn for_a(watchdog: &Arc<Watchdog>) -> Result<Self, AnchorError> {
        let waiting = Self {
            watchdog: Arc::clone(watchdog),
            claim: Claim::default(),
            is_kept: false,
        };
        watchdog.time_left().inspect_err(|_| waiting.count())?;
        Ok(waiting)
    }

    pub(super) fn claim(&self) -> Claim {
        self.claim.clone()
    }

    /// How long to wait before this is asked again. An error, if it is in vain: then the request is
    /// given up.
    pub(super) fn time_left(&mut self) -> Result<Duration, AnchorError> {
        let patience = self.watchdog.time_left();
        if patience.is_err() && !self.is_kept && !self.claim.give_up() {
            self.is_kept = true;
            return Ok(COMMANDS);
        }
        patience.inspect_err(|_| self.count())
    }

    fn count(&self) {
        self.watchdog.given_up.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.claim.give_up();
    }
}

impl Claim {
    /// Gives it up; whether that was still possible.
    pub(super) fn give_up(&self) -> bool {
        *self.0.get_or_init(|| Decision::GivenUp) == Decision::GivenUp
    }

    /// From now on it cannot be given up; whether it was not before.
    pub(super) fn keep(&self) -> bool {
        *self.0.get_or_init(|| Decision::Kept) == Decision::Kept
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.get() == Some(&Decision::GivenUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_is_silent_once_it_takes_longer_than_it_may() {
        let watchdog = Watchdog::of("device:fake".to_owned());
        assert!(watchdog.silence().is_none());
        let watch = watchdog.begin(Duration::ZERO);
        let silent = watchdog.time_left().map_err(|error| error.to_string());
        assert!(silent.is_err_and(|error| error.contains("device:fake")));
        drop(watch);
        let watch = watchdog.begin(KEY);
        assert!(watchdog.time_left().is_ok_and(|patience| patience <= KEY));
        drop(watch);
        assert!(watchdog.silence().is_none());
    }

    #[test]
    fn what_was_given_up_is_not_kept_and_what_is_kept_is_not_given_up() {
        let given_up = Claim::default();
        assert!(given_up.give_up() && !given_up.keep() && given_up.is_given_up());
        let kept = Claim::default();
        assert!(kept.keep() && !kept.give_up() && !kept.is_given_up());
    }
}
