//! The demo: one VM, from the physical TPM to a device's verdict, and three attacks.

mod attacks;
mod stage;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use test_support::programs::target_folder;

use crate::device;
use crate::narrator::Narrator;

use stage::Stage;

/// Runs the demo; yields the verdict on the genuine VM, which is always affirming: anything else
/// is an error.
pub fn run() -> Result<String> {
    let mut narrator = Narrator::new(9);
    let stage = Stage::prepare(&mut narrator)?;

    narrator.step(
        "A golden boot gives the reference values",
        "A VM is booted under observation: QEMU, OVMF firmware, a Debian kernel, our initramfs.\n\
         What it measured is what a device shall expect from now on.",
    );
    stage.take_reference_values(&narrator)?;

    narrator.step(
        "The VM starts",
        "Its vRoT has its own identity key (vIK), certified by the host's identity key (IK).",
    );
    let mut guest = stage.start_vm(&narrator)?;

    narrator.step(
        "A device challenges the service in the VM",
        "It sends a fresh nonce; the VM's quote covers the nonce, the host's quote covers the\n\
         VM's quote. The device checks both against its policy.",
    );
    let service = narrator.wait("waiting for vrot-service", || guest.service())?;
    let attestation = stage.attestation();
    let attest = device::attest_command(service, &stage.policy(), &attestation)?;
    narrator.quote(&narrator.run(attest)?);
    let verify = device::verify_command(
        &attestation.evidence,
        &attestation.nonce()?,
        &stage.policy(),
    )?;
    let (status, result) = device::judge(verify)?;
    fs::write(
        stage.output("result.json"),
        serde_json::to_vec_pretty(&result)?,
    )?;
    ensure!(
        status == 0,
        "the device refused the genuine VM: {}",
        stage.output("result.json").display()
    );

    narrator.step(
        "Attack 1: old evidence is replayed",
        "An attacker recorded good evidence and answers a new challenge with it.",
    );
    attacks::stale_nonce(&narrator, &stage)?;
    guest.power_off()?;

    narrator.step(
        "Attack 2: the VM boots another kernel",
        "The kernel's file differs by one byte; everything else is as before.",
    );
    attacks::changed_kernel(&narrator, &stage)?;

    narrator.step(
        "Attack 3: evidence from another host",
        "A second, equally genuine and enrolled host runs the same image. The device's policy\n\
         does not list that host.",
    );
    attacks::another_host(&narrator, &stage)?;

    println!("\nLeft in {}:", stage.output("").display());
    for (file, meaning) in [
        ("evidence.cbor", "the evidence, as the device received it"),
        ("nonce.hex", "the nonce it answers"),
        ("policy.toml", "what the device expects"),
        ("roots.pem", "the identity issuer that it trusts"),
        ("result.json", "its attestation result"),
    ] {
        println!("  {file:14} {meaning}");
    }
    println!("Check it yourself, offline:");
    println!(
        "  vrot-device verify --evidence evidence.cbor --nonce $(cat nonce.hex) --policy policy.toml"
    );
    Ok("affirming".to_owned())
}

/// Where the logs of the last demo are.
pub fn logs() -> Result<PathBuf> {
    Ok(output_folder()?.join("logs"))
}

fn output_folder() -> Result<PathBuf> {
    let folder = target_folder()?.join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}
