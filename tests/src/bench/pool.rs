//! The pool of vRoTs made ahead, from which a launch takes one.

use std::time::Duration;

use anyhow::Result;
use test_support::deadline::wait_for;

use super::api::Api;
use super::launch::TENANT;

/// A pool of a manager's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    /// How many are ready when it is full.
    pub(super) size: u32,
    /// How many are made in a minute at most; what the manager takes by itself without a number.
    pub(super) refill_per_minute: Option<u32>,
}

/// As many in a minute as the machine can make.
const FILLING: u32 = 60_000;

/// Making a large pool takes a while: each member may take seconds, and there is a pause between
/// them.
const PATIENCE_FOR_EACH: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);

impl Pool {
    /// One that is filled as fast as possible, where nobody looks at the clock.
    pub(super) fn filling(size: u32) -> Self {
        Self {
            size,
            refill_per_minute: Some(FILLING),
        }
    }

    /// The pool's part of the manager's configuration: a table, so it comes last.
    pub(super) fn settings(&self) -> String {
        let refill = self
            .refill_per_minute
            .map(|rate| format!("refill_per_minute = {rate}\n"))
            .unwrap_or_default();
        format!(
            "[pool]\nsize = {}\ntenants = [\"{TENANT}\"]\n{refill}",
            self.size
        )
    }

    /// Waits until it is full: then the manager has nothing to make in the background.
    pub(super) fn wait_until_full(&self, api: &Api) -> Result<()> {
        let patience = PATIENCE + PATIENCE_FOR_EACH * self.size;
        wait_for("a full pool", patience, || {
            let ready = api.metrics()?.value("vrot_pool_ready")?;
            Ok((ready >= f64::from(self.size)).then_some(()))
        })
    }
}
