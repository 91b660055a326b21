//! The operator of hosts: the key that approves PCR values, and what it signs.

pub mod approval;
pub mod key;
pub mod required_pcrs;

pub use approval::{Approval, ApprovalError};
pub use key::{PolicyKey, PolicyKeyPublic};
pub use required_pcrs::{InsufficientPcrs, RequiredPcrs};
