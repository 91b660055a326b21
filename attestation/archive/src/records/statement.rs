//! What is signed about records.

use std::fmt;

use attestation::merkle::GrownTree;
use cert_chain::Digest32;
use minicbor::{Decoder, Encoder, decode};

use super::error::RecordsError;

/// The media type of [`Records::to_cbor`], which the signature's label has to name.
pub const CONTENT_TYPE: &str = "application/vnd.vrot.records+cbor";
const VERSION: u64 = 1;

/// Which records there are: their number, the root of the tree over all of them, and how many bytes they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records {
    count: u64,
    root: Digest32,
    length: u64,
}

impl Records {
    /// Those of so many bytes whose entries are the leaves of `tree`.
    pub(super) fn of_tree(tree: &GrownTree, length: u64) -> Self {
        Self {
            count: tree.size,
            root: tree.root,
            length,
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Root of the Merkle tree (RFC 9162 §2.1) whose leaves are the entries in the order of their names.
    pub fn root(&self) -> &Digest32 {
        &self.root
    }

    /// How many bytes they have in an archive.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What is signed.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        let written = (encoder.map(4))
            .and_then(|e| e.u8(0)?.u64(VERSION))
            .and_then(|e| e.u8(1)?.u64(self.count))
            .and_then(|e| e.u8(2)?.bytes(self.root.as_bytes()))
            .and_then(|e| e.u8(3)?.u64(self.length));
        match written {
            Ok(_) => encoder.into_writer(),
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads what was signed, given the type that the signature's label names.
    pub fn from_signed(content_type: &str, content: &[u8]) -> Result<Self, RecordsError> {
        if content_type != CONTENT_TYPE {
            return Err(RecordsError::OtherType {
                found: content_type.to_owned(),
                expected: CONTENT_TYPE,
            });
        }
        let read = read(&mut Decoder::new(content))
            .map_err(|error| RecordsError::Statement(error.to_string()))?;
        match read.to_cbor() == content {
            true => Ok(read),
            false => Err(RecordsError::Statement(
                "it is not in deterministic CBOR, or bytes follow it".to_owned(),
            )),
        }
    }

    /// Whether they are those that were signed.
    pub fn must_be(&self, signed: &Self) -> Result<(), RecordsError> {
        match self == signed {
            true => Ok(()),
            false => Err(RecordsError::Other {
                found: self.to_string(),
                signed: signed.to_string(),
            }),
        }
    }
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes with the root {}",
            self.count, self.length, self.root
        )
    }
}

fn read(d: &mut Decoder<'_>) -> Result<Records, decode::Error> {
    let wrong = |what| Err(decode::Error::message(what));
    if d.map()? != Some(4) || d.u64()? != 0 {
        return wrong("it begins otherwise");
    }
    if d.u64()? != VERSION {
        return wrong("it is not of version 1");
    }
    if d.u64()? != 1 {
        return wrong("it has no count");
    }
    let count = d.u64()?;
    if count == 0 || d.u64()? != 2 {
        return wrong("it is of no records, or has no root");
    }
    let root = <[u8; 32]>::try_from(d.bytes()?)
        .map_err(|_| decode::Error::message("its root has not 32 bytes"))?;
    if d.u64()? != 3 {
        return wrong("it has no length");
    }
    Ok(Records {
        count,
        root: Digest32::new(root),
        length: d.u64()?,
    })
}
