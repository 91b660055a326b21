//! Whose TPM signed.

use std::fmt;
use std::str::FromStr;

use cert_chain::{DeviceName, VmId};

/// The VM or the device whose TPM has the key that signs: the label's `iss`, as in the names of their
/// certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A VM: `urn:uuid:` and its id.
    Vm(VmId),
    /// A device: its SPIFFE ID.
    Device(DeviceName),
}

/// Why something names neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source is neither a VM (urn:uuid:…) nor a device (spiffe://…)")]
pub struct NoSource;

/// How a VM is named in its vIK's certificate.
const VM_URI: &str = "urn:uuid:";

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "{VM_URI}{vm}"),
            Self::Device(device) => write!(f, "{device}"),
        }
    }
}

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(VM_URI) {
            Some(vm) => vm.parse().map(Self::Vm).map_err(|_| NoSource),
            None => text.parse().map(Self::Device).map_err(|_| NoSource),
        }
    }
}
