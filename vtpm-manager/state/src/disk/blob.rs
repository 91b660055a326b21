//! A vRoT's sealed state as the store keeps it.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// State as the backend sealed it; the manager cannot look into it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct StateBlob {
    #[n(0)]
    version: u8,
    /// Number that the backend gave it; rises while a backend runs.
    #[n(1)]
    pub sequence: u64,
    /// The sealed bytes.
    #[n(2)]
    pub sealed: ByteVec,
}

/// Why a stored blob cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateBlobError {
    /// Not what this program writes.
    #[error("a stored state cannot be read: the store is damaged")]
    Cbor(#[source] minicbor::decode::Error),
    /// From a newer program.
    #[error(
        "a stored state has version {found}, this program reads version {VERSION}: use the newer program"
    )]
    Version {
        /// The version found.
        found: u8,
    },
}

const VERSION: u8 = 1;

impl StateBlob {
    /// Wraps what a backend sent.
    pub fn new(sequence: u64, sealed: Vec<u8>) -> Self {
        Self {
            version: VERSION,
            sequence,
            sealed: sealed.into(),
        }
    }

    /// The blob as it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        match minicbor::to_vec(self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads a stored blob.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateBlobError> {
        let blob: Self = minicbor::decode(bytes).map_err(StateBlobError::Cbor)?;
        if blob.version != VERSION {
            return Err(StateBlobError::Version {
                found: blob.version,
            });
        }
        Ok(blob)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// Version 1, byte for byte: stores in the field hold it. If this fails, the format needs a
    /// new version beside the old one.
    const GOLDEN: &str = "830119012c43aabbcc";

    #[test]
    fn version_one_stays_readable() {
        let blob = StateBlob::new(300, vec![0xaa, 0xbb, 0xcc]);
        assert_eq!(hex::encode(blob.to_bytes()), GOLDEN);
        let golden = hex::decode(GOLDEN).unwrap();
        assert_eq!(StateBlob::from_bytes(&golden).unwrap(), blob);
    }

    #[test]
    fn a_version_from_the_future_is_refused() {
        let mut bytes = StateBlob::new(1, vec![]).to_bytes();
        *bytes.get_mut(1).unwrap() = 2;
        assert!(matches!(
            StateBlob::from_bytes(&bytes),
            Err(StateBlobError::Version { found: 2 })
        ));
    }
}
