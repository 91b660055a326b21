//! The guarded state of a host's vRoTs, on three floors, each of which knows those below it:
//!
//! - [`disk`]: contents and ledger records on a disk, each batch whole or not at all;
//! - [`ledger`]: which batch is the newest, as registers of the physical TPM say;
//! - [`journal`]: the one writer, and the decision at start whether the store may be used.
//!
//! What a record or a sealed state says, this crate does not know. It reaches the physical TPM
//! through [`ledger::AnchorRegisters`], which its user implements.

pub mod disk;
pub mod journal;
pub mod ledger;
#[cfg(feature = "testing")]
pub mod testing;
