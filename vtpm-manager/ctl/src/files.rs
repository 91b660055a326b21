//! Files that a user names: bounded when they are read, and named when they are refused.

use std::io::Write;
use std::path::Path;

use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::enrolment::{MAX_MESSAGE, Message};
use durable_file::{Existing, OutputError, OutputFile};
use zeroize::Zeroizing;

use crate::error::CtlError;

/// A request has certificates, and the host's PCR values, in some ten kilobytes.
const MAX_FILE: usize = 1024 * 1024;

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, CtlError> {
    read_bounded(path, MAX_FILE).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

/// Writes a file, in place of one that is there.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    std::fs::write(path, contents).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "written",
        source,
    })
}

/// The place of a message that is made once and not again: what would keep it from being written is found out
/// before it is made.
pub(crate) struct MessageFile(OutputFile);

impl MessageFile {
    /// A message in place of a file that is there.
    pub(crate) fn prepare(path: &Path) -> Result<Self, CtlError> {
        let file = OutputFile::create(path, 0o644, Existing::Replace)?;
        file.reserve(u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX))?;
        Ok(Self(file))
    }

    /// Writes the message.
    pub(crate) fn write(mut self, path: &Path, message: &impl Message) -> Result<(), CtlError> {
        let written = self.0.write_all(message.to_json().as_bytes());
        written.map_err(|source| OutputError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(self.0.finish()?)
    }
}

/// Writes a file that others read meanwhile: they find the old one or the new one.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    durable_file::replace(path, contents, 0o644).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "written",
        source,
    })
}

/// The same with a secret, for the user alone.
pub(crate) fn replace_for_owner(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    durable_file::replace(path, contents, 0o600).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "written",
        source,
    })
}

/// Reads a text that may be a secret.
pub(crate) fn read_secret_text(path: &Path) -> Result<Zeroizing<String>, CtlError> {
    let text = read_bounded_text(path, MAX_FILE).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    Ok(Zeroizing::new(text))
}

/// Reads a message of an enrolment.
pub(crate) fn read_message<M: Message>(path: &Path) -> Result<M, CtlError> {
    M::from_json(&read(path)?).map_err(|error| not_needed(path, error.into()))
}

/// Makes a file that is not there yet.
pub(crate) fn make(path: &Path, contents: &[u8], mode: u32) -> Result<(), CtlError> {
    durable_file::make(path, contents, mode).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "made",
        source,
    })
}

/// A file that does not hold what is needed.
pub(crate) fn not_needed(
    path: &Path,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> CtlError {
    CtlError::Input {
        path: path.to_owned(),
        source,
    }
}
