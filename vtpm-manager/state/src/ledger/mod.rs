//! The middle floor: an old store does not pass for the newest one.
//!
//! Every batch that the store commits updates a [Merkle tree](tree) over all vRoTs and becomes a
//! link of a [chain] that only this host's manager can make. Two [registers](register) of
//! the physical TPM name the newest batch: the volatile one is written with each batch and
//! outlives the manager, the durable one is written at checkpoints and outlives a loss of power.
//! At start the store is compared with the two, and there is a [`Decision`]: go on, finish what
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
pub mod contents;
pub mod decision;
pub mod interval;
pub mod keys;
pub mod leaf;
pub mod log_mark;
pub mod policy;
pub mod recovery;
pub mod refusal;
pub mod register;
pub mod registered_head;
pub mod running;
pub mod start;
pub mod status;
pub mod tree;

pub use chain::{ChainRecord, PowerLoss};
pub use changes::Changes;
pub use contents::Stored;
pub use decision::{Decision, Readings, Refused, decide};
pub use interval::CheckpointInterval;
pub use keys::RollbackKeys;
pub use leaf::{Leaf, PartDigests};
pub use log_mark::{LogMark, LogPosition, MarkedLog, MissingLog};
pub use policy::{AnchorPolicy, Moment, Window};
pub use recovery::{Recovery, RecoveryError, RecoveryRecord};
pub use refusal::Refusal;
pub use register::{AnchorRegisters, Contents, GenerationError, Reading, Register, RegisterError};
pub use registered_head::{Leave, RegisteredHead};
pub use running::{CommitError, HostLedger, Ledger};
pub use start::{Boot, FirstStart, FirstStartError, Recovered, Start};
pub use status::RollbackStatus;
