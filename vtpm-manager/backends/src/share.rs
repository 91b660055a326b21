//! A vRoT's share of the host's disk: how often its state is written.

use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// So many changes of state a second, and as many as in ten seconds at once. What comes faster is
/// written later, and its guest is answered later by as much: at moments that all vRoTs have in
/// common, so that many guests that write without rest cause no more batches than one of them.
#[derive(Clone, Debug)]
pub struct Share {
    interval: Duration,
    burst: Duration,
    /// When the next change would be due, had all come at the interval.
    due: Instant,
}

/// Seconds whose changes may come at once: those of a boot or an installation.
const BURST_SECONDS: u32 = 10;
/// Of what a guest's command waits for its state at most, one interval takes this part at most;
/// a change waits for less than two. The rest is the disk's: no guest is degraded by being slowed.
const PART_OF_DEADLINE: u32 = 4;

impl Share {
    /// A share of which nothing is used yet. `deadline` is what a guest's command waits for its
    /// state at most.
    pub fn new(per_second: NonZeroU32, deadline: Duration, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        let interval = interval.min(deadline / PART_OF_DEADLINE);
        let burst = interval.saturating_mul(BURST_SECONDS.saturating_mul(per_second.get()));
        Self {
            interval,
            burst,
            due: now.checked_sub(burst).unwrap_or(now),
        }
    }

    /// Takes one change into account: what it has to wait.
    pub fn pause(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let due = self.due.max(earliest);
        if due <= now {
            self.due = due + self.interval;
            return Duration::ZERO;
        }
        // From here on the guest's changes are due at the common moments, too: a change that is due
        // between two of them would be late for the one and not wait for the other.
        let moment = self.next_common_moment(due);
        self.due = moment + self.interval;
        moment - now
    }

    /// The first moment from `due` on at which the changes of all vRoTs are written.
    fn next_common_moment(&self, due: Instant) -> Instant {
        let since = due.saturating_duration_since(common_beginning());
        let interval = self.interval.as_nanos().max(1);
        let rest = (interval - since.as_nanos() % interval) % interval;
        due + Duration::from_nanos(u64::try_from(rest).unwrap_or_default())
    }
}

/// From which all vRoTs count the moments at which what had to wait is written.
fn common_beginning() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    *BEGINNING.get_or_init(Instant::now)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::BTreeSet;

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(500);

    fn per_second(changes: u32) -> NonZeroU32 {
        NonZeroU32::new(changes).unwrap()
    }

    /// When the changes of a guest that never rests are written, for some seconds from `began`.
    fn written(share: &mut Share, began: Instant, seconds: u64) -> Vec<Instant> {
        let commit = Duration::from_micros(1500);
        let (mut now, mut written) = (began, Vec::new());
        while now < began + Duration::from_secs(seconds) {
            now += share.pause(now);
            written.push(now);
            now += commit;
        }
        written
    }

    #[test]
    fn a_guest_that_never_rests_has_a_burst_and_then_its_share() {
        let began = Instant::now();
        for rate in [1, 25, 100] {
            let mut share = Share::new(per_second(rate), Duration::from_secs(60), began);
            let written = written(&mut share, began, 60);
            let share = usize::try_from(rate * (60 + BURST_SECONDS)).unwrap();
            assert!(written.len() <= share + 2, "{} at {rate}", written.len());
            assert!(
                written.len() * 10 >= share * 9,
                "{} at {rate}",
                written.len()
            );
        }
    }

    #[test]
    fn a_guest_that_rests_has_its_burst_again_and_no_more() {
        let began = Instant::now();
        let mut share = Share::new(per_second(25), DEADLINE, began);
        written(&mut share, began, 60);
        let later = began + Duration::from_secs(3600);
        let at_once = (0..1000).take_while(|_| share.pause(later).is_zero());
        assert_eq!(at_once.count(), 251);
    }

    #[test]
    fn guests_that_never_rest_are_written_together() {
        let began = Instant::now();
        let (mut moments, mut changes) = (BTreeSet::new(), 0);
        // Guests of every phase: one of them begins shortly before each common moment.
        for guest in 0..80u64 {
            let began = began + Duration::from_micros(guest * 500);
            let mut share = Share::new(per_second(25), DEADLINE, began);
            let slowed = written(&mut share, began, 40).split_off(300);
            changes += slowed.len();
            moments.extend(slowed);
        }
        assert!(changes > 80 * 25 * 20, "{changes}");
        assert!(moments.len() <= 25 * 40 + 1, "{} moments", moments.len());
    }

    #[test]
    fn a_slowed_guest_waits_for_half_of_its_patience_at_most() {
        let began = Instant::now();
        for milliseconds in [1, 5, 80, 500, 5000] {
            let deadline = Duration::from_millis(milliseconds);
            for rate in [1, 25, 1000] {
                let mut share = Share::new(per_second(rate), deadline, began);
                let mut now = began;
                for _ in 0..(20 * rate) {
                    let pause = share.pause(now);
                    assert!(pause <= deadline / 2, "{pause:?} of {deadline:?}");
                    now += pause;
                }
            }
        }
    }
}
