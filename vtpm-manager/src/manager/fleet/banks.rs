//! Which PCR banks the vRoT of a folder has, as its launcher wants it before a start.

use std::sync::Arc;

use cert_chain::HashAlgorithm;
use guarded_state::disk::Part;
use vrot_manufacture::activate_banks;

use super::{Fleet, Presented};
use crate::audit::Event;
use crate::backend::Role;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;

impl Fleet {
    /// Has the vRoT of a folder have these PCR banks, and no others, from its next start on. One that runs
    /// without a VMM is of a process that has gone: it is stopped before.
    ///
    /// It is switched on for that, without its guest. What the state of one that has these banks would
    /// have become is not kept.
    pub async fn activate_folder_banks(
        self: &Arc<Self>,
        presented: &Presented,
        active: Vec<HashAlgorithm>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.bind_folder(presented).await?;
        self.leave_folder(&vrot).await?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        vrot.record().lifecycle.check_start()?;
        // The next backend would write over what the last one noted.
        self.record_loss(&vrot).await?;
        let record = vrot.record_to_change();
        let backend = self.launcher.open(&record, Role::Manufacture).await?;
        let mut channel = backend.channel();
        let wanted = active.clone();
        let activated = blocking(move || activate_banks(&wanted, &mut channel)).await;
        let ended = backend.stop().await;
        if activated?.map_err(ManagerError::Manufacture)? {
            let state = ended?.state.ok_or(ManagerError::NoState)?;
            let change = record.to_batch();
            let change = change.put(record.vrot, Part::Permanent, state.to_bytes());
            let event = Event::PcrBanksChanged {
                vrot: record.vrot,
                banks: active,
            };
            self.guarded
                .change(&vrot.record(), vec![event], change)
                .await?;
            tracing::info!(vrot = %record.vrot, "its launcher has its PCR banks changed");
        }
        drop(gate);
        Ok(vrot)
    }
}
