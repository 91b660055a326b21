//! vRoTs of folders that run although no process stands for them: it was killed while the manager
//! was away, or the manager between the start and the answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use cert_chain::VrotId;
use tokio::time::sleep;

use super::Handover;
use crate::manager::Vrot;

/// Processes come back within 200 ms. A vRoT that was found so twice is stopped.
const PERIOD: Duration = Duration::from_secs(5);

/// Stops them, as long as the manager serves.
pub(super) async fn stop(handover: Arc<Handover>) {
    let mut seen = BTreeSet::new();
    loop {
        sleep(PERIOD).await;
        let found = unattended(&handover);
        for vrot in found.intersection(&seen) {
            // A process that has come back meanwhile stands for it, or stood for it and left.
            let Some(_claim) = handover.attended.claim(*vrot) else {
                continue;
            };
            let found = handover.manager.fleet().find((*vrot).into());
            if !found.is_ok_and(|vrot| is_left(&vrot)) {
                continue;
            }
            tracing::warn!(%vrot, "it runs, but no process stands for it: it is stopped");
            if let Err(error) = handover.manager.fleet().stop((*vrot).into()).await {
                tracing::error!(%vrot, error = %WithCauses(&error), "it could not be stopped");
            }
        }
        seen = found;
    }
}

fn unattended(handover: &Handover) -> BTreeSet<VrotId> {
    if !handover.manager.guarded().is_open() {
        return BTreeSet::new();
    }
    let all = handover.manager.fleet().registry().all();
    let left = all.iter().filter(|vrot| is_left(vrot));
    let left = left.map(|vrot| vrot.record().vrot);
    left.filter(|vrot| !handover.attended.has(vrot)).collect()
}

/// Whether it runs for a folder, and no VMM has it. One with a VMM has a process: the VMM's connection
/// goes through that.
fn is_left(vrot: &Vrot) -> bool {
    let record = vrot.record();
    record.folder.is_some()
        && record.lifecycle.is_running()
        && vrot.observed().is_some_and(|observed| !observed.attached)
}
