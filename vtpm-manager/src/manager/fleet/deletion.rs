//! Finding a vRoT, also where little is left of it, and deleting it for good.

use std::sync::Arc;

use api_types::{Timestamp, VrotKey};

use super::Fleet;
use crate::manager::counters::Counter;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::{Owner, VrotRecord};

impl Fleet {
    /// The vRoT with this number, or of the VM with this number.
    pub fn find(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.registry.find(key).map_err(|error| match error {
            ManagerError::UnknownVrot { .. } => {
                let vrot = self.guarded.unfinished_deletion_of(key);
                vrot.map_or(error, |vrot| ManagerError::DeletionUnfinished { vrot })
            }
            other => other,
        })
    }

    /// Deletes a vRoT: its key first, so that a crash on the way leaves nothing in the store that
    /// opens. What is not finished after that is finished at the next order, or by itself. To
    /// delete what is deleted changes nothing.
    pub async fn delete(&self, key: VrotKey) -> Result<(), ManagerError> {
        let vrot = match self.find(key) {
            Ok(vrot) => vrot,
            Err(ManagerError::DeletionUnfinished { vrot }) => {
                return self.guarded.finish_deletion(vrot).await;
            }
            Err(unfinished @ ManagerError::BeingMade { .. }) => return Err(unfinished),
            Err(unknown) => {
                let was_deleted = self.guarded.was_deleted(key).await?;
                return was_deleted.then_some(()).ok_or(unknown);
            }
        };
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let record = vrot.record();
        let now = Timestamp::now();
        let deleted = record.lifecycle.delete(now)?;
        let owner = Owner::ordered_now(&record);
        self.guarded
            .destroy_key(record.vrot, now, Some(owner))
            .await?;
        // An order that waits at the gate must not write the record, with its keys, again.
        vrot.set_record(VrotRecord {
            lifecycle: deleted,
            ..VrotRecord::clone(&record)
        });
        self.registry.remove(&vrot);
        self.counters.increment(Counter::Deleted);
        tracing::info!(vrot = %record.vrot, "deleted");
        drop(gate);
        self.guarded.finish_deletion(record.vrot).await
    }
}
