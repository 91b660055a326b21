//! Fields: a tag (16 bits), a length (32 bits), and that many bytes; numbers in big endian.

use zeroize::Zeroizing;

use crate::FormatError;

/// The fields of a file or of a layer of it.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'b>(Vec<(u16, &'b [u8])>);

/// The format has seven tags; a reader passes over those that it does not know.
const MOST: usize = 16;

impl<'b> Fields<'b> {
    /// Reads all fields of `bytes`, which begin at `offset`.
    pub(crate) fn parse(mut bytes: &'b [u8], mut offset: usize) -> Result<Self, FormatError> {
        let mut fields: Vec<(u16, &[u8])> = Vec::new();
        while !bytes.is_empty() {
            let (tag, value, rest) = next(bytes).ok_or(FormatError::FieldLength { offset })?;
            if fields.iter().any(|(other, _)| *other == tag) {
                return Err(FormatError::FieldTwice { tag, offset });
            }
            if fields.len() == MOST {
                return Err(FormatError::TooManyFields { most: MOST });
            }
            fields.push((tag, value));
            offset += bytes.len() - rest.len();
            bytes = rest;
        }
        Ok(Self(fields))
    }

    /// A field, if it is there.
    pub(crate) fn get(&self, tag: u16) -> Option<&'b [u8]> {
        let field = self.0.iter().find(|(other, _)| *other == tag);
        field.map(|(_, value)| *value)
    }

    /// A field that has to be there.
    pub(crate) fn require(&self, tag: u16) -> Result<&'b [u8], FormatError> {
        self.get(tag).ok_or(FormatError::FieldMissing { tag })
    }
}

fn next(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (tag, bytes) = bytes.split_first_chunk()?;
    let (length, bytes) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, rest) = bytes.split_at_checked(length)?;
    Some((u16::from_be_bytes(*tag), value, rest))
}

/// Adds a field.
pub(crate) fn append(
    to: &mut Zeroizing<Vec<u8>>,
    tag: u16,
    value: &[u8],
) -> Result<(), FormatError> {
    let length = u32::try_from(value.len()).map_err(|_| FormatError::TooLong {
        length: value.len(),
    })?;
    locked_memory::append(to, &tag.to_be_bytes());
    locked_memory::append(to, &length.to_be_bytes());
    locked_memory::append(to, value);
    Ok(())
}
