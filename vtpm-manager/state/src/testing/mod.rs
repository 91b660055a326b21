//! Stand-ins for disk and TPM, for tests of this crate and of what is built on it.

mod registers;
mod store;

use std::sync::Arc;

pub use registers::{FailedWrite, FakeRegisters, Fuse};
pub use store::MemoryStore;

use crate::disk::Store;
use crate::journal::{Guard, GuardError, Journal};
use crate::ledger::{AnchorPolicy, RollbackKeys};

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestingError {
    /// The store was not set up.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The store was not unlocked.
    #[error(transparent)]
    Store(#[from] crate::disk::StoreError),
    /// The writer's thread was not started.
    #[error(transparent)]
    Thread(#[from] std::io::Error),
}

/// A guard with the default policy, and with keys that are the same every time.
pub fn guard(registers: &FakeRegisters) -> Guard {
    Guard {
        keys: RollbackKeys::derive(&[7; 32]),
        registers: Box::new(registers.clone()),
        policy: AnchorPolicy::default(),
    }
}

/// A journal that takes changes, over an empty store in memory.
pub async fn journal() -> Result<Journal, TestingError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let ledger = guard(&FakeRegisters::blank()).initialise(store.as_ref())?;
    let journal = Journal::start_locked(store)?;
    journal.unlock(ledger).await?;
    Ok(journal)
}
