//! Why records are not written, or not read.

use attestation::merkle::PathError;
use minicbor::decode;

use super::name::NameError;

/// Why records are not written, or are refused.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// A record's name is as of a file below another record.
    #[error("the record {name:?} is below {file:?}, which is a record itself")]
    Below {
        /// Its name.
        name: String,
        /// The other one's.
        file: String,
    },
    /// They end within a record.
    #[error("the records end within one")]
    Cut,
    /// Not a record.
    #[error("a record is not what archive.cddl describes: {0}")]
    Malformed(String),
    /// A name.
    #[error("{name:?} is no name for a record: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: NameError,
    },
    /// There is not one.
    #[error("there is no record")]
    None,
    /// The same name twice, or in no order.
    #[error("the record {name:?} is not in the order of names, in which each stands once")]
    Order {
        /// Its name.
        name: String,
    },
    /// The signature is about other records.
    #[error("the records are not those that were signed: {found} were found; {signed} were signed")]
    Other {
        /// Those that are there.
        found: String,
        /// Those that were signed.
        signed: String,
    },
    /// Its place in the tree is not possible.
    #[error("the record's path leads nowhere")]
    Path(#[from] PathError),
    /// The path leads to another root.
    #[error("the record {name:?} is not among those that were signed")]
    NotAmong {
        /// Its name.
        name: String,
    },
    /// Other things were signed.
    #[error("no records were signed: what was signed is of type {found:?}, not {expected:?}")]
    OtherType {
        /// What it is of.
        found: String,
        /// What records are of.
        expected: &'static str,
    },
    /// What was signed.
    #[error("what was signed about the records is not what archive.cddl describes: {0}")]
    Statement(String),
    /// A large one.
    #[error("the record {name:?} has {length} bytes; {limit} is the most: archive it by itself")]
    TooLong {
        /// Its name.
        name: String,
        /// How many.
        length: u64,
        /// The most.
        limit: usize,
    },
}

impl From<decode::Error> for RecordsError {
    fn from(error: decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}
