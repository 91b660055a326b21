//! Files that a user names: bounded when they are read, and named when they are refused. Those that are
//! written are in [`destination`].

mod destination;

use std::path::Path;

use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::enrolment::Message;
use zeroize::Zeroizing;

use crate::error::CtlError;

pub(crate) use destination::{Destination, Kind, write, write_for_owner};

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
