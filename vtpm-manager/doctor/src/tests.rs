//! Hosts in folders: each lacks one thing.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use api_types::wire::HostView;
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use cert_chain::HashAlgorithm;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::programs::install_script;

use super::finding::{Finding, Status};
use super::{Examination, ManagerSaid, NotSaid, Programs, Report, System};

struct Host(TempDir);

impl Host {
    /// A host whose firmware measured something, and logged it.
    fn measured() -> Result<Self> {
        let host = Self(tempfile::tempdir()?);
        let mut boot = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
        boot.measure(0, EventType::S_CRTM_VERSION, b"firmware");
        host.write("run/vrot-host/event-log", boot.bytes())?;
        let pcrs = boot.pcrs(HashAlgorithm::Sha256);
        for pcr in 0..24u8 {
            let value = pcrs.get(&pcr).cloned().unwrap_or_else(|| vec![0; 32]);
            let value = hex::encode_upper(value) + "\n";
            host.write(&format!("sys/class/tpm/tpm0/pcr-sha256/{pcr}"), value)?;
        }
        host.write("sys/class/tpm/tpm0/tpm_version_major", "2\n")?;
        host.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")?;
        fs::create_dir_all(host.path("var/lib/vtpm-manager"))?;
        Ok(host)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(fs::write(path, contents)?)
    }

    /// What is found where no manager runs, and the program that reads configurations is this.
    fn report_with(&self, manager: &Path) -> Report {
        self.examined(manager, Err(nobody_was_asked()), None)
    }

    /// The same where a manager says this of its host.
    fn report_of(&self, host: Value, metrics: &str) -> Result<Report> {
        let host = serde_json::from_value(host)?;
        let program = Path::new("/nonexistent/vtpm-managerd");
        Ok(self.examined(program, Ok(host), Some(metrics.to_owned())))
    }

    fn examined(
        &self,
        manager: &Path,
        host: Result<HostView, NotSaid>,
        metrics: Option<String>,
    ) -> Report {
        Examination {
            system: &System::in_folder(self.0.path()),
            programs: &Programs {
                manager: manager.to_owned(),
                config: self.path("config.toml"),
            },
            manager: &ManagerSaid {
                host,
                policy: Err(nobody_was_asked()),
                metrics,
                process: self.path("proc/7").exists().then_some(7),
            },
            revocation_lists: &[],
            version: "1",
        }
        .report()
    }

    fn report(&self) -> Report {
        self.report_with(Path::new("/nonexistent/vtpm-managerd"))
    }
}

fn nobody_was_asked() -> NotSaid {
    NotSaid {
        reason: "nobody was asked".to_owned(),
        errno: None,
    }
}

fn of<'a>(report: &'a Report, check: &str) -> Result<&'a Finding> {
    let mut findings = report.findings.iter();
    findings
        .find(|finding| finding.check == check)
        .with_context(|| format!("no {check}"))
}

/// The status and the words of a check; whoever is told of a fault is told what to do.
fn found(host: &Host, check: &str) -> Result<(Status, String)> {
    let report = host.report();
    for finding in &report.findings {
        let has_remedy = finding
            .remedy
            .as_ref()
            .is_some_and(|remedy| !remedy.is_empty());
        assert_eq!(has_remedy, finding.status != Status::Ok, "{finding:?}");
    }
    let finding = of(&report, check)?;
    Ok((finding.status, finding.found.clone()))
}

