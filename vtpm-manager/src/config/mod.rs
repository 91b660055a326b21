//! The daemon's configuration: one TOML file, in which nothing unknown is accepted.

mod checks;
mod pool;
mod vmms;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::TomlError;
use bounded_file::read_bounded_text;
use cert_chain::operator::measures_a_boot;
use cert_chain::pcr::{BANKS, PcrSelectionError};
use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection};
use guarded_state::ledger::{AnchorPolicy, CheckpointInterval};
use serde::Deserialize;
use trust_anchor::{AnchorConfig, DEFAULT_POLICY_PCRS, DEFAULT_QUOTED_PCRS, Tcti};

use crate::backend::{UidRange, Vmms};

use checks::{check_apart, check_callers, check_evidence, check_folder};
use vmms::{NameOrNumber, vmms};

pub use pool::PoolConfig;

/// A configuration that makes sense: there is no other way to have one than [`Config::load`].
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
    /// Whose VMMs may attach besides those of root and of the manager's own user.
    pub vmms: Vmms,
    /// When the durable rollback register is written.
    pub anchor_policy: AnchorPolicy,
    /// The vRoTs made ahead.
    pub pool: PoolConfig,
    /// How often in an hour a vRoT whose backend ended by itself is started again.
    pub backend_restarts_per_hour: u32,
    /// The life of identity keys' certificates.
    pub renewal: RenewalConfig,
    /// The hash of the last line of the audit log that an operator took away with older parts.
    pub audit_begins_after: Option<Digest32>,
}

/// How long the certificate of an identity key lives, and when it gets a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalConfig {
    /// How long it lives; it is cut at the end of the host's own certificate.
    pub lifetime: Duration,
    /// Its age when it is renewed, at most half of its life.
    pub after: Duration,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A deadline that is too short or too long.
    #[error(
        "{}: `durability_deadline_ms` is {milliseconds}: write 1 to {LONGEST_DEADLINE_MS} \
         milliseconds",
        config.display()
    )]
    Deadline {
        /// The configuration.
        config: PathBuf,
        /// Its value.
        milliseconds: u32,
    },
    /// An interval that is too short or too long.
    #[error("{}: `checkpoint_interval_s` is {seconds}: write 1 to 65535 seconds", config.display())]
    Interval {
        /// The configuration.
        config: PathBuf,
        /// Its value.
        seconds: u64,
    },
    /// A certificate that lives too short or too long, or is renewed too late.
    #[error(
        "{}: `{field}` is {seconds}: write {least} to {most} seconds", config.display()
    )]
    Renewal {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Its value.
        seconds: u64,
        /// The least that is accepted.
        least: u64,
        /// The most that is accepted.
        most: u64,
    },
    /// Somebody who is not there.
    #[error("{}: `{field}` names `{name}`, which this host does not know", config.display())]
    Nobody {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Who.
        name: String,
    },
    /// The manager cannot tell where its own program is.
    #[error(
        "`backend` is not set, and the manager cannot find its own program beside which it would look"
    )]
    OwnProgram(#[source] std::io::Error),
    /// The file cannot be read.
    #[error("the configuration `{}` cannot be read: pass another one with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path that depends on where the daemon was started.
    #[error("{}: `{field}` is `{}`: write an absolute path", config.display(), value.display())]
    Relative {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Its value.
        value: PathBuf,
    },
    /// A value that makes no sense, by itself or beside others.
    #[error("{}: `{field}` {problem}", config.display())]
    Value {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
    /// PCRs that do not exist, or none.
    #[error("{}: `{field}` names no set of PCRs: {reason}", config.display())]
    Pcrs {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Sockets in this folder would have names that are too long.
    #[error(
        "{}: `runtime_dir` has {length} bytes, at most {MAX_RUNTIME_DIR} leave room for the \
         names of sockets: choose a shorter one",
        config.display()
    )]
    RuntimeDirTooLong {
        /// The configuration.
        config: PathBuf,
        /// Length of the path.
        length: usize,
    },
    /// Not TOML, or not with these entries.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: TomlError,
    },
}

