//! How long after a change the checkpoint comes that covers it.

use std::time::Duration;

use serde::Serialize;

/// Seconds between a change and the checkpoint that covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CheckpointInterval(u16);

impl CheckpointInterval {
    /// Every twelve minutes: five writes an hour, 43,800 a year, eleven years of a part that stands
    /// 500,000.
    pub const DEFAULT: Self = Self(720);

    /// An interval of 1 to 65,535 seconds (18 hours).
    pub fn from_secs(seconds: u64) -> Option<Self> {
        u16::try_from(seconds).ok().filter(|s| *s > 0).map(Self)
    }

    /// The interval in seconds.
    pub const fn seconds(self) -> u16 {
        self.0
    }

    /// The interval.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_bounds() {
        assert_eq!(CheckpointInterval::from_secs(0), None);
        assert_eq!(CheckpointInterval::from_secs(65_536), None);
        let some = CheckpointInterval::from_secs(720);
        assert_eq!(some, Some(CheckpointInterval::DEFAULT));
    }
}
