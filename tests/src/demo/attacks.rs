//! Three attacks, each of which must fail for its own reason.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use super::stage::{Stage, TENANT};
use crate::device::{self, Attestation};
use crate::guest::{Guest, GuestSpec, TpmDevice};
use crate::narrator::Narrator;
use crate::tool::Tool;

/// Evidence that answers another nonce.
pub(super) fn stale_nonce(narrator: &Narrator, stage: &Stage) -> Result<()> {
    let fresh = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let verify = device::verify_command(&stage.attestation().evidence, &fresh, &stage.policy())?;
    must_be_refused(narrator, verify)
}

/// The same VM with a kernel that was tampered with.
pub(super) fn changed_kernel(narrator: &Narrator, stage: &Stage) -> Result<()> {
    let mut kernel = fs::read(&stage.image.kernel)?;
    // Behind everything that runs, but measured (PE/COFF Authenticode covers trailing data).
    kernel.push(0x21);
    let path = stage.run.join("changed-vmlinuz");
    fs::write(&path, kernel)?;

    stage.host.stop_vrot(stage.vm)?;
    stage.host.start_vrot(stage.vm)?;
    let mut spec =
        GuestSpec::new(&stage.image).tpm(stage.host.qemu_arguments(stage.vm, TpmDevice::Crb)?);
    spec.kernel = path;
    let guest = narrator.wait("booting", || {
        Guest::boot(&stage.run, "changed-kernel", &spec)
    })?;
    attest_and_fail(narrator, stage, guest, "changed-kernel")
}

/// A VM on a host that the policy does not list.
pub(super) fn another_host(narrator: &Narrator, stage: &Stage) -> Result<()> {
    let host = stage.another_host(narrator)?;
    // The attacker may even name the VM as the device expects it.
    host.create(stage.vm, TENANT)?;
    host.start_vrot(stage.vm)?;
    let guest = narrator.wait("booting", || stage.boot(&host, "other-host", stage.vm))?;
    attest_and_fail(narrator, stage, guest, "other-host")
}

fn attest_and_fail(narrator: &Narrator, stage: &Stage, mut guest: Guest, name: &str) -> Result<()> {
    let folder = stage.run.join(format!("{name}-evidence"));
    fs::create_dir_all(&folder)?;
    let attest = device::attest_command(
        guest.service()?,
        &stage.policy(),
        &Attestation::in_folder(&folder),
    )?;
    must_be_refused(narrator, attest)?;
    guest.power_off()
}

fn must_be_refused(narrator: &Narrator, command: Tool) -> Result<()> {
    narrator.command(&command);
    let (status, said) = device::judge(command)?;
    ensure!(
        status == 1,
        "the attack was not refused (exit status {status}): {said}"
    );
    narrator.note("refused:");
    for reason in reasons(&said) {
        narrator.quote(&reason);
    }
    Ok(())
}

/// The sentences that the device gives as reasons.
fn reasons(said: &Value) -> Vec<String> {
    said["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|reason| {
            let field = |name: &str| reason[name].as_str().unwrap_or_default().to_owned();
            match field("layer").as_str() {
                "" => format!("{}: {}", field("code"), field("text")),
                layer => format!("{} ({layer}): {}", field("code"), field("text")),
            }
        })
        .collect()
}
