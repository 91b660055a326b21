//! What a VM is launched with: measured while its vRoT is not running, for its next start or resumption,
//! and of no use to the one after.

use std::sync::Arc;
use std::time::Instant;

use api_types::VrotKey;
use attestation::LaunchMeasurement;
use attestation::launch::Launch;
use cert_chain::{VmId, VrotId};

use super::Fleet;
use super::announced::Waiting;
use crate::audit::Event;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::{Lifecycle, VrotRecord};

impl Fleet {
    /// Whether a launch of the vRoT can be measured at present.
    pub fn check_measurable(&self, key: VrotKey) -> Result<(), ManagerError> {
        let vrot = self.find(key)?;
        vrot.check_settled()?;
        check_not_running(&vrot.record())
    }

    /// What was measured counts for the vRoT's next start, in place of what was measured before; or
    /// nothing does.
    pub async fn prepare_launch(
        &self,
        key: VrotKey,
        launch: Option<Launch>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        check_not_running(&record)?;
        let vrot_id = record.vrot;
        let event = match &launch {
            Some(launch) => measured(vrot_id, launch),
            None => Event::LaunchForgotten { vrot: vrot_id },
        };
        record.launch = launch;
        let change = record.to_batch();
        self.guarded
            .change(&vrot.record(), vec![event], change)
            .await?;
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    /// What was measured counts for the next start of the VM's vRoT by a process that stands for it
    /// ([`Fleet::start_folder`]), which may have to be made first; or nothing does.
    pub fn announce_launch(&self, vm: VmId, launch: Option<Launch>) {
        self.announced.set(vm, launch, Instant::now());
    }

    /// What was announced for the next such start of the VM's vRoT.
    pub(super) fn announced_launch(&self, vm: VmId) -> Option<Waiting> {
        self.announced.of(vm, Instant::now())
    }

    /// A start was made with this one, so the next is not.
    pub(super) fn announced_launch_used(&self, vm: VmId, used: &Waiting) {
        self.announced.used(vm, used, Instant::now());
    }

    /// Whether the vRoT is not started without a measurement: it was created so, or this host's
    /// configuration says so of its tenant's.
    pub fn requires_launch(&self, record: &VrotRecord) -> bool {
        record.requires_launch || self.config.launch.requires(&record.tenant)
    }

    /// That the vRoT may be started with what was measured, or without.
    pub(super) fn check_launch(&self, record: &VrotRecord) -> Result<(), ManagerError> {
        if record.launch.is_none() && self.requires_launch(record) {
            return Err(ManagerError::LaunchNotMeasured { vm: record.vm });
        }
        Ok(())
    }
}

/// What the audit log tells of a launch that was measured.
pub(super) fn measured(vrot: VrotId, launch: &Launch) -> Event {
    let parts = launch.parts().iter();
    let parts = parts.map(|part| (part.id.to_string(), part.value.to_string()));
    Event::LaunchMeasured {
        vrot,
        digest: *launch.digest(),
        parts: parts.collect(),
    }
}

/// What evidence states of the start that the record tells of.
pub(super) fn stated(record: &VrotRecord) -> LaunchMeasurement {
    match &record.launch {
        Some(launch) => LaunchMeasurement::Measured(launch.clone()),
        None => LaunchMeasurement::NotMeasured,
    }
}

/// A VM that runs was launched: what is measured now is not what it was launched with.
fn check_not_running(record: &VrotRecord) -> Result<(), ManagerError> {
    match record.lifecycle {
        Lifecycle::Running { .. } => Err(ManagerError::LaunchUnderWay { vm: record.vm }),
        Lifecycle::Suspended { .. } => Ok(()),
        other => Ok(other.check_start()?),
    }
}
