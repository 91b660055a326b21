//! A policy about VMs or about devices, for what either can be the source of.

use std::path::Path;

use crate::device::DevicePolicy;
use crate::policy::{Policy, PolicyError};
use crate::toml_error::TomlError;

/// A policy of one of the two kinds.
#[derive(Clone, Debug)]
pub enum PolicyAbout {
    /// About VMs and their hosts.
    Vms(Box<Policy>),
    /// About devices.
    Devices(Box<DevicePolicy>),
}

impl PolicyAbout {
    /// Reads a policy of the kind that its tables are of; `read_roots` delivers the PEM text of the roots
    /// that it names.
    pub fn parse(
        text: &str,
        read_roots: impl FnMut(&Path) -> Result<String, PolicyError>,
    ) -> Result<Self, PolicyError> {
        let document: toml::Table =
            toml::from_str(text).map_err(|error| TomlError::of(&error, text))?;
        match is_about_devices(&document) {
            true => DevicePolicy::parse(text, read_roots).map(Self::from),
            false => Policy::parse(text, read_roots).map(Self::from),
        }
    }
}

/// Whether there is anything that only a policy about devices has.
fn is_about_devices(document: &toml::Table) -> bool {
    let expect = document.get("expect").and_then(toml::Value::as_table);
    document.contains_key("device")
        || document.contains_key("exempt_software_keys")
        || expect.is_some_and(|expect| expect.contains_key("devices"))
}

impl From<Policy> for PolicyAbout {
    fn from(policy: Policy) -> Self {
        Self::Vms(Box::new(policy))
    }
}

impl From<DevicePolicy> for PolicyAbout {
    fn from(policy: DevicePolicy) -> Self {
        Self::Devices(Box::new(policy))
    }
}
