//! The daemon's configuration: one TOML file, in which nothing unknown is accepted.

mod anchor;
mod checks;
mod error;
mod file;
mod launch;
mod pool;
mod renewal;
mod shown;
mod swtpm;
mod tenants;
mod vmms;

use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use attestation::TomlError;
use bounded_file::read_bounded_text;
use cert_chain::Digest32;
use guarded_state::ledger::AnchorPolicy;
use nix::unistd::geteuid;
use trust_anchor::AnchorConfig;

use crate::backend::{UidRange, Vmms};

use anchor::{anchor_policy, bank, policy_selection, selection};
use checks::{
    LONGEST_DEADLINE_MS, check_answer_within, check_apart, check_callers, check_evidence,
    check_folder,
};
use file::File;
use renewal::renewal;
use swtpm::swtpm;
use tenants::tenants;
use vmms::vmms;

pub use checks::MAX_RUNTIME_DIR;
pub use error::ConfigError;
pub use launch::LaunchConfig;
pub use pool::PoolConfig;
pub use renewal::RenewalConfig;
pub use swtpm::{SwtpmConfig, Vanished};

/// A configuration that makes sense: there is no other way to have one than [`Config::load`]
/// and [`Config::load_for_its_manager`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The physical TPM.
    pub anchor: AnchorConfig,
    /// What must survive: store, record of the trust anchor, host certificate, audit log.
    pub state_dir: PathBuf,
    /// What lives as long as the host is up: one folder of sockets for each running vRoT.
    pub runtime_dir: PathBuf,
    /// Where the API listens.
    pub socket: PathBuf,
    /// The backend program.
    pub backend: PathBuf,
    /// The users that backends run as.
    pub backend_uids: UidRange,
    /// The host's event log.
    pub event_log: PathBuf,
    /// Users that may call the API besides root and the manager's own.
    pub allowed_uids: Vec<u32>,
    /// How often one vRoT may ask for host evidence.
    pub host_evidence_per_minute: u32,
    /// How many changes of one vRoT's state are written in a second at most, after as many at once
    /// as in ten seconds. Its guest is slowed, for at most half of `durability_deadline_ms` each.
    pub state_changes_per_second: NonZeroU32,
    /// What a guest's command waits for at most until its state is durable, in milliseconds. Then
    /// it is answered anyway, and the vRoT is degraded.
    pub durability_deadline_ms: u32,
    /// For how long the host's VMMs wait for an answer to a command, in milliseconds, if they do not wait
    /// for each: then guests are told in time to send the command again.
    pub answer_within_ms: Option<u32>,
    /// Whose VMMs may attach besides those of root and of the manager's own user.
    pub vmms: Vmms,
    /// When the durable rollback register is written.
    pub anchor_policy: AnchorPolicy,
    /// The vRoTs made ahead.
    pub pool: PoolConfig,
    /// Whose VMs have to be measured before they are started.
    pub launch: LaunchConfig,
    /// How often in an hour a vRoT whose backend ended by itself is started again.
    pub backend_restarts_per_hour: u32,
    /// The life of identity keys' certificates.
    pub renewal: RenewalConfig,
    /// The hash of the last line of the audit log that an operator took away with older parts.
    pub audit_begins_after: Option<Digest32>,
    /// Launchers that know swtpm, and no manager.
    pub swtpm: SwtpmConfig,
    /// The API for tenants, if it is on.
    pub tenants: Option<tenant_api::Settings>,
}

/// Some hundred users and tenants fit in.
const MAX_CONFIG: usize = 1024 * 1024;

/// Where the daemon looks without `--config`.
pub const DEFAULT_CONFIG: &str = "/etc/vtpm-manager/config.toml";

const BACKEND_PROGRAM: &str = "vtpm-backend";

