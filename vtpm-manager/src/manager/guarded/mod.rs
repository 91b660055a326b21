//! What must be durable: the store, whether it may be used, and deletions that are not finished.

pub(super) mod audit_comparison;
pub(super) mod deletions;
pub(super) mod opening;
mod recovery;
pub(super) mod store_state;
