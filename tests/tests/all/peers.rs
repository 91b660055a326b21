//! The peers behave as the other tests take for granted, with none of our programs involved.

use std::fs;

use anyhow::{Result, ensure};
use test_support::process::Process;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::{MadeTpm, emulator_command};
use test_support::tool::Tool;
use vrot_tests::guest::{Guest, GuestSpec, TpmDevice};
use vrot_tests::guest_image::{Contents, GuestImage};
use vrot_tests::host::switch_on;
use vrot_tests::host_boot_log::HostBootLog;

#[test]
fn stock_tools_replay_the_host_boot_log_to_the_pcr_values() -> Result<()> {
    let folder = RunFolder::create("host-boot-log")?;
    MadeTpm::first(&["sha256"])?.copy_to(&folder.join("state"))?;
    let tpm = switch_on(&folder, "host", &folder.join("state"))?;
    let log = HostBootLog::of_debian_server("6.1.0-1-amd64");
    log.measure_into(&tpm)?;

    let file = folder.join("log");
    fs::write(&file, log.bytes())?;
    let replayed = Tool::new("tpm2_eventlog").arg(&file).text()?;
    let read = Tool::new("tpm2_pcrread")
        .arg("sha256:0,1,2,3,4,5,6,7,8,9,14")
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .text()?;
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split_once(": 0x"))
            .map(|(pcr, value)| format!("{} {}", pcr.trim(), value.to_lowercase()))
            .collect()
    };
    let (_, replayed) = replayed.split_once("pcrs:").unwrap_or_default();
    assert_eq!(values(replayed).len(), 11);
    assert_eq!(values(replayed), values(&read));
    Ok(())
}

#[test]
fn a_guest_boots_measured_on_swtpm() -> Result<()> {
    let folder = RunFolder::create("guest-on-swtpm")?;
    let state = folder.join("state");
    fs::create_dir(&state)?;
    let control = folder.join("control");
    let command = emulator_command(&state, &control);
    let mut tpm = Process::start("swtpm", command, &folder.log("swtpm.log"))?;
    tpm.wait_until("its socket", std::time::Duration::from_secs(10), || {
        Ok(control.exists().then_some(()))
    })?;

    let image = GuestImage::build(Contents::ServiceAndTools)?;
    let spec = GuestSpec::new(&image)
        .tpm(TpmDevice::Crb.arguments(&control))
        .with_shell();
    let guest = Guest::boot(&folder, "guest", &spec)?;
    let console = guest.console()?;
    ensure!(console.contains("vrot-guest: tpm present"), "{console}");
    ensure!(
        console.contains("vrot-guest: event log present"),
        "{console}"
    );
    ensure!(console.contains("vrot-guest: network up"), "{console}");
    let mut shell = guest.shell()?;
    let random = shell.run("tpm2_getrandom 16")?;
    assert_eq!(random.len(), 16);
    ensure!(shell.run("false").is_err());
    guest.power_off()
}
