//! The vRoTs made ahead.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use cert_chain::Tenant;
use serde::Deserialize;

/// How many vRoTs are made ahead, and for whom.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// How many for each tenant; none, if it is 0.
    pub size: usize,
    /// Tenants to whom they are made out. A VM of another tenant gets one of theirs, for the
    /// price of one signature.
    pub tenants: Vec<Tenant>,
    /// How many are made in a minute at most: making keys takes processor time from the VMs.
    pub refill_per_minute: NonZeroU32,
}

/// More vRoTs than a host runs: each costs a signature of the physical TPM and some processor time
/// before anybody wants it.
const MAX_POOL: usize = 10_000;
/// Enough for a busy minute's launches on one host.
const DEFAULT_POOL_SIZE: usize = 16;
const DEFAULT_REFILL_PER_MINUTE: NonZeroU32 = NonZeroU32::new(60).unwrap();

impl PoolConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        let total = self.size.checked_mul(self.tenants.len());
        if self.size > MAX_POOL || total.is_none_or(|total| total > MAX_POOL) {
            return Err(format!(
                "has a size of {} for each of {} tenants: write at most {MAX_POOL} in all",
                self.size,
                self.tenants.len()
            ));
        }
        let mut seen = BTreeSet::new();
        match self.tenants.iter().find(|tenant| !seen.insert(*tenant)) {
            Some(tenant) => Err(format!("names the tenant {tenant} twice: name it once")),
            None => Ok(()),
        }
    }

    /// Between two vRoTs made ahead.
    pub fn pause(&self) -> Duration {
        Duration::from_secs(60) / self.refill_per_minute.get()
    }
}

impl Default for PoolConfig {
    /// No pool: the manager cannot know its tenants.
    fn default() -> Self {
        Self {
            size: DEFAULT_POOL_SIZE,
            tenants: Vec::new(),
            refill_per_minute: DEFAULT_REFILL_PER_MINUTE,
        }
    }
}
