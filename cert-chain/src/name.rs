//! The TPM's own name for an object (TPM 2.0 Part 1 §16 "Names").

use std::fmt;
use std::str::FromStr;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::identifiers::string_serde;

/// `nameAlg ‖ H_nameAlg(TPMT_PUBLIC)`: one value that fixes a key, its attributes and its
/// policy. Shown as lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TpmName(Vec<u8>);

/// A name that no supported hash algorithm makes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{length} bytes starting {prefix} are no TPM name: expected the number of SHA-256, SHA-384 or SHA-512 and one digest of that length"
)]
pub struct TpmNameError {
    length: usize,
    prefix: String,
}

/// The hash algorithms that may name an object (TCG Algorithm Registry, table 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameAlgorithm {
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
    /// `TPM_ALG_SHA512`
    Sha512,
}

impl NameAlgorithm {
    /// The `TPM_ALG_ID`.
    pub const fn identifier(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    pub(crate) const fn digest_length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn from_identifier(identifier: u16) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.identifier() == identifier)
    }

    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }
}

impl TpmName {
    /// Names the object with this public area. The caller has read `algorithm` out of it.
    pub(crate) fn of(algorithm: NameAlgorithm, tpmt_public: &[u8]) -> Self {
        let mut name = algorithm.identifier().to_be_bytes().to_vec();
        name.extend_from_slice(&algorithm.digest(tpmt_public));
        Self(name)
    }

    /// Reads a name as it stands in a `TPM2B_NAME`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TpmNameError> {
        let refused = || TpmNameError {
            length: bytes.len(),
            prefix: hex::encode(bytes.get(..2).unwrap_or(bytes)),
        };
        let (identifier, digest) = bytes.split_first_chunk().ok_or_else(refused)?;
        let algorithm = NameAlgorithm::from_identifier(u16::from_be_bytes(*identifier))
            .filter(|algorithm| algorithm.digest_length() == digest.len())
            .ok_or_else(refused)?;
        debug_assert_eq!(digest.len(), algorithm.digest_length());
        Ok(Self(bytes.to_vec()))
    }

    /// Algorithm and digest, as in a `TPM2B_NAME` without its length.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TpmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for TpmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmName({self})")
    }
}

impl FromStr for TpmName {
    type Err = TpmNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = hex::decode(text).map_err(|_| TpmNameError {
            length: 0,
            prefix: "no hexadecimal digits".to_owned(),
        })?;
        Self::from_bytes(&bytes)
    }
}

string_serde!(TpmName);

impl<C> Encode<C> for TpmName {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for TpmName {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        Self::from_bytes(decoder.bytes()?).map_err(|error| DecodeError::custom(error).at(position))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_name_states_its_hash_algorithm_and_has_that_length() {
        let name = TpmName::of(NameAlgorithm::Sha256, b"public area");
        assert_eq!(name.as_bytes().len(), 34);
        assert_eq!(name.to_string().parse::<TpmName>().unwrap(), name);
        let all_but_last = name.as_bytes().split_last().unwrap().1;
        assert!(TpmName::from_bytes(all_but_last).is_err());
        assert!(
            TpmName::from_bytes(&[0, 4]).is_err(),
            "SHA-1 names nothing here"
        );
        assert!(TpmName::from_bytes(&[0]).is_err());
    }
}
