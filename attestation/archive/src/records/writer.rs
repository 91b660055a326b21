//! Writing records.

use std::io::Write;

use attestation::merkle::GrowingTree;

use crate::file::ArchiveError;

use super::entry::{Entry, leaf};
use super::error::RecordsError;
use super::name::RecordName;
use super::statement::Records;

/// Writes records one after the other. Written to [`std::io::sink`], they are only counted and hashed.
#[derive(Debug)]
pub struct RecordWriter<W> {
    out: W,
    order: Order,
    tree: GrowingTree,
    length: u64,
    entry: Vec<u8>,
}

/// Records that were written.
#[derive(Debug)]
pub struct Written<W> {
    /// What they were written to.
    pub out: W,
    /// What is to be signed.
    pub records: Records,
}

/// Names have to rise, in the order of bytes, so that each stands there once and the same records have one form. None
/// is below another one, as if that were a directory: no directory could have both.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: String,
    /// The lengths of those names that the last one begins with, rising; its own is the last.
    begun: Vec<usize>,
}

impl<W: Write> RecordWriter<W> {
    /// Records for `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            order: Order::default(),
            tree: GrowingTree::default(),
            length: 0,
            entry: Vec::new(),
        }
    }

    /// Writes a record. Its name has to come after the last one's in the order of bytes.
    pub fn record(&mut self, name: RecordName<'_>, content: &[u8]) -> Result<(), ArchiveError> {
        self.order.next(name)?;
        Entry { name, content }.encode(&mut self.entry)?;
        self.tree.push(leaf(&self.entry));
        self.length = self.length.saturating_add(self.entry.len() as u64);
        Ok(self.out.write_all(&self.entry)?)
    }

    /// Ends the records.
    pub fn finish(self) -> Result<Written<W>, RecordsError> {
        let tree = self.tree.finish().ok_or(RecordsError::None)?;
        Ok(Written {
            out: self.out,
            records: Records::of_tree(&tree, self.length),
        })
    }
}

impl Order {
    pub(super) fn next(&mut self, name: RecordName<'_>) -> Result<(), RecordsError> {
        let name = name.as_str();
        // No name is empty, so every one comes after "none yet".
        if self.last.as_str() >= name {
            return Err(RecordsError::Order {
                name: name.to_owned(),
            });
        }
        let common = (self.last.bytes().zip(name.bytes()))
            .take_while(|(one, other)| one == other)
            .count();
        self.begun.retain(|length| *length <= common);
        // Other names may stand between both, `a.txt` between `a` and `a/b`: they all begin with the first.
        let above = (self.begun.iter()).find(|length| name.as_bytes().get(**length) == Some(&b'/'));
        if let Some(file) = above.and_then(|length| name.get(..*length)) {
            return Err(RecordsError::Below {
                name: name.to_owned(),
                file: file.to_owned(),
            });
        }
        self.last.clear();
        self.last.push_str(name);
        self.begun.push(name.len());
        Ok(())
    }
}
