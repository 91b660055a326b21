//! Why an archive is not written, or proves nothing.

use minicbor::decode;

use crate::cose_time_stamp::StampedError;
use crate::evidence_record::RecordError;
use crate::records::RecordsError;
use crate::time_stamp::TimeStampError;

/// Why an archive is not written, or is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Changed since it was written, by accident as a rule.
    #[error("the archive is damaged: its checksum differs")]
    Damaged,
    /// The head.
    #[error("the archive's head is not what archive.cddl describes: {0}")]
    Head(#[from] decode::Error),
    /// Reading or writing.
    #[error("the archive cannot be read or written")]
    Io(#[source] std::io::Error),
    /// Not as many data as the head says.
    #[error("{found} bytes of data were given; the archive's head says {said}")]
    Length {
        /// How many there are.
        found: u64,
        /// How many there have to be.
        said: u64,
    },
    /// Not an archive.
    #[error("this is no archive: {0}")]
    Malformed(&'static str),
    /// Its evidence record.
    #[error("when the archive was made is not proven")]
    Record(#[from] RecordError),
    /// The records in it.
    #[error("the records in the archive cannot be used")]
    Records(#[from] RecordsError),
    /// The signed data in it.
    #[error("the signed data in the archive cannot be read")]
    Signed(#[from] StampedError),
    /// The time stamp over the signature.
    #[error("when the data were signed is not proven")]
    Stamp(#[source] TimeStampError),
    /// There is none.
    #[error("the signed data in the archive have no time stamp in their header (270, RFC 9921)")]
    StampMissing,
    /// Longer than it may be.
    #[error("{part} of the archive has {length} bytes; {limit} is the most")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// How many.
        length: u64,
        /// The most.
        limit: usize,
    },
    /// More lists than are read.
    #[error("the archive's head has {found} revocation lists; {limit} is the most")]
    TooManyLists {
        /// How many.
        found: usize,
        /// The most.
        limit: usize,
    },
    /// From a later version of this format.
    #[error("the archive is of version {0}; version 1 is read")]
    Version(u64),
}

/// Records are looked at while they pass by as bytes: why one is refused comes back among the errors of that.
impl From<std::io::Error> for ArchiveError {
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<RecordsError>() {
            Ok(refused) => Self::Records(refused),
            Err(error) => Self::Io(error),
        }
    }
}
