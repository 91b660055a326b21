//! Policies and the roots that they name, from files.

use std::path::Path;

use attestation::device::DevicePolicy;
use attestation::policy::{MAX_POLICY, MAX_ROOTS, PolicyError};
use attestation::{Policy, PolicyAbout};
use bounded_file::read_bounded_text;

/// Reads a policy about VMs and the roots that it names, relative to its own folder.
pub fn load(path: &Path) -> Result<Policy, PolicyError> {
    Policy::parse(&read(path, MAX_POLICY)?, beside(path))
}

/// The same for a policy about devices.
pub fn load_about_devices(path: &Path) -> Result<DevicePolicy, PolicyError> {
    DevicePolicy::parse(&read(path, MAX_POLICY)?, beside(path))
}

/// The same for a policy of either kind, told by what it says.
pub fn load_about_either(path: &Path) -> Result<PolicyAbout, PolicyError> {
    PolicyAbout::parse(&read(path, MAX_POLICY)?, beside(path))
}

/// Reads the roots in files that are named relative to this one's folder.
fn beside(path: &Path) -> impl FnMut(&Path) -> Result<String, PolicyError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    move |roots| read(&folder.join(roots), MAX_ROOTS)
}

fn read(path: &Path, limit: usize) -> Result<String, PolicyError> {
    read_bounded_text(path, limit).map_err(|source| PolicyError::Read {
        path: path.to_owned(),
        source,
    })
}
