//! The archive as a file. `archive.cddl` describes it.
//!
//! Data are written and read in pieces, so that their size needs no memory. Everything else is bounded.

mod error;
mod head;
mod item;
mod reader;
mod verified;
mod writer;

pub use error::ArchiveError;
pub use head::{Form, Head, MAX_CRLS, MAX_HEAD};
pub use reader::{CheckedArchive, Reader};
pub use verified::VerifiedArchive;
pub use writer::{Unstamped, Writer};
