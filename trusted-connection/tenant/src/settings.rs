//! The settings of a tenant's client, from a file in TOML.
//!
//! Files that it names are relative to its own folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::policy::{MAX_ROOTS, PolicyError};
use attestation::{Policy, TomlError};
use attested_tls::key_files::{KeyFilesError, certified_key};
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::trust_anchors::TrustAnchorError;
use cert_chain::{HostName, TrustAnchors, VmId};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use trusted_connection::crl_files::{CrlFiles, CrlFilesError};
use trusted_connection::policy_files;

use crate::policies::Policies;
use crate::tls::Tls;

/// What the client is told: hosts, its certificate, whom it trusts, what it expects of its VMs.
#[derive(Clone, Debug)]
pub struct Settings {
    certificate: PathBuf,
    key: PathBuf,
    roots: PathBuf,
    crls: Vec<PathBuf>,
    policy: Option<PathBuf>,
    deadline: Duration,
    hosts: Vec<HostSettings>,
    vms: BTreeMap<VmId, PathBuf>,
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// Its name: that of its certificates, and of the host layer of its evidence.
    pub name: HostName,
    /// Where it is reached: `NAME:PORT` or `ADDRESS:PORT`.
    pub address: String,
    /// The name that its TLS certificate must be for: `name`, unless its operator gave it another one.
    pub server: ServerName<'static>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The settings are not as described.
    #[error("{} cannot be used: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why, and where in it.
        reason: String,
    },
    /// A root certificate.
    #[error("{} has no roots that can be trusted", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustAnchorError,
    },
    /// Certificate or key.
    #[error(transparent)]
    Identity(#[from] KeyFilesError),
    /// A revocation list.
    #[error(transparent)]
    Crls(#[from] CrlFilesError),
    /// A policy.
    #[error("the policy {} cannot be used", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PolicyError,
    },
    /// A host that is not in the settings.
    #[error("the settings have no host `{name}`: they have {known}")]
    UnknownHost {
        /// What was asked for.
        name: HostName,
        /// The hosts that there are.
        known: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    certificate: PathBuf,
    key: PathBuf,
    roots: PathBuf,
    #[serde(default)]
    crls: Vec<PathBuf>,
    policy: Option<PathBuf>,
    deadline_s: Option<u64>,
    #[serde(default)]
    host: Vec<HostEntry>,
    #[serde(default)]
    vm: Vec<VmEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostEntry {
    name: HostName,
    address: Option<String>,
    server_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmEntry {
    id: VmId,
    policy: PathBuf,
}

/// Names of hosts and VMs, and no more.
const MAX_SETTINGS: usize = 1024 * 1024;
/// All of them are asked at the same time.
const MAX_HOSTS: usize = 256;
/// The port of the tenant API where the address names none.
const PORT: u16 = 8443;
/// A host signs with a slow chip, and verifiers may queue for it.
const DEADLINE: Duration = Duration::from_secs(60);
const LONGEST_DEADLINE: u64 = 3600;

impl Settings {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = read_bounded_text(path, MAX_SETTINGS).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(|reason| SettingsError::Content {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let file: File =
            toml::from_str(text).map_err(|error| TomlError::of(&error, text).to_string())?;
        if file.host.is_empty() {
            return Err("it has no [[host]]: add one for each host, with its name".to_owned());
        }
        if file.host.len() > MAX_HOSTS {
            return Err(format!("it has more than {MAX_HOSTS} hosts"));
        }
        let mut names = BTreeSet::new();
        let mut hosts = Vec::new();
        for entry in file.host {
            if !names.insert(entry.name.to_string()) {
                return Err(format!("it has the host {} twice", entry.name));
            }
            hosts.push(HostSettings::of(entry)?);
        }
        let mut vms = BTreeMap::new();
        for entry in file.vm {
            if (vms.insert(entry.id, folder.join(entry.policy))).is_some() {
                return Err(format!("it has the VM {} twice", entry.id));
            }
        }
        let deadline = match file.deadline_s {
            None => DEADLINE,
            Some(seconds) if (1..=LONGEST_DEADLINE).contains(&seconds) => {
                Duration::from_secs(seconds)
            }
            Some(seconds) => {
                return Err(format!(
                    "deadline_s is {seconds}: it can be 1 to {LONGEST_DEADLINE}"
                ));
            }
        };
        Ok(Self {
            certificate: folder.join(file.certificate),
            key: folder.join(file.key),
            roots: folder.join(file.roots),
            crls: file.crls.iter().map(|path| folder.join(path)).collect(),
            policy: file.policy.map(|path| folder.join(path)),
            deadline,
            hosts,
            vms,
        })
    }

    /// The same with these hosts alone, if there are any.
    pub fn only(mut self, names: &[HostName]) -> Result<Self, SettingsError> {
        for name in names {
            if !self.hosts.iter().any(|host| host.name == *name) {
                let known: Vec<_> = self
                    .hosts
                    .iter()
                    .map(|host| host.name.to_string())
                    .collect();
                return Err(SettingsError::UnknownHost {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
        if !names.is_empty() {
            self.hosts.retain(|host| names.contains(&host.name));
        }
        Ok(self)
    }

    /// The same with another policy for VMs that have none of their own.
    #[must_use]
    pub fn with_policy(self, policy: PathBuf) -> Self {
        Self {
            policy: Some(policy),
            ..self
        }
    }

    /// The hosts.
    pub fn hosts(&self) -> &[HostSettings] {
        &self.hosts
    }

    /// For everything that is asked of a host at a time.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Reads the policies, and the roots that they name.
    pub fn policies(&self) -> Result<Policies, SettingsError> {
        let load = |path: &Path| -> Result<Policy, SettingsError> {
            policy_files::load(path).map_err(|source| SettingsError::Policy {
                path: path.to_owned(),
                source,
            })
        };
        let mut policies = Policies::new(self.policy.as_deref().map(load).transpose()?);
        let mut by_file: BTreeMap<&Path, Vec<VmId>> = BTreeMap::new();
        for (vm, path) in &self.vms {
            by_file.entry(path).or_default().push(*vm);
        }
        for (path, vms) in by_file {
            policies.add(load(path)?, vms);
        }
        Ok(policies.with_lists(CrlFiles::open(&self.crls)?.for_verification()))
    }

    /// Reads what connections need.
    pub(crate) fn tls(&self) -> Result<Tls, SettingsError> {
        let path = &self.roots;
        let roots = read_bounded(path, MAX_ROOTS).map_err(|source| SettingsError::Read {
            path: path.clone(),
            source,
        })?;
        let roots = TrustAnchors::from_pem(&roots).map_err(|source| SettingsError::Roots {
            path: path.clone(),
            source,
        })?;
        let key = certified_key(&self.certificate, &self.key)?;
        Ok(Tls::new(key, roots, CrlFiles::open(&self.crls)?))
    }
}

impl HostSettings {
    fn of(entry: HostEntry) -> Result<Self, String> {
        let name = entry.name;
        let address = entry.address.unwrap_or_else(|| name.to_string());
        let has_port = (address.rsplit_once(':'))
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let is_bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
        let address = match (is_bare_v6, has_port) {
            (true, _) => format!("[{address}]:{PORT}"),
            (false, true) => address,
            (false, false) => format!("{address}:{PORT}"),
        };
        let server = entry.server_name.unwrap_or_else(|| name.to_string());
        let server = ServerName::try_from(server.clone())
            .map_err(|_| format!("`{server}` is no name of a server, as certificates have it"))?;
        Ok(Self {
            name,
            address,
            server,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const FILES: &str = "certificate = \"c.pem\"\nkey = \"k.pem\"\nroots = \"/r.pem\"\n";

    fn parsed(more: &str) -> Result<Settings, String> {
        Settings::parse(&format!("{FILES}{more}"), Path::new("/etc/vrot"))
    }

    #[test]
    fn files_are_relative_to_the_settings_and_addresses_have_a_port() {
        let settings = parsed(
            "[[host]]\nname = \"a.x.example\"\n\
             [[host]]\nname = \"b.x.example\"\naddress = \"192.0.2.1\"\nserver_name = \"api.example\"\n\
             [[host]]\nname = \"c.x.example\"\naddress = \"2001:db8::1\"\n\
             [[host]]\nname = \"d.x.example\"\naddress = \"[2001:db8::1]:9\"\n",
        )
        .unwrap();
        assert_eq!(settings.certificate, Path::new("/etc/vrot/c.pem"));
        assert_eq!(settings.roots, Path::new("/r.pem"));
        let addresses: Vec<&str> = (settings.hosts.iter())
            .map(|host| host.address.as_str())
            .collect();
        assert_eq!(
            addresses,
            [
                "a.x.example:8443",
                "192.0.2.1:8443",
                "[2001:db8::1]:8443",
                "[2001:db8::1]:9"
            ]
        );
        let one = settings.clone().only(&["b.x.example".parse().unwrap()]);
        let servers = one.unwrap().hosts;
        let servers: Vec<_> = servers.iter().map(|host| host.server.to_str()).collect();
        assert_eq!(servers, ["api.example"]);
        assert!(settings.only(&["e.x.example".parse().unwrap()]).is_err());
    }

    #[test]
    fn a_mistake_in_the_settings_is_told_on_one_short_line() {
        for text in [
            "x = ".to_owned() + &"[".repeat(100_000),
            "hello\n".to_owned(),
        ] {
            let told = Settings::parse(&text, Path::new(""))
                .err()
                .unwrap_or_default();
            assert!(told.starts_with("line 1, column "), "{told}");
            assert!(!told.contains('\n') && told.len() < 200, "{told}");
        }
    }

    #[test]
    fn what_is_wrong_with_settings_is_told() {
        let host = "[[host]]\nname = \"a.x.example\"\n";
        for (more, told) in [
            (String::new(), "no [[host]]"),
            (format!("{host}{host}"), "twice"),
            (format!("{host}port = 1\n"), "port"),
            (format!("deadline_s = 0\n{host}"), "deadline_s"),
            (format!("{host}server_name = \"a b\"\n"), "a b"),
            ("[[host]]\nname = \"a\"\n".to_owned(), "domain"),
        ] {
            let error = parsed(&more).unwrap_err();
            assert!(error.contains(told), "{more}: {error}");
        }
    }
}
