//! Hash algorithms of PCR banks, and values of them: which algorithm a value is of travels with
//! it, so that values of two banks are never taken for one another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha256, Sha384, Sha512};

use crate::digest::Digest32;

/// The hash algorithms of PCR banks that can be computed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// `TPM_ALG_SHA1`
    Sha1,
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
    /// `TPM_ALG_SHA512`
    Sha512,
}

/// A hash value, with the algorithm that it is of. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashValue {
    algorithm: HashAlgorithm,
    /// The value, and zeros up to the longest.
    bytes: [u8; LONGEST],
}

/// A text that names no hash algorithm.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no hash algorithm: use sha1, sha256, sha384 or sha512")]
pub struct HashAlgorithmError {
    /// What was given.
    pub text: String,
}

const LONGEST: usize = 64;

impl HashAlgorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm with this `TPM_ALG_ID`.
    pub fn from_identifier(identifier: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.identifier() == identifier)
    }

    /// Its `TPM_ALG_ID`.
    pub const fn identifier(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    /// Length of a value in bytes.
    pub const fn digest_length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The bank's name as tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The hash value of these parts, one after the other.
    pub fn hash(self, parts: &[&[u8]]) -> HashValue {
        match self {
            Self::Sha1 => self.hash_with::<Sha1>(parts),
            Self::Sha256 => self.hash_with::<Sha256>(parts),
            Self::Sha384 => self.hash_with::<Sha384>(parts),
            Self::Sha512 => self.hash_with::<Sha512>(parts),
        }
    }

    /// A value whose bytes are all the same, such as what a reset gives a PCR.
    pub fn filled(self, byte: u8) -> HashValue {
        let mut bytes = [0; LONGEST];
        for place in bytes.iter_mut().take(self.digest_length()) {
            *place = byte;
        }
        HashValue {
            algorithm: self,
            bytes,
        }
    }

    fn hash_with<H: Digest>(self, parts: &[&[u8]]) -> HashValue {
        let mut hash = H::new();
        for part in parts {
            hash.update(part);
        }
        let mut value = self.filled(0);
        for (place, byte) in value.bytes.iter_mut().zip(hash.finalize()) {
            *place = byte;
        }
        value
    }
}

impl HashValue {
    /// The value with these bytes; `None` if the algorithm has values of another length.
    pub fn new(algorithm: HashAlgorithm, value: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes
            .get_mut(..algorithm.digest_length())
            .filter(|place| place.len() == value.len())?
            .copy_from_slice(value);
        Some(Self { algorithm, bytes })
    }

    /// The algorithm that it is of.
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..self.algorithm.digest_length())
            .unwrap_or_default()
    }

    /// Whether all of its bytes are zero, as those of a PCR are that nothing was measured into.
    pub fn is_zero(&self) -> bool {
        self.bytes == [0; LONGEST]
    }

    /// The value as one of SHA-256, if it is one.
    pub fn sha256(&self) -> Option<Digest32> {
        match self.algorithm {
            HashAlgorithm::Sha256 => self.bytes.first_chunk().copied().map(Digest32::new),
            _ => None,
        }
    }

    /// What `TPM2_PCR_Extend` makes of this PCR value (TPM 2.0 Part 3 §22.2).
    pub fn extended(&self, digest: &[u8]) -> Self {
        self.algorithm.hash(&[self.as_bytes(), digest])
    }

    /// The same value with another last byte.
    pub fn with_last_byte(mut self, last: u8) -> Self {
        let end = self.algorithm.digest_length();
        if let Some(byte) = self.bytes.get_mut(..end).and_then(<[u8]>::last_mut) {
            *byte = last;
        }
        self
    }
}

impl From<Digest32> for HashValue {
    fn from(digest: Digest32) -> Self {
        let mut value = HashAlgorithm::Sha256.filled(0);
        for (place, byte) in value.bytes.iter_mut().zip(digest.as_bytes()) {
            *place = *byte;
        }
        value
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = HashAlgorithmError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| HashAlgorithmError {
                text: text.to_owned(),
            })
    }
}

impl Serialize for HashAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for HashAlgorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for HashValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for HashValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// The values of "abc" (FIPS 180-4 examples).
    #[test]
    fn every_algorithm_hashes_as_its_standard_says() {
        for (algorithm, value) in [
            (
                HashAlgorithm::Sha1,
                "a9993e364706816aba3e25717850c26c9cd0d89d",
            ),
            (
                HashAlgorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                HashAlgorithm::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                 8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                HashAlgorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            assert_eq!(algorithm.hash(&[b"a", b"bc"]).to_string(), value);
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
            assert_eq!(
                HashAlgorithm::from_identifier(algorithm.identifier()),
                Some(algorithm)
            );
        }
        assert!("sha3_256".parse::<HashAlgorithm>().is_err());
    }

    #[test]
    fn a_value_has_the_length_of_its_algorithm() {
        assert_eq!(HashValue::new(HashAlgorithm::Sha384, &[1; 32]), None);
        let value = HashValue::new(HashAlgorithm::Sha384, &[1; 48]).unwrap();
        assert_eq!(value.as_bytes(), [1; 48]);
        assert_ne!(
            HashAlgorithm::Sha256.filled(0),
            HashAlgorithm::Sha384.filled(0)
        );
    }

    #[test]
    fn an_extend_hashes_the_old_value_and_the_digest() {
        let old = HashAlgorithm::Sha256.filled(0).with_last_byte(3);
        let both = [old.as_bytes(), [7; 32].as_slice()].concat();
        assert_eq!(old.extended(&[7; 32]), Digest32::of(&both).into());
        assert_eq!(old.extended(&[7; 32]).sha256(), Some(Digest32::of(&both)));
        assert!(!old.is_zero());
    }
}
