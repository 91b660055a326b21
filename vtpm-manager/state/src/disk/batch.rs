//! Changes that become durable together.

use std::collections::BTreeMap;
use std::fmt;

use cert_chain::{Generation, VrotId};

use super::ledger_records::LedgerWrites;

/// Changes, by what they change. Of two changes of the same thing the later one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    changes: BTreeMap<(VrotId, Part), Option<Vec<u8>>>,
    /// What the records among the changes state.
    generations: BTreeMap<VrotId, Generation>,
    ledger: Option<LedgerWrites>,
    changes_ownership: bool,
    marks_log: bool,
}

/// One of the things that are kept of a vRoT. The numbers stand in the store: never give one
/// away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Part {
    /// The manager's record: identity, lifecycle, wrapped keys.
    Record = 1,
    /// The TPM's permanent state, sealed by the backend.
    Permanent = 2,
    /// The TPM's volatile state, sealed by the backend.
    Volatile = 3,
    /// What `TPM2_Shutdown(STATE)` saved, sealed by the backend.
    Saved = 4,
}

/// The longest contents of a part, in bytes. A permanent state of libtpms has 200 KiB at most; a
/// compromised backend could send more.
pub const MAX_CONTENTS: usize = 512 * 1024;

impl Part {
    /// Every part.
    pub const ALL: [Self; 4] = [Self::Record, Self::Permanent, Self::Volatile, Self::Saved];

    /// The part's number in the store.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Permanent => "permanent state",
            Self::Volatile => "volatile state",
            Self::Saved => "saved state",
        })
    }
}

impl Batch {
    /// Sets the record of a vRoT, which states this generation; that of a deleted vRoT states zero.
    /// This alone brings a vRoT into being.
    #[must_use]
    pub fn put_record(mut self, vrot: VrotId, generation: Generation, record: Vec<u8>) -> Self {
        self.generations.insert(vrot, generation);
        self.put(vrot, Part::Record, record)
    }

    /// Sets the contents of a part of a vRoT that exists. Its generation stays as it is.
    #[must_use]
    pub fn put(mut self, vrot: VrotId, part: Part, contents: Vec<u8>) -> Self {
        self.changes.insert((vrot, part), Some(contents));
        self
    }

    /// A vRoT becomes that of a VM by this: after a loss of power it must not be given to another
    /// one. The physical TPM vouches for that soon, not with each.
    #[must_use]
    pub fn changing_ownership(mut self) -> Self {
        self.changes_ownership = true;
        self
    }

    /// Whether a vRoT becomes that of a VM by this.
    pub fn changes_ownership(&self) -> bool {
        self.changes_ownership
    }

    /// Is committed for the sake of the log beside the store, whether anything else changes or not.
    #[must_use]
    pub fn marking_log(mut self) -> Self {
        self.marks_log = true;
        self
    }

    /// Removes one part.
    #[must_use]
    pub fn remove(mut self, vrot: VrotId, part: Part) -> Self {
        self.changes.insert((vrot, part), None);
        self
    }

    /// Removes everything of a vRoT.
    #[must_use]
    pub fn delete(self, vrot: VrotId) -> Self {
        Part::ALL
            .into_iter()
            .fold(self, |batch, part| batch.remove(vrot, part))
    }

    /// The same changes with the ledger's records of them: both become durable together.
    #[must_use]
    pub(crate) fn with_ledger(mut self, writes: LedgerWrites) -> Self {
        self.ledger = Some(writes);
        self
    }

    /// The ledger's records to be written with the changes.
    pub fn ledger(&self) -> Option<&LedgerWrites> {
        self.ledger.as_ref()
    }

    /// The changes, and then those of `later`.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        self.append(later);
        self
    }

    /// Lets `later` follow.
    pub(crate) fn append(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.generations.extend(later.generations);
        self.changes_ownership |= later.changes_ownership;
        self.marks_log |= later.marks_log;
    }

    /// The changes; `None` where something goes.
    pub fn changes(&self) -> impl Iterator<Item = (VrotId, Part, Option<&[u8]>)> {
        self.changes
            .iter()
            .map(|((vrot, part), contents)| (*vrot, *part, contents.as_deref()))
    }

    /// The generation that a vRoT has by these changes; `None` where they do not set it.
    pub fn generation(&self, vrot: VrotId) -> Option<Generation> {
        self.generations.get(&vrot).copied()
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.marks_log
    }
}
