//! How long the TPM has been at what it is at. A TPM that hangs answers nobody: whoever waits for it
//! learns here that it is in vain, and waits for a bounded time, whatever the TPM does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::error::AnchorError;

/// What one TPM may take over what it was given.
pub(super) struct Pulse {
    /// The TPM, for messages.
    tpm: String,
    at: Mutex<Option<Work>>,
    given_up: AtomicU64,
}

/// What the TPM is at.
#[derive(Clone, Copy)]
struct Work {
    since: Instant,
    allowance: Duration,
}

/// Ends with what the TPM was given.
pub(super) struct Beat<'a>(&'a Pulse);

/// Between whoever asks for something and the thread that does it: what was given up leaves nothing
/// that is kept, and what is kept was not given up.
#[derive(Clone, Default)]
pub(super) struct Claim(Arc<OnceLock<Decision>>);

/// A request that is waited for. Given up when dropped.
pub(super) struct Waiting {
    pulse: Arc<Pulse>,
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

impl Pulse {
    pub(super) fn of(tpm: String) -> Self {
        Self {
            tpm,
            at: Mutex::new(None),
            given_up: AtomicU64::new(0),
        }
    }

    /// The TPM is given something that it may take this long for.
    pub(super) fn begin(&self, allowance: Duration) -> Beat<'_> {
        let since = Instant::now();
        *self.at() = Some(Work { since, allowance });
        Beat(self)
    }

    /// How long it has not answered, if that is longer than it may.
    pub(super) fn silence(&self) -> Option<Duration> {
        let work = (*self.at())?;
        let elapsed = work.since.elapsed();
        (elapsed >= work.allowance).then_some(elapsed)
    }

    /// How long to wait before this is asked again; an error, if it is in vain.
    pub(super) fn patience(&self) -> Result<Duration, AnchorError> {
        if let Some(silence) = self.silence() {
            return Err(AnchorError::Silent {
                tpm: self.tpm.clone(),
                seconds: silence.as_secs(),
            });
        }
        let work = *self.at();
        let left = work.map(|work| work.allowance.saturating_sub(work.since.elapsed()));
        Ok(left.unwrap_or(COMMANDS).max(Duration::from_millis(1)))
    }

    /// Requests that were given up.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    fn at(&self) -> MutexGuard<'_, Option<Work>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Beat<'_> {
    fn drop(&mut self) {
        *self.0.at() = None;
    }
}

impl Waiting {
    /// A request; an error, if it would be in vain.
    pub(super) fn for_a(pulse: &Arc<Pulse>) -> Result<Self, AnchorError> {
        let waiting = Self {
            pulse: Arc::clone(pulse),
            claim: Claim::default(),
            is_kept: false,
        };
        pulse.patience().inspect_err(|_| waiting.count())?;
        Ok(waiting)
    }

    pub(super) fn claim(&self) -> Claim {
        self.claim.clone()
    }

    /// How long to wait before this is asked again. An error, if it is in vain: then the request is
    /// given up.
    pub(super) fn patience(&mut self) -> Result<Duration, AnchorError> {
        let patience = self.pulse.patience();
        if patience.is_err() && !self.is_kept && !self.claim.give_up() {
            self.is_kept = true;
            return Ok(COMMANDS);
        }
        patience.inspect_err(|_| self.count())
    }

    fn count(&self) {
        self.pulse.given_up.fetch_add(1, Ordering::Relaxed);
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
        let pulse = Pulse::of("device:fake".to_owned());
        assert!(pulse.silence().is_none());
        let beat = pulse.begin(Duration::ZERO);
        let silent = pulse.patience().map_err(|error| error.to_string());
        assert!(silent.is_err_and(|error| error.contains("device:fake")));
        drop(beat);
        let beat = pulse.begin(KEY);
        assert!(pulse.patience().is_ok_and(|patience| patience <= KEY));
        drop(beat);
        assert!(pulse.silence().is_none());
    }

    #[test]
    fn what_was_given_up_is_not_kept_and_what_is_kept_is_not_given_up() {
        let given_up = Claim::default();
        assert!(given_up.give_up() && !given_up.keep() && given_up.is_given_up());
        let kept = Claim::default();
        assert!(kept.keep() && !kept.give_up() && !kept.is_given_up());
    }
}
