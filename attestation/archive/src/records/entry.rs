//! One record among many: a name and a content, in deterministic CBOR.

use attestation::merkle::leaf_hash;
use cert_chain::Digest32;
use minicbor::{Decoder, Encoder, decode};

use super::error::RecordsError;
use super::name::{MAX_NAME, RecordName};

/// The most that one record has. Larger data are archived by themselves.
pub const MAX_RECORD_CONTENT: usize = 16 * 1024 * 1024;
/// Heads of array, name and content.
const HEADS: usize = 16;
/// The most that an entry has.
pub(super) const MAX_ENTRY: usize = HEADS + MAX_NAME + MAX_RECORD_CONTENT;

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: RecordName<'a>,
    pub(super) content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Writes it to `buffer` instead of what was there.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), RecordsError> {
        let length = self.content.len();
        if length > MAX_RECORD_CONTENT {
            return Err(too_long(self.name, length as u64));
        }
        buffer.clear();
        let mut encoder = Encoder::new(buffer);
        let written = (encoder.array(2))
            .and_then(|e| e.str(self.name.as_str()))
            .and_then(|e| e.bytes(self.content));
        match written {
            Ok(_) => Ok(()),
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads the entry at the beginning of `bytes`, and says how many bytes it has; `None` if it goes on behind
    /// them.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, RecordsError> {
        let mut d = Decoder::new(bytes);
        let (name, content) = match parts(&mut d) {
            Ok(parts) => parts,
            Err(error) if error.is_end_of_input() && bytes.len() < MAX_ENTRY => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = RecordName::parse(name).map_err(|source| RecordsError::Name {
            name: name.to_owned(),
            source,
        })?;
        if content.len() > MAX_RECORD_CONTENT {
            return Err(too_long(name, content.len() as u64));
        }
        // Lengths in a longer form than needed make it longer.
        if record_length(name, content.len() as u64) != d.position() as u64 {
            return Err(RecordsError::Malformed(
                "it is not in deterministic CBOR".to_owned(),
            ));
        }
        Ok(Some((Self { name, content }, d.position())))
    }
}

/// The leaf of the tree for an entry.
pub(super) fn leaf(entry: &[u8]) -> Digest32 {
    leaf_hash(entry)
}

/// The number of bytes that a record takes, given its name and the length of its content.
pub fn record_length(name: RecordName<'_>, content: u64) -> u64 {
    let name = name.as_str().len() as u64;
    let heads = 1 + head_length(name) + head_length(content);
    heads.saturating_add(name).saturating_add(content)
}

fn parts<'a>(d: &mut Decoder<'a>) -> Result<(&'a str, &'a [u8]), decode::Error> {
    if d.array()? != Some(2) {
        return Err(decode::Error::message("it is no array of two"));
    }
    Ok((d.str()?, d.bytes()?))
}

/// Of a string of this length (RFC 8949 §3), in its shortest form.
fn head_length(length: u64) -> u64 {
    match length {
        0..24 => 1,
        24..0x100 => 2,
        0x100..0x1_0000 => 3,
        0x1_0000..0x1_0000_0000 => 5,
        _ => 9,
    }
}

pub(super) fn too_long(name: RecordName<'_>, length: u64) -> RecordsError {
    RecordsError::TooLong {
        name: name.as_str().to_owned(),
        length,
        limit: MAX_RECORD_CONTENT,
    }
}
