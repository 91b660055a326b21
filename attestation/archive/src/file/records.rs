//! Many records as the data of one archive: a CBOR sequence (RFC 8742) of names and contents.

use std::io::{Read, Write};

use super::error::ArchiveError;
use super::item::{bytes_head, read, read_bytes};

/// The most that a name has, in bytes of UTF-8.
pub const MAX_NAME: usize = 4096;
/// The most that one record has. Larger data are archived by themselves.
pub const MAX_RECORD_CONTENT: usize = 16 * 1024 * 1024;
/// The array of two that a record is.
const ENTRY: u8 = 0x82;
const TEXT: u8 = 0x60;
const BYTES: u8 = 0x40;

/// Names have to rise, so that each stands there once and a directory has one form.
#[derive(Debug, Default)]
struct Order {
    last: Option<String>,
}

/// Writes records one after the other.
#[derive(Debug)]
pub struct RecordWriter<W> {
    out: W,
    order: Order,
}

/// Reads records one after the other.
#[derive(Debug)]
pub struct RecordReader<R> {
    from: R,
    left: u64,
    order: Order,
}

/// The number of bytes that a record takes, given those of its name and its content.
pub fn record_length(name: usize, content: u64) -> u64 {
    let heads = 1 + bytes_head(name as u64).len() + bytes_head(content).len();
    (heads as u64)
        .saturating_add(name as u64)
        .saturating_add(content)
}

impl<W: Write> RecordWriter<W> {
    /// Records for `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            order: Order::default(),
        }
    }

    /// Writes a record. Its name has to come after the last one's in the order of bytes.
    pub fn record(&mut self, name: &str, content: &[u8]) -> Result<(), ArchiveError> {
        self.order.next(name)?;
        if content.len() > MAX_RECORD_CONTENT {
            return Err(ArchiveError::TooLong {
                part: "a record",
                length: content.len() as u64,
                limit: MAX_RECORD_CONTENT,
            });
        }
        self.out.write_all(&[ENTRY])?;
        self.out.write_all(&text_head(name.len()))?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&bytes_head(content.len() as u64))?;
        Ok(self.out.write_all(content)?)
    }

    /// What the records were written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

impl<R: Read> RecordReader<R> {
    /// The records in the next `length` bytes of `from`.
    pub fn new(from: R, length: u64) -> Self {
        Self {
            from,
            left: length,
            order: Order::default(),
        }
    }

    /// The next record's name and content; `None` behind the last.
    pub fn next_record(&mut self) -> Result<Option<(String, Vec<u8>)>, ArchiveError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut from = self.from.by_ref().take(self.left);
        if read::<1>(&mut from)? != [ENTRY] {
            return Err(ArchiveError::Malformed("a record begins otherwise"));
        }
        let name = read_text(&mut from)?;
        let (_, content) = read_bytes(&mut from, "a record", MAX_RECORD_CONTENT)?;
        self.left = from.limit();
        self.order.next(&name)?;
        Ok(Some((name, content)))
    }
}

impl Order {
    fn next(&mut self, name: &str) -> Result<(), ArchiveError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(ArchiveError::Malformed(
                "a record has no name, or one that is too long",
            ));
        }
        if self.last.as_deref().is_some_and(|last| last >= name) {
            return Err(ArchiveError::Malformed(
                "its records are not in the order of their names",
            ));
        }
        self.last = Some(name.to_owned());
        Ok(())
    }
}

/// The heads of texts and byte strings differ in their first three bits alone.
fn text_head(length: usize) -> Vec<u8> {
    let mut head = bytes_head(length as u64);
    head.iter_mut()
        .take(1)
        .for_each(|first| *first ^= TEXT ^ BYTES);
    head
}

fn read_text(from: &mut impl Read) -> Result<String, ArchiveError> {
    let [first] = read::<1>(from)?;
    let as_bytes = [first ^ TEXT ^ BYTES];
    let mut rest = as_bytes.as_slice().chain(from);
    let (_, name) = read_bytes(&mut rest, "a record's name", MAX_NAME)?;
    String::from_utf8(name).map_err(|_| ArchiveError::Malformed("a record's name is no UTF-8"))
}
