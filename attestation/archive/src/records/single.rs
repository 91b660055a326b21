//! A record that was taken out of an archive, with what proves it.

use attestation::merkle::{MAX_PATH, root_from_path};
use cert_chain::{Digest32, TrustAnchors};
use minicbor::{Decoder, Encoder, decode};
use rustls_pki_types::UnixTime;

use crate::evidence_record::{DataHashes, EvidenceRecord, MAX_RECORD};
use crate::file::{ArchiveError, CheckedArchive, Form, Head, MAX_HEAD, VerifiedArchive};
use crate::hashing::{ArchiveHash, Imprint};

use super::entry::{Entry, MAX_ENTRY, leaf};
use super::error::RecordsError;
use super::scanner::Place;
use super::statement::Records;

/// One record with the archive's head, its proof of time, and the record's path to the root that was signed. Nothing
/// about it is verified.
#[derive(Clone, Debug)]
pub struct SingleRecord {
    head: Head,
    index: u64,
    path: Vec<Digest32>,
    entry: Vec<u8>,
    record: EvidenceRecord,
}

/// A record that is among those that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedRecord {
    name: String,
    content: Vec<u8>,
    index: u64,
}

/// The most that a single record's file has.
pub const MAX_SINGLE_RECORD: usize = MAX_HEAD + MAX_ENTRY + MAX_RECORD + MAX_PATH * 34 + 128;
/// Elements of the array that it is, which tells it from an archive.
const ELEMENTS: u64 = 6;
/// The head of that array.
const FIRST: u8 = 0x86;

impl SingleRecord {
    /// Takes a record out of an archive.
    pub fn take(archive: &CheckedArchive, place: Place) -> Self {
        Self {
            head: archive.head().clone(),
            index: place.index,
            path: place.path,
            entry: place.entry,
            record: archive.record().clone(),
        }
    }

    /// Whether bytes begin as such a file does, and not as an archive.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.first() == Some(&FIRST)
    }

    /// The archive's head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The archive's proof of time, unverified.
    pub fn record(&self) -> &EvidenceRecord {
        &self.record
    }

    /// The name that it says it has.
    pub fn unverified_name(&self) -> Result<&str, RecordsError> {
        Ok(self.parse()?.name.as_str())
    }

    /// Verifies the proof of time, as [`CheckedArchive::verify`] does. Which record it is remains to be
    /// [verified](Self::verify_place).
    pub fn verify(
        &self,
        authorities: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedArchive, ArchiveError> {
        VerifiedArchive::of_head(&self.head, &self.record, self, authorities, at)
    }

    /// Verifies that it is among `signed`, the records that the verified signature is about.
    pub fn verify_place(&self, signed: &Records) -> Result<PlacedRecord, RecordsError> {
        let entry = self.parse()?;
        let name = entry.name.as_str().to_owned();
        let root = root_from_path(leaf(&self.entry), self.index, signed.count(), &self.path)?;
        match root == *signed.root() {
            true => Ok(PlacedRecord {
                name,
                content: entry.content.to_vec(),
                index: self.index,
            }),
            false => Err(RecordsError::NotAmong { name }),
        }
    }

    fn parse(&self) -> Result<Entry<'_>, RecordsError> {
        match Entry::parse(&self.entry)? {
            Some((entry, length)) if length == self.entry.len() => Ok(entry),
            _ => Err(RecordsError::Cut),
        }
    }

    /// As a file.
    pub fn to_cbor(&self) -> Result<Vec<u8>, ArchiveError> {
        let (head, record) = (self.head.to_cbor()?, self.record.to_der()?);
        let mut encoder = Encoder::new(Vec::new());
        let written = (encoder.array(ELEMENTS))
            .and_then(|e| {
                e.bytes(&head)?
                    .u64(self.index)?
                    .array(self.path.len() as u64)
            })
            .and_then(|e| {
                for sibling in &self.path {
                    e.bytes(sibling.as_bytes())?;
                }
                e.bytes(&self.entry)?.bytes(&record)
            });
        if let Err(error) = written {
            unreachable!("a Vec takes every byte: {error}");
        }
        let checksum = ArchiveHash::Sha256.of(encoder.writer());
        if let Err(error) = encoder.bytes(checksum.value()) {
            unreachable!("a Vec takes every byte: {error}");
        }
        Ok(encoder.into_writer())
    }

    /// Reads such a file.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, ArchiveError> {
        if bytes.len() > MAX_SINGLE_RECORD {
            return Err(ArchiveError::TooLong {
                part: "the record",
                length: bytes.len() as u64,
                limit: MAX_SINGLE_RECORD,
            });
        }
        let mut d = Decoder::new(bytes);
        let parts =
            Parts::read(&mut d).map_err(|error| ArchiveError::from(RecordsError::from(error)))?;
        if ArchiveHash::Sha256.of(parts.checked).value() != parts.checksum {
            return Err(ArchiveError::Damaged);
        }
        let head = Head::from_cbor(parts.head)?;
        if head.form != Form::Records {
            return Err(ArchiveError::Malformed(
                "its head is that of an archive without records",
            ));
        }
        let read = Self {
            head,
            index: parts.index,
            path: parts.path,
            entry: parts.entry.to_vec(),
            record: EvidenceRecord::from_der(parts.record)?,
        };
        read.parse()?;
        match read.to_cbor()? == bytes {
            true => Ok(read),
            false => Err(ArchiveError::Malformed(
                "it is not in deterministic CBOR, or bytes follow it",
            )),
        }
    }
}

/// Of the archive's data, the record has the head alone: the rest of the group is the archive's word, and nothing
/// here rests on it.
impl DataHashes for SingleRecord {
    fn hashes(&self, algorithm: ArchiveHash) -> Option<Vec<Imprint>> {
        let head = self.head.to_cbor().ok()?;
        Some(vec![algorithm.of(&head)])
    }

    fn are_all(&self) -> bool {
        false
    }
}

impl PlacedRecord {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Its number among those that were signed, from zero.
    pub fn index(&self) -> u64 {
        self.index
    }
}

struct Parts<'a> {
    head: &'a [u8],
    index: u64,
    path: Vec<Digest32>,
    entry: &'a [u8],
    record: &'a [u8],
    /// What the checksum is of.
    checked: &'a [u8],
    checksum: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(d: &mut Decoder<'a>) -> Result<Self, decode::Error> {
        if d.array()? != Some(ELEMENTS) {
            return Err(decode::Error::message("it is no array of six"));
        }
        let (head, index) = (d.bytes()?, d.u64()?);
        let length = d.array()?.and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= MAX_PATH);
        let length = length.ok_or_else(|| decode::Error::message("its path is too long"))?;
        let mut path = Vec::with_capacity(length);
        for _ in 0..length {
            let sibling = <[u8; 32]>::try_from(d.bytes()?)
                .map_err(|_| decode::Error::message("a hash value has not 32 bytes"))?;
            path.push(Digest32::new(sibling));
        }
        let (entry, record) = (d.bytes()?, d.bytes()?);
        let checked = d.input().get(..d.position()).unwrap_or_default();
        Ok(Self {
            head,
            index,
            path,
            entry,
            record,
            checked,
            checksum: d.bytes()?,
        })
    }
}
