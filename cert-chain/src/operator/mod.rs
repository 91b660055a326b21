//! The operator of hosts: the key that approves PCR values, and what it signs.

mod approval;
mod error;
mod key;
mod required_pcrs;

pub use approval::{Approval, HostKeys, Purpose, SealedData};
pub use error::ApprovalError;
pub use key::{PolicyKey, PolicyKeyPublic};
pub use required_pcrs::{InsufficientPcrs, RequiredPcrs, measures_a_boot};
