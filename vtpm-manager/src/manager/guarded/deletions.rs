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

use super::Guarded;
use crate::audit::{Actor, Event};
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::{Owner, Tombstone, VrotRecord};

/// Deletions that are not finished.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    unfinished: Mutex<BTreeMap<VrotId, Deletion>>,
    /// Held while one is finished, so that no line is written twice.
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
    fn unfinished(&self) -> usize {
        self.lock().len()
    }

    /// Takes up the tombstones that an earlier manager left in the store. `recorded` are the
    /// deletions of which the audit log tells.
    fn found(&self, tombstones: Vec<Tombstone>, recorded: &BTreeSet<VrotId>) {
        for tombstone in tombstones {
            let is_recorded = recorded.contains(&tombstone.vrot);
            self.begin(tombstone, is_recorded);
        }
    }

    /// Whether this vRoT's is not finished.
    pub(super) fn has(&self, vrot: VrotId) -> bool {
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
    /// The owner of a vRoT that is to be deleted, on the order of the present task's caller.
    pub(in crate::manager) fn ordered_now(record: &VrotRecord) -> Self {
        Self {
            vm: record.vm,
            tenant: record.tenant.clone(),
            by_uid: Actor::current().map(Actor::uid),
        }
    }
}

impl Guarded {
    /// How many deletions are not finished.
    pub fn unfinished_deletions(&self) -> usize {
        self.deletions.unfinished()
    }

    /// The vRoT with this number, or of the VM with this number, whose deletion is not finished.
    pub(in crate::manager) fn unfinished_deletion_of(&self, key: VrotKey) -> Option<VrotId> {
        self.deletions.of(key)
    }

    /// Whether the audit log tells of the deletion of a vRoT with this number, or of the VM with
    /// this number. Reads all of it.
    pub(in crate::manager) async fn was_deleted(&self, key: VrotKey) -> Result<bool, ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.has_deletion(key.number())).await??)
    }

    /// Takes up the deletions that an earlier manager left in the store, and finishes them.
    pub(in crate::manager) async fn take_over_deletions(
        &self,
        tombstones: Vec<Tombstone>,
    ) -> Result<(), ManagerError> {
        // The log is read where there is anything to look for.
        let recorded = match tombstones[..] {
            [] => BTreeSet::new(),
            _ => self.recorded_deletions().await?,
        };
        self.deletions.found(tombstones, &recorded);
        self.finish_deletions().await;
        Ok(())
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

    /// Puts a tombstone in the place of a vRoT's record: without its keys, its state does not open.
    pub(in crate::manager) async fn destroy_key(
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
    pub(in crate::manager) async fn finish_deletion(
        &self,
        vrot: VrotId,
    ) -> Result<(), ManagerError> {
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
        if let Err(error) = self.folders.of(vrot).forget_loss() {
            tracing::warn!(%vrot, %error, "a file is left behind");
        }
        Ok(())
    }

    /// The deletions of which the audit log tells. Reads all of it.
    pub(super) async fn recorded_deletions(&self) -> Result<BTreeSet<VrotId>, ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.deleted()).await??)
    }

    /// Writes the line of a deletion.
    pub(super) async fn record_deletion(&self, tombstone: &Tombstone) -> Result<(), ManagerError> {
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
}
