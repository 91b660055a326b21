//! The files of a directory as records of an archive ([`read_folder`]), and records as files ([`NewFolder`]).
//!
//! Nothing outside the directory is read or written, whatever somebody puts there meanwhile: each directory is opened
//! from the one above it, and links are not followed.

mod error;
mod reading;
mod writing;

pub use error::{FileKind, RecordFilesError};
pub use reading::read_folder;
pub use writing::NewFolder;
