//! How domains of libvirt are treated on this host.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use attestation::TomlError;
use bounded_file::read_bounded_text;
use cert_chain::Tenant;
use serde::Deserialize;

use super::error::LibvirtError;

const MAX_FILE: usize = 64 * 1024;

/// The configuration file; every entry has a default, and so has a file that does not exist.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Whether a domain without a vRoT gets one when it starts.
    pub(super) create: bool,
    /// Whose VMs those are whose domains do not say.
    pub(super) tenant: Option<Tenant>,
    /// Whether what a domain is started with is measured.
    pub(super) measure: bool,
    /// Whether what was made for a domain is deleted once libvirt does not know it any more.
    pub(super) delete_undefined: bool,
    /// For how long it has to be unknown before, in seconds.
    pub(super) undefined_for_s: u64,
    /// The folder of links to the vRoTs' sockets, called after their VMs.
    pub(super) links: PathBuf,
    /// The folder in which is noted what was made for domains.
    pub(super) notes: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            create: false,
            tenant: None,
            measure: true,
            delete_undefined: false,
            undefined_for_s: 3600,
            links: PathBuf::from("/run/vrot-vms"),
            notes: PathBuf::from("/var/lib/vrot-libvirt"),
        }
    }
}

impl Config {
    /// Reads a configuration.
    pub(super) fn read(path: &Path) -> Result<Self, LibvirtError> {
        let text = match read_bounded_text(path, MAX_FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(LibvirtError::file(path, "read", source)),
        };
        let config: Self = toml::from_str(&text).map_err(|source| LibvirtError::Config {
            path: path.to_owned(),
            source: TomlError::of(&source, &text),
        })?;
        for (entry, folder) in [("links", &config.links), ("notes", &config.notes)] {
            if !folder.is_absolute() {
                return Err(LibvirtError::Relative {
                    path: path.to_owned(),
                    entry,
                    folder: folder.clone(),
                });
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_configuration_says_what_the_defaults_are() {
        let text = include_str!("../../../packaging/vrot-host/libvirt.toml");
        let entries = text.lines().filter_map(|line| line.strip_prefix('#'));
        let entries: Vec<&str> = entries.filter(|line| !line.starts_with(' ')).collect();
        let said: Config = toml::from_str(&entries.join("\n")).unwrap_or_default();
        let default = Config::default();
        assert_eq!(entries.len(), 7);
        assert_eq!(said.create, default.create);
        assert_eq!(
            said.tenant.map(|tenant| tenant.to_string()).as_deref(),
            Some("acme")
        );
        assert_eq!(said.measure, default.measure);
        assert_eq!(said.delete_undefined, default.delete_undefined);
        assert_eq!(said.undefined_for_s, default.undefined_for_s);
        assert_eq!(said.links, default.links);
        assert_eq!(said.notes, default.notes);
    }
}
