//! Why a manager does not start: one variant for each thing that can be found, with the remedy.

use std::fmt;

use cert_chain::VrotId;

use super::chain::UnixSeconds;
use super::register::Register;
use crate::disk::{Epoch, Part};

/// A store and an anchor that do not belong together. A refusal changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A chain record was altered.
    #[error(
        "chain record {position} of the store was altered or is of another host: put the store \
         back as it was"
    )]
    AlteredChain {
        /// Place in the chain, from zero.
        position: usize,
    },
    /// The list of leaves is not the one that the newest batch was made over.
    #[error(
        "the store's list of vRoTs is not the one that batch {epoch} was made over: the store \
         was altered or is damaged. Put it back as it was"
    )]
    AlteredTree {
        /// The newest batch.
        epoch: Epoch,
    },
    /// Parts of vRoTs are not what was committed last.
    #[error(
        "not what was committed last: {}. An older copy was put into the newer store, or it was \
         altered. Put back the store as a whole, the newest there is",
        Listed(stale)
    )]
    StaleRecords {
        /// What differs.
        stale: Vec<(VrotId, Part)>,
    },
    /// The TPM has none of the two indices, or never wrote the durable one.
    #[error(
        "the TPM holds no rollback anchor, but the store is at batch {epoch}: the TPM was \
         cleared, its rollback index was removed, or this is another TPM. Nothing says any more \
         whether the store is the newest"
    )]
    ClearedTpm {
        /// The store's newest batch.
        epoch: Epoch,
    },
    /// Nothing is stored, but the TPM remembers batches.
    #[error(
        "the store is empty, but the TPM's rollback anchor is at batch {epoch}: the store was \
         lost, or `state_dir` names another folder. Put the store back"
    )]
    EmptyStore {
        /// The batch that the anchor names.
        epoch: Epoch,
    },
    /// An index that this host did not write.
    #[error(
        "the {register} rollback register in the TPM is not this host's: another manager uses \
         this TPM, or somebody defined the index anew"
    )]
    ForeignAnchor {
        /// Which register.
        register: Register,
    },
    /// The newest batch was not made with this host's keys.
    #[error(
        "the store was made by another host, or its newest batch was altered: a store opens \
         only on the host that made it. Put this host's store into its place"
    )]
    ForeignStore,
    /// Records that the tree has are not there.
    #[error(
        "the store has lost what it held of {}. Put back the store as a whole, the newest there \
         is",
        Listed(missing)
    )]
    MissingRecords {
        /// Which.
        missing: Vec<(VrotId, Part)>,
    },
    /// The store continues from a common past, but is not what the anchor names.
    #[error(
        "the store is at batch {found}, but not on the line that the {register} rollback \
         register has at batch {expected}: it was cut off by a loss of power or left behind by \
         a recovery. Put back the newest store"
    )]
    OtherBranch {
        /// Which register.
        register: Register,
        /// The store's newest batch.
        found: Epoch,
        /// The batch that the register names.
        expected: Epoch,
    },
    /// The store is older than the durable register.
    #[error(
        "this is an old store: it ends with batch {found} of {time}, the TPM's rollback anchor \
         is at batch {expected}. Put back the newest store"
    )]
    RestoredStore {
        /// The store's newest batch.
        found: Epoch,
        /// When that was made.
        time: UnixSeconds,
        /// The batch that the register names.
        expected: Epoch,
    },
    /// Records that the tree does not have.
    #[error(
        "the store holds records of {} that were deleted, or never made here: remove what was \
         put back",
        Listed(returned)
    )]
    ReturnedRecords {
        /// Which.
        returned: Vec<(VrotId, Part)>,
    },
    /// Records of vRoTs lie in each other's place.
    #[error(
        "parts of vRoTs lie in another's place: {}. Put each back where it belongs",
        Swaps(swapped)
    )]
    SwappedRecords {
        /// Whose place, which part, and whose contents were found there.
        swapped: Vec<(VrotId, Part, VrotId)>,
    },
    /// More batches than may follow the register.
    #[error(
        "the store is {ahead} batches of changes ahead of the {register} rollback register, \
         which allows {allowed}: the manager did not write these. Put back the store as the \
         manager left it"
    )]
    TooFarAhead {
        /// Which register.
        register: Register,
        /// How many batches follow it.
        ahead: usize,
        /// How many may.
        allowed: usize,
    },
    /// Links of the chain are not there.
    #[error(
        "the store's chain has a gap between batch {after} and batch {before}: chain records \
         were removed. Put back the store as it was"
    )]
    TruncatedChain {
        /// The last batch before the gap; 0 where there is none.
        after: Epoch,
        /// The first batch after the gap.
        before: Epoch,
    },
    /// Contents without any chain.
    #[error("the store holds vRoTs, but no chain of batches: put back the store as it was")]
    MissingChain,
    /// The volatile register names a batch that the store does not have.
    #[error(
        "the store was put back to batch {found} of {time} while the host ran: the TPM's \
         volatile rollback register is at batch {expected}. Put back the newest store"
    )]
    VolatileAhead {
        /// The store's newest batch.
        found: Epoch,
        /// When that was made.
        time: UnixSeconds,
        /// The batch that the register names.
        expected: Epoch,
    },
    /// The volatile index itself is gone, which no loss of power does.
    #[error(
        "the TPM's volatile rollback index was removed; a loss of power leaves it empty, but \
         there. Nothing says any more whether batch {epoch} is the newest"
    )]
    VolatileRemoved {
        /// The store's newest batch.
        epoch: Epoch,
    },
}