/// Some hundred users and tenants fit in.
const MAX_CONFIG: usize = 1024 * 1024;

/// Where the daemon looks without `--config`.
pub const DEFAULT_CONFIG: &str = "/etc/vtpm-manager/config.toml";

/// `sun_path` of unix(7) has 108 bytes with a terminating zero; the longest name below it is
/// `/<vRoT id>/tpm.sock.ctrl`.
pub const MAX_RUNTIME_DIR: usize = 107 - 1 - 36 - 1 - "tpm.sock.ctrl".len();

const DEFAULT_STATE_DIR: &str = "/var/lib/vtpm-manager";
const DEFAULT_RUNTIME_DIR: &str = "/run/vtpm-manager";
const DEFAULT_EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const BACKEND_PROGRAM: &str = "vtpm-backend";
/// Four guests that never rest have a disk written at a few megabytes a second.
const DEFAULT_STATE_CHANGES_PER_SECOND: NonZeroU32 = NonZeroU32::new(25).unwrap();
/// A guest that is challenged every half second, and some more at times.
const DEFAULT_HOST_EVIDENCE_PER_MINUTE: u32 = 120;

/// The shortest patience of Linux's drivers is 750 ms.
const DEFAULT_DEADLINE_MS: u32 = 500;
/// No guest waits as long.
const LONGEST_DEADLINE_MS: u32 = 5000;
/// The group of the packages.
const DEFAULT_VMM_GROUP: &str = "vrot";

/// Accidents are rare; what ends more often than that has a cause that a restart does not cure.
const DEFAULT_BACKEND_RESTARTS_PER_HOUR: u32 = 3;

/// Below this, clocks of verifiers that are a little fast refuse most certificates.
const SHORTEST_LIFE: u64 = 10 * 60;
/// An identity ends soon after its host may not renew it any more.
const LONGEST_LIFE: u64 = 7 * 24 * 60 * 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tpm: Tcti,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_runtime_dir")]
    runtime_dir: PathBuf,
    socket: Option<PathBuf>,
    backend: Option<PathBuf>,
    #[serde(default)]
    backend_uids: UidRange,
    #[serde(default = "default_event_log")]
    event_log: PathBuf,
    pcr_bank: Option<HashAlgorithm>,
    #[serde(default = "default_quoted_pcrs")]
    quoted_pcrs: Vec<u8>,
    #[serde(default = "default_policy_pcrs")]
    policy_pcrs: Vec<u8>,
    #[serde(default)]
    allowed_uids: Vec<u32>,
    #[serde(default = "default_host_evidence_per_minute")]
    host_evidence_per_minute: u32,
    #[serde(default = "default_state_changes_per_second")]
    state_changes_per_second: NonZeroU32,
    #[serde(default = "default_durability_deadline_ms")]
    durability_deadline_ms: u32,
    #[serde(default)]
    vmm_users: Vec<NameOrNumber>,
    #[serde(default = "default_vmm_group")]
    vmm_group: NameOrNumber,
    #[serde(default)]
    anchor_policy: PolicyName,
    checkpoint_interval_s: Option<u64>,
    #[serde(default)]
    pool: PoolConfig,
    #[serde(default = "default_backend_restarts_per_hour")]
    backend_restarts_per_hour: u32,
    vik_lifetime_s: Option<u64>,
    vik_renew_after_s: Option<u64>,
    audit_begins_after: Option<Digest32>,
}

/// Which [`AnchorPolicy`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PolicyName {
    Strict,
    #[default]
    Checkpoint,
}

