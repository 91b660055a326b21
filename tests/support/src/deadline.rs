//! Waiting for a condition, never for an amount of time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` until it yields a value, and fails when `patience` is over.
///
/// A failing `condition` (a peer that died) ends the wait at once with its own error. The pause
/// between two questions only bounds the processor time spent on asking.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

const PAUSE: Duration = Duration::from_millis(10);
