//! Heads of CBOR items (RFC 8949 §3), read and written one by one where the rest does not fit into memory.

use std::io::Read;

use super::error::ArchiveError;

/// The array that an archive is.
pub(super) const ARCHIVE: u8 = 0x84;
pub(super) const NULL: u8 = 0xf6;
const BYTES: u8 = 0x40;

/// The head of a byte string, in its shortest form.
pub(super) fn bytes_head(length: u64) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::new());
    match encoder.bytes_len(length) {
        Ok(_) => encoder.into_writer(),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

/// Reads the head of a byte string: its length, and itself.
pub(super) fn read_bytes_head(from: &mut impl Read) -> Result<(u64, Vec<u8>), ArchiveError> {
    let malformed =
        ArchiveError::Malformed("a byte string is expected, with its length in the shortest form");
    let [first] = read::<1>(from)?;
    if first & 0xe0 != BYTES {
        return Err(malformed);
    }
    let length = match first & 0x1f {
        short @ 0..24 => u64::from(short),
        24 => u64::from(u8::from_be_bytes(read(from)?)),
        25 => u64::from(u16::from_be_bytes(read(from)?)),
        26 => u64::from(u32::from_be_bytes(read(from)?)),
        27 => u64::from_be_bytes(read(from)?),
        _ => return Err(malformed),
    };
    let head = bytes_head(length);
    // A head that is longer than needed has another first byte.
    match head.first() == Some(&first) {
        true => Ok((length, head)),
        false => Err(malformed),
    }
}

/// Reads a byte string of at most `limit` bytes: itself with its head, and its contents.
pub(super) fn read_bytes(
    from: &mut impl Read,
    part: &'static str,
    limit: usize,
) -> Result<(Vec<u8>, Vec<u8>), ArchiveError> {
    let (length, head) = read_bytes_head(from)?;
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > limit {
        return Err(ArchiveError::TooLong {
            part,
            length,
            limit,
        });
    }
    let mut contents = Vec::new();
    from.take(length).read_to_end(&mut contents)?;
    match contents.len() == size {
        true => Ok((head, contents)),
        false => Err(ArchiveError::Malformed("it ends too early")),
    }
}

pub(super) fn read<const N: usize>(from: &mut impl Read) -> Result<[u8; N], ArchiveError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ArchiveError::Malformed("it ends too early"),
            _ => ArchiveError::Io(error),
        })?;
    Ok(bytes)
}
