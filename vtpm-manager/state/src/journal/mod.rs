//! The highest floor: the one writer of the store. [`Journal`] commits what has come in while the
//! previous commit was under way as one batch, so that a thousand busy vRoTs share the disk's few
//! synchronous writes. [`Guard`] decides at start whether the store may be used.

mod guard;
mod guarded_store;
mod handle;
mod health;
mod metrics;
mod writer;

pub use guard::{Guard, GuardError, Opening};
pub use handle::{Commit, Journal};
pub use health::{RetriedBy, Stall};
pub use metrics::JournalMetrics;