#[test]
fn a_log_that_accounts_for_the_pcrs_is_told_from_one_that_does_not_without_a_manager() -> Result<()>
{
    let host = Host::measured()?;
    let (status, text) = found(&host, "event-log")?;
    assert_eq!(status, Status::Ok, "{text}");
    assert_eq!(found(&host, "pcr-bank")?.0, Status::Ok);

    let name = "sys/class/tpm/tpm0/pcr-sha256/0";
    let genuine = fs::read(host.path(name))?;
    host.write(name, "AB".repeat(32))?;
    let (status, text) = found(&host, "event-log")?;
    assert_eq!(
        (status, text.contains("PCR 0")),
        (Status::Failed, true),
        "{text}"
    );
    host.write(name, genuine)?;

    host.write("run/vrot-host/event-log", "no log")?;
    assert_eq!(found(&host, "event-log")?.0, Status::Failed);
    // The kernel's own log serves as well.
    fs::remove_file(host.path("run/vrot-host/event-log"))?;
    let (status, text) = found(&host, "event-log")?;
    assert_eq!(
        (status, text.contains("neither")),
        (Status::Failed, true),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_bank_that_is_missing_or_that_nothing_was_measured_into_is_named() -> Result<()> {
    let host = Host::measured()?;
    for pcr in 0..24 {
        let name = format!("sys/class/tpm/tpm0/pcr-sha256/{pcr}");
        host.write(&name, "0".repeat(64))?;
    }
    let (status, text) = found(&host, "pcr-bank")?;
    assert_eq!(
        (status, text.contains("measured nothing")),
        (Status::Failed, true),
        "{text}"
    );
    fs::remove_dir_all(host.path("sys/class/tpm/tpm0/pcr-sha256"))?;
    fs::create_dir(host.path("sys/class/tpm/tpm0/pcr-sha1"))?;
    let (status, text) = found(&host, "pcr-bank")?;
    assert_eq!(
        (status, text.contains("no SHA-256")),
        (Status::Failed, true),
        "{text}"
    );
    // Old kernels do not say.
    fs::remove_dir(host.path("sys/class/tpm/tpm0/pcr-sha1"))?;
    assert_eq!(found(&host, "pcr-bank")?.0, Status::Unseen);
    Ok(())
}

#[test]
fn a_tpm_that_is_missing_or_too_old_is_told() -> Result<()> {
    let host = Host::measured()?;
    let (status, text) = found(&host, "tpm")?;
    assert_eq!(
        (status, text.contains("/dev/tpmrm0")),
        (Status::Failed, true),
        "{text}"
    );
    host.write("dev/tpmrm0", "")?;
    assert!(found(&host, "tpm")?.1.contains("no device"));
    host.write("sys/class/tpm/tpm0/tpm_version_major", "1\n")?;
    let report = host.report();
    let mut texts = report.findings.iter().map(|finding| &finding.found);
    assert!(texts.any(|text| text.contains("a TPM 1")));
    Ok(())
}

#[test]
fn swap_in_the_clear_and_a_state_folder_for_others_are_told() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::measured()?;
    assert_eq!(found(&host, "swap")?.0, Status::Ok);
    let head = "Filename\tType\tSize\tUsed\tPriority\n";
    host.write("sys/block/dm-1/dm/uuid", "CRYPT-PLAIN-swap\n")?;
    for (swaps, status) in [
        ("/dev/zram0 partition 1 0 -2\n", Status::Ok),
        ("/dev/dm-1 partition 1 0 -2\n", Status::Ok),
        ("/swapfile file 1 0 -2\n", Status::Warning),
        (
            "/dev/zram0 partition 1 0 -2\n/dev/dm-2 partition 1 0 -3\n",
            Status::Warning,
        ),
    ] {
        host.write("proc/swaps", format!("{head}{swaps}"))?;
        assert_eq!(found(&host, "swap")?.0, status, "{swaps}");
    }
    let folder = host.path("var/lib/vtpm-manager");
    for (mode, status) in [
        (0o700, Status::Ok),
        (0o750, Status::Failed),
        (0o705, Status::Failed),
    ] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
        assert_eq!(found(&host, "state-folder")?.0, status, "{mode:o}");
    }
    Ok(())
}

#[test]
fn a_state_folder_of_somebody_else_than_the_manager_is_a_finding() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        return Ok(()); // Only root gives files away.
    }
    let host = Host::measured()?;
    let folder = host.path("var/lib/vtpm-manager");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    host.write("etc/passwd", "vtpm-manager:x:61998:61998::/:/bin/false\n")?;
    for (owner, status) in [(61_998, Status::Ok), (61_999, Status::Failed)] {
        std::os::unix::fs::chown(&folder, Some(owner), None)?;
        let (found, text) = found(&host, "state-folder")?;
        assert_eq!(found, status, "{text}");
        assert!(text.contains(&owner.to_string()), "{text}");
    }
    Ok(())
}

