//! What a batch passes on its way into the store: the ledger of [`crate::rollback`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cert_chain::VrotId;

use super::{Batch, MAX_CONTENTS, Part, Store, StoreError};
use crate::rollback::{CommitError, HostLedger, Moment, RegisterError, RollbackStatus, changes_of};

/// A store, and whether it may be used.
pub(super) struct Gate {
    store: Arc<dyn Store>,
    state: Mutex<State>,
    /// How it stood when somebody last had the state, and when that was: who holds the state
    /// may wait for the TPM for long.
    seen: Mutex<Option<(RollbackStatus, Instant)>>,
}

/// The right to commit one batch.
pub(super) struct Key<'a> {
    gate: &'a Gate,
    state: MutexGuard<'a, State>,
    created: BTreeSet<VrotId>,
    deleted: BTreeSet<VrotId>,
}

enum State {
    Locked,
    Open(Box<HostLedger>),
}

impl Gate {
    pub(super) fn locked(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: Mutex::new(State::Locked),
            seen: Mutex::new(None),
        }
    }

    pub(super) fn unlock(&self, ledger: HostLedger) {
        self.see(&ledger);
        *self.state() = State::Open(Box::new(ledger));
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn key(&self) -> Key<'_> {
        Key {
            gate: self,
            state: self.state(),
            created: BTreeSet::new(),
            deleted: BTreeSet::new(),
        }
    }

    /// Reads while no batch is on its way, so that contents and ledger belong together.
    pub(super) fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        let state = self.state();
        match &*state {
            State::Locked => Err(StoreError::Locked),
            State::Open(ledger) => {
                let contents = self.store.read(vrot, part)?;
                ledger.check(vrot, part, contents.as_deref())?;
                Ok(contents)
            }
        }
    }

    pub(super) fn status(&self) -> Option<RollbackStatus> {
        let (mut status, at) = (*self.seen.lock().unwrap_or_else(PoisonError::into_inner))?;
        status.window.age = status.window.age.map(|age| age + at.elapsed());
        Some(status)
    }

    fn see(&self, ledger: &HostLedger) {
        let now = Moment::now();
        let seen = Some((ledger.status(now), now.monotonic));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    pub(super) fn checkpoint_due(&self) -> Option<Instant> {
        match &*self.state() {
            State::Open(ledger) => ledger.checkpoint_due(),
            State::Locked => None,
        }
    }

    pub(super) fn checkpoint(&self) -> Result<(), RegisterError> {
        match &mut *self.state() {
            State::Open(ledger) => {
                let written = ledger.checkpoint();
                self.see(ledger);
                written
            }
            State::Locked => Ok(()),
        }
    }

    pub(super) fn close(&self) -> Result<(), RegisterError> {
        match &mut *self.state() {
            State::Open(ledger) => {
                let written = ledger.close();
                self.see(ledger);
                written
            }
            State::Locked => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key<'_> {
    /// Whether a change may be part of the batch. One vRoT's late state must not fail the batch
    /// of all others, nor bring a deleted vRoT back.
    pub(super) fn admit(&mut self, change: &Batch) -> Result<(), StoreError> {
        let ledger = match &*self.state {
            State::Locked => return Err(StoreError::Locked),
            State::Open(ledger) => ledger,
        };
        let (mut created, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        for (vrot, part, contents) in change.changes() {
            match (part, contents) {
                (Part::Record, Some(_)) if change.generation(vrot).is_some() => {
                    created.insert(vrot)
                }
                (Part::Record, None) => deleted.insert(vrot),
                _ => false,
            };
        }
        for (vrot, _, contents) in change.changes() {
            if let Some(length) = contents
                .map(<[u8]>::len)
                .filter(|length| *length > MAX_CONTENTS)
            {
                return Err(StoreError::TooLarge { vrot, length });
            }
            let exists = ledger.leaf(&vrot).is_some()
                || self.created.contains(&vrot)
                || created.contains(&vrot);
            let gone = self.deleted.contains(&vrot) || deleted.contains(&vrot);
            if contents.is_some() && (gone || !exists) {
                return Err(StoreError::UnknownVrot { vrot });
            }
        }
        self.created.append(&mut created);
        self.deleted.append(&mut deleted);
        Ok(())
    }

    /// Commits what was admitted. `wait` is asked whether to try again while the anchor cannot
    /// be written; nobody can be told of the batch before it was.
    pub(super) fn commit(
        mut self,
        batch: Batch,
        mut wait: impl FnMut(&RegisterError) -> bool,
    ) -> Result<(), StoreError> {
        let store = &self.gate.store;
        let ledger = match &mut *self.state {
            State::Locked => return Err(StoreError::Locked),
            State::Open(ledger) => ledger,
        };
        let changes = changes_of(&batch);
        let mut batch = Some(batch);
        loop {
            let committed = ledger.commit(&changes, Moment::now(), |writes| {
                let batch = batch.take().unwrap_or_default();
                store.commit(&batch.with_evidence(writes.clone()))
            });
            self.gate.see(ledger);
            match committed {
                Ok(_) => return Ok(()),
                Err(CommitError::Store(error)) => return Err(error),
                Err(CommitError::UnknownVrot { vrot }) => {
                    return Err(StoreError::UnknownVrot { vrot });
                }
                // Nothing was begun: again from the start.
                Err(CommitError::Unsettled(error)) => {
                    if !wait(&error) {
                        return Err(StoreError::Unanchored);
                    }
                }
                Err(CommitError::Unanchored { mut source, .. }) => loop {
                    if !wait(&source) {
                        return Err(StoreError::Unanchored);
                    }
                    match ledger.settle() {
                        Ok(()) => {
                            self.gate.see(ledger);
                            return Ok(());
                        }
                        Err(error) => source = error,
                    }
                },
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}
