//! The file as it is written: entries and their defaults.

use std::num::NonZeroU32;
use std::path::PathBuf;

use cert_chain::{Digest32, HashAlgorithm};
use serde::Deserialize;
use trust_anchor::{DEFAULT_POLICY_PCRS, DEFAULT_QUOTED_PCRS, Tcti};

use super::anchor::PolicyName;
use super::launch::LaunchConfig;
use super::pool::PoolConfig;
use super::swtpm::SwtpmFile;
use super::tenants::TenantsFile;
use super::vmms::NameOrNumber;
use crate::backend::UidRange;

const DEFAULT_STATE_DIR: &str = "/var/lib/vtpm-manager";
const DEFAULT_RUNTIME_DIR: &str = "/run/vtpm-manager";
const DEFAULT_EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Four guests that never rest have a disk written at a few megabytes a second.
const DEFAULT_STATE_CHANGES_PER_SECOND: NonZeroU32 = NonZeroU32::new(25).unwrap();
/// A service asks once for all connections that wait, and no more often than a TPM signs (25 ms and more).
const DEFAULT_HOST_EVIDENCE_PER_MINUTE: u32 = 1200;

/// The shortest patience of Linux's drivers is 750 ms.
const DEFAULT_DEADLINE_MS: u32 = 500;
/// The group of the packages.
const DEFAULT_VMM_GROUP: &str = "vrot";

/// Accidents are rare; what ends more often than that has a cause that a restart does not cure.
const DEFAULT_BACKEND_RESTARTS_PER_HOUR: u32 = 3;

/// All entries of the file, not checked yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) tpm: Tcti,
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    #[serde(default = "default_runtime_dir")]
    pub(super) runtime_dir: PathBuf,
    pub(super) socket: Option<PathBuf>,
    pub(super) backend: Option<PathBuf>,
    #[serde(default)]
    pub(super) backend_uids: UidRange,
    #[serde(default = "default_event_log")]
    pub(super) event_log: PathBuf,
    pub(super) pcr_bank: Option<HashAlgorithm>,
    #[serde(default = "default_quoted_pcrs")]
    pub(super) quoted_pcrs: Vec<u8>,
    #[serde(default = "default_policy_pcrs")]
    pub(super) policy_pcrs: Vec<u8>,
    #[serde(default)]
    pub(super) allowed_uids: Vec<u32>,
    #[serde(default = "default_host_evidence_per_minute")]
    pub(super) host_evidence_per_minute: u32,
    #[serde(default = "default_state_changes_per_second")]
    pub(super) state_changes_per_second: NonZeroU32,
    #[serde(default = "default_durability_deadline_ms")]
    pub(super) durability_deadline_ms: u32,
    pub(super) answer_within_ms: Option<u32>,
    #[serde(default)]
    pub(super) vmm_users: Vec<NameOrNumber>,
    #[serde(default = "default_vmm_group")]
    pub(super) vmm_group: NameOrNumber,
    #[serde(default)]
    pub(super) anchor_policy: PolicyName,
    pub(super) checkpoint_interval_s: Option<u64>,
    #[serde(default)]
    pub(super) pool: PoolConfig,
    #[serde(default)]
    pub(super) launch: LaunchConfig,
    #[serde(default = "default_backend_restarts_per_hour")]
    pub(super) backend_restarts_per_hour: u32,
    pub(super) vik_lifetime_s: Option<u64>,
    pub(super) vik_renew_after_s: Option<u64>,
    pub(super) audit_begins_after: Option<Digest32>,
    #[serde(default)]
    pub(super) swtpm: SwtpmFile,
    #[serde(default)]
    pub(super) tenants: TenantsFile,
}

fn default_state_dir() -> PathBuf {
    DEFAULT_STATE_DIR.into()
}

fn default_runtime_dir() -> PathBuf {
    DEFAULT_RUNTIME_DIR.into()
}

fn default_event_log() -> PathBuf {
    DEFAULT_EVENT_LOG.into()
}

fn default_quoted_pcrs() -> Vec<u8> {
    DEFAULT_QUOTED_PCRS.to_vec()
}

fn default_policy_pcrs() -> Vec<u8> {
    DEFAULT_POLICY_PCRS.to_vec()
}

fn default_backend_restarts_per_hour() -> u32 {
    DEFAULT_BACKEND_RESTARTS_PER_HOUR
}

fn default_durability_deadline_ms() -> u32 {
    DEFAULT_DEADLINE_MS
}

fn default_vmm_group() -> NameOrNumber {
    NameOrNumber::Name(DEFAULT_VMM_GROUP.to_owned())
}

fn default_state_changes_per_second() -> NonZeroU32 {
    DEFAULT_STATE_CHANGES_PER_SECOND
}

fn default_host_evidence_per_minute() -> u32 {
    DEFAULT_HOST_EVIDENCE_PER_MINUTE
}
