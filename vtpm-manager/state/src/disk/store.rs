//! What a store does, whatever it lies on.

use cert_chain::VrotId;

use super::batch::{Batch, Part};
use super::error::StoreError;
use super::ledger_records::StoredLedger;

/// A place that keeps things by vRoT and part.
pub trait Store: Send + Sync + 'static {
    /// Every vRoT of which anything is kept.
    fn vrots(&self) -> Result<Vec<VrotId>, StoreError>;

    /// What was committed last.
    fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError>;

    /// Makes all changes of a batch durable, with the ledger's records of them, or nothing.
    /// Returns when they are.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// The ledger's records as they were committed.
    fn ledger(&self) -> Result<StoredLedger, StoreError>;

    /// How often it asked its disk to make writes durable, since it was opened; 0 without a disk.
    fn syncs(&self) -> u64 {
        0
    }

    /// Bytes that it wrote to its disk, since it was opened; 0 without a disk.
    fn written(&self) -> u64 {
        0
    }
}
