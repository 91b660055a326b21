//! The packaged unit of the manager, read and carried out without systemd.
//!
//! Every setting of the unit's `[Service]` section is applied, or stands in [`NOT_APPLIED`] with the
//! reason: a setting that is new to the unit makes the test fail until one of both is so.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use test_support::programs::install;

/// Settings of the unit, by key, in the order in which they stand.
#[derive(Clone)]
pub(crate) struct Unit(BTreeMap<String, Vec<String>>);

/// Numbers that stand for the unit's users and groups, which need not exist on this machine. Outside
/// of the range of backends, and in none that a Debian gives away.
pub(crate) const USER: u32 = 61_999;
pub(crate) const GROUP: u32 = 61_998;
/// The group that may use the TPM.
pub(crate) const TPM_GROUP: u32 = 61_997;

/// What needs systemd, a kernel feature that a container has not, or another TPM.
const NOT_APPLIED: [(&str, &str); 33] = [
    ("Type", "how systemd waits for the start"),
    (
        "ExecStart",
        "another path; the program is the one that was built",
    ),
    ("ExecStartPre", "the event log: the test makes the copy"),
    (
        "KillMode",
        "what systemd ends: the test ends the manager alone",
    ),
    ("Restart", "systemd restarts: the test does"),
    ("RestartSec", "likewise"),
    ("RestartPreventExitStatus", "likewise"),
    ("OOMPolicy", "memory pressure"),
    (
        "OOMScoreAdjust",
        "memory pressure; needs a right over other processes",
    ),
    ("RuntimeDirectoryPreserve", "nothing removes the folder"),
    (
        "ConfigurationDirectory",
        "the configuration is in the host's own folder",
    ),
    ("TasksMax", "a control group"),
    ("DevicePolicy", "a control group"),
    ("DeviceAllow", "a control group"),
    (
        "IPAddressDeny",
        "a control group; there is no network but loopback",
    ),
    (
        "RestrictAddressFamilies",
        "the software TPM is reached over loopback",
    ),
    (
        "ProtectClock",
        "the capabilities for it are not in the bounding set",
    ),
    ("ProtectControlGroups", "likewise"),
    ("ProtectHostname", "likewise"),
    ("ProtectKernelLogs", "likewise"),
    ("ProtectKernelModules", "likewise"),
    ("ProtectKernelTunables", "likewise; /proc/sys is not there"),
    ("RestrictNamespaces", "likewise"),
    ("RestrictRealtime", "a system call filter of systemd's own"),
    ("RestrictSUIDSGID", "likewise"),
    ("LockPersonality", "likewise"),
    ("MemoryDenyWriteExecute", "likewise"),
    ("SystemCallArchitectures", "likewise"),
    ("SystemCallErrorNumber", "likewise"),
    ("SystemCallFilter", "likewise"),
    ("KeyringMode", "the manager keeps nothing in a keyring"),
    ("RemoveIPC", "what the manager leaves at its end"),
    ("SupplementaryGroups", "the group of the TPM, see `command`"),
];

/// What `command` applies.
const APPLIED: [&str; 20] = [
    "AmbientCapabilities",
    "CapabilityBoundingSet",
    "Group",
    "LimitCORE",
    "LimitMEMLOCK",
    "LimitNOFILE",
    "NoNewPrivileges",
    "PrivateIPC",
    "PrivateNetwork",
    "PrivateTmp",
    "ProcSubset",
    "ProtectHome",
    "ProtectProc",
    "ProtectSystem",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "StateDirectory",
    "StateDirectoryMode",
    "UMask",
    "User",
];

