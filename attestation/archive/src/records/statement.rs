//! What is signed about records.

use std::fmt;

use attestation::merkle::GrownTree;
use cert_chain::Digest32;
use minicbor::{Decoder, Encoder, decode};

use super::error::RecordsError;

/// The media type of [`Records::to_cbor`], which the signature's label has to name.
pub const CONTENT_TYPE: &str = "application/vnd.vrot.records+cbor";
const VERSION: u64 = 1;

/// Which records there are: their number and the root of the tree over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records {
    count: u64,
    root: Digest32,
}

impl Records {
    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Root of the Merkle tree (RFC 9162 §2.1) whose leaves are the entries in the order of their names.
    pub fn root(&self) -> &Digest32 {
        &self.root
    }

    /// What is signed.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        let written = (encoder.map(3))
            .and_then(|e| e.u8(0)?.u64(VERSION))
            .and_then(|e| e.u8(1)?.u64(self.count))
            .and_then(|e| e.u8(2)?.bytes(self.root.as_bytes()));
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

impl From<&GrownTree> for Records {
    fn from(tree: &GrownTree) -> Self {
        Self {
            count: tree.size,
            root: tree.root,
        }
    }
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with the root {}", self.count, self.root)
    }
}

fn read(d: &mut Decoder<'_>) -> Result<Records, decode::Error> {
    let wrong = |what| Err(decode::Error::message(what));
    if d.map()? != Some(3) || d.u64()? != 0 {
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
    Ok(Records {
        count,
        root: Digest32::new(root),
    })
}
