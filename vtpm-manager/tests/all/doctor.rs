//! `vtpmctl doctor` on hosts that are well and on hosts that lack something. What concerns the machine
//! that the tests run on (its users, units, clock) is not looked at here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use test_support::programs::install;

use crate::support::{Host, Said, program, said};

const NOBODY: u32 = 65534;

fn run(host: &Host, more: &[&str]) -> Result<(Said, Vec<Value>)> {
    let manager = env!("CARGO_BIN_EXE_vtpm-managerd");
    let config = host.path("config.toml");
    let mut doctor = host.vtpmctl(["--output", "json", "doctor", "--config", &config]);
    let said = said(doctor.args(["--manager", manager]).args(more))?;
    let findings = findings(&said)?;
    Ok((said, findings))
}

fn findings(said: &Said) -> Result<Vec<Value>> {
    let report: Value = serde_json::from_str(&said.out).with_context(|| said.err.clone())?;
    Ok(report["findings"]
        .as_array()
        .context("no findings")?
        .clone())
}

/// The worst that is said of this.
fn status(findings: &[Value], check: &str) -> Result<String> {
    let order = ["ok", "unseen", "warning", "failed"];
    let of_check = findings.iter().filter(|finding| finding["check"] == check);
    let statuses = of_check.filter_map(|finding| finding["status"].as_str());
    let worst = statuses.max_by_key(|status| order.iter().position(|known| known == status));
    Ok(worst
        .with_context(|| format!("nothing about {check}"))?
        .to_owned())
}

fn told(findings: &[Value], check: &str, words: &str) -> Result<()> {
    let mut of_check = findings.iter().filter(|finding| finding["check"] == check);
    ensure!(
        of_check.any(|finding| finding.to_string().contains(words)),
        "{check}: no {words} in {findings:?}"
    );
    Ok(())
}

#[test]
fn what_is_well_and_what_is_wrong_with_a_host_is_told_with_its_remedy() -> Result<()> {
    let mut host = Host::start()?;
    fs::set_permissions(host.path("state"), fs::Permissions::from_mode(0o700))?;
    let (said, found) = run(&host, &[])?;
    assert_eq!(said.status, 1, "{}", said.err);
    told(&found, "keys", "vtpmctl host init")?;
    told(&found, "certificate", "not enrolled")?;

    host.make_operator_key()?;
    host.make_issuer()?;
    let public = host.path("operator.pem.pub");
    host.ctl(["host", "init", "--policy-key", &public])?;
    told(&run(&host, &[])?.1, "keys", "approved no boot")?;
    host.approve_from_host()?;
    let issuer = host.path("issuer");
    host.ctl(["host", "enrol", "--name", "host-1", "--issuer", &issuer])?;
    let list = host.path("issuer.crl");
    host.ctl([
        "issuer", "crl", "--dir", &issuer, "--days", "7", "--out", &list,
    ])?;
    let (_, found) = run(&host, &["--crl", &list])?;
    for check in [
        "configuration",
        "manager",
        "keys",
        "store",
        "certificate",
        "revocation-list",
        "state-folder",
        "vrots",
    ] {
        assert_eq!(status(&found, check)?, "ok", "{check}: {found:?}");
    }
    // The software TPM plays the physical one, and its log is empty.
    assert_eq!(status(&found, "tpm")?, "warning");
    assert_eq!(status(&found, "event-log")?, "failed");
    let people = said_to_people(&host)?;
    ensure!(
        people.contains("FAILED") && people.contains("could not be seen"),
        "{people}"
    );

    // Something else booted.
    host.shut_down()?;
    let (said, found) = run(&host, &[])?;
    assert_eq!(said.status, 1);
    told(&found, "manager", "systemctl start vtpm-managerd")?;
    host.extend_pcr(0, b"other firmware")?;
    host.start_again()?;
    host.ctl(["host", "show"])?;
    told(&run(&host, &[])?.1, "keys", "PCR 0")?;

    // A folder for others, a file that is no list, a configuration with a mistake.
    fs::set_permissions(host.path("state"), fs::Permissions::from_mode(0o755))?;
    let (_, found) = run(&host, &["--crl", &public])?;
    assert_eq!(status(&found, "state-folder")?, "failed");
    assert_eq!(status(&found, "revocation-list")?, "failed");
    let config = fs::read_to_string(host.path("config.toml"))?;
    fs::write(
        host.path("config.toml"),
        format!("stat_dir = \"/\"\n{config}"),
    )?;
    told(&run(&host, &[])?.1, "configuration", "stat_dir")
}

fn said_to_people(host: &Host) -> Result<String> {
    let config = host.path("config.toml");
    let manager = env!("CARGO_BIN_EXE_vtpm-managerd");
    let mut doctor = host.vtpmctl(["doctor", "--config", &config, "--manager", manager]);
    Ok(said(&mut doctor)?.out)
}

#[test]
fn a_manager_that_hangs_and_a_user_who_may_see_little_get_an_answer() -> Result<()> {
    let host = Host::enrolled()?;
    // Where everybody can run them.
    for (name, from) in [
        ("ctl", program("vtpmctl")?),
        ("managerd", env!("CARGO_BIN_EXE_vtpm-managerd").into()),
    ] {
        install(&from, host.path(name).as_ref())?;
    }
    let mut doctor = Command::new(host.path("ctl"));
    doctor
        .arg("--socket")
        .arg(host.socket())
        .args(["--output", "json", "doctor"]);
    doctor.arg("--config").arg(host.path("config.toml"));
    doctor.arg("--manager").arg(host.path("managerd"));
    let little = findings(&said(doctor.uid(NOBODY).gid(NOBODY))?)?;
    assert_eq!(status(&little, "manager")?, "unseen", "{little:?}");
    assert_eq!(status(&little, "configuration")?, "ok");

    host.signal(Signal::SIGSTOP)?;
    let (said, found) = run(&host, &[])?;
    host.signal(Signal::SIGCONT)?;
    assert_eq!(said.status, 1);
    told(&found, "manager", "no sign of life")
}
