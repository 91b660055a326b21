//! The verifier's challenge.

use std::fmt;
use std::str::FromStr;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

/// What makes evidence fresh: random bytes that the verifier chose for one challenge.
/// 16 to 64 bytes, written as lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Nonce(Vec<u8>);

/// Why bytes are no nonce.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NonceError {
    /// Not an even number of hexadecimal digits.
    #[error("`{text}` is not hexadecimal: write each byte of the nonce as two digits")]
    Hexadecimal {
        /// What was given.
        text: String,
    },
    /// Too short to be unguessable, or longer than anyone needs.
    #[error("a nonce of {length} bytes: it must have {MIN_NONCE} to {MAX_NONCE}")]
    Length {
        /// Number of bytes given.
        length: usize,
    },
}

/// 128 bits cannot be guessed and do not repeat (RFC 9711 §4.1 asks for 64 at least).
pub const MIN_NONCE: usize = 16;
/// RFC 9711 §4.1 allows 64 bytes.
pub const MAX_NONCE: usize = 64;

impl Nonce {
    /// Takes bytes that the verifier drew at random.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NonceError> {
        let bytes = bytes.into();
        if (MIN_NONCE..=MAX_NONCE).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(NonceError::Length {
                length: bytes.len(),
            })
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({self})")
    }
}

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let bytes = hex::decode(text).map_err(|_| NonceError::Hexadecimal {
            text: text.chars().take(2 * MAX_NONCE).collect(),
        })?;
        Self::new(bytes)
    }
}

impl<C> Encode<C> for Nonce {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Nonce {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        Self::new(decoder.bytes()?).map_err(|error| DecodeError::custom(error).at(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_has_sixteen_to_sixty_four_bytes() {
        assert!(Nonce::new([0; 16]).is_ok());
        assert!(Nonce::new([0; 64]).is_ok());
        assert_eq!(Nonce::new([0; 15]), Err(NonceError::Length { length: 15 }));
        assert_eq!(Nonce::new([0; 65]), Err(NonceError::Length { length: 65 }));
    }

    #[test]
    fn what_is_not_hexadecimal_is_no_nonce() {
        assert!(matches!(
            "00112233445566778899aabbccddeefg".parse::<Nonce>(),
            Err(NonceError::Hexadecimal { .. })
        ));
        let text = "00112233445566778899aabbccddeeff";
        assert_eq!(
            text.parse::<Nonce>().map(|n| n.to_string()),
            Ok(text.into())
        );
    }
}
