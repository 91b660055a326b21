//! Writing an archive.

use std::io::{self, Write};

use crate::evidence_record::{EvidenceRecord, first_imprint};
use crate::hashing::{ArchiveHash, Hasher, Imprint};

use super::error::ArchiveError;
use super::head::{Form, Head};
use super::item::{ARCHIVE, NULL, bytes_head};

/// Takes the data of an archive, in pieces.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    head: Vec<u8>,
    form: Form,
    expected: u64,
    written: u64,
    checksum: Hasher,
    data: Hasher,
}

/// An archive that is complete but for the proof of its time.
#[derive(Debug)]
pub struct Unstamped<W> {
    out: W,
    hashes: Vec<Imprint>,
    checksum: Hasher,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(mut out: W, head: &Head) -> Result<Self, ArchiveError> {
        let bytes = head.to_cbor()?;
        let mut begin = vec![ARCHIVE];
        begin.extend(bytes_head(bytes.len() as u64));
        begin.extend(&bytes);
        match head.form {
            Form::Elsewhere => begin.push(NULL),
            Form::File | Form::Records => begin.extend(bytes_head(head.length)),
        }
        out.write_all(&begin)?;
        let mut checksum = ArchiveHash::Sha256.hasher();
        checksum.update(&begin);
        Ok(Self {
            out,
            head: bytes,
            form: head.form,
            expected: head.length,
            written: 0,
            checksum,
            data: ArchiveHash::Sha256.hasher(),
        })
    }

    /// Ends the data.
    pub fn finish(mut self) -> Result<Unstamped<W>, ArchiveError> {
        if self.written != self.expected {
            return Err(ArchiveError::Length {
                found: self.written,
                said: self.expected,
            });
        }
        let data = self.data.finish();
        self.checksum.update(data.value());
        let head = ArchiveHash::Sha256.of(&self.head);
        Ok(Unstamped {
            out: self.out,
            hashes: match self.form {
                Form::Elsewhere => vec![head],
                Form::File | Form::Records => vec![head, data],
            },
            checksum: self.checksum,
        })
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.out.write(piece)?;
        let piece = piece.get(..written).unwrap_or_default();
        self.data.update(piece);
        self.written = self.written.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Unstamped<W> {
    /// The hash values of head and data with SHA-256.
    pub fn hashes(&self) -> &[Imprint] {
        &self.hashes
    }

    /// What the first time stamp has to cover.
    pub fn imprint(&self) -> Result<Imprint, ArchiveError> {
        first_imprint(&self.hashes).ok_or(ArchiveError::Malformed("it is of nothing"))
    }

    /// Ends the archive with the proof of its time.
    pub fn finish(mut self, record: &EvidenceRecord) -> Result<W, ArchiveError> {
        end(&mut self.out, self.checksum, record)?;
        Ok(self.out)
    }
}

/// Writes what stands behind the data.
pub(super) fn end(
    out: &mut impl Write,
    mut checksum: Hasher,
    record: &EvidenceRecord,
) -> Result<(), ArchiveError> {
    let record = record.to_der()?;
    let item = [bytes_head(record.len() as u64), record].concat();
    checksum.update(&item);
    out.write_all(&item)?;
    let checksum = checksum.finish();
    out.write_all(&bytes_head(checksum.value().len() as u64))?;
    out.write_all(checksum.value())?;
    Ok(out.flush()?)
}
