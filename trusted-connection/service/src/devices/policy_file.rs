//! A policy about devices and its roots, from files.

use std::path::Path;

use attestation::device::DevicePolicy;
use attestation::policy::{MAX_POLICY, MAX_ROOTS, PolicyError};
use bounded_file::read_bounded_text;

/// Reads a policy and the roots that it names, relative to its own folder.
pub(super) fn load(path: &Path) -> Result<DevicePolicy, PolicyError> {
    let text = read(path, MAX_POLICY)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    DevicePolicy::parse(&text, |roots| read(&folder.join(roots), MAX_ROOTS))
}

fn read(path: &Path, limit: usize) -> Result<String, PolicyError> {
    read_bounded_text(path, limit).map_err(|source| PolicyError::Read {
        path: path.to_owned(),
        source,
    })
}
