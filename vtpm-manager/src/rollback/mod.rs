//! Rollback evidence: an old store does not pass for the newest one.
//!
//! Every batch that the store commits updates a [Merkle tree](tree) over all vRoTs and becomes a
//! link of a [chain] that only this host's manager can make. Two [registers](register) of
//! the physical TPM name the newest batch: the volatile one is written with each batch and
//! outlives the manager, the durable one is written at checkpoints and outlives a loss of power.
//! At start the two are held against the store, and there is a [`Decision`]: go on, finish what
//! was begun, or refuse and change nothing. An operator's [`Recovery`] is the only way past a
//! refusal, and verifiers see it.
//!
//! ```text
//! decide(keys, stored, readings) ─┬─ Equal, AheadByChain: Start ── begin ──┐
//!                                 ├─ FirstStart ── begin, by `host init` ──┼─► Ledger
//!                                 └─ Refused ── accept ── Recovery ────────┘   commit, settle,
//!                                       └──► the manager does not start        checkpoint, close
//! ```
//!
//! What this does *not* show: after a loss of power under the checkpoint policy, whether the
//! last batches were cut off; [`Window`] and [`Boot`] state how much that can be. Nor does it
//! stop who can use the physical TPM with an approved boot as the manager does.

pub mod chain;
pub mod changes;
pub mod decision;
pub mod guard;
pub mod keys;
pub mod leaf;
pub mod ledger;
pub mod policy;
pub mod recovery;
pub mod refusal;
pub mod register;
pub mod start;
pub mod tree;

mod contents;
#[cfg(test)]
pub(crate) mod fake_registers;
#[cfg(test)]
pub(crate) mod guarded_store;
#[cfg(test)]
mod host;
#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod simulation;

pub use chain::{Batch, Epoch, PowerLoss};
pub use changes::{Changes, Writes};
pub use decision::{Boot, Decision, Readings, Refused, Stored, decide};
pub(crate) use guard::changes_of;
pub use guard::{Guard, GuardError, HostLedger, Opening, RollbackStatus};
pub use keys::RollbackKeys;
pub use leaf::{Leaf, PartDigests};
pub use ledger::{CommitError, Ledger, NotCommitted};
pub use policy::{AnchorPolicy, Moment, Window};
pub use recovery::{Recovery, RecoveryError, RecoveryRecord};
pub use refusal::Refusal;
pub use register::{
    AnchorRegisters, CheckpointInterval, Contents, GenerationError, Reading, Register,
    RegisterError,
};
pub use start::{FirstStart, FirstStartError, Recovered, Start};
