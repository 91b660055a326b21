//! The files of an issuer's folder, and those that its administrator names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::TpmMakerRoots;
use cert_chain::operator::PolicyKeyPublic;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::IssuerError;

const LOCK: &str = ".lock";
/// All makers' roots and intermediates of today have under 1 MiB.
const MAX_LIST: usize = 16 * 1024 * 1024;
/// What the issuer writes itself, and operators' keys: some ten kilobytes.
const MAX_FILE: usize = 1024 * 1024;

pub(super) fn lock(folder: &Path) -> Result<Flock<File>, IssuerError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file_error(
            &path,
            "opened: is there an issuer (`vtpmctl issuer init`)",
        ))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| file_error(&path, "locked")(error.into()))
}

pub(super) fn read(path: &Path) -> Result<String, IssuerError> {
    read_bounded_text(path, MAX_FILE).map_err(file_error(path, "read"))
}

/// What was written down under this name, if anything was.
pub(super) fn recall<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, IssuerError> {
    let json = match read_bounded(path, MAX_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(file_error(path, "read"))?,
    };
    let value = serde_json::from_slice(&json).map_err(|source| IssuerError::Memory {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(value))
}

/// A list of makers, as it stands in the file and as it is meant.
pub(super) fn tpm_roots_in(path: &Path) -> Result<(Vec<u8>, TpmMakerRoots), IssuerError> {
    let file = read_list(path)?;
    let roots = TpmMakerRoots::from_pem(&file).map_err(|source| IssuerError::TpmRoots {
        path: path.to_owned(),
        source,
    })?;
    Ok((file, roots))
}

/// A list that people keep, within a limit.
fn read_list(path: &Path) -> Result<Vec<u8>, IssuerError> {
    read_bounded(path, MAX_LIST).map_err(file_error(path, "read"))
}

pub(super) fn operators_in(files: &[PathBuf]) -> Result<Vec<PolicyKeyPublic>, IssuerError> {
    let mut operators = Vec::new();
    for path in files {
        let keys = PolicyKeyPublic::all_from_pem(&read_list(path)?).map_err(|source| {
            IssuerError::OperatorKeys {
                path: path.clone(),
                source,
            }
        })?;
        operators.extend(keys);
    }
    Ok(operators)
}

pub(super) fn write_operators(
    path: &Path,
    operators: &[PolicyKeyPublic],
) -> Result<(), IssuerError> {
    let pem: String = operators.iter().map(PolicyKeyPublic::to_pem).collect();
    write(path, pem.as_bytes(), 0o644)
}

pub(super) fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), IssuerError> {
    durable_file::replace(path, contents, mode).map_err(file_error(path, "written"))
}

pub(super) fn file_error(
    path: &Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> IssuerError {
    let path = path.to_owned();
    move |source| IssuerError::File {
        path,
        action,
        source,
    }
}

/// Writes something down, to be recalled under this name.
pub(super) fn remember(path: &Path, value: &impl Serialize) -> Result<(), IssuerError> {
    let json = match serde_json::to_vec_pretty(value) {
        Ok(json) => json,
        // Strings, numbers, and maps with string keys.
        Err(error) => unreachable!("JSON: {error}"),
    };
    write(path, &json, 0o600)
}
