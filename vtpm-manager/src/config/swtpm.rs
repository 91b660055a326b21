//! Launchers that know swtpm, and no manager: whose programs may hand over, and for whom.

use std::path::Path;

use cert_chain::Tenant;
use serde::Deserialize;

use super::error::ConfigError;
use super::vmms::NameOrNumber;

/// The entries as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SwtpmFile {
    users: Vec<NameOrNumber>,
    tenant: Option<String>,
    vanished: Vanished,
}

/// Whose programs may hand over, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwtpmConfig {
    /// Users, besides root and the manager's own.
    pub uids: Vec<u32>,
    /// Whose the VMs are: these launchers do not say.
    pub tenant: Tenant,
    /// What becomes of a vRoT whose folder is gone.
    pub vanished: Vanished,
}

/// What becomes of a vRoT whose folder is gone, when another folder is set up in its place for the
/// same VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vanished {
    /// It stays, and nothing is set up, until an operator has deleted it.
    #[default]
    Keep,
    /// It is deleted for good.
    Delete,
}

const DEFAULT_TENANT: &str = "default";

pub(super) fn swtpm(file: SwtpmFile, config: &Path) -> Result<SwtpmConfig, ConfigError> {
    let users = file.users.iter();
    let uids = users.map(|who| who.user("swtpm.users", config));
    let tenant = file.tenant.as_deref().unwrap_or(DEFAULT_TENANT);
    Ok(SwtpmConfig {
        uids: uids.collect::<Result<_, _>>()?,
        tenant: tenant.parse().map_err(|error| ConfigError::Value {
            config: config.to_owned(),
            field: "swtpm.tenant",
            problem: format!("is not a tenant: {error}"),
        })?,
        vanished: file.vanished,
    })
}
