//! The hash algorithms of time stamps and evidence records.

use der::asn1::{Any, ObjectIdentifier};
use ring::digest;
use x509_cert::spki::AlgorithmIdentifierOwned;

/// A hash algorithm that new time stamps may use, and old ones may have used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArchiveHash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A hash value with its algorithm (`MessageImprint` of RFC 3161 §2.4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imprint {
    algorithm: ArchiveHash,
    value: Vec<u8>,
}

/// Hashes data that come in pieces.
#[derive(Clone)]
pub struct Hasher {
    algorithm: ArchiveHash,
    context: digest::Context,
}

/// What is hashed with something else is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash algorithm {0} is not SHA-256, SHA-384 or SHA-512")]
pub struct UnknownHash(pub ObjectIdentifier);

const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

impl ArchiveHash {
    /// The hash value of `message`.
    pub fn of(self, message: &[u8]) -> Imprint {
        let mut hasher = self.hasher();
        hasher.update(message);
        hasher.finish()
    }

    /// Begins to hash.
    pub fn hasher(self) -> Hasher {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        };
        Hasher {
            algorithm: self,
            context: digest::Context::new(algorithm),
        }
    }

    /// Its name in COSE and in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }

    pub(crate) fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn from_oid(oid: ObjectIdentifier) -> Result<Self, UnknownHash> {
        match oid {
            SHA256 => Ok(Self::Sha256),
            SHA384 => Ok(Self::Sha384),
            SHA512 => Ok(Self::Sha512),
            other => Err(UnknownHash(other)),
        }
    }

    /// With NULL for parameters, which every implementation takes (RFC 5754 §2).
    pub(crate) fn identifier(self) -> AlgorithmIdentifierOwned {
        AlgorithmIdentifierOwned {
            oid: match self {
                Self::Sha256 => SHA256,
                Self::Sha384 => SHA384,
                Self::Sha512 => SHA512,
            },
            parameters: Some(Any::null()),
        }
    }
}

impl Imprint {
    /// Takes a hash value that was computed elsewhere, if it has the algorithm's length.
    pub fn new(algorithm: ArchiveHash, value: &[u8]) -> Option<Self> {
        (value.len() == algorithm.length()).then(|| Self {
            algorithm,
            value: value.to_vec(),
        })
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> ArchiveHash {
        self.algorithm
    }

    /// The hash value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

impl Hasher {
    /// Hashes on.
    pub fn update(&mut self, piece: &[u8]) {
        self.context.update(piece);
    }

    /// The hash value of all that was given.
    pub fn finish(self) -> Imprint {
        Imprint {
            algorithm: self.algorithm,
            value: self.context.finish().as_ref().to_vec(),
        }
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
