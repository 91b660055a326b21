//! State that a vRoT may have lost with its backend: recorded, so that evidence tells it.

use api_types::Timestamp;
use attestation::StateLoss;
use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Batch, Part};

use super::Fleet;
use crate::audit::Event;
use crate::backend::Backend;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::{LostState, VrotRecord};

impl Fleet {
    /// What the last backend of a vRoT may have lost, if that is not recorded yet. None of it may
    /// be live.
    pub(super) fn unrecorded_loss(
        &self,
        record: &VrotRecord,
    ) -> Result<Option<LostState>, ManagerError> {
        if !self.folder(record.vrot).may_have_lost()? {
            return Ok(None);
        }
        let status = self.guarded.journal().rollback_status();
        Ok(Some(LostState {
            batch: status.map_or(0, |status| status.epoch.number()),
            at: Timestamp::now(),
        }))
    }

    /// Records what the last backend of a vRoT may have lost, unless it is recorded. The vRoT's gate
    /// must be held, and no backend of it may be live.
    pub(super) async fn record_loss(&self, vrot: &Vrot) -> Result<(), ManagerError> {
        let mut record = vrot.record_to_change();
        let Some(loss) = self.unrecorded_loss(&record)? else {
            return Ok(());
        };
        self.guarded.record(loss.event(&record)).await?;
        record.state_loss = Some(loss);
        self.guarded.commit(record.to_batch()).await?;
        self.folder(record.vrot).forget_loss()?;
        vrot.set_record(record);
        Ok(())
    }

    /// The same where it can wait: until the next start of the vRoT at the latest.
    pub(super) async fn try_to_record_loss(&self, vrot: &Vrot) {
        if let Err(error) = self.record_loss(vrot).await {
            tracing::error!(vrot = %vrot.record().vrot, %error, "what was lost is not recorded yet");
        }
    }

    /// Ends a backend of an earlier manager that is not taken over, and keeps the state that it
    /// hands over, if it is one of this generation.
    pub(super) async fn dismiss(
        &self,
        vrot: VrotId,
        generation: Option<Generation>,
    ) -> Result<(), ManagerError> {
        let folder = self.folder(vrot);
        let dismissed = Backend::dismiss(&folder, generation).await?;
        if let Some(state) = dismissed.state {
            let change = Batch::default().put(vrot, Part::Permanent, state.to_bytes());
            self.guarded.commit(change).await?;
        } else if dismissed.was_degraded != Some(false) {
            return Ok(());
        }
        Ok(folder.forget_loss()?)
    }
}

impl LostState {
    /// The line about it.
    pub(super) fn event(self, record: &VrotRecord) -> Event {
        Event::StateLost {
            vrot: record.vrot,
            batch: self.batch,
        }
    }
}

/// What evidence says of it.
pub(super) fn stated(loss: Option<LostState>) -> StateLoss {
    loss.map_or(StateLoss::Excluded, |loss| StateLoss::Possible {
        batch: loss.batch,
        time: loss.at.seconds(),
    })
}
