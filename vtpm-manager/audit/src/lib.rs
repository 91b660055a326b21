//! The audit log of the manager: what happens on the host, and on whose order.
//!
//! Its format and how it is verified stand in [`api_types::audit`]. While the manager runs, it knows
//! the newest hash, and `GET /v1/audit` holds the log against that. When it starts, it holds the log
//! against what the physical TPM vouches for. Whoever does not trust the host either keeps the
//! newest hash elsewhere: `vtpmctl audit verify --head` looks for it.
//!
//! The log is in parts of [`PART_BYTES`]. Nothing removes a part: an operator who does states the
//! hash of the last line that was taken away.

mod actor;
mod error;
mod event;
mod history;
mod log;
mod newest_part;
mod rotation;
#[cfg(test)]
mod tests;
mod vouched;

pub use actor::Actor;
pub use error::AuditError;
pub use event::{BoundedText, Event};
pub use history::{ABSENT, LastRecorded};
pub use log::{AuditLog, Layout, PART_BYTES};
pub use vouched::MissingLines;
