//! Many small records that are archived, and signed, as one: the files of a directory, for example.
//!
//! [`Records`] is what is signed: how many they are, and the root of one Merkle tree over all of them. In an
//! archive they stand one after the other, in the order of their names; [`RecordWriter`] writes them and
//! [`RecordScanner`] reads them, with memory for one record at a time. A [`SingleRecord`] is one of them with its
//! path in the tree, and proves as much about itself as the archive did.

mod entry;
mod error;
mod name;
mod scanner;
mod single;
mod statement;
mod writer;

pub use entry::{MAX_RECORD_CONTENT, record_length};
pub use error::RecordsError;
pub use name::{MAX_NAME, MAX_NAME_PART, NameError, RecordName};
pub use scanner::{Place, RecordScanner, Scanned};
pub use single::{MAX_SINGLE_RECORD, PlacedRecord, SingleRecord};
pub use statement::{CONTENT_TYPE, Records};
pub use writer::{RecordWriter, Written};
