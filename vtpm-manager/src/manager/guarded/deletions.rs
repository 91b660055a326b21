//! Deletions: the key goes first, then the audit log says so, then the rest goes.
//!
//! A tombstone takes the place of the record and its keys. It stays until the line of the deletion
//! is in the audit log, whatever ends the manager or keeps the line from being written meanwhile:
//! by that line a later recovery knows that the vRoT must not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_types::{Timestamp, VrotKey, WithCauses};
use cert_chain::VrotId;
use guarded_state::disk::Batch;

use crate::audit::{Actor, Event};
use crate::manager::registry::Vrot;
use crate::manager::{Counter, Manager, ManagerError, blocking};
use crate::vrot::{Owner, Tombstone, VrotRecord};

/// Deletions that are not finished.
#[derive(Debug, Default)]
pub struct Deletions {
    unfinished: Mutex<BTreeMap<VrotId, Deletion>>,
    /// Held by whoever finishes one, so that no line is written twice.
    turn: tokio::sync::Mutex<()>,
}

/// A deletion that is not finished.
#[derive(Clone, Debug)]
struct Deletion {
    tombstone: Tombstone,
    /// Whether the audit log tells of it.
    is_recorded: bool,
}

impl Deletions {
    /// How many there are.
    pub fn unfinished(&self) -> usize {
        self.lock().len()
    }

    /// Takes up the tombstones that an earlier manager left in the store. `recorded` are the deletions of
    /// which the audit log tells.
    pub(in crate::manager) fn found(
        &self,
        tombstones: Vec<Tombstone>,
        recorded: &BTreeSet<VrotId>,
    ) {
        for tombstone in tombstones {
            let is_recorded = recorded.contains(&tombstone.vrot);
            self.begin(tombstone, is_recorded);
        }
    }

    /// Whether this vRoT's is not finished.
    pub(in crate::manager) fn has(&self, vrot: VrotId) -> bool {
        self.lock().contains_key(&vrot)
    }

    fn begin(&self, tombstone: Tombstone, is_recorded: bool) {
        let deletion = Deletion {
            tombstone,
            is_recorded,
        };
        self.lock()
            .entry(deletion.tombstone.vrot)
            .or_insert(deletion);
    }

    fn of(&self, key: VrotKey) -> Option<VrotId> {
        let number = key.number();
        let is_meant = |tombstone: &&Tombstone| {
            let vm = tombstone.owner.as_ref().map(|owner| *owner.vm.as_uuid());
            *tombstone.vrot.as_uuid() == number || vm == Some(number)
        };
        let deletions = self.lock();
        let mut tombstones = deletions.values().map(|deletion| &deletion.tombstone);
        tombstones.find(is_meant).map(|found| found.vrot)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VrotId, Deletion>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// Of this vRoT, which whoever ordered what the present task does orders to be deleted.
    pub(in crate::manager) fn ordered_now(record: &VrotRecord) -> Self {
        Self {
            vm: record.vm,
            tenant: record.tenant.clone(),
            by_uid: Actor::current().map(Actor::uid),
        }
    }
}

impl Manager {
    /// Deletions that are not finished.
    pub fn deletions(&self) -> &Deletions {
        &self.deletions
    }

    /// The vRoT with this number, or of the VM with this number.
    pub fn find(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.registry.find(key).map_err(|unknown| {
            let vrot = self.deletions.of(key);
            vrot.map_or(unknown, |vrot| ManagerError::DeletionUnfinished { vrot })
        })
    }

    /// Deletes a vRoT: its key first, so that a crash on the way leaves nothing in the store that
    /// opens. What is not finished after that is finished at the next order, or by itself. To
    /// delete what is deleted changes nothing.
    pub async fn delete(&self, key: VrotKey) -> Result<(), ManagerError> {
        let vrot = match self.find(key) {
            Ok(vrot) => vrot,
            Err(ManagerError::DeletionUnfinished { vrot }) => {
                return self.finish_deletion(vrot).await;
            }
            Err(unknown) => return self.was_deleted(key).await?.then_some(()).ok_or(unknown),
        };
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let record = vrot.record();
        let now = Timestamp::now();
        let deleted = record.lifecycle.delete(now)?;
        let owner = Owner::ordered_now(&record);
        self.destroy_key(record.vrot, now, Some(owner)).await?;
        // An order that waits at the gate must not write the record, with its keys, again.
        vrot.set_record(VrotRecord {
            lifecycle: deleted,
            ..VrotRecord::clone(&record)
        });
        self.registry.remove(&vrot);
        self.counters.increment(Counter::Deleted);
        tracing::info!(vrot = %record.vrot, "deleted");
        drop(gate);
        self.finish_deletion(record.vrot).await
    }

