//! What the ledger has the store keep beside the contents themselves. To the store these are
//! bytes; [`crate::ledger`] makes and reads them.

use std::collections::BTreeMap;
use std::fmt;

use cert_chain::VrotId;
use minicbor::{Decode, Encode};
use serde::Serialize;

/// Number of a batch. It never goes back on a host, not even by a recovery.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Epoch(#[n(0)] u64);

/// What the store writes for one batch, in the same transaction as the changed contents
/// themselves: either all of it becomes durable or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerWrites {
    /// Number of the batch: the key of its chain record.
    pub epoch: Epoch,
    /// The chain record.
    pub record: Vec<u8>,
    /// Leaves that changed; `None` where the leaf goes.
    pub leaves: Vec<(VrotId, Option<Vec<u8>>)>,
    /// Chain records with lower numbers are not needed any more.
    pub prune_below: Epoch,
}

/// The ledger's records in a store: what [`crate::ledger::decide`] compares with the registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredLedger {
    /// Chain records in the order of their numbers.
    pub chain: Vec<Vec<u8>>,
    /// Leaves of the tree.
    pub leaves: BTreeMap<VrotId, Vec<u8>>,
}

impl Epoch {
    /// Wraps a number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The next one. A batch every microsecond takes half a million years to reach the end, so
    /// it is not a case anyone handles.
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
