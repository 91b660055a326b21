//! What an archive says before its data.

use attestation::bounded_cbor::{at_most, has_definite_lengths};
use minicbor::bytes::ByteVec;
use minicbor::decode::Error;
use minicbor::{Decode, Decoder, Encode};

use super::error::ArchiveError;

/// What stands in an archive besides the data and the proof of time.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    #[n(0)]
    version: u64,
    /// The COSE_Sign1 with a time stamp over its signature in its header.
    #[n(1)]
    pub signed: ByteVec,
    /// Where the data are.
    #[n(2)]
    pub form: Form,
    /// Number of bytes of the data in the archive.
    #[n(3)]
    pub length: u64,
    /// Revocation lists of issuers in DER.
    #[n(4)]
    #[cbor(decode_with = "lists")]
    pub crls: Option<Vec<ByteVec>>,
    /// The policy by which the archiver appraised the data.
    #[n(5)]
    pub policy: Option<String>,
    /// What it found: its word, which nothing proves.
    #[n(6)]
    pub verdict: Option<String>,
}

/// Where the data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Form {
    /// Not in the archive.
    #[n(0)]
    Elsewhere,
    /// In the archive, as one.
    #[n(1)]
    File,
    /// In the archive, a sequence of records.
    #[n(2)]
    Records,
}

/// Signed data with evidence and event logs, and revocation lists.
pub const MAX_HEAD: usize = 8 * 1024 * 1024;
/// The most revocation lists in an archive's head.
pub const MAX_CRLS: usize = 16;
const VERSION: u64 = 1;

/// No more are read; how many there may be is told afterwards.
fn lists<C>(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Option<Vec<ByteVec>>, Error> {
    at_most::<64, _, _>(decoder, context).map(Some)
}

impl Head {
    /// A head about data of this form and length.
    pub fn new(signed: Vec<u8>, form: Form, length: u64) -> Self {
        Self {
            version: VERSION,
            signed: signed.into(),
            form,
            length,
            crls: None,
            policy: None,
            verdict: None,
        }
    }

    /// Revocation lists in DER.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().flatten().map(|list| list.as_slice())
    }

    /// As it stands in an archive. What would not be read is not written either.
    pub fn to_cbor(&self) -> Result<Vec<u8>, ArchiveError> {
        let found = self.crls().count();
        if found > MAX_CRLS {
            let limit = MAX_CRLS;
            return Err(ArchiveError::TooManyLists { found, limit });
        }
        let bytes = match minicbor::to_vec(self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        };
        match bytes.len() <= MAX_HEAD {
            true => Ok(bytes),
            false => Err(ArchiveError::TooLong {
                part: "the head",
                length: bytes.len() as u64,
                limit: MAX_HEAD,
            }),
        }
    }

    pub(crate) fn from_cbor(bytes: &[u8]) -> Result<Self, ArchiveError> {
        if !has_definite_lengths(bytes) {
            return Err(ArchiveError::Malformed("a part does not say its length"));
        }
        let head: Self = minicbor::decode(bytes)?;
        if head.version != VERSION {
            return Err(ArchiveError::Version(head.version));
        }
        if head.crls.as_ref().is_some_and(Vec::is_empty) {
            return Err(ArchiveError::Malformed("its revocation lists are none"));
        }
        if head.form == Form::Elsewhere && head.length != 0 {
            return Err(ArchiveError::Malformed(
                "data that are elsewhere have a length",
            ));
        }
        match head.to_cbor()? == bytes {
            true => Ok(head),
            false => Err(ArchiveError::Malformed(
                "its head is not in deterministic CBOR",
            )),
        }
    }
}
