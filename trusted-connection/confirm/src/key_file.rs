//! What is kept of an enrolment: the key as the TPM gave it out, of use in that TPM and with the PIN alone.

use std::io;
use std::path::{Path, PathBuf};

use attestation::KeyStatement;
use bounded_file::read_bounded;
use cert_chain::TpmName;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// The file of a confirmation key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct KeyFile {
    #[n(0)]
    version: u8,
    /// `TPM2B_PRIVATE` without its length: encrypted by the TPM.
    #[n(1)]
    pub(crate) private: ByteVec,
    /// What the device's TPM says about the key.
    #[n(2)]
    pub statement: KeyStatement,
    /// Name of the storage key that it is under. One with another name is not trusted with the session's
    /// salt: whoever sits on the way to the TPM would know it.
    #[n(3)]
    pub(crate) parent: TpmName,
    /// `TPMT_PUBLIC` of the device's identity key.
    #[n(4)]
    pub identity_key: ByteVec,
}

/// A file of a key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{} cannot be read: enrol first (`vrot-confirm enrol`)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no key that `vrot-confirm enrol` wrote", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

const VERSION: u8 = 1;
const MAX_KEY_FILE: usize = 16 * 1024;

impl KeyFile {
    pub(crate) fn new(
        private: Vec<u8>,
        statement: KeyStatement,
        parent: TpmName,
        identity_key: Vec<u8>,
    ) -> Self {
        Self {
            version: VERSION,
            private: private.into(),
            statement,
            parent,
            identity_key: identity_key.into(),
        }
    }

    /// Reads one.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let bytes = read_bounded(path, MAX_KEY_FILE).map_err(|source| KeyFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        minicbor::decode::<Self>(&bytes)
            .ok()
            .filter(|read| read.version == VERSION)
            .ok_or_else(|| KeyFileError::Malformed {
                path: path.to_owned(),
            })
    }

    /// Writes it where nothing is yet.
    pub fn make(&self, path: &Path) -> io::Result<()> {
        let bytes = minicbor::to_vec(self).map_err(io::Error::other)?;
        durable_file::make(path, &bytes, 0o600)
    }
}
