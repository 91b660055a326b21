//! Numbers that were measured, and what is said about them.

use std::time::Duration;

use anyhow::{Context, Result};

/// Measured values of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(super) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a time in milliseconds.
    pub(super) fn add_ms(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    /// Adds a time in microseconds.
    pub(super) fn add_us(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e6);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The values.
    pub(super) fn into_values(self) -> Vec<f64> {
        self.0
    }

    /// How many are above this.
    pub(super) fn above(&self, limit: f64) -> usize {
        self.0.iter().filter(|value| **value > limit).count()
    }

    /// The smallest value that so many per cent do not exceed (nearest rank). There is none of
    /// nothing.
    pub(super) fn percentile(&self, per_cent: usize) -> Result<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * per_cent).div_ceil(100).max(1);
        sorted
            .get(rank - 1)
            .copied()
            .context("nothing was measured")
    }

    /// The middle.
    pub(super) fn median(&self) -> Result<f64> {
        self.percentile(50)
    }
}

impl Extend<f64> for Samples {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() -> Result<()> {
        let samples: Samples = (1..=200).rev().map(f64::from).collect();
        assert_eq!(samples.median()?, 100.0);
        assert_eq!(samples.percentile(99)?, 198.0);
        assert_eq!(samples.percentile(100)?, 200.0);
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!(one.percentile(99)?, 7.0);
        assert!(Samples::default().median().is_err());
        Ok(())
    }
}
