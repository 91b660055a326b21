//! State goes to a place of this host's disk in swtpm's form: for development, in place of swtpm, and
//! where another program keeps state safe.
//!
//! It is not sealed, and encrypted at most under a key that its user gave. Sealing needs a manager.
//! What cannot be written stays here, and is tried again.

use std::collections::BTreeMap;
use std::error::Error;

use swtpm_state::{BlobKeys, Key, Location, StateStore, StoreError};
use zeroize::Zeroizing;

use crate::control::SwtpmExport;
use crate::engine::StateKind;

/// 10 ms apart: the process that a VM leaves gives the place free when the VM was carried over.
const CLAIM_RETRIES: u32 = 50;

/// One vRoT's state on the disk.
#[derive(Debug)]
pub struct LocalState {
    store: StateStore,
    /// For what a VMM carries.
    migration_key: Option<Key>,
    /// What is to be on the disk and is not yet: a state, or nothing at all.
    unsaved: BTreeMap<StateKind, Option<Zeroizing<Vec<u8>>>>,
    /// Whether the last attempt to write failed.
    failing: bool,
    has_volatile: bool,
    hold: Hold,
    /// Whether the place is given free when a VMM has taken all of the state.
    leaves_with_vm: bool,
}

/// Whose the place is. Another host may use the same one while a VM moves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Ours: it is locked, or whoever made it looks after that.
    Ours,
    /// Still another process's; its state was not looked at.
    Awaited,
    /// Another process's from now on. The state is with the VM.
    GivenFree,
}

/// Whether the place may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours as before.
    Ours,
    /// It is ours from now on, and its state was not loaded yet.
    New,
}

impl LocalState {
    /// Uses a place, which is to be locked. What a VMM carries is encrypted if there is a key for it.
    pub fn new(store: StateStore, migration_key: Option<Key>) -> Result<Self, StoreError> {
        let has_volatile = store.size(StateKind::Volatile)?.is_some();
        Ok(Self {
            store,
            migration_key,
            unsaved: BTreeMap::new(),
            failing: false,
            has_volatile,
            hold: Hold::Ours,
            leaves_with_vm: false,
        })
    }

    /// The place is still another process's: it is locked, and what lies there loaded, once the VM arrives.
    pub fn lock_later(&mut self) {
        self.hold = Hold::Awaited;
    }

    /// The place is given free once a VMM has taken all of the state.
    pub fn unlock_when_given_away(&mut self) {
        self.leaves_with_vm = true;
    }

    /// Makes sure that the place is ours, before the TPM does anything.
    pub fn claim(&mut self) -> Result<Claim, StoreError> {
        let before = self.hold;
        if before == Hold::Ours {
            return Ok(Claim::Ours);
        }
        self.store.lock(CLAIM_RETRIES)?;
        self.has_volatile = self.store.size(StateKind::Volatile)?.is_some();
        self.hold = Hold::Ours;
        Ok(match before {
            Hold::Awaited => Claim::New,
            Hold::Ours | Hold::GivenFree => Claim::Ours,
        })
    }

    /// A VMM has taken all of the state: the place is given free, if it is to be. What is not written
    /// yet stays ours.
    pub fn given_away(&mut self) {
        if !self.leaves_with_vm || self.hold != Hold::Ours || self.has_unsaved() {
            return;
        }
        match self.store.unlock() {
            Ok(()) => self.hold = Hold::GivenFree,
            Err(error) => tracing::error!(%error, "the state stays locked"),
        }
    }

    /// A part of the state as it was last saved; `None` in a new place.
    pub fn load(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.store.load(kind)
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        self.store.location()
    }

    /// Packs state for a VMM.
    pub fn state_export(&self) -> SwtpmExport<'_> {
        SwtpmExport(BlobKeys {
            state: self.store.key(),
            migration: self.migration_key.as_ref(),
        })
    }

    /// Puts a part of the state, or its absence, in place of the last one: afterwards it is on the
    /// disk, whole, or the last one still is, and [`retry`](Self::retry) tries again.
    pub fn keep(&mut self, kind: StateKind, state: Option<Zeroizing<Vec<u8>>>) {
        self.note(kind, state);
        self.retry();
    }

    /// The same, but leaves the writing to [`retry`](Self::retry), which has to follow.
    pub fn note(&mut self, kind: StateKind, state: Option<Zeroizing<Vec<u8>>>) {
        // Nothing of it is ours to write, an orderly end of this TPM least of all.
        if self.hold != Hold::Ours {
            return;
        }
        let is_there_anyway = kind == StateKind::Volatile && !self.has_volatile;
        if state.is_none() && is_there_anyway {
            self.unsaved.remove(&kind);
        } else {
            self.unsaved.insert(kind, state);
        }
    }

    /// Writes what could not be written before, if there is any.
    pub fn retry(&mut self) {
        if self.unsaved.is_empty() {
            return;
        }
        match self.save() {
            Ok(()) if std::mem::take(&mut self.failing) => {
                tracing::info!("all state is saved again");
            }
            Ok(()) => {}
            // It is tried at every command: once is enough to hear of it.
            Err(error) if self.failing => tracing::debug!(%error, "a state is still unsaved"),
            Err(error) => {
                self.failing = true;
                let error: &dyn Error = &error;
                tracing::error!(
                    error,
                    "a state is not saved yet; it is tried again and again"
                );
            }
        }
    }

    /// Whether something could not be written.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// A volatile state never stays beside a permanent one that is newer than it need be: it goes
    /// first, and comes last.
    fn save(&mut self) -> Result<(), StoreError> {
        if matches!(self.unsaved.get(&StateKind::Volatile), Some(None)) {
            self.store.remove(StateKind::Volatile)?;
            self.has_volatile = false;
            self.unsaved.remove(&StateKind::Volatile);
        }
        while let Some((kind, state)) = self.unsaved.first_key_value() {
            let kind = *kind;
            if let Some(state) = state {
                self.store.save(kind, state)?;
                self.has_volatile |= kind == StateKind::Volatile;
            }
            self.unsaved.remove(&kind);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs;

    use swtpm_state::StoreOptions;

    use super::*;

    const PERMANENT: &str = "tpm2-00.permall";

    fn open(folder: &tempfile::TempDir) -> LocalState {
        let location = Location::Folder(folder.path().to_owned());
        let store = StateStore::open(&location, StoreOptions::default(), None);
        LocalState::new(store.unwrap(), None).unwrap()
    }

    fn state(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        // A folder that nothing can be renamed over.
        let obstacle = folder.path().join(PERMANENT);
        fs::create_dir_all(obstacle.join("in the way")).unwrap();
        let mut kept = open(&folder);
        kept.keep(StateKind::Permanent, state(b"first"));
        kept.keep(StateKind::Volatile, state(b"beside it"));
        assert!(kept.has_unsaved());
        kept.keep(StateKind::Permanent, state(b"second"));
        fs::remove_dir_all(&obstacle).unwrap();
        kept.retry();
        assert!(!kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Permanent).unwrap(), state(b"second"));
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), state(b"beside it"));
    }

    #[test]
    fn what_is_only_noted_is_written_with_the_next_retry() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = open(&folder);
        kept.keep(StateKind::Volatile, state(b"put aside"));
        kept.note(StateKind::Volatile, None);
        assert!(kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), state(b"put aside"));
        kept.keep(StateKind::Permanent, state(b"changed"));
        assert!(!kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), None);
    }
}
