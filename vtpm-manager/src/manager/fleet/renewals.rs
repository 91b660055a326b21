//! Renewal of certificates, on order and by itself.

use std::sync::Arc;
use std::time::Duration;

use api_types::{Timestamp, VrotKey};
use tokio::time::sleep;

use super::Fleet;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;

/// Due certificates are looked for at least this often.
const INSPECTION: Duration = Duration::from_secs(60);
/// Between two renewals: room for the quotes of the physical TPM.
const PAUSE: Duration = Duration::from_millis(100);

impl Fleet {
    /// Renews certificates that are due, until the manager ends.
    pub(in crate::manager) fn start_renewing(self: &Arc<Self>) {
        self.background.until_the_end(keep_fresh(Arc::clone(self)));
    }

    /// Renews a vRoT's certificates now: beside its guest where it runs, and else at its next
    /// start.
    pub async fn renew_now(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        match vrot.backend() {
            Some(backend) if record.lifecycle.is_running() => {
                self.certification
                    .renew_beside_guest(&vrot, &backend)
                    .await?;
            }
            _ => {
                record.identity.vik_issued_at = Timestamp::new(0);
                self.guarded.commit(record.to_batch()).await?;
                vrot.set_record(record);
            }
        }
        drop(gate);
        Ok(vrot)
    }

    fn running(&self) -> Vec<Arc<Vrot>> {
        let mut vrots = self.registry.all();
        vrots.retain(|vrot| vrot.backend().is_some());
        vrots
    }
}

async fn keep_fresh(fleet: Arc<Fleet>) {
    loop {
        let was_due = fleet.certification.renew_next(fleet.running()).await;
        let pause = match was_due {
            true => PAUSE,
            false => INSPECTION.min(fleet.config.renewal.after / 2),
        };
        sleep(pause).await;
    }
}
