//! What a manager finds when it starts, and what it notes when a backend ends.

use std::sync::Weak;
use std::time::{Duration, Instant};

use cert_chain::VrotId;
use tokio::sync::mpsc;

use super::{Counter, Manager, ManagerError};
use crate::audit::Event;
use crate::backend::{self, Backend, Duty, Ended, Ending, RuntimeFolder};
use crate::store::{Batch, Part};
use crate::timestamp::Timestamp;
use crate::vrot::{Lifecycle, RecordError, StopCause, StoredVrot};

/// A backend that is found running answers between two TPM commands.
const PATIENCE: Duration = Duration::from_secs(2);
/// It may be at an RSA key, on a busy machine.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

impl Manager {
    /// Reads the records, finishes deletions, and adopts backends that are still running.
    pub(super) async fn take_over(&self) -> Result<(), ManagerError> {
        let mut waiting = Vec::new();
        for id in self.journal.vrots().await? {
            let record = self.journal.read(id, Part::Record).await?;
            let record = record.ok_or(RecordError::Missing { vrot: id })?;
            match StoredVrot::from_bytes(id, &record)? {
                StoredVrot::Living(record)
                    if matches!(record.lifecycle, Lifecycle::Manufactured { .. }) =>
                {
                    waiting.push(*record);
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
        self.take_over_backends().await?;
        // What the store calls running and nobody serves has ended while nobody looked.
        for vrot in self.registry.all() {
            let record = vrot.record();
            if matches!(record.lifecycle, Lifecycle::Running { .. }) && vrot.backend().is_none() {
                let noted = self.note_end(record.vrot, "no backend of it was found");
                if let Err(error) = noted.await {
                    // It can be stopped and started still.
                    tracing::error!(vrot = %record.vrot, %error, "its end could not be recorded");
                }
            }
        }
        // Last: what failed on the way is done again.
        waiting
            .into_iter()
            .for_each(|record| self.pool.found(record));
        Ok(())
    }

    /// Those that are occupied get more time, when all others are served again. One that cannot
    /// be taken over is ended: left alone, it would serve a guest while another instance of the
    /// same vRoT is started.
    async fn take_over_backends(&self) -> Result<(), ManagerError> {
        let mut folders = backend::running(&self.config.runtime_dir)?;
        for patience in [PATIENCE, LAST_PATIENCE] {
            let mut late = Vec::new();
            for folder in folders {
                if let Err(error) = self.take_over_backend(&folder, patience).await {
                    tracing::warn!(vrot = %folder.vrot(), %error, "a backend is not taken over");
                    late.push(folder);
                }
            }
            folders = late;
        }
        for folder in folders {
            tracing::error!(vrot = %folder.vrot(), "a backend that cannot be taken over is ended");
            if let Err(error) = Backend::dismiss(&folder).await {
                tracing::error!(vrot = %folder.vrot(), %error, "it may still be there");
            }
        }
        Ok(())
    }

    async fn take_over_backend(
        &self,
        folder: &RuntimeFolder,
        patience: Duration,
    ) -> Result<(), ManagerError> {
        let id = folder.vrot();
        let known = self.registry.find_vrot(id);
        if known.as_ref().is_some_and(|vrot| vrot.backend().is_some()) {
            return Ok(());
        }
        let running =
            known.filter(|vrot| matches!(vrot.record().lifecycle, Lifecycle::Running { .. }));
        let Some(vrot) = running else {
            // Left from a creation or a start that never came to its end.
            tracing::warn!(vrot = %id, "a backend that nobody knows is ended");
            return Ok(Backend::dismiss(folder).await?);
        };
        let record = vrot.record();
        let duty = Duty::Guest(self.guest_duty(&record)?);
        match Backend::adopt(folder.clone(), record.generation, duty, patience).await? {
            Some(backend) => {
                vrot.set_backend(Some(backend));
                tracing::info!(vrot = %id, "adopted");
                if let Err(error) = self.record(Event::BackendAdopted { vrot: id }).await {
                    tracing::error!(vrot = %id, %error, "that could not be recorded");
                }
                Ok(())
            }
            None => Ok(folder.remove()?),
        }
    }

    /// Starts a vRoT whose backend ended by itself from its last durable state, if the policy
    /// allows it. No guest goes on with it: its VMM has lost the connection, and a new one
    /// begins with a reset, as a TPM does whose PCRs are empty.
    async fn start_again(&self, id: VrotId) {
        let Some(vrot) = self.registry.find_vrot(id) else {
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
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Ok(());
        };
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
            reason: reason.into(),
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
