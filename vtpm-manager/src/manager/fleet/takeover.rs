//! What a manager finds when it starts, and what it notes when a backend ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{Timestamp, WithCauses};
use cert_chain::VrotId;
use guarded_state::disk::Part;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::audit::Event;
use crate::backend::{
    self, Backend, BackendError, Ended, Ending, InstanceId, NextTurn, Role, RuntimeFolder, Turns,
};
use crate::manager::registry::{Adoption, Vrot};
use crate::manager::{Counter, Manager, ManagerError};
use crate::vrot::{Lifecycle, RecordError, StopCause, StoredVrot, Tombstone, VrotRecord};

/// A backend that is found running answers between two TPM commands. The manager does not wait
/// for longer before it serves its callers.
const PATIENCE: Duration = Duration::from_secs(2);
/// It may be at an RSA key, on a busy machine.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to record the end of a backend.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

impl Manager {
    /// Reads the records and takes over what is in the store. Backends that are still running come
    /// first, because guests wait; what is only written down is done meanwhile.
    pub(in crate::manager) async fn take_over(self: &Arc<Self>) -> Result<(), ManagerError> {
        let found = self.found().await?;
        for record in found.living.values() {
            if !matches!(record.lifecycle, Lifecycle::Manufactured { .. }) {
                self.registry.insert(record.clone());
            }
        }
        let compared = CancellationToken::new();
        let adoptions = self.begin_adoptions(&compared)?;
        let recorded = self.recorded_deletions_of(&found.tombstones).await?;
        self.deletions.found(found.tombstones, &recorded);
        self.finish_deletions().await;
        self.record_what_was_found(&found.living).await?;
        // From here on, lines about ends come after the comparison.
        compared.cancel();
        self.finish_adoptions(adoptions).await;
        // What the store calls running and has no folder was ended by the end of the host, or
        // while no manager ran: it is not started again by itself, as its VM is not there either.
        for vrot in self.registry.all() {
            let record = vrot.record();
            if matches!(record.lifecycle, Lifecycle::Running { .. })
                && vrot.backend().is_none()
                && vrot.adoption().is_none()
            {
                let vrot = record.vrot;
                let mut end = End::noticed(vrot, None, "no backend of it was found");
                if let Err(error) = self.note_end(&mut end).await {
                    tracing::error!(%vrot, %error, "its end is not recorded yet");
                    let manager = Arc::clone(self);
                    self.tasks
                        .spawn(async move { end.record_at_last(&manager).await });
                }
            }
        }
        for vrot in self.registry.all() {
            let is_over = !matches!(vrot.record().lifecycle, Lifecycle::Running { .. });
            if is_over && vrot.adoption().is_none() {
                let _gate = vrot.gate.lock().await;
                self.try_to_record_loss(&vrot).await;
            }
        }
        // Last: what failed on the way is done again.
        let manufactured = (found.living.into_values())
            .filter(|record| matches!(record.lifecycle, Lifecycle::Manufactured { .. }));
        manufactured.for_each(|record| self.pool.found(record));
        Ok(())
    }

    /// What is in the store.
    async fn found(&self) -> Result<Found, ManagerError> {
        let mut found = Found::default();
        for id in self.journal.vrots().await? {
            let record = self.journal.read(id, Part::Record).await?;
            let record = record.ok_or(RecordError::Missing { vrot: id })?;
            match StoredVrot::from_bytes(id, &record)? {
                StoredVrot::Living(record) => drop(found.living.insert(id, *record)),
                StoredVrot::Deleted(tombstone) => found.tombstones.push(tombstone),
            }
        }
        Ok(found)
    }

    /// All at once, but for those that have state to hand over: they take [`Turns`]. What is not
    /// adopted waits for `compared`.
    fn begin_adoptions(
        self: &Arc<Self>,
        compared: &CancellationToken,
    ) -> Result<mpsc::UnboundedReceiver<VrotId>, ManagerError> {
        let (adopted, adoptions) = mpsc::unbounded_channel();
        let folders = backend::running(&self.config.runtime_dir, &self.config.locks())?;
        let (turns, folders) = Turns::of(folders);
        self.tasks.spawn(turns.give());
        for (folder, turn) in folders {
            let known = self.registry.find_vrot(folder.vrot());
            let is_done = |vrot: &Arc<Vrot>| vrot.backend().is_some() || vrot.adoption().is_some();
            if known.as_ref().is_some_and(is_done) {
                continue;
            }
            if let Some(vrot) = &known {
                vrot.set_adoption(Some(Adoption::Waiting));
            }
            let (manager, adopted, compared) =
                (Arc::clone(self), adopted.clone(), compared.clone());
            self.tasks.spawn(async move {
                manager.settle(folder, turn, known, adopted, compared).await;
            });
        }
        Ok(adoptions)
    }

