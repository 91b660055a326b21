//! Archives of signed data: one file from which a third party verifies with its own trust anchors alone what
//! was signed, by whom, and before when.
//!
//! [`time_stamp`] is about an authority's word that a hash value was there before a time (RFC 3161);
//! [`evidence_record`] about time stamps that renew one another, so that the proof outlives authorities and hash
//! algorithms (RFC 4998); [`cose_time_stamp`] about a time stamp over a COSE signature (RFC 9921); [`mod@file`] about
//! the archive itself; [`records`] about many small records in one.
//!
//! The crate is pure: it asks no clock and opens no file or connection. What verification returns, only
//! verification makes.

pub mod cose_time_stamp;
pub mod evidence_record;
pub mod file;
pub mod hashing;
pub mod records;
pub mod time_stamp;

pub use evidence_record::{DataHashes, EvidenceRecord, RecordError, VerifiedRecord};
pub use file::{ArchiveError, CheckedArchive, Form, Head, Reader, VerifiedArchive, Writer};
pub use hashing::{ArchiveHash, Hasher, Imprint};
pub use time_stamp::{TimeStampError, TimeStampRequest, Token, VerifiedTimeStamp};
