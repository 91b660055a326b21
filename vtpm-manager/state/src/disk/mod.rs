//! The lowest floor: contents and ledger records on a disk, each batch of changes whole or not at
//! all. It judges nothing: what it gives back is what lies there.

mod batch;
mod blob;
mod blocks;
mod embedded;
mod error;
mod ledger_records;
mod medium;
mod store;

pub use batch::{Batch, MAX_CONTENTS, Part};
pub use blob::{StateBlob, StateBlobError};
pub use embedded::EmbeddedStore;
pub use error::{NotCommitted, StoreError};
pub use ledger_records::{Epoch, LedgerWrites, StoredLedger};
pub use medium::Medium;
pub use store::Store;
