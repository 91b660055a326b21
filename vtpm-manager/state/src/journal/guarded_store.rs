//! A store behind its ledger: every batch passes the ledger on its way into the store.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use cert_chain::VrotId;

use crate::disk::{Batch, MAX_CONTENTS, Part, Store, StoreError};
use crate::ledger::{
    Changes, CommitError, HostLedger, MarkedLog, Moment, RegisterError, RollbackStatus,
};

/// A store, and whether it may be used.
pub(super) struct GuardedStore {
    store: Arc<dyn Store>,
    state: Mutex<State>,
    /// What every batch names the newest line of, if there is such a log.
    log: OnceLock<Arc<dyn MarkedLog>>,
    /// The status after the last use of the state, and when that was. It has a lock of its own,
    /// because the state stays locked while a batch waits for the TPM.
    last_status: Mutex<Option<(RollbackStatus, Instant)>>,
}

/// One batch being put together. It holds the ledger, so that there is one at a time.
pub(super) struct Transaction<'a> {
    guarded: &'a GuardedStore,
    state: MutexGuard<'a, State>,
    created: BTreeSet<VrotId>,
    deleted: BTreeSet<VrotId>,
}

enum State {
    Locked,
    Open(Box<HostLedger>),
}

impl GuardedStore {
    pub(super) fn locked(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: Mutex::new(State::Locked),
            log: OnceLock::new(),
            last_status: Mutex::new(None),
        }
    }

    pub(super) fn unlock(&self, ledger: HostLedger) {
        self.note_status(&ledger);
        *self.state() = State::Open(Box::new(ledger));
    }

    /// From now on, batches name the newest line of this log. The first one that is given counts.
    pub(super) fn mark(&self, log: Arc<dyn MarkedLog>) {
        // Whoever gives a second one has the first already.
        let _ = self.log.set(log);
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn begin(&self) -> Transaction<'_> {
        Transaction {
            guarded: self,
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
        let (mut status, at) = (*self
            .last_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner))?;
        status.window.age = status.window.age.map(|age| age + at.elapsed());
        Some(status)
    }

    fn note_status(&self, ledger: &HostLedger) {
        let now = Moment::now();
        let status = Some((ledger.status(now), now.monotonic));
        *self
            .last_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = status;
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
                self.note_status(ledger);
                written
            }
            State::Locked => Ok(()),
        }
    }

    /// Closes the ledger. The last lines of the log come before that: what is written at the end of
    /// a shutdown is vouched for then.
    pub(super) fn close(&self) -> Result<(), CommitError<StoreError>> {
        match &mut *self.state() {
            State::Open(ledger) => {
                let mark = self.log.get().and_then(|log| log.mark());
                if let Some(mark) = mark.filter(|mark| ledger.head().log() != Some(*mark)) {
                    ledger.mark_log(mark);
                    // Whether the store has a batch that it did not take is not known: a closed
                    // register would refuse it at the next start.
                    ledger.commit(&Changes::default(), Moment::now(), |writes| {
                        (self.store).commit(&Batch::default().with_ledger(writes.clone()))
                    })?;
                }
                let written = ledger.close().map_err(CommitError::Unsettled);
                self.note_status(ledger);
                written
            }
            State::Locked => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transaction<'_> {
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

    /// Commits what was admitted. While the anchor cannot be written, `wait` is told why and says
    /// whether to try again; the batch is not acknowledged before the anchor has it.
    pub(super) fn commit(
        mut self,
        batch: Batch,
        mut wait: impl FnMut(RegisterError) -> bool,
    ) -> Result<(), StoreError> {
        let store = &self.guarded.store;
        let ledger = match &mut *self.state {
            State::Locked => return Err(StoreError::Locked),
            State::Open(ledger) => ledger,
        };
        let changes = Changes::from(&batch);
        if let Some(mark) = self.guarded.log.get().and_then(|log| log.mark()) {
            ledger.mark_log(mark);
        }
        let mut batch = Some(batch);
        loop {
            let committed = ledger.commit(&changes, Moment::now(), |writes| {
                let batch = batch.take().unwrap_or_default();
                store.commit(&batch.with_ledger(writes.clone()))
            });
            self.guarded.note_status(ledger);
            match committed {
                Ok(_) => return Ok(()),
                Err(CommitError::Store(error)) => return Err(error),
                Err(CommitError::UnknownVrot { vrot }) => {
                    return Err(StoreError::UnknownVrot { vrot });
                }
                // Nothing was begun: again from the start.
                Err(CommitError::Unsettled(error)) => {
                    if !wait(error) {
                        return Err(StoreError::Unanchored);
                    }
                }
                Err(CommitError::Unanchored { mut source, .. }) => loop {
                    if !wait(source) {
                        return Err(StoreError::Unanchored);
                    }
                    match ledger.settle() {
                        Ok(()) => {
                            self.guarded.note_status(ledger);
                            return Ok(());
                        }
                        Err(error) => source = error,
                    }
                },
            }
        }
    }
}

impl fmt::Debug for GuardedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedStore").finish_non_exhaustive()
    }
}
