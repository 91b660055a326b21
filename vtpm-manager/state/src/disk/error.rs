//! Why the store did not do what it was asked for.

use std::sync::Arc;

use cert_chain::VrotId;

use super::batch::{MAX_CONTENTS, Part};

/// Contents that are not what was committed last.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the {part} of vRoT {vrot} is not the one that was committed last: another program wrote to \
     the store"
)]
pub struct NotCommitted {
    /// Whose.
    pub vrot: VrotId,
    /// Which part.
    pub part: Part,
}

/// Why the store did not do what it was asked for. Cheap to copy: one failed commit is
/// reported for each change in it.
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
    /// The rollback anchor did not take the batch before the manager ended. It was not
    /// acknowledged; the next start settles it.
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