impl Refusal {
    /// A short name that does not change, for programs and for
    /// `vtpmctl host recover --accept`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlteredChain { .. } => "altered-chain",
            Self::AlteredTree { .. } => "altered-tree",
            Self::ClearedTpm { .. } => "cleared-tpm",
            Self::EmptyStore { .. } => "empty-store",
            Self::ForeignAnchor { .. } => "foreign-anchor",
            Self::ForeignStore => "foreign-store",
            Self::MissingChain => "missing-chain",
            Self::MissingRecords { .. } => "missing-records",
            Self::OtherBranch { .. } => "other-branch",
            Self::RestoredStore { .. } => "restored-store",
            Self::ReturnedRecords { .. } => "returned-records",
            Self::StaleRecords { .. } => "stale-records",
            Self::SwappedRecords { .. } => "swapped-records",
            Self::TooFarAhead { .. } => "too-far-ahead",
            Self::TruncatedChain { .. } => "truncated-chain",
            Self::VolatileAhead { .. } => "volatile-ahead",
            Self::VolatileRemoved { .. } => "volatile-removed",
        }
    }

    /// Whether an operator may accept the store all the same. Not where nothing shows that this
    /// host made it: then its keys would not open either.
    pub fn is_recoverable(&self) -> bool {
        !matches!(
            self,
            Self::AlteredChain { .. } | Self::ForeignStore | Self::MissingChain
        )
    }

    /// What an operator can do where the remedy in the message is out of reach.
    pub fn last_resort(&self) -> String {
        if self.is_recoverable() {
            format!(
                "Nothing was changed. If that cannot be done, `vtpmctl host recover --accept {}` \
                 goes on with what is there; the vRoTs it concerns get a new generation, which \
                 verifiers see.",
                self.code()
            )
        } else {
            "Nothing was changed. If that cannot be done, move the store away: the host then \
             reports an empty store, which `vtpmctl host recover` can accept; its vRoTs are lost."
                .to_owned()
        }
    }
}

/// Many vRoTs in one line: the first few and the number of all.
struct Listed<'a>(&'a [(VrotId, Part)]);

struct Swaps<'a>(&'a [(VrotId, Part, VrotId)]);

const NAMED: usize = 3;

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = (self.0.iter()).map(|(vrot, part)| format!("{part} of vRoT {vrot}"));
        list(f, named, self.0.len())
    }
}

impl fmt::Display for Swaps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = (self.0.iter()).map(|(at, part, of)| {
            format!("where the {part} of vRoT {at} should be is that of vRoT {of}")
        });
        list(f, named, self.0.len())
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    named: impl Iterator<Item = String>,
    all: usize,
) -> fmt::Result {
    let first: Vec<String> = named.take(NAMED).collect();
    f.write_str(&first.join(", "))?;
    if all > NAMED {
        write!(f, " and {} more", all - NAMED)?;
    }
    Ok(())
}