    /// Destroys a vRoT that is in the store and belongs to no VM: its key first.
    pub(in crate::manager) async fn discard(
        &self,
        vrot: VrotId,
        owner: Option<Owner>,
    ) -> Result<(), ManagerError> {
        self.destroy_key(vrot, Timestamp::now(), owner).await?;
        self.finish_deletion(vrot).await
    }

    async fn destroy_key(
        &self,
        vrot: VrotId,
        at: Timestamp,
        owner: Option<Owner>,
    ) -> Result<(), ManagerError> {
        let tombstone = Tombstone { vrot, at, owner };
        self.journal.commit(tombstone.to_batch()).await?;
        self.deletions.begin(tombstone, false);
        Ok(())
    }

    /// Writes the line of a deletion, unless it is there, and removes what the store has still.
    async fn finish_deletion(&self, vrot: VrotId) -> Result<(), ManagerError> {
        let _one_at_a_time = self.deletions.turn.lock().await;
        let Some(deletion) = self.deletions.lock().get(&vrot).cloned() else {
            return Ok(());
        };
        if !deletion.is_recorded {
            self.record_deletion(&deletion.tombstone).await?;
            if let Some(deletion) = self.deletions.lock().get_mut(&vrot) {
                deletion.is_recorded = true;
            }
        }
        self.journal.commit(Batch::default().delete(vrot)).await?;
        self.deletions.lock().remove(&vrot);
        // What its backends left to be known of it.
        if let Err(error) = self.folder(vrot).forget_loss() {
            tracing::warn!(%vrot, %error, "a file is left behind");
        }
        Ok(())
    }

    /// The deletions of which the audit log tells. Reads all of it.
    pub(in crate::manager) async fn recorded_deletions(
        &self,
    ) -> Result<BTreeSet<VrotId>, ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.deleted()).await??)
    }

    /// The same, where there is anything to look for.
    pub(in crate::manager) async fn recorded_deletions_of(
        &self,
        tombstones: &[Tombstone],
    ) -> Result<BTreeSet<VrotId>, ManagerError> {
        match tombstones {
            [] => Ok(BTreeSet::new()),
            _ => self.recorded_deletions().await,
        }
    }

    /// Writes the line of a deletion.
    pub(in crate::manager) async fn record_deletion(
        &self,
        tombstone: &Tombstone,
    ) -> Result<(), ManagerError> {
        let vrot = tombstone.vrot;
        let (by, event) = match &tombstone.owner {
            Some(owner) => {
                let event = Event::VrotDeleted {
                    vrot,
                    vm: owner.vm,
                    tenant: owner.tenant.clone(),
                    deleted_at: tombstone.at,
                };
                (owner.by_uid.map(Actor::of_uid), event)
            }
            None => (None, Event::VrotDiscarded { vrot }),
        };
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.append(by, &[event])).await??)
    }

    /// Finishes what earlier orders, or an earlier manager, did not.
    pub(in crate::manager) async fn finish_deletions(&self) {
        let unfinished: Vec<VrotId> = self.deletions.lock().keys().copied().collect();
        for vrot in unfinished {
            match self.finish_deletion(vrot).await {
                Ok(()) => tracing::info!(%vrot, "a deletion is finished"),
                Err(error) => {
                    let error = WithCauses(&error);
                    tracing::error!(%vrot, %error, "a deletion is not finished: its key is gone, and it is tried again");
                }
            }
        }
    }

    async fn was_deleted(&self, key: VrotKey) -> Result<bool, ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.has_deletion(key.number())).await??)
    }
}
