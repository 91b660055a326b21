//! Why nothing was written into the audit log.

use std::io;
use std::path::PathBuf;

use api_types::audit::{LogError, MAX_LINE};
use cert_chain::Digest32;

/// Why the audit log cannot be used, or a line not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file cannot be used.
    #[error("the audit log `{}` cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Nothing is to be accepted.
    #[error(
        "the audit log does not lack a line with the hash {head}: `vtpmctl audit verify` says what it \
         lacks, if anything; nothing was changed"
    )]
    NotMissing {
        /// What was named.
        head: Digest32,
    },
    /// What is there is not a whole log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A line that is not written.
    #[error("a line of {length} bytes is too long for the audit log: the limit is {MAX_LINE}")]
    TooLong {
        /// Its length.
        length: usize,
    },
}