impl Config {
    /// Reads and checks a configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_bounded_text(path, MAX_CONFIG).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config = Self::parse(&text, path)?;
        for (field, folder) in [
            ("state_dir", &config.state_dir),
            ("runtime_dir", &config.runtime_dir),
        ] {
            check_folder(folder).map_err(|problem| ConfigError::Value {
                config: path.to_owned(),
                field,
                problem,
            })?;
        }
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut file: File = toml::from_str(text).map_err(|source| ConfigError::Toml {
            path: path.to_owned(),
            source: TomlError::of(&source, text),
        })?;
        let backend = match file.backend.take() {
            Some(backend) => backend,
            None => std::env::current_exe()
                .map_err(ConfigError::OwnProgram)?
                .with_file_name(BACKEND_PROGRAM),
        };
        let socket = (file.socket.take()).unwrap_or_else(|| file.runtime_dir.join("api.sock"));
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
        file.backend_uids
            .check(&known)
            .map_err(refused("backend_uids"))?;
        file.pool.check().map_err(refused("pool"))?;
        check_evidence(file.host_evidence_per_minute)
            .map_err(refused("host_evidence_per_minute"))?;
        let interval = match file.checkpoint_interval_s {
            Some(_) if matches!(file.anchor_policy, PolicyName::Strict) => {
                return Err(refused("checkpoint_interval_s")(
                    "goes with `anchor_policy = \"checkpoint\"`: a strict anchor has no interval, \
                     so leave it out"
                        .to_owned(),
                ));
            }
            None => CheckpointInterval::DEFAULT,
            Some(seconds) => {
                CheckpointInterval::from_secs(seconds).ok_or_else(|| ConfigError::Interval {
                    config: path.to_owned(),
                    seconds,
                })?
            }
        };
        let milliseconds = file.durability_deadline_ms;
        if !(1..=LONGEST_DEADLINE_MS).contains(&milliseconds) {
            return Err(ConfigError::Deadline {
                config: path.to_owned(),
                milliseconds,
            });
        }
        Ok(Self {
            durability_deadline_ms: milliseconds,
            vmms,
            anchor_policy: match file.anchor_policy {
                PolicyName::Strict => AnchorPolicy::Strict,
                PolicyName::Checkpoint => AnchorPolicy::Checkpoint(interval),
            },
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
            backend_restarts_per_hour: file.backend_restarts_per_hour,
            renewal: renewal(file.vik_lifetime_s, file.vik_renew_after_s, path)?,
            audit_begins_after: file.audit_begins_after,
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

    /// The host IK's certificate.
    pub fn host_certificate(&self) -> PathBuf {
        self.state_dir.join("host-certificate.json")
    }

    /// The newest part of the audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state_dir.join("audit.jsonl")
    }
}

fn renewal(
    lifetime: Option<u64>,
    after: Option<u64>,
    config: &Path,
) -> Result<RenewalConfig, ConfigError> {
    let within = |field, seconds: u64, least, most| {
        if (least..=most).contains(&seconds) {
            return Ok(seconds);
        }
        Err(ConfigError::Renewal {
            config: config.to_owned(),
            field,
            seconds,
            least,
            most,
        })
    };
    let lifetime = lifetime.unwrap_or(VIK_LIFETIME.as_secs());
    let lifetime = within("vik_lifetime_s", lifetime, SHORTEST_LIFE, LONGEST_LIFE)?;
    let after = after.unwrap_or(lifetime / 2);
    let after = within("vik_renew_after_s", after, 1, lifetime / 2)?;
    Ok(RenewalConfig {
        lifetime: Duration::from_secs(lifetime),
        after: Duration::from_secs(after),
    })
}

fn selection(pcrs: &[u8], field: &'static str, config: &Path) -> Result<PcrSelection, ConfigError> {
    let refused = |reason: String| ConfigError::Pcrs {
        config: config.to_owned(),
        field,
        reason,
    };
    if pcrs.is_empty() {
        return Err(refused("the list is empty".to_owned()));
    }
    PcrSelection::new(pcrs.iter().copied())
        .map_err(|error: PcrSelectionError| refused(error.to_string()))
}

/// The PCRs under policy, among them some that a boot changes: any program can reset the others.
fn policy_selection(pcrs: &[u8], config: &Path) -> Result<PcrSelection, ConfigError> {
    let selection = selection(pcrs, "policy_pcrs", config)?;
    measures_a_boot(selection).map_err(|error| ConfigError::Pcrs {
        config: config.to_owned(),
        field: "policy_pcrs",
        reason: error.to_string(),
    })?;
    Ok(selection)
}

/// The bank that is approved and quoted, if the configuration names one that may be.
fn bank(named: Option<HashAlgorithm>, config: &Path) -> Result<Option<HashAlgorithm>, ConfigError> {
    match named.filter(|bank| !BANKS.contains(bank)) {
        None => Ok(named),
        Some(bank) => Err(ConfigError::Value {
            config: config.to_owned(),
            field: "pcr_bank",
            problem: format!(
                "is {bank}, which cannot be relied on: write sha256, sha384 or sha512"
            ),
        }),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use backend_link::admission::VmmAdmission;

    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("config.toml"))
    }

