//! What a manager finds when it starts, and what it notes when a backend ends.

use std::sync::Weak;
use std::time::Instant;

use cert_chain::VrotId;
use tokio::sync::mpsc;

use super::{Counter, Manager, ManagerError};
use crate::audit::Event;
use crate::backend::{self, Backend, BackendError, Duty, Ended, Ending, RuntimeFolder};
use crate::store::{Batch, Part};
use crate::timestamp::Timestamp;
use crate::vrot::{Lifecycle, RecordError, StopCause, StoredVrot};

impl Manager {
    /// Reads the records, finishes deletions, and adopts backends that are still running.
    pub(super) async fn take_over(&self) -> Result<(), ManagerError> {
        for id in self.journal.vrots().await? {
            let record = self.journal.read(id, Part::Record).await?;
            let record = record.ok_or(RecordError::Missing { vrot: id })?;
            match StoredVrot::from_bytes(id, &record)? {
                StoredVrot::Living(record)
                    if matches!(record.lifecycle, Lifecycle::Manufactured { .. }) =>
                {
                    self.pool.found(*record);
                }
                StoredVrot::Living(record) => {
                    self.registry.insert(*record);
                }
                StoredVrot::Deleted(_) => {
                    tracing::info!(vrot = %id, "a deletion is finished");
                    self.journal.commit(Batch::default().delete(id)).await?;
                }
            }
        }
        for folder in backend::running(&self.config.runtime_dir)? {
            if let Err(error) = self.take_over_backend(&folder).await {
                tracing::error!(vrot = %folder.vrot(), %error, "a backend is not taken over");
            }
        }
        // What the store calls running and nobody serves has ended while nobody looked.
        for vrot in self.registry.all() {
            let record = vrot.record();
            if matches!(record.lifecycle, Lifecycle::Running { .. }) && vrot.backend().is_none() {
                self.note_end(record.vrot, "no backend of it was found")
                    .await?;
            }
        }
        Ok(())
    }

    async fn take_over_backend(&self, folder: &RuntimeFolder) -> Result<(), ManagerError> {
        let id = folder.vrot();
        let running = self.registry.find(id.into()).ok().filter(|vrot| {
            let record = vrot.record();
            record.vrot == id && matches!(record.lifecycle, Lifecycle::Running { .. })
        });
        let Some(vrot) = running else {
            // Left from a creation or a start that never came to its end.
            tracing::warn!(vrot = %id, "a backend that nobody knows is ended");
            return Ok(Backend::dismiss(folder).await?);
        };
        let record = vrot.record();
        let duty = Duty::Guest(self.guest_duty(&record)?);
        match Backend::adopt(folder.clone(), record.generation, duty).await {
            Ok(Some(backend)) => {
                vrot.set_backend(Some(backend));
                tracing::info!(vrot = %id, "adopted");
                self.record(Event::BackendAdopted { vrot: id }).await
            }
            Ok(None) => Ok(folder.remove()?),
            Err(error @ BackendError::Stranger { .. }) => {
                Backend::dismiss(folder).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Starts a vRoT whose backend ended by itself from its last durable state, if the policy
    /// allows it. No guest goes on with it: its VMM has lost the connection, and a new one
    /// begins with a reset, as a TPM does whose PCRs are empty.
    async fn start_again(&self, id: VrotId) {
        let Ok(vrot) = self.registry.find(id.into()) else {
            return;
        };
        let limit = self.config.backend_restarts_per_hour;
        if !vrot.admits_restart(limit, Instant::now()) {
            tracing::error!(vrot = %id, limit, "it stays stopped: its backend ended too often");
            return;
        }
        match self.start(id.into()).await {
            Ok(_) => tracing::warn!(vrot = %id, "started again from its last durable state"),
            Err(error) => tracing::error!(vrot = %id, %error, "it could not be started again"),
        }
    }

    async fn note_end(&self, id: VrotId, reason: &str) -> Result<(), ManagerError> {
        let vrot = self.registry.find(id.into())?;
        let _gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        if !matches!(record.lifecycle, Lifecycle::Running { .. }) {
            return Ok(());
        }
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::BackendEnded, Timestamp::now())?;
        tracing::error!(vrot = %id, reason, "the backend ended by itself");
        vrot.set_backend(None);
        self.counters.increment(Counter::BackendsEnded);
        self.record(Event::BackendEnded {
            vrot: id,
            reason: reason.to_owned(),
        })
        .await?;
        self.commit_record(&record).await?;
        vrot.set_record(record);
        Ok(())
    }
}

/// Notes the end of each backend that nobody stopped, for as long as the manager lives.
pub(super) async fn note_endings(
    manager: Weak<Manager>,
    mut endings: mpsc::UnboundedReceiver<(VrotId, Ended)>,
) {
    while let Some((vrot, ended)) = endings.recv().await {
        let (Some(manager), Ending::Unordered { reason }) = (manager.upgrade(), ended.ending)
        else {
            continue;
        };
        if let Err(error) = manager.note_end(vrot, &reason).await {
            tracing::error!(%vrot, %error, "the end of a backend could not be recorded");
            continue;
        }
        // Its own task: opening a state takes time, and other backends may have ended.
        tokio::spawn(async move { manager.start_again(vrot).await });
    }
}