impl Config {
    /// Reads and checks a configuration for a manager that runs as this process's user.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_for(path, |_| geteuid().as_raw())
    }

    /// The same on behalf of a manager that another user runs: by root, who looks for whoever has the state
    /// folder. Nobody else can look for others.
    pub fn load_for_its_manager(path: &Path) -> Result<Self, ConfigError> {
        Self::load_for(path, |state_dir| {
            let own = geteuid();
            match std::fs::symlink_metadata(state_dir) {
                Ok(folder) if own.is_root() => folder.uid(),
                _ => own.as_raw(),
            }
        })
    }

    fn load_for(path: &Path, manager: impl FnOnce(&Path) -> u32) -> Result<Self, ConfigError> {
        let text = read_bounded_text(path, MAX_CONFIG).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config = Self::parse(&text, path)?;
        let manager = manager(&config.state_dir);
        for (field, folder) in [
            ("state_dir", &config.state_dir),
            ("runtime_dir", &config.runtime_dir),
        ] {
            check_folder(folder, manager).map_err(|problem| ConfigError::Value {
                config: path.to_owned(),
                field,
                problem,
            })?;
        }
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Toml {
            path: path.to_owned(),
            source: TomlError::of(&source, text),
        })?;
        let backend = match file.backend {
            Some(backend) => backend,
            None => std::env::current_exe()
                .map_err(ConfigError::OwnProgram)?
                .with_file_name(BACKEND_PROGRAM),
        };
        let socket = (file.socket).unwrap_or_else(|| file.runtime_dir.join("api.sock"));
        for (field, value) in [
            ("state_dir", &file.state_dir),
            ("runtime_dir", &file.runtime_dir),
            ("socket", &socket),
            ("backend", &backend),
            ("event_log", &file.event_log),
        ] {
            if !value.is_absolute() {
                return Err(ConfigError::Relative {
                    config: path.to_owned(),
                    field,
                    value: value.clone(),
                });
            }
        }
        let length = file.runtime_dir.as_os_str().len();
        if length > MAX_RUNTIME_DIR {
            return Err(ConfigError::RuntimeDirTooLong {
                config: path.to_owned(),
                length,
            });
        }
        let milliseconds = file.durability_deadline_ms;
        if !(1..=LONGEST_DEADLINE_MS).contains(&milliseconds) {
            return Err(ConfigError::Deadline {
                config: path.to_owned(),
                milliseconds,
            });
        }
        let refused = |field| {
            move |problem| ConfigError::Value {
                config: path.to_owned(),
                field,
                problem,
            }
        };
        let vmms = vmms(&file.vmm_users, &file.vmm_group, path)?;
        check_apart(&file.state_dir, &file.runtime_dir, &socket).map_err(refused("socket"))?;
        check_callers(&file.allowed_uids).map_err(refused("allowed_uids"))?;
        let known = [&file.allowed_uids, &vmms.admission.uids].into_iter();
        let known: Vec<u32> = known.flatten().copied().chain(vmms.gid).collect();
        let uids = file.backend_uids.check(&known);
        uids.map_err(refused("backend_uids"))?;
        check_answer_within(file.answer_within_ms).map_err(refused("answer_within_ms"))?;
        file.pool.check().map_err(refused("pool"))?;
        check_evidence(file.host_evidence_per_minute)
            .map_err(refused("host_evidence_per_minute"))?;
        Ok(Self {
            durability_deadline_ms: milliseconds,
            answer_within_ms: file.answer_within_ms,
            vmms,
            anchor_policy: anchor_policy(file.anchor_policy, file.checkpoint_interval_s, path)?,
            anchor: AnchorConfig {
                tpm: file.tpm,
                pcr_bank: bank(file.pcr_bank, path)?,
                policy_pcrs: policy_selection(&file.policy_pcrs, path)?,
                quoted_pcrs: selection(&file.quoted_pcrs, "quoted_pcrs", path)?,
                record: file.state_dir.join("anchor.json"),
            },
            state_dir: file.state_dir,
            runtime_dir: file.runtime_dir,
            socket,
            backend,
            backend_uids: file.backend_uids,
            event_log: file.event_log,
            allowed_uids: file.allowed_uids,
            host_evidence_per_minute: file.host_evidence_per_minute,
            state_changes_per_second: file.state_changes_per_second,
            pool: file.pool,
            launch: file.launch,
            backend_restarts_per_hour: file.backend_restarts_per_hour,
            renewal: renewal(file.vik_lifetime_s, file.vik_renew_after_s, path)?,
            audit_begins_after: file.audit_begins_after,
            swtpm: swtpm(file.swtpm, path)?,
            tenants: tenants(file.tenants, path)?,
        })
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.state_dir.join("store.redb")
    }

    /// Where running vRoTs are locked, one file each.
    pub fn locks(&self) -> PathBuf {
        self.state_dir.join("locks")
    }

    /// Where programs that launchers take for swtpm hand over.
    pub fn swtpm_socket(&self) -> PathBuf {
        self.runtime_dir.join(vrot_handover::SOCKET)
    }

    /// The host IK's certificate.
    pub fn host_certificate(&self) -> PathBuf {
        self.state_dir.join("host-certificate.json")
    }

    /// The newest part of the audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state_dir.join("audit.jsonl")
    }
}

#[cfg(test)]
mod tests;