    #[test]
    fn the_rollback_anchor_has_two_policies() -> anyhow::Result<()> {
        let with = |line: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{line}"));
        assert_eq!(with("")?.anchor_policy, AnchorPolicy::default());
        let strict = with("anchor_policy = \"strict\"")?;
        assert_eq!(strict.anchor_policy, AnchorPolicy::Strict);
        let often = with("checkpoint_interval_s = 60")?.anchor_policy;
        assert_eq!(often.limit().as_secs(), 60);
        for seconds in [0, 65_536] {
            let refused = with(&format!("checkpoint_interval_s = {seconds}"));
            assert!(matches!(refused, Err(ConfigError::Interval { .. })));
        }
        assert!(with("anchor_policy = \"lax\"").is_err());
        Ok(())
    }

    #[test]
    fn certificates_are_renewed_in_the_first_half_of_their_life() -> anyhow::Result<()> {
        let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
        let seconds = |config: Config| {
            let RenewalConfig { lifetime, after } = config.renewal;
            (lifetime.as_secs(), after.as_secs())
        };
        assert_eq!(seconds(with("")?), (86_400, 43_200));
        assert_eq!(seconds(with("vik_lifetime_s = 3600")?), (3600, 1800));
        let early = "vik_lifetime_s = 3600\nvik_renew_after_s = 60";
        assert_eq!(seconds(with(early)?), (3600, 60));
        for line in [
            "vik_lifetime_s = 599",
            "vik_lifetime_s = 604801",
            "vik_renew_after_s = 0",
            "vik_renew_after_s = 43201",
        ] {
            let refused = with(line);
            assert!(
                matches!(refused, Err(ConfigError::Renewal { .. })),
                "{line}"
            );
        }
        Ok(())
    }

