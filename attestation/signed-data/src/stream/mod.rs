//! Streams: readings that are signed in batches, so that the rate of readings is not that of a TPM.
//!
//! A stream is a sequence of [batches](Batch). Each is one signature of the source over a small
//! [statement](BatchStatement), with the readings beside it: the statement has the root of a Merkle tree
//! (RFC 9162 §2.1) over them, the number of the first, and the digest of the batch before. A leaf covers a
//! reading, its number and its stream, so that no reading passes for another; a single one can be
//! [taken out](ProvenReading) and verified alone.
//!
//! A [`StreamVerifier`] takes one batch after the other, and tells those that were replayed, reordered,
//! dropped, forked or put into another stream. It is the only source of [`VerifiedBatch`].
//! `signed-data.cddl` describes the format.

mod batch;
mod input;
mod order;
mod position;
mod reading;
mod refusal;
mod seen;
mod statement;
mod verifier;

pub use batch::{Batch, MAX_BATCH, UnsignedBatch};
pub use input::{BatchInput, InputError};
pub use position::{MAX_POSITION, Position};
pub use reading::{
    MAX_READING, MAX_READINGS, MAX_READINGS_BYTES, ProvenReading, Readings, VerifiedReading,
};
pub use refusal::StreamRefusal;
pub use seen::Seen;
pub use statement::{BATCH_TYPE, BatchStatement, Link, Span};
pub use verifier::{BatchEvidence, BatchResult, StreamVerifier, VerifiedBatch};
