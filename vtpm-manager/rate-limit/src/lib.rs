//! How often somebody may have something done: a guest host evidence, a stranger a line in the log.

use std::time::{Duration, Instant};

/// A token bucket: so many requests a minute, in bursts of a quarter of that.
#[derive(Clone, Debug)]
pub struct Quota {
    interval: Duration,
    burst: u32,
    tokens: u32,
    counted_until: Instant,
}

/// Something that others can cause as often as they like, counted, and logged once a minute.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    unspoken: u64,
    silent_until: Option<Instant>,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Quota {
    /// At least one request a minute is allowed.
    pub fn per_minute(requests: u32, now: Instant) -> Self {
        let requests = requests.max(1);
        let burst = (requests / 4).max(1);
        Self {
            interval: MINUTE / requests,
            burst,
            tokens: burst,
            counted_until: now,
        }
    }

    /// Takes one request into account; false if it exceeds the quota.
    pub fn admit(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted_until);
        let earned = passed.as_nanos() / self.interval.as_nanos().max(1);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.counted_until += self.interval.saturating_mul(earned);
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

impl Repetition {
    /// It happened: how often since it was last spoken of, if it is time to do so.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.unspoken += 1;
        if self.silent_until.is_some_and(|until| now < until) {
            return None;
        }
        self.silent_until = Some(now + MINUTE);
        Some(std::mem::take(&mut self.unspoken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let start = Instant::now();
        let mut quota = Quota::per_minute(60, start);
        let admitted = (0..100).filter(|_| quota.admit(start)).count();
        assert_eq!(admitted, 15);
        let later = start + Duration::from_secs(3);
        let admitted = (0..100).filter(|_| quota.admit(later)).count();
        assert_eq!(admitted, 3);
        assert!(!quota.admit(later + Duration::from_millis(900)));
        assert!(quota.admit(later + Duration::from_millis(1100)));
    }

    #[test]
    fn what_happens_all_the_time_is_spoken_of_once_a_minute_and_counted() {
        let start = Instant::now();
        let mut repetition = Repetition::default();
        let spoken = |repetition: &mut Repetition, at| {
            (0..1000)
                .filter_map(|_| repetition.count(at))
                .collect::<Vec<_>>()
        };
        assert_eq!(spoken(&mut repetition, start), [1]);
        assert_eq!(spoken(&mut repetition, start + MINUTE / 2), [0; 0]);
        assert_eq!(spoken(&mut repetition, start + MINUTE), [2000]);
    }
}
