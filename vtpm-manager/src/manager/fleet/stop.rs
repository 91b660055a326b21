//! Stop and suspend: a backend ends once all that its guest was told is durable.

use std::sync::Arc;

use api_types::wire::{EventDetails, EventKind};
use api_types::{Timestamp, VrotKey};
use guarded_state::disk::Part;
use tpm_wire::ResponseCode;

use super::Fleet;
use crate::audit::Event;
use crate::backend::{Backend, BackendError};
use crate::manager::counters::Counter;
use crate::manager::error::ManagerError;
use crate::manager::registry::{Adoption, Vrot};
use crate::vrot::{LifecycleError, StopCause, VrotRecord};

/// How a backend is that is about to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quiesced {
    /// Its guest waits.
    GuestWaits,
    /// It does not answer.
    Silent,
    /// It has ended by itself.
    Ended,
}

impl Fleet {
    /// Stops a vRoT and keeps its volatile state. Returns when all of it is durable. The VM must
    /// be paused: what it does to its TPM meanwhile is lost.
    pub async fn suspend(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        record.lifecycle = record.lifecycle.suspend(Timestamp::now())?;
        record.launch = None;
        let backend = vrot.backend().ok_or(LifecycleError::NotRunning {
            state: "without a backend",
        })?;
        // It ends only once its state is in the store: it has the only copy until then.
        if let Err(error) = self.put_aside(&vrot, &record, &backend).await {
            backend.go_on().await;
            return Err(error);
        }
        end(&vrot, &backend).await;
        tracing::info!(vrot = %record.vrot, "suspended");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    /// Resets the TPM of a running VM whose platform was reset, where no VMM says so: afterwards its
    /// PCRs are as at a start, and its guest has to start it. A VMM that emulates the TPM resets it
    /// itself, with the VM.
    pub async fn reset(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let record = vrot.record();
        let id = record.vrot;
        if !record.transport.is_vhost_user() {
            return Err(ManagerError::ResetByVmm { vrot: id });
        }
        let state = record.lifecycle.name();
        let backend = vrot.backend().ok_or(LifecycleError::NotRunning { state })?;
        // Before it is done: PCRs are never cleared without a line that says so.
        self.guarded
            .record_all(vec![Event::VrotReset { vrot: id }])
            .await?;
        let code = backend.reset().await?;
        if code != ResponseCode::SUCCESS {
            let code = code.raw();
            return Err(ManagerError::NotReset { vrot: id, code });
        }
        tracing::info!(vrot = %id, "reset");
        vrot.tell(EventKind::Reset, EventDetails::default());
        drop(gate);
        Ok(vrot)
    }

    async fn put_aside(
        &self,
        vrot: &Vrot,
        record: &VrotRecord,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        let id = record.vrot;
        let volatile = backend.suspend().await?;
        let volatile = volatile.ok_or(ManagerError::NothingToSuspend { vrot: id })?;
        backend.settle().await?;
        let change = record.to_batch().put(id, Part::Volatile, volatile);
        let suspended = vec![Event::VrotSuspended { vrot: id }];
        self.guarded.change(&vrot.record(), suspended, change).await
    }

    /// Stops a vRoT. Returns when its state is durable. While it cannot be made durable, nothing
    /// is stopped: the backend has the only copy.
    pub async fn stop(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::Ordered, Timestamp::now())?;
        record.launch = None;
        if vrot.adoption() == Some(Adoption::OtherVersion) {
            // It has the only copy of what it did not hand over yet: the store must take something.
            self.guarded.commit(vrot.record().to_batch()).await?;
            self.dismiss(record.vrot, Some(record.generation)).await?;
            vrot.set_adoption(None);
        }
        let backend = vrot.backend();
        let quiesced = match &backend {
            Some(backend) => quiesce(backend).await?,
            None => Quiesced::Ended,
        };
        if let Err(error) = self.commit_stop(&vrot, &record).await {
            if let Some(backend) = &backend {
                backend.go_on().await;
            }
            return Err(error);
        }
        if let Some(backend) = &backend {
            match quiesced {
                Quiesced::Silent => {
                    tracing::warn!(
                        vrot = %record.vrot,
                        "the backend does not answer and is killed: what its guest did last may be lost"
                    );
                    backend.kill().await;
                }
                // Its volatile state goes with it, and is not put aside: the TPM is to be
                // shut down.
                Quiesced::GuestWaits => backend.go_on().await,
                Quiesced::Ended => {}
            }
            end(&vrot, backend).await;
        }
        self.counters.increment(Counter::Stopped);
        tracing::info!(vrot = %record.vrot, "stopped");
        vrot.set_record(record);
        self.try_to_record_loss(&vrot).await;
        drop(gate);
        Ok(vrot)
    }

    async fn commit_stop(&self, vrot: &Vrot, record: &VrotRecord) -> Result<(), ManagerError> {
        let id = record.vrot;
        let change = record.to_batch().remove(id, Part::Volatile);
        let stopped = vec![Event::VrotStopped { vrot: id }];
        self.guarded.change(&vrot.record(), stopped, change).await
    }
}

/// Has the guest wait, and everything that it was told be durable. What does not answer has
/// nothing to say but what it pushed before, and what has ended has nothing to say at all.
async fn quiesce(backend: &Backend) -> Result<Quiesced, BackendError> {
    let quiesced = async {
        let quiesced = match backend.suspend().await {
            // The volatile state goes with the backend.
            Ok(_) => Quiesced::GuestWaits,
            Err(BackendError::Deadline { .. }) => Quiesced::Silent,
            Err(error) => return Err(error),
        };
        backend.settle().await.map(|()| quiesced)
    };
    match quiesced.await {
        Err(BackendError::Ended { .. }) => backend.concluded().await.map(|()| Quiesced::Ended),
        Err(error) => {
            backend.go_on().await;
            Err(error)
        }
        quiesced => quiesced,
    }
}

/// Ends a backend of which the store does not say any more that it runs.
async fn end(vrot: &Vrot, backend: &Backend) {
    if let Err(error) = backend.stop().await {
        tracing::debug!(vrot = %vrot.record().vrot, %error, "it did not need to be ended");
    }
    vrot.set_backend(None);
}
