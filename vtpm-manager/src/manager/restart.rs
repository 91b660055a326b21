//! What a manager finds when it starts, and what it notes when a backend ends.

use std::sync::Weak;
use std::time::{Duration, Instant};

use cert_chain::VrotId;
use tokio::sync::mpsc;

use super::{Counter, Manager, ManagerError};
use crate::audit::Event;
use crate::backend::{self, Backend, Duty, Ended, Ending, RuntimeFolder};
use crate::causes::WithCauses;
use crate::store::{Batch, Part};
use crate::timestamp::Timestamp;
use crate::vrot::{Lifecycle, RecordError, StopCause, StoredVrot};

/// A backend that is found running answers between two TPM commands.
const PATIENCE: Duration = Duration::from_secs(2);
/// It may be at an RSA key, on a busy machine.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to record the end of a backend.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// What is known of a backend that ended while there was no manager.
const ABSENT: &str = "no backend of it was found";

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
                let vrot = record.vrot;
                if let Err(error) = self.note_end(&mut End::noticed(vrot, ABSENT)).await {
                    tracing::error!(%vrot, %error, "its end is not recorded yet");
                    let unnoticed = Ended {
                        ending: Ending::Unnoticed,
                        state: None,
                    };
                    // Whoever notes endings lives as long as this manager.
                    let _ = self.ended.send((vrot, unnoticed));
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
            let (mut adopted, mut late) = (Vec::new(), Vec::new());
            for folder in folders {
                let vrot = folder.vrot();
                match self.take_over_backend(&folder, patience).await {
                    Ok(Found::Adopted) => adopted.push(Event::BackendAdopted { vrot }),
                    Ok(Found::NothingToAdopt) => {}
                    Err(error) => {
                        tracing::warn!(%vrot, %error, "a backend is not taken over");
                        late.push(folder);
                    }
                }
            }
            // In one write: a line each would cost a thousand of them on a full host.
            if !adopted.is_empty() {
                self.record_or_keep(adopted).await;
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
    ) -> Result<Found, ManagerError> {
        let id = folder.vrot();
        let known = self.registry.find_vrot(id);
        if known.as_ref().is_some_and(|vrot| vrot.backend().is_some()) {
            return Ok(Found::NothingToAdopt);
        }
        let running =
            known.filter(|vrot| matches!(vrot.record().lifecycle, Lifecycle::Running { .. }));
        let Some(vrot) = running else {
            // Left from a creation or a start that never came to its end.
            tracing::warn!(vrot = %id, "a backend that nobody knows is ended");
            Backend::dismiss(folder).await?;
            return Ok(Found::NothingToAdopt);
        };
        let record = vrot.record();
        let duty = Duty::Guest(self.guest_duty(&record)?);
        match Backend::adopt(folder.clone(), record.generation, duty, patience).await? {
            Some(backend) => {
                vrot.set_backend(Some(backend));
                tracing::info!(vrot = %id, "adopted");
                Ok(Found::Adopted)
            }
            None => {
                folder.remove()?;
                Ok(Found::NothingToAdopt)
            }
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

    /// Records the end of a vRoT's backend. What was done of it is not done again when this is
    /// called anew after a failure.
    async fn note_end(&self, end: &mut End) -> Result<(), ManagerError> {
        let id = end.vrot;
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Ok(());
        };
        let _gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        // It may have been stopped meanwhile, and another one may serve it.
        let is_served = vrot.backend().is_some_and(|backend| !backend.has_ended());
        if is_served || !matches!(record.lifecycle, Lifecycle::Running { .. }) {
            return Ok(());
        }
        if end.progress == Progress::Noticed {
            tracing::error!(vrot = %id, reason = end.reason, "the backend ended by itself");
            vrot.set_backend(None);
            self.counters.increment(Counter::BackendsEnded);
            end.progress = Progress::Counted;
        }
        if end.progress == Progress::Counted {
            self.record(Event::BackendEnded {
                vrot: id,
                reason: end.reason.as_str().into(),
            })
            .await?;
            end.progress = Progress::Logged;
        }
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::BackendEnded, Timestamp::now())?;
        self.commit_record(&record).await?;
        vrot.set_record(record);
        Ok(())
    }
}

/// What there was in a runtime folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Adopted,
    NothingToAdopt,
}

/// The end of a backend that nobody stopped, on its way into the store.
#[derive(Debug)]
struct End {
    vrot: VrotId,
    reason: String,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Noticed,
    Counted,
    Logged,
}

impl End {
    fn noticed(vrot: VrotId, reason: &str) -> Self {
        Self {
            vrot,
            reason: reason.to_owned(),
            progress: Progress::Noticed,
        }
    }

    /// Tries until it is recorded: a vRoT that is called running and has no backend can neither
    /// be used nor started. False if the manager ends before.
    async fn record_at_last(mut self, manager: &Weak<Manager>) -> bool {
        loop {
            let Some(manager) = manager.upgrade() else {
                return false;
            };
            match manager.note_end(&mut self).await {
                Ok(()) => return true,
                Err(error) => {
                    let vrot = self.vrot;
                    let error = WithCauses(&error);
                    tracing::error!(%vrot, %error, "the end of a backend is not recorded yet");
                }
            }
            if manager.journal.is_overdue() {
                return false;
            }
            drop(manager);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Notes the end of each backend that nobody stopped, for as long as the manager lives. Each in
/// its own task: recording may have to wait for the disk, opening a state takes time, and other
/// backends may have ended.
pub(super) async fn note_endings(
    manager: Weak<Manager>,
    mut endings: mpsc::UnboundedReceiver<(VrotId, Ended)>,
) {
    while let Some((vrot, ended)) = endings.recv().await {
        let manager = manager.clone();
        match ended.ending {
            Ending::Ordered => {}
            Ending::Unnoticed => {
                tokio::spawn(
                    async move { End::noticed(vrot, ABSENT).record_at_last(&manager).await },
                );
            }
            Ending::Unordered { reason } => {
                tokio::spawn(async move {
                    if End::noticed(vrot, &reason).record_at_last(&manager).await
                        && let Some(manager) = manager.upgrade()
                    {
                        manager.start_again(vrot).await;
                    }
                });
            }
        }
    }
}