impl Unit {
    /// The unit of the package.
    pub(crate) fn packaged() -> Result<Self> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/vrot-host/vtpm-managerd.service");
        let text = fs::read_to_string(path)?;
        let (_, service) = text.split_once("[Service]\n").context("no [Service]")?;
        let service = service.split("\n[").next().unwrap_or_default();
        let mut settings = BTreeMap::<String, Vec<String>>::new();
        for line in service.lines().filter(|line| !line.starts_with('#')) {
            if let Some((key, value)) = line.split_once('=') {
                settings
                    .entry(key.to_owned())
                    .or_default()
                    .push(value.to_owned());
            }
        }
        let unit = Self(settings);
        for key in unit.0.keys() {
            let known = NOT_APPLIED.iter().any(|(known, _)| known == key)
                || APPLIED.contains(&key.as_str());
            ensure!(
                known,
                "{key} of the unit is neither applied here nor said why not"
            );
        }
        Ok(unit)
    }

    /// The value of a setting that stands there once.
    pub(crate) fn value(&self, key: &str) -> Result<&str> {
        match self.0.get(key).map(Vec::as_slice) {
            Some([value]) => Ok(value),
            other => bail!("{key} of the unit: {other:?}"),
        }
    }

    /// Makes the folders as systemd would, and gives the TPM to its group.
    pub(crate) fn prepare(&self, folder: &Path) -> Result<()> {
        for (name, mode) in [
            ("state", "StateDirectoryMode"),
            ("run", "RuntimeDirectoryMode"),
        ] {
            let path = folder.join(name);
            fs::create_dir(&path)?;
            let mode = u32::from_str_radix(self.value(mode)?, 8)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            chown(&path, Some(USER), Some(GROUP))?;
        }
        ensure!(self.value("SupplementaryGroups")? == "tss");
        for name in ["tpm.sock", "tpm.sock.ctrl", "event-log"] {
            let path = folder.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
            chown(&path, Some(0), Some(TPM_GROUP))?;
        }
        Ok(())
    }

    /// What runs the manager as the unit says, with `folder/state` and `folder/run` as its folders.
    /// The process becomes the manager itself.
    pub(crate) fn command(&self, folder: &Path) -> Result<Command> {
        for (key, only) in [
            ("NoNewPrivileges", "yes"),
            ("PrivateIPC", "yes"),
            ("PrivateNetwork", "yes"),
            ("PrivateTmp", "yes"),
            ("ProcSubset", "pid"),
            ("ProtectHome", "yes"),
            ("ProtectProc", "invisible"),
            ("ProtectSystem", "strict"),
        ] {
            ensure!(
                self.value(key)? == only,
                "{key} is not applied as it stands"
            );
        }
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--ipc", "sh", "-c", SCRIPT, "sh"])
            .arg(folder)
            .arg(self.value("UMask")?)
            .args(
                ["LimitNOFILE", "LimitCORE", "LimitMEMLOCK"]
                    .map(|key| self.value(key).unwrap_or_default()),
            )
            .arg("setpriv")
            .args(["--no-new-privs", "--reuid", &USER.to_string()])
            .args([
                "--regid",
                &GROUP.to_string(),
                "--groups",
                &TPM_GROUP.to_string(),
            ])
            .arg(format!(
                "--inh-caps={}",
                self.capabilities("AmbientCapabilities")?
            ))
            .arg(format!(
                "--ambient-caps={}",
                self.capabilities("AmbientCapabilities")?
            ))
            .arg(format!(
                "--bounding-set={}",
                self.capabilities("CapabilityBoundingSet")?
            ))
            .arg(folder.join(MANAGER));
        Ok(command)
    }

    /// As setpriv takes them.
    fn capabilities(&self, key: &str) -> Result<String> {
        let mut list = "-all".to_owned();
        for name in self.value(key)?.split(' ') {
            let name = name.strip_prefix("CAP_").context("a capability")?;
            list = format!("{list},+{}", name.to_lowercase());
        }
        Ok(list)
    }

    /// A set of capabilities as the kernel shows it in `/proc/PID/status`.
    pub(crate) fn mask(&self, key: &str) -> Result<u64> {
        self.value(key)?.split(' ').try_fold(0, |mask, name| {
            let number = match name {
                "CAP_KILL" => 5,
                "CAP_SETGID" => 6,
                "CAP_SETUID" => 7,
                "CAP_SETPCAP" => 8,
                other => bail!("the number of {other} (capability.h) is not known here"),
            };
            Ok(mask | 1 << number)
        })
    }
}

/// `CAP_SETGID` and `CAP_SETUID`: what the process that forks backends keeps.
pub(crate) const TO_CHANGE_USERS: u64 = 1 << 6 | 1 << 7;

/// Folder, umask, three limits, and what is to be run. A limit above that of this process is left
/// as it is: only a right that a container has not would raise it.
const SCRIPT: &str = r#"
set -eu
folder=$1
umask "$2"
limit() { # OPTION VALUE
    hard=$(ulimit -H "-$1")
    if [ "$hard" = unlimited ] || [ "$2" -le "$hard" ]; then ulimit "-$1" "$2"; fi
}
limit n "$3"
limit c "$4"
case $5 in *M) limit l $((${5%M} * 1024)) ;; *) echo "LimitMEMLOCK=$5?" >&2; exit 1 ;; esac
shift 5
mount --make-rprivate /
# StateDirectory, RuntimeDirectory: what stays writable.
for name in state run; do mount --bind "$folder/$name" "$folder/$name"; done
# ProtectSystem=strict. Mounts below /dev, /proc and /sys are not a matter of it.
cut -d ' ' -f 5 /proc/self/mountinfo | sort -u | while read -r at; do
    case $at in
    /dev | /dev/* | /proc | /proc/* | /sys | /sys/* | "$folder/state" | "$folder/run") ;;
    *) mount -o remount,bind,ro "$at" ;;
    esac
done
# PrivateTmp, ProtectHome.
for at in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $at; done
for at in /home /root /run/user; do
    if [ -d $at ]; then mount -t tmpfs -o ro,mode=0 tmpfs $at; fi
done
# ProtectProc, ProcSubset.
mount -t proc -o hidepid=invisible,subset=pid proc /proc
# PrivateNetwork has a loopback interface.
ip link set lo up
cd /
exec "$@"
"#;

/// A folder for a host in a place that the unit does not hide, with copies of manager and backend in
/// it; the path of the backend.
pub(crate) fn folder_with(manager: &Path, backend: &Path) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::Builder::new().prefix("vm-").tempdir_in("/run")?;
    install(manager, &folder.path().join(MANAGER))?;
    let copy = folder.path().join("vtpm-backend");
    install(backend, &copy)?;
    Ok((folder, copy))
}

const MANAGER: &str = "vtpm-managerd";
