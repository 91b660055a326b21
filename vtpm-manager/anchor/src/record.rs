//! What the anchor remembers between runs: one JSON file, replaced atomically.

use std::fs;
use std::io;
use std::path::Path;

use bounded_file::read_bounded;
use cert_chain::TpmName;
use cert_chain::operator::{Approval, PolicyKeyPublic};
use serde::{Deserialize, Serialize};

use super::error::AnchorError;
use super::root_seal::RootSeal;

/// The record of a provisioned host.
///
/// It holds no secret: the sealed root secret opens only in this TPM, and only under its policy.
/// Losing it loses the root secret, and with it every vRoT of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    /// The operator's key.
    pub(super) policy_key: PolicyKeyPublic,
    /// Name of the storage root key: sessions are salted to it, so it must not be swapped.
    pub(super) srk: TpmName,
    /// The root secret, once the host has booted as approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) root: Option<RootSeal>,
    /// What the operator approved, oldest first.
    pub(super) approvals: Vec<Approval>,
}

/// More approvals than this are not kept; the oldest go first. Each is a software version that
/// the host may still boot.
const MAX_APPROVALS: usize = 32;
/// 32 approvals of 24 PCRs need 80 KiB.
const MAX_RECORD: usize = 1024 * 1024;

const TYPE: &str = "vrot-host-anchor";
const VERSION: u32 = 1;

impl Record {
    pub(super) fn new(policy_key: PolicyKeyPublic, srk: TpmName) -> Self {
        Self {
            kind: TYPE.to_owned(),
            version: VERSION,
            policy_key,
            srk,
            root: None,
            approvals: Vec::new(),
        }
    }

    /// Adds an approval in place of one of the same values.
    pub(super) fn add(&mut self, approval: Approval) {
        self.approvals.retain(|known| known.pcrs != approval.pcrs);
        self.approvals.push(approval);
        let surplus = self.approvals.len().saturating_sub(MAX_APPROVALS);
        self.approvals.drain(..surplus);
    }

    /// Reads the record; `None` where there is none yet.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, AnchorError> {
        let failed = |source| AnchorError::Record {
            path: path.to_owned(),
            problem: "cannot be read",
            source,
        };
        let bytes = match read_bounded(path, MAX_RECORD) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|error| failed(io::Error::other(error)))?;
        if record.kind != TYPE || record.version != VERSION {
            return Err(failed(io::Error::other(format!(
                "it is `{}` in version {}, this program reads `{TYPE}` in version {VERSION}",
                record.kind, record.version
            ))));
        }
        Ok(Some(record))
    }

    /// Writes the record so that after a crash there is either the old or the new one.
    pub(super) fn store(&self, path: &Path) -> Result<(), AnchorError> {
        self.replace(path).map_err(|source| AnchorError::Record {
            path: path.to_owned(),
            problem: "cannot be written",
            source,
        })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        durable_file::replace(path, &serde_json::to_vec_pretty(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;

    /// The record of a host that was set up with version 1, as it lay on its disk.
    #[test]
    fn version_one_stays_readable_and_is_written_the_same() -> Result<()> {
        let golden = include_str!("anchor_v1.json");
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("anchor.json");
        fs::write(&path, golden)?;
        let record = Record::load(&path)?.context("no record")?;
        assert_eq!(record.approvals.len(), 1);
        record.store(&path)?;
        assert_eq!(fs::read_to_string(&path)?, golden);
        Ok(())
    }
}
