//! The pool of manufactured vRoTs, from which a launch takes one.

use std::time::Duration;

use anyhow::Result;

use super::api::Api;
use crate::deadline::wait_for;

/// Filling a large pool takes a while: each vRoT takes seconds.
pub(super) const FILL: Duration = Duration::from_secs(3600);

/// Whether this manager has a pool at all, as it says in its metrics.
pub(super) fn exists(api: &Api) -> Result<bool> {
    Ok(ready(api)?.is_some())
}

/// Waits until so many vRoTs are ready; nothing to wait for without a pool.
pub(super) fn wait_until_warm(api: &Api, count: u32, patience: Duration) -> Result<()> {
    if !exists(api)? {
        return Ok(());
    }
    wait_for("a warm pool", patience, || {
        let warm = ready(api)?.is_some_and(|ready| ready >= f64::from(count));
        Ok(warm.then_some(()))
    })
}

/// The pool's part of the manager's configuration.
pub(super) fn settings(_count: u32) -> String {
    String::new()
}

fn ready(api: &Api) -> Result<Option<f64>> {
    Ok(api.metrics()?.find("vrot_pool_ready"))
}
