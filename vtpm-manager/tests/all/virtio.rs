//! vRoTs of VMs that share their memory with the backend.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use attestation::TpmTransport;
use nix::sys::signal::Signal;
use test_support::virtio_tpm::Driver;
use uuid::Uuid;

use crate::support::evidence::leaf;
use crate::support::vmm::{Commands, Vmm, command, extend, pcr};
use crate::support::{Host, TENANT, wait_until};

/// `TPM2_Startup(TPM_SU_CLEAR)`
const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
/// `TPM_RC_INITIALIZE`
const INITIALIZE: u32 = 0x100;

fn create(host: &Host, transport: &str) -> Result<String> {
    let vm = Uuid::new_v4().to_string();
    host.ctl([
        "create",
        "--vm",
        &vm,
        "--tenant",
        TENANT,
        "--transport",
        transport,
        "--start",
    ])?;
    Ok(vm)
}

/// A driver, once the one before is gone.
fn driver(host: &Host, vm: &str) -> Result<Driver> {
    let socket: PathBuf = host.control(vm)?;
    ensure!(socket.ends_with("vhost-user.sock"), "{}", socket.display());
    let mut driver = None;
    wait_until("a driver is let in", || {
        driver = Driver::connect(&socket, 4).ok();
        Ok(driver.is_some())
    })?;
    driver.ok_or_else(|| anyhow::anyhow!("no driver"))
}

#[test]
fn a_vrot_behind_virtio_tpm_is_reset_by_its_host_alone_and_says_how_it_is_reached() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = create(&host, "virtio-tpm")?;
    ensure!(host.json(["show", &vm])?["transport"] == "virtio-tpm");
    let mut guest = driver(&host, &vm)?;
    ensure!(Commands::execute(&mut guest, &STARTUP)?.0 == 0);
    extend(&mut guest)?;
    let measured = pcr(&mut guest)?;
    ensure!(leaf(&mut guest)?.transport == TpmTransport::VirtioTpm);
    ensure!(host.json(["show", &vm])?["backend"]["attached"] == true);
    // A manager that is restarted finds it as it was, and its guest goes on.
    host.shut_down()?;
    extend(&mut guest)?;
    let measured_more = pcr(&mut guest)?;
    ensure!(measured_more != measured);
    host.start_again()?;
    wait_until("it is taken over", || {
        Ok(host.json(["show", &vm])?["backend"]["attached"] == true)
    })?;
    ensure!(pcr(&mut guest)? == measured_more);
    // Nor does the end of a VMM change anything.
    drop(guest);
    let mut guest = driver(&host, &vm)?;
    ensure!(pcr(&mut guest)? == measured_more);
    host.ctl(["reset", &vm])?;
    ensure!(Commands::execute(&mut guest, &command(0x17b, &[0, 8]))?.0 == INITIALIZE);
    ensure!(Commands::execute(&mut guest, &STARTUP)?.0 == 0);
    ensure!(pcr(&mut guest)? == [0; 32]);
    let resets = host.audit()?;
    let resets = resets.iter().filter(|line| line["event"] == "vrot-reset");
    ensure!(resets.count() == 1);
    let refused = host.refused(["qemu-args", &vm])?;
    ensure!(refused.contains("device_type=62"), "{refused}");
    drop(guest);
    host.ctl(["stop", &vm])?;
    let refused = host.refused(["reset", &vm])?;
    ensure!(refused.contains("not running"), "{refused}");
    host.ctl(["start", &vm])?;
    let mut guest = driver(&host, &vm)?;
    ensure!(Commands::execute(&mut guest, &command(0x17b, &[0, 8]))?.0 == INITIALIZE);
    Ok(())
}

#[test]
fn a_suspended_vrot_behind_virtio_tpm_goes_on_where_it_was() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = create(&host, "virtio-tpm")?;
    let mut guest = driver(&host, &vm)?;
    ensure!(Commands::execute(&mut guest, &STARTUP)?.0 == 0);
    extend(&mut guest)?;
    let measured = pcr(&mut guest)?;
    drop(guest);
    host.ctl(["suspend", &vm])?;
    host.ctl(["resume", &vm])?;
    // What it was suspended with is its guest's to take up.
    let refused = host.refused(["reset", &vm])?;
    ensure!(refused.contains("was not reset"), "{refused}");
    ensure!(pcr(&mut driver(&host, &vm)?)? == measured);
    // A backend that ends by itself has lost it, and its guest is not told otherwise.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(host.backend(&vm)?),
        Signal::SIGKILL,
    )?;
    let mut guest = None;
    wait_until("it is started again", || {
        guest = (host.control(&vm).ok()).and_then(|socket| Driver::connect(&socket, 4).ok());
        Ok(guest.is_some())
    })?;
    let mut guest = guest.ok_or_else(|| anyhow::anyhow!("no driver"))?;
    ensure!(Commands::execute(&mut guest, &command(0x17b, &[0, 8]))?.0 == INITIALIZE);
    Ok(())
}

#[test]
fn the_tpm_that_a_vmm_emulates_is_not_reset_by_the_host() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = create(&host, "emulator")?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let refused = host.refused(["reset", &vm])?;
    ensure!(refused.contains("reset by its VMM"), "{refused}");
    vmm.succeed(&command(0x17b, &[0, 8]))?;
    ensure!(leaf(&mut vmm)?.transport == TpmTransport::Emulator);
    Ok(())
}

#[test]
fn a_vrot_behind_virtio_tpm_is_not_started_by_launchers_that_cannot_attach_it() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = create(&host, "virtio-tpm")?;
    let config = host.path("libvirt.toml");
    let links = host.path("links");
    fs::write(&config, format!("links = \"{links}\"\nmeasure = false\n"))?;
    let domain = host.path("domain.xml");
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' \
         path='{links}/{vm}.sock'/></backend></tpm>"
    );
    let xml = format!("<domain><name>vm</name><uuid>{vm}</uuid><devices>{tpm}</devices></domain>");
    fs::write(&domain, xml)?;
    // Neither one that runs is stopped, nor one that is stopped is started.
    for state in ["running", "stopped"] {
        let since = host.json(["show", &vm])?["since"].clone();
        let hook = ["libvirt-hook", "vm", "prepare", "begin", "-", "--config"];
        let mut hook = host.vtpmctl(hook);
        let refused = hook.arg(&config).stdin(fs::File::open(&domain)?).output()?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(!refused.status.success(), "{said}");
        ensure!(said.contains("is reached by virtio-tpm"), "{said}");
        let run = host.vtpmctl(["run", "--no-measure", "--vm", &vm, "--", "true"]);
        let refused = { run }.output()?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(125), "{said}");
        ensure!(said.contains("device_type=62"), "{said}");
        let shown = host.json(["show", &vm])?;
        ensure!(
            shown["state"] == state && shown["since"] == since,
            "{shown}"
        );
        if state == "running" {
            host.ctl(["stop", &vm])?;
        }
    }
    Ok(())
}
