//! The ten bytes before everything, in big endian: version, the least version of a reader, the
//! header's own length (16 bits), flags (16 bits), the whole length (32 bits).

use zeroize::Zeroizing;

use crate::{FormatError, MAX_STATE};

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: Version,
    pub(crate) flags: u16,
}

/// Of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// What follows the header is the state, or the state encrypted.
    One,
    /// What follows the header are fields.
    Two,
}

/// Encrypted with the state's key.
pub(crate) const ENCRYPTED: u16 = 0x01;
/// Encrypted with the migration's key.
pub(crate) const MIGRATION_ENCRYPTED: u16 = 0x02;
/// It is a migration blob.
pub(crate) const MIGRATION_DATA: u16 = 0x04;
/// The state's key has 256 bits.
pub(crate) const ENCRYPTED_256: u16 = 0x08;
/// The migration's key has 256 bits.
pub(crate) const MIGRATION_ENCRYPTED_256: u16 = 0x10;

/// Its length, which it also states.
pub(crate) const LENGTH: usize = 10;
const STATED_LENGTH: u16 = 10;
const WRITTEN_VERSION: u8 = 2;
const MINIMUM_VERSION: u8 = 1;

impl Header {
    /// Parts the header from what follows it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let length = bytes.len();
        if length > MAX_STATE {
            return Err(FormatError::TooLong { length });
        }
        let Some((header, rest)) = bytes.split_first_chunk::<LENGTH>() else {
            return Err(FormatError::NoHeader { length });
        };
        let [version, minimum, s0, s1, f0, f1, l0, l1, l2, l3] = *header;
        let announced = u32::from_be_bytes([l0, l1, l2, l3]);
        if usize::try_from(announced) != Ok(length) {
            return Err(FormatError::Length {
                announced,
                actual: length,
            });
        }
        let version = match version {
            _ if minimum > WRITTEN_VERSION => Err(FormatError::Version { version, minimum }),
            1 => Ok(Version::One),
            2 => Ok(Version::Two),
            _ => Err(FormatError::Version { version, minimum }),
        }?;
        let size = u16::from_be_bytes([s0, s1]);
        if size != STATED_LENGTH {
            return Err(FormatError::HeaderSize { size });
        }
        let flags = u16::from_be_bytes([f0, f1]);
        Ok((Self { version, flags }, rest))
    }

    /// Puts a header before what was written in version 2.
    pub(crate) fn prepend(flags: u16, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let length = LENGTH + body.len();
        let total = u32::try_from(length)
            .ok()
            .filter(|_| length <= MAX_STATE)
            .ok_or(FormatError::TooLong { length })?;
        let mut whole = Zeroizing::new(Vec::with_capacity(length));
        whole.extend([WRITTEN_VERSION, MINIMUM_VERSION]);
        whole.extend(STATED_LENGTH.to_be_bytes());
        whole.extend(flags.to_be_bytes());
        whole.extend(total.to_be_bytes());
        whole.extend_from_slice(body);
        Ok(whole)
    }
}