#[test]
fn unit_hook_and_rule_have_to_be_as_they_were_packaged() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::measured()?;
    assert_eq!(found(&host, "unit")?.0, Status::Warning);
    let unit = include_str!("../../packaging/vrot-host/vtpm-managerd.service");
    host.write("usr/lib/systemd/system/vtpm-managerd.service", unit)?;
    assert_eq!(found(&host, "unit")?.0, Status::Ok);
    host.write(
        "etc/systemd/system/vtpm-managerd.service",
        unit.replace("LimitCORE=0\n", ""),
    )?;
    assert!(found(&host, "unit")?.1.contains("not as it was packaged"));
    // Without libvirt there is nothing to be told of it.
    assert!(found(&host, "libvirt").is_err());
    host.write("usr/sbin/libvirtd", "")?;
    assert_eq!(found(&host, "libvirt")?.0, Status::Warning);
    let hook = "etc/libvirt/hooks/qemu.d/vrot";
    host.write(hook, "")?;
    fs::set_permissions(host.path(hook), fs::Permissions::from_mode(0o644))?;
    assert_eq!(found(&host, "libvirt")?.0, Status::Failed);
    fs::set_permissions(host.path(hook), fs::Permissions::from_mode(0o755))?;
    assert_eq!(found(&host, "libvirt")?.0, Status::Ok);

    assert_eq!(found(&host, "apparmor")?.0, Status::Ok);
    host.write("sys/module/apparmor/parameters/enabled", "Y\n")?;
    let abstraction = "etc/apparmor.d/abstractions/libvirt-qemu";
    host.write(abstraction, "# nothing\n")?;
    assert!(found(&host, "apparmor")?.1.contains("is missing"));
    let rule = include_str!("../../packaging/vrot-host/apparmor-libvirt-qemu");
    host.write("etc/apparmor.d/abstractions/libvirt-qemu.d/vrot", rule)?;
    assert!(found(&host, "apparmor")?.1.contains("does not include"));
    host.write(
        abstraction,
        "include if exists <abstractions/libvirt-qemu.d>\n",
    )?;
    assert_eq!(found(&host, "apparmor")?.0, Status::Ok);
    Ok(())
}

#[test]
fn users_and_groups_that_are_missing_are_named() -> Result<()> {
    let host = Host::measured()?;
    host.write(
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nvtpm-manager:x:9:9::/:/bin/false\n",
    )?;
    host.write("etc/group", "vrot:x:8:\ntss:x:7:vtpm-manager\n")?;
    let (status, text) = found(&host, "users")?;
    assert_eq!(status, Status::Ok, "{text}");
    host.write("etc/group", "not-vrot:x:8:\ntss:x:7:vrot\n")?;
    let (status, text) = found(&host, "users")?;
    assert_eq!(
        (status, text.as_str()),
        (Status::Failed, "there is no group vrot")
    );
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")?;
    let (_, text) = found(&host, "users")?;
    assert!(text.contains("no user vtpm-manager"), "{text}");
    Ok(())
}

