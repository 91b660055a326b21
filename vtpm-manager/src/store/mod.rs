//! Where the state of all vRoTs is kept.
//!
//! A [`Store`] takes batches of changes and makes each durable as a whole. [`Journal`] is the
//! one writer: it commits what has come in while the previous commit was under way as one batch,
//! so that a thousand busy vRoTs share the disk's few synchronous writes.

mod batch;
mod blob;
mod blocks;
mod embedded;
mod gate;
mod health;
mod journal;
mod medium;
mod memory;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod simulated_disk;

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_chain::VrotId;

use crate::rollback::NotCommitted;

pub use batch::{Batch, MAX_CONTENTS, Part};
pub use blob::{StateBlob, StateBlobError};
pub use embedded::EmbeddedStore;
pub use health::{Cure, Trouble};
pub use journal::{Commit, Journal, JournalMetrics};
pub use memory::MemoryStore;

/// A place that keeps things by vRoT and part.
pub trait Store: Send + Sync + 'static {
    /// Every vRoT of which anything is kept.
    fn vrots(&self) -> Result<Vec<VrotId>, StoreError>;

    /// What was committed last.
    fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError>;

    /// Makes all changes of a batch durable, with the rollback evidence for them, or nothing.
    /// Returns when they are.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// The rollback evidence as it was committed.
    fn evidence(&self) -> Result<StoredEvidence, StoreError>;

    /// How often it asked its disk to make writes durable, since it was opened; 0 without a disk.
    fn syncs(&self) -> u64 {
        0
    }

    /// Bytes that it wrote to its disk, since it was opened; 0 without a disk.
    fn written(&self) -> u64 {
        0
    }
}

/// Rollback evidence in a store: what [`crate::rollback::decide`] holds against the anchor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredEvidence {
    /// Chain records in the order of their numbers.
    pub chain: Vec<Vec<u8>>,
    /// Leaves of the tree.
    pub leaves: BTreeMap<VrotId, Vec<u8>>,
}

/// Why the store did not do what it was asked for. Cheap to copy: one failed commit is told to
/// everybody who had a part in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Contents are not what was committed last.
    #[error(transparent)]
    Altered(#[from] NotCommitted),
    /// The journal's thread has ended.
    #[error("the store is closed: the manager is shutting down")]
    Closed,
    /// There is no room for a change.
    #[error(
        "the disk of the store is full: make room, and the manager goes on by itself; nothing \
         that was acknowledged is lost"
    )]
    Full(#[source] Arc<redb::Error>),
    /// What is in the store is not what this program writes.
    #[error(
        "the store holds {what} that this program does not write: it was altered, or comes from a newer version"
    )]
    Foreign {
        /// What it is.
        what: &'static str,
    },
    /// Nothing has shown yet that this is the newest store.
    #[error(
        "the store is locked: the host is not initialised (`vtpmctl host init`), or its state \
         was refused when the manager started"
    )]
    Locked,
    /// The store could not be opened.
    #[error(
        "the store `{path}` cannot be opened: {source}. If another manager has it open, stop that \
         one; if the file is damaged, put back a copy of it. Where there is none, move it away and \
         start the manager again: it reports an empty store, which `vtpmctl host recover --accept \
         empty-store` accepts; its vRoTs are lost"
    )]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: Arc<redb::Error>,
    },
    /// A batch that was given up is in the store after all.
    #[error(
        "the store holds a batch that was given up when the disk failed: restart the manager, \
         which writes all of the store anew and goes on from there (running vRoTs go on)"
    )]
    Overtaken,
    /// Reading failed.
    #[error("the store cannot be read")]
    Read(#[source] Arc<redb::Error>),
    /// The disk cannot be written any more.
    #[error(
        "the disk of the store is read-only: the kernel does that after errors of the disk (see \
         `dmesg`); mount it for writing, and the manager goes on by itself"
    )]
    ReadOnly(#[source] Arc<redb::Error>),
    /// More than any vRoT has.
    #[error(
        "the store does not take {length} bytes of vRoT {vrot}: {MAX_CONTENTS} is the most of one \
         part, and no TPM has as much"
    )]
    TooLarge {
        /// Whose.
        vrot: VrotId,
        /// How many bytes.
        length: usize,
    },
    /// The rollback anchor did not take the batch before the manager ended. Nobody was told
    /// that it is durable; the next start settles it.
    #[error("the rollback anchor in the TPM cannot be written: is the TPM there and unlocked?")]
    Unanchored,
    /// The disk failed to say whether a write is durable: what can be read may not be what
    /// the disk holds.
    #[error(
        "the disk did not confirm a write (see `dmesg`), so the store is closed: all of it is \
         written anew with the next change, and used again when the disk has confirmed that \
         (running vRoTs go on, and say that they are degraded)"
    )]
    Unconfirmed,
    /// A change of a vRoT that does not exist.
    #[error("vRoT {vrot} is not in the store: it was deleted, or never made")]
    UnknownVrot {
        /// Which.
        vrot: VrotId,
    },
    /// Writing failed.
    #[error("the store cannot be written")]
    Write(#[source] Arc<redb::Error>),
}
