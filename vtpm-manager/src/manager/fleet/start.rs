//! Start and resume.

use std::sync::Arc;

use api_types::{Timestamp, VrotKey};
use attestation::launch::Launch;
use guarded_state::disk::Part;

use super::{Fleet, launches};
use crate::audit::Event;
use crate::backend::{Backend, Ended, Ending, Role};
use crate::manager::certification::CertificateStep;
use crate::manager::counters::Counter;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::{Lifecycle, VrotRecord};

/// How a vRoT comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartMode {
    /// As after a loss of power.
    Start,
    /// As it was.
    Resume,
}

impl Fleet {
    /// Starts a vRoT. Returns when a VMM can attach. What was measured for this start counts.
    pub async fn start(self: &Arc<Self>, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, StartMode::Start, None).await
    }

    /// Starts a vRoT for a VM that is launched so.
    pub async fn start_measured(
        self: &Arc<Self>,
        key: VrotKey,
        launch: Launch,
    ) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, StartMode::Start, Some(launch)).await
    }

    /// Starts a vRoT, or resumes a suspended one, for a VM that is launched so.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        key: VrotKey,
        launch: Option<Launch>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let mode = match self.find(key)?.record().lifecycle {
            Lifecycle::Suspended { .. } => StartMode::Resume,
            _ => StartMode::Start,
        };
        self.bring_up(key, mode, launch).await
    }

    /// Starts a suspended vRoT with the volatile state that it had. Returns when a VMM can
    /// attach. The volatile state is used up: it never comes back.
    pub async fn resume(self: &Arc<Self>, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, StartMode::Resume, None).await
    }

    async fn bring_up(
        self: &Arc<Self>,
        key: VrotKey,
        mode: StartMode,
        launch: Option<Launch>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        match mode {
            StartMode::Start => vrot.record().lifecycle.check_start()?,
            StartMode::Resume => vrot.record().lifecycle.check_resume()?,
        }
        // The next backend would write over what the last one noted.
        self.record_loss(&vrot).await?;
        let mut record = vrot.record_to_change();
        let mut events = Vec::new();
        if let Some(launch) = launch {
            events.push(launches::measured(record.vrot, &launch));
            record.launch = Some(launch);
        }
        self.check_launch(&record)?;
        let role = Role::Guest(self.guest_role(&record, vrot.certified())?);
        let backend = self.launcher.open(&record, role).await?;
        let begun = self.begin(&vrot, &mut record, &backend, mode, events).await;
        if let Err(error) = begun {
            // It must not run while the store says that it does not.
            let _ = backend.stop().await;
            return Err(error);
        }
        tracing::info!(vrot = %record.vrot, ?mode, "started");
        vrot.set_record(record);
        self.install(&vrot, backend);
        drop(gate);
        self.certification.issue_pending(&vrot);
        Ok(vrot)
    }

    /// What follows once the backend is up: a certificate that lasts, and the record.
    async fn begin(
        &self,
        vrot: &Vrot,
        record: &mut VrotRecord,
        backend: &Backend,
        mode: StartMode,
        mut events: Vec<Event>,
    ) -> Result<(), ManagerError> {
        let certification = &self.certification;
        let now = Timestamp::now();
        let process = backend.observed().process;
        let id = record.vrot;
        let mut renewed = false;
        match mode {
            StartMode::Start => {
                if certification.is_renewal_due(record, now) {
                    let step = CertificateStep::Start;
                    match certification.certify(record, backend, now, step).await {
                        // A saved VM is to find its TPM as it was.
                        Err(error) if error.is_not_ready() => {
                            tracing::info!(vrot = %id, "it is renewed once its VM is back");
                        }
                        certified => {
                            events.push(certified?);
                            renewed = true;
                        }
                    }
                }
                certification.reserve_pending(record, backend).await;
                certification.restore_before_start(record, backend).await;
                record.lifecycle = record.lifecycle.start(process, now)?;
                events.push(Event::VrotStarted { vrot: id });
            }
            // A command now would switch the TPM on, and the volatile state would be gone.
            StartMode::Resume => {
                record.lifecycle = record.lifecycle.resume(process, now)?;
                events.push(Event::VrotResumed { vrot: id });
            }
        }
        let change = record.to_batch().remove(id, Part::Volatile);
        self.guarded.change(&vrot.record(), events, change).await?;
        if renewed {
            certification.succeeded(id);
        }
        Ok(())
    }

    /// Gives a vRoT that is started its backend. Its gate must be held.
    pub(super) fn install(&self, vrot: &Vrot, backend: Backend) {
        let id = vrot.record().vrot;
        let (instance, has_ended) = (backend.instance(), backend.has_ended());
        self.observe(vrot, &backend);
        vrot.set_backend(Some(backend));
        self.counters.increment(Counter::Started);
        if has_ended {
            // Its end was reported before it was in the registry under this id.
            let reason = "it ended while it was started".to_owned();
            let ended = Ended {
                instance,
                ending: Ending::Unordered { reason },
                state: None,
            };
            // The receiver lives as long as the manager.
            let _ = self.ended.send((id, ended));
        }
    }
}