#[test]
fn a_clock_that_nothing_sets_and_one_that_was_put_back_are_told() -> Result<()> {
    let host = Host::measured()?;
    assert_eq!(found(&host, "clock")?.0, Status::Unseen);
    for (answer, status) in [("yes", Status::Ok), ("no", Status::Warning)] {
        host.write("answers/timedatectl", format!("{answer}\n"))?;
        assert_eq!(found(&host, "clock")?.0, status, "{answer}");
    }
    let name = "var/lib/vtpm-manager/store";
    host.write(name, "")?;
    assert_eq!(found(&host, "clock")?.0, Status::Warning);
    let hour = SystemTime::now() + Duration::from_secs(3600);
    fs::File::open(host.path(name))?.set_modified(hour)?;
    let (status, text) = found(&host, "clock")?;
    assert_eq!(
        (status, text.contains("put back")),
        (Status::Failed, true),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_manager_whose_core_would_be_written_and_one_that_is_not_enabled_are_told() -> Result<()> {
    let host = Host::measured()?;
    let limits = |cores: &str| {
        let line =
            format!("Max core file size        {cores}            unlimited            bytes\n");
        host.write("proc/7/limits", format!("Limit Soft Hard Units\n{line}"))
    };
    limits("0")?;
    assert_eq!(found(&host, "core-dumps")?.0, Status::Ok);
    limits("unlimited")?;
    assert_eq!(found(&host, "core-dumps")?.0, Status::Warning);
    fs::remove_file(host.path("proc/7/limits"))?;
    assert_eq!(found(&host, "core-dumps")?.0, Status::Unseen);

    let is_told = || -> Result<bool> {
        let report = host.report();
        let mut units = report
            .findings
            .iter()
            .filter(|finding| finding.check == "unit");
        Ok(units.any(|unit| unit.found.contains("is not enabled")))
    };
    // Without systemd nobody could have enabled it.
    assert!(!is_told()?);
    fs::create_dir_all(host.path("run/systemd/system"))?;
    assert!(is_told()?);
    host.write("answers/systemctl", "enabled\n")?;
    assert!(!is_told()?);
    Ok(())
}

#[test]
fn a_configuration_is_judged_by_the_managers_program() -> Result<()> {
    let host = Host::measured()?;
    assert!(found(&host, "configuration")?.1.contains("cannot be run"));
    let program = host.path("program");
    let script = |text: &str| install_script(&format!("#!/bin/sh\n{text}\n"), &program);
    script("echo 'config.toml: state_dir is \u{1b}[1Awrong' >&2; exit 2")?;
    let report = host.report_with(&program);
    let finding = of(&report, "configuration")?;
    assert!(
        finding.found.ends_with("state_dir is \\u{1b}[1Awrong"),
        "{finding:?}"
    );
    script("echo version 2")?;
    let report = host.report_with(&program);
    assert!(of(&report, "configuration")?.found.contains("does not say"));
    assert_eq!(of(&report, "programs")?.status, Status::Warning);
    script(
        "case $1 in --version) echo p 1;; *) echo '{\"tpm\":\"swtpm:path=x\",\"state_dir\":\"/s\",\"socket\":\"/x\",\
        \"event_log\":\"/e\",\"policy_pcrs\":[0],\"quoted_pcrs\":[0]}';; esac",
    )?;
    let report = host.report_with(&program);
    assert_eq!(of(&report, "configuration")?.status, Status::Ok);
    assert_eq!(of(&report, "programs")?.status, Status::Ok);
    assert!(of(&report, "tpm")?.found.contains("no TPM of this machine"));
    assert!(of(&report, "state-folder")?.found.contains("/s"));
    Ok(())
}

#[test]
fn what_a_manager_cannot_know_yet_is_neither_well_nor_wrong() -> Result<()> {
    let digest = "11".repeat(32);
    let said = |state: &str| {
        json!({
            "tpm": "device:/dev/tpmrm0", "tpm_problem": "it was not asked yet", "state_dir": "/s",
            "event_log": { "path": "/e", "problem": null },
            "backend_digest": digest, "isolation": "own-users", "manager_digest": digest,
            "keys": null, "enrolment": null,
            "store": { "state": state, "refusal": null, "problem": "it is read", "batch": null,
                "uncovered_batches": 0, "window_s": null, "window_age_s": null, "policy": "checkpoint",
                "boot": null, "power_loss": null },
            "last_fault": null,
        })
    };
    let host = Host::measured()?;
    let report = host.report_of(said("opening"), "")?;
    for check in ["keys", "store", "vrots"] {
        assert_eq!(of(&report, check)?.status, Status::Unseen, "{check}");
    }
    // Of a store that is not served, nothing is loaded: no vRoT is degraded in it.
    let refused = host.report_of(said("refused"), "vrot_degraded 0\n")?;
    assert_eq!(of(&refused, "vrots")?.status, Status::Unseen);
    let open = host.report_of(said("open"), "vrot_degraded 1\n")?;
    let vrots = open
        .findings
        .iter()
        .filter(|finding| finding.check == "vrots");
    let statuses: Vec<Status> = vrots.map(|finding| finding.status).collect();
    assert_eq!(
        statuses.split_first(),
        Some((&Status::Warning, &[Status::Unseen; 5][..]))
    );
    Ok(())
}
