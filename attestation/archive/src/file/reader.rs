//! Reading an archive.

use std::io::{Read, Seek, SeekFrom, Write};

use crate::evidence_record::{DataHashes, EvidenceRecord, MAX_RECORD};
use crate::hashing::{ArchiveHash, Hasher, Imprint};

use super::error::ArchiveError;
use super::head::{Form, Head, MAX_HEAD};
use super::item::{ARCHIVE, NULL, read, read_bytes, read_bytes_head};
use super::writer::end;

/// An archive of which head and proof of time were read, and the data not yet.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    head: Head,
    head_bytes: Vec<u8>,
    /// Where the data begin.
    data: u64,
    /// Everything before the data.
    begin: Vec<u8>,
    record: EvidenceRecord,
    record_item: Vec<u8>,
    checksum: [u8; 32],
}

/// An archive that is whole: each byte is as it was written. Who wrote it is not verified.
#[derive(Clone, Debug)]
pub struct CheckedArchive {
    pub(super) head: Head,
    pub(super) record: EvidenceRecord,
    hashes: Vec<Vec<Imprint>>,
}

/// Data are read in pieces of so many bytes.
const PIECE: usize = 256 * 1024;

impl<R: Read + Seek> Reader<R> {
    /// Reads what stands around the data.
    pub fn open(mut from: R) -> Result<Self, ArchiveError> {
        let [first] = read::<1>(&mut from)?;
        if first != ARCHIVE {
            return Err(ArchiveError::Malformed("it begins otherwise"));
        }
        let (item, head_bytes) = read_bytes(&mut from, "the head", MAX_HEAD)?;
        let head = Head::from_cbor(&head_bytes)?;
        let mut begin = vec![ARCHIVE];
        begin.extend(item);
        begin.extend(&head_bytes);
        match head.form {
            Form::Elsewhere => {
                if read::<1>(&mut from)? != [NULL] {
                    return Err(ArchiveError::Malformed("it has data that are elsewhere"));
                }
                begin.push(NULL);
            }
            Form::File | Form::Records => {
                let (found, item) = read_bytes_head(&mut from)?;
                if found != head.length {
                    let said = head.length;
                    return Err(ArchiveError::Length { found, said });
                }
                begin.extend(item);
            }
        }
        let data = from.stream_position()?;
        let behind = data.checked_add(head.length);
        let behind = behind.ok_or(ArchiveError::Malformed("its data are too long"))?;
        from.seek(SeekFrom::Start(behind))?;
        let (item, record) = read_bytes(&mut from, "the evidence record", MAX_RECORD)?;
        let (_, checksum) = read_bytes(&mut from, "the checksum", 32)?;
        let checksum = <[u8; 32]>::try_from(checksum)
            .map_err(|_| ArchiveError::Malformed("its checksum has not 32 bytes"))?;
        if from.read(&mut [0])? != 0 {
            return Err(ArchiveError::Malformed("bytes follow it"));
        }
        Ok(Self {
            from,
            head,
            head_bytes,
            data,
            begin,
            record: EvidenceRecord::from_der(&record)?,
            record_item: [item, record].concat(),
            checksum,
        })
    }

    /// What the archive says about itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The proof of its time, unverified.
    pub fn record(&self) -> &EvidenceRecord {
        &self.record
    }

    /// Number of bytes before the data.
    pub fn data_offset(&self) -> u64 {
        self.data
    }

    /// Reads the data, hashes them as the proof of time needs it and with `also`, and gives them to `to` piece by
    /// piece. They are what was signed only when the archive is [verified](CheckedArchive::verify).
    pub fn check(
        &mut self,
        also: &[ArchiveHash],
        to: &mut impl Write,
    ) -> Result<CheckedArchive, ArchiveError> {
        let mut algorithms = self.record.algorithms();
        algorithms.extend(also);
        algorithms.push(ArchiveHash::Sha256);
        algorithms.sort_unstable();
        algorithms.dedup();
        let data = self.hash_data(&algorithms, to)?;
        let mut checksum = self.checksum_of(&data)?;
        checksum.update(&self.record_item);
        if checksum.finish().value() != self.checksum {
            return Err(ArchiveError::Damaged);
        }
        let group = |data: Imprint| {
            let head = data.algorithm().of(&self.head_bytes);
            match self.head.form {
                Form::Elsewhere => vec![head],
                Form::File | Form::Records => vec![head, data],
            }
        };
        Ok(CheckedArchive {
            head: self.head.clone(),
            record: self.record.clone(),
            hashes: data.into_iter().map(group).collect(),
        })
    }

    /// Writes the same archive with another proof of time, if it is still [whole](Self::check).
    pub fn rewrite(
        &mut self,
        record: &EvidenceRecord,
        to: &mut impl Write,
    ) -> Result<(), ArchiveError> {
        to.write_all(&self.begin)?;
        let data = self.hash_data(&[ArchiveHash::Sha256], to)?;
        let begun = self.checksum_of(&data)?;
        let mut whole = begun.clone();
        whole.update(&self.record_item);
        if whole.finish().value() != self.checksum {
            return Err(ArchiveError::Damaged);
        }
        end(to, begun, record)
    }

    fn hash_data(
        &mut self,
        algorithms: &[ArchiveHash],
        to: &mut impl Write,
    ) -> Result<Vec<Imprint>, ArchiveError> {
        self.from.seek(SeekFrom::Start(self.data))?;
        let mut hashers: Vec<Hasher> = algorithms.iter().map(|hash| hash.hasher()).collect();
        let mut piece = vec![0; PIECE];
        let mut left = self.head.length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let room = piece.get_mut(..most).unwrap_or_default();
            let read = self.from.read(room)?;
            let read = room.get(..read).unwrap_or_default();
            if read.is_empty() {
                return Err(ArchiveError::Malformed("it ends too early"));
            }
            hashers.iter_mut().for_each(|hasher| hasher.update(read));
            to.write_all(read)?;
            left -= read.len() as u64;
        }
        Ok(hashers.into_iter().map(Hasher::finish).collect())
    }

    /// The checksum up to the data, given their hash values.
    fn checksum_of(&self, data: &[Imprint]) -> Result<Hasher, ArchiveError> {
        let mut checksum = ArchiveHash::Sha256.hasher();
        checksum.update(&self.begin);
        let data = (data.iter()).find(|data| data.algorithm() == ArchiveHash::Sha256);
        checksum.update(data.ok_or(ArchiveError::Damaged)?.value());
        Ok(checksum)
    }
}

impl CheckedArchive {
    /// What the archive says about itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The proof of its time, unverified.
    pub fn record(&self) -> &EvidenceRecord {
        &self.record
    }

    /// The SHA-256 value of the data, if they are in the archive.
    pub fn data(&self) -> Option<&Imprint> {
        let sha256 = (self.hashes.iter()).find(|group| {
            (group.first()).is_some_and(|head| head.algorithm() == ArchiveHash::Sha256)
        });
        sha256.and_then(|group| group.get(1))
    }
}

impl DataHashes for CheckedArchive {
    fn hashes(&self, algorithm: ArchiveHash) -> Option<Vec<Imprint>> {
        let group = (self.hashes.iter()).find(|group| {
            group
                .first()
                .is_some_and(|head| head.algorithm() == algorithm)
        });
        group.cloned()
    }
}
