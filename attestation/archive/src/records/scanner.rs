//! Reading records.

use std::fmt;
use std::io::{self, Write};

use attestation::merkle::GrowingTree;
use cert_chain::Digest32;

use super::entry::{Entry, leaf};
use super::error::RecordsError;
use super::name::RecordName;
use super::statement::Records;
use super::writer::Order;

/// Takes the data of an archive piece by piece, has each record looked at as soon as it is complete, and finds out
/// which records they are. None is proven before their [signed statement](Records::from_signed) is held against
/// [what was found](Scanned).
pub struct RecordScanner<V> {
    visit: V,
    wanted: Option<String>,
    order: Order,
    tree: GrowingTree,
    length: u64,
    /// What was not taken yet: less than a record.
    rest: Vec<u8>,
    entry: Option<Vec<u8>>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// Which records they are.
    pub records: Records,
    /// The record that was wanted.
    pub wanted: Option<Place>,
}

/// A record and where it is among the others.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) index: u64,
    pub(super) path: Vec<Digest32>,
    pub(super) entry: Vec<u8>,
}

impl<V: FnMut(RecordName<'_>, &[u8]) -> io::Result<()>> RecordScanner<V> {
    /// Has `visit` look at each record.
    pub fn new(visit: V) -> Self {
        Self {
            visit,
            wanted: None,
            order: Order::default(),
            tree: GrowingTree::default(),
            length: 0,
            rest: Vec::new(),
            entry: None,
        }
    }

    /// Keeps the record of this name, and its path.
    pub fn wanting(mut self, name: RecordName<'_>) -> Self {
        self.wanted = Some(name.as_str().to_owned());
        self
    }

    /// Ends the records.
    pub fn finish(self) -> Result<Scanned, RecordsError> {
        if !self.rest.is_empty() {
            return Err(RecordsError::Cut);
        }
        let tree = self.tree.finish().ok_or(RecordsError::None)?;
        let records = Records::of_tree(&tree, self.length);
        let wanted = tree.followed.zip(self.entry);
        let wanted = wanted.map(|((index, path), entry)| Place { index, path, entry });
        Ok(Scanned { records, wanted })
    }

    /// Takes complete records from the beginning of `bytes`; yields how many bytes they have.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            let left = bytes.get(taken..).unwrap_or_default();
            if left.is_empty() {
                return Ok(taken);
            }
            let Some((record, length)) = Entry::parse(left).map_err(io::Error::other)? else {
                return Ok(taken);
            };
            self.order.next(record.name).map_err(io::Error::other)?;
            let entry = left.get(..length).unwrap_or_default();
            if self.wanted.as_deref() == Some(record.name.as_str()) {
                self.tree.push_followed(leaf(entry));
                self.entry = Some(entry.to_vec());
            } else {
                self.tree.push(leaf(entry));
            }
            (self.visit)(record.name, record.content)?;
            self.length = self.length.saturating_add(length as u64);
            taken += length;
        }
    }
}

impl<V: FnMut(RecordName<'_>, &[u8]) -> io::Result<()>> Write for RecordScanner<V> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let taken = self.take(piece)?;
            self.rest.extend(piece.get(taken..).unwrap_or_default());
        } else {
            let mut bytes = std::mem::take(&mut self.rest);
            bytes.extend(piece);
            let taken = self.take(&bytes)?;
            bytes.drain(..taken);
            self.rest = bytes;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<V> fmt::Debug for RecordScanner<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordScanner")
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}