    #[test]
    fn vmms_of_other_users_are_let_in_by_name_or_number() -> anyhow::Result<()> {
        let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
        assert_eq!(with("")?.vmms, Vmms::default());
        let some = with("vmm_users = [\"root\", 64055]\nvmm_group = \"root\"")?;
        let expected = Vmms {
            admission: VmmAdmission {
                uids: vec![0, 64055],
            },
            gid: Some(0),
        };
        assert_eq!(some.vmms, expected);
        for (lines, named) in [
            ("vmm_users = [\"no body\"]\nvmm_group = 0", "no body"),
            ("vmm_users = [0]\nvmm_group = \"no group\"", "no group"),
        ] {
            let error = with(lines).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains(named)), "{lines}");
        }
        Ok(())
    }

    #[test]
    fn a_guest_waits_half_a_second_for_durability_or_as_long_as_its_host_says() -> anyhow::Result<()>
    {
        let with = |lines: &str| parse(&format!("tpm = \"device:/dev/tpmrm0\"\n{lines}"));
        assert_eq!(with("")?.durability_deadline_ms, 500);
        let short = with("durability_deadline_ms = 80")?;
        assert_eq!(short.durability_deadline_ms, 80);
        for milliseconds in [0, 5001] {
            let refused = with(&format!("durability_deadline_ms = {milliseconds}"));
            assert!(matches!(refused, Err(ConfigError::Deadline { .. })));
        }
        Ok(())
    }

    #[test]
    fn a_tpm_is_all_that_must_be_configured() -> anyhow::Result<()> {
        let config = parse("tpm = \"device:/dev/tpmrm0\"")?;
        assert_eq!(config.socket, Path::new(api_types::DEFAULT_SOCKET));
        assert_eq!(
            config.store(),
            Path::new("/var/lib/vtpm-manager/store.redb")
        );
        assert!(config.backend.ends_with("vtpm-backend"));
        Ok(())
    }

    #[test]
    fn folders_in_which_others_can_write_are_refused() -> anyhow::Result<()> {
        let scratch = tempfile::tempdir()?;
        let (state, run) = (scratch.path().join("state"), scratch.path().join("run"));
        let path = scratch.path().join("config.toml");
        std::fs::write(
            &path,
            format!(
                "tpm = \"device:/dev/tpm0\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n",
                state.display(),
                run.display()
            ),
        )?;
        assert!(Config::load(&path).is_ok(), "neither is there yet");
        std::fs::create_dir(&state)?;
        for (mode, accepted) in [
            (0o700, true),
            (0o755, true),
            (0o775, false),
            (0o1777, false),
        ] {
            std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode))?;
            assert_eq!(Config::load(&path).is_ok(), accepted, "{mode:o}");
        }
        std::fs::remove_dir(&state)?;
        std::fs::write(&run, "no folder")?;
        let refused = Config::load(&path).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|error| error.contains("runtime_dir")));
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(
            "tpm = \"device:/dev/tpm0\"\nruntime_dir = \"/{}\"",
            "x".repeat(MAX_RUNTIME_DIR)
        );
        for (text, named) in [
            ("state_dir = \"/x\"", "tpm"),
            ("tpm = \"nonsense\"", "nonsense"),
            ("tpm = \"device:/dev/tpm0\"\nsokcet = \"/x\"", "sokcet"),
            ("tpm = \"device:/dev/tpm0\"\nstate_dir = \"x\"", "absolute"),
            (
                "tpm = \"device:/dev/tpm0\"\npcr_bank = \"sha1\"",
                "sha256, sha384 or sha512",
            ),
            ("tpm = \"device:/dev/tpm0\"\npcr_bank = \"sm3\"", "sha384"),
            (
                "tpm = \"device:/dev/tpm0\"\nquoted_pcrs = []",
                "quoted_pcrs",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\npolicy_pcrs = [24]",
                "policy_pcrs",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\npolicy_pcrs = [16, 23]",
                "policy_pcrs",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 0, count = 9 }",
                "backend_uids",
            ),
            // Root's own group and nobody are on every Debian.
            (
                "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 65000, count = 1000 }",
                "nobody",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 4000000, count = 10 }\n\
                 allowed_uids = [4000003]",
                "4000003",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nbackend_uids = { first = 4000000, count = 10 }\n\
                 vmm_users = [7]\nvmm_group = 4000009",
                "4000009",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nhost_evidence_per_minute = 0",
                "at least 1",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nanchor_policy = \"strict\"\n\
                 checkpoint_interval_s = 5",
                "no interval",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nallowed_uids = [4294967295]",
                "allowed_uids",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 10001\ntenants = [\"a\"]",
                "at most 10000",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 9223372036854775807\n\
                 tenants = [\"a\", \"b\"]",
                "at most 10000",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\n[pool]\nsize = 1\ntenants = [\"a\", \"a\"]",
                "twice",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nstate_dir = \"/s\"\nruntime_dir = \"/s\"",
                "two folders",
            ),
            (
                "tpm = \"device:/dev/tpm0\"\nsocket = \"/var/lib/vtpm-manager/store.redb\"",
                "state folder",
            ),
            (&long, "shorter"),
        ] {
            let message = match parse(text) {
                Ok(_) => "accepted".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(message.contains(named), "{text}: {message}");
            assert!(message.contains("config.toml"), "{text}: {message}");
        }
    }
}