    /// Waits no longer than a backend that is well needs: the others are waited for in the
    /// background, each by itself.
    async fn finish_adoptions(&self, mut adoptions: mpsc::UnboundedReceiver<VrotId>) {
        let mut events = Vec::new();
        let all = async {
            while let Some(vrot) = adoptions.recv().await {
                events.push(Event::BackendAdopted { vrot });
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("not every backend has answered: the others are waited for meanwhile");
        }
        // Whatever is adopted from now on is recorded by itself.
        adoptions.close();
        while let Ok(vrot) = adoptions.try_recv() {
            events.push(Event::BackendAdopted { vrot });
        }
        // In one write: a line each would cost a thousand of them on a full host.
        if !events.is_empty() {
            self.record_or_keep(events).await;
        }
    }

    /// Takes over what lives in a folder, or ends it: left alone, it would serve a guest while
    /// another instance of the same vRoT is started.
    async fn settle(
        self: &Arc<Self>,
        folder: RuntimeFolder,
        turn: NextTurn,
        known: Option<Arc<Vrot>>,
        adopted: mpsc::UnboundedSender<VrotId>,
        compared: CancellationToken,
    ) {
        let id = folder.vrot();
        let running = known
            .clone()
            .filter(|vrot| matches!(vrot.record().lifecycle, Lifecycle::Running { .. }));
        let Some(vrot) = running else {
            drop(turn);
            compared.cancelled().await;
            // Left from a creation, a start or a stop that never came to its end.
            tracing::warn!(vrot = %id, "a backend that nobody knows is ended");
            if let Err(error) = self.end_leftover(&folder, known.as_deref()).await {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "it may still be there, or its last state is lost");
            }
            if let Some(vrot) = known {
                let _gate = vrot.gate.lock().await;
                self.try_to_record_loss(&vrot).await;
                vrot.set_adoption(None);
            }
            return;
        };
        let turn = turn.taken().await;
        let taken_over = self.take_over_backend(&vrot, &folder).await;
        if !matches!(taken_over, Ok(TakenOver::Adopted)) {
            compared.cancelled().await;
        }
        let reason = match taken_over {
            Ok(TakenOver::Adopted) => {
                vrot.set_adoption(None);
                tracing::info!(vrot = %id, "adopted");
                if adopted.send(id).is_err() {
                    let adopted = vec![Event::BackendAdopted { vrot: id }];
                    self.record_or_keep(adopted).await;
                }
                if let (Some(turn), Some(backend)) = (turn, vrot.backend()) {
                    turn.over_when(backend.caught_up()).await;
                }
                // A line about a certificate comes after those of what was found.
                let compared = self.ending.run_until_cancelled(compared.cancelled());
                if compared.await.is_some() {
                    self.issue_pending(&vrot);
                }
                return;
            }
            Ok(TakenOver::OtherVersion(error)) => {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "a backend is left alone");
                vrot.set_adoption(Some(Adoption::OtherVersion));
                return;
            }
            Ok(TakenOver::Dead) => "it had ended when the manager started".to_owned(),
            Err(error) => {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "a backend that cannot be taken over is ended");
                // If it comes to itself meanwhile, its state is kept.
                if let Err(error) = self.dismiss(id, Some(vrot.record().generation)).await {
                    tracing::error!(vrot = %id, error = %WithCauses(&error), "it may still be there, or its last state is lost");
                }
                WithCauses(&error).to_string()
            }
        };
        vrot.set_adoption(None);
        // It died while its host lived: its VM may be there still.
        let end = End::noticed(id, None, &reason);
        end.and_again(self).await;
    }

    async fn take_over_backend(
        &self,
        vrot: &Vrot,
        folder: &RuntimeFolder,
    ) -> Result<TakenOver, ManagerError> {
        let record = vrot.record();
        let role = Role::Guest(self.guest_role(&record, vrot.certified())?);
        match Backend::adopt(folder.clone(), record.generation, role, LAST_PATIENCE).await {
            Ok(Some(backend)) => {
                vrot.set_backend(Some(backend));
                Ok(TakenOver::Adopted)
            }
            Ok(None) => {
                folder.remove()?;
                Ok(TakenOver::Dead)
            }
            Err(error) if error.is_of_another_version() => Ok(TakenOver::OtherVersion(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a backend whose vRoT does not run by the store's word. What its guest did after that is
    /// kept, but not beside a volatile state that was put aside before.
    async fn end_leftover(
        &self,
        folder: &RuntimeFolder,
        known: Option<&Vrot>,
    ) -> Result<(), ManagerError> {
        let Some(record) = known.map(Vrot::record) else {
            Backend::dismiss(folder, None).await?;
            return Ok(folder.forget_loss()?);
        };
        let is_suspended = matches!(record.lifecycle, Lifecycle::Suspended { .. });
        let generation = (!is_suspended).then_some(record.generation);
        self.dismiss(record.vrot, generation).await
    }

    /// Starts a vRoT whose backend ended by itself from its last durable state, if the policy
    /// allows it. No guest goes on with it: its VMM has lost the connection, and a new one
    /// begins with a reset, as a TPM does whose PCRs are empty.
    async fn start_again(self: &Arc<Self>, id: VrotId) {
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
    async fn note_end(&self, end: &mut End) -> Result<Noted, ManagerError> {
        let id = end.vrot;
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Ok(Noted::Nothing);
        };
        let _gate = vrot.gate.lock().await;
        let mut record = vrot.record_to_change();
        let present = vrot.backend().map(|backend| backend.instance());
        // An end may be heard of late, when it was stopped or another one runs already.
        if !matches!(record.lifecycle, Lifecycle::Running { .. }) || present != end.instance {
            return Ok(Noted::Nothing);
        }
        if end.progress == Progress::Noticed {
            tracing::error!(vrot = %id, reason = end.reason, "the backend ended by itself");
            self.counters.increment(Counter::BackendsEnded);
            end.progress = Progress::Counted;
        }
        let loss = self.unrecorded_loss(&record)?;
        if end.progress == Progress::Counted {
            let mut events = vec![Event::BackendEnded {
                vrot: id,
                reason: end.reason.as_str().into(),
            }];
            events.extend(loss.map(|loss| loss.event(&record)));
            self.record_all(events).await?;
            end.progress = Progress::Logged;
        }
        record.state_loss = loss.or(record.state_loss);
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::BackendEnded, Timestamp::now())?;
        self.commit_record(&record).await?;
        if let Err(error) = self.folder(id).forget_loss() {
            tracing::warn!(vrot = %id, %error, "a file is left behind");
        }
        vrot.set_backend(None);
        vrot.set_record(record);
        Ok(Noted::Ended)
    }
}

/// What was found in the store.
#[derive(Default)]
struct Found {
    living: BTreeMap<VrotId, VrotRecord>,
    tombstones: Vec<Tombstone>,
}

/// What became of the backend in a folder.
enum TakenOver {
    Adopted,
    Dead,
    OtherVersion(BackendError),
}

/// What became of the news that a backend has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Ended,
    /// It was noted before, or is left to the next manager.
    Nothing,
}

/// The end of a backend that was not ordered, on its way into the store.
#[derive(Debug)]
struct End {
    vrot: VrotId,
    /// Which backend; none, if there was none since the manager started.
    instance: Option<InstanceId>,
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
    fn noticed(vrot: VrotId, instance: Option<InstanceId>, reason: &str) -> Self {
        Self {
            vrot,
            instance,
            reason: reason.to_owned(),
            progress: Progress::Noticed,
        }
    }

    /// Tries until it is recorded: a vRoT that is called running and has no backend can neither
    /// be used nor started. A manager that ends leaves it to the next one.
    async fn record_at_last(mut self, manager: &Manager) -> Noted {
        loop {
            match manager.note_end(&mut self).await {
                Ok(noted) => return noted,
                Err(error) => {
                    let vrot = self.vrot;
                    let error = WithCauses(&error);
                    tracing::error!(%vrot, %error, "the end of a backend is not recorded yet");
                }
            }
            let pause = manager.ending.run_until_cancelled(sleep(RETRY_PAUSE));
            if pause.await.is_none() {
                return Noted::Nothing;
            }
        }
    }

    /// The same, and then another backend is started, as the policy has it.
    async fn and_again(self, manager: &Arc<Manager>) {
        let vrot = self.vrot;
        if self.record_at_last(manager).await == Noted::Ended && !manager.ending.is_cancelled() {
            manager.start_again(vrot).await;
        }
    }
}

/// Notes each end of a backend that was not ordered. Each in its own task: recording may have to
/// wait for the disk, opening a state takes time, and other backends may have ended.
pub(in crate::manager) async fn note_endings(
    manager: Arc<Manager>,
    mut endings: mpsc::UnboundedReceiver<(VrotId, Ended)>,
) {
    while let Some((vrot, ended)) = endings.recv().await {
        if let Ending::Unordered { reason } = ended.ending {
            let end = End::noticed(vrot, Some(ended.instance), &reason);
            let noting = Arc::clone(&manager);
            (manager.tasks).spawn(async move { end.and_again(&noting).await });
        }
    }
}
