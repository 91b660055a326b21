//! The audit log in its files: one JSON object a line, each with a hash over itself and the line
//! before.
//!
//! ```text
//! {"sequence":1,"time":"…","event":"vrot-created",…,"previous":"<hash>","hash":"<hash>"}
//! ```
//!
//! Where somebody ordered it, `by_uid` is that user. `hash` is the SHA-256 value of a domain string
//! and of the line up to `,"hash"`. A line that was changed, inserted or taken out breaks the chain
//! from there on. The chain says nothing about lines cut off at the end, or about a log that was
//! made anew as a whole: for that, keep the newest hash elsewhere ([`Known::head`]). The manager has the
//! physical TPM keep one.
//!
//! The log is in parts: the chain goes on from the last line of one to the first of the next.
//! Strung together in their order they are one log.

mod chain;
mod error;
mod parts;

pub use chain::{Entry, Known, Verified, verify, verify_parts};
pub use error::LogError;
pub use parts::{Parts, Place, numbered, same};

/// Bytes of the longest line that is written: a recovery names each vRoT of the host.
pub const MAX_LINE: u64 = 4 * 1024 * 1024;
