//! VMs that a device must not affirm although every signature is genuine, identities that
//! must outlast a restart, a guest that owns its TPM, and a host with another PCR bank.

use std::fs;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use cert_chain::HashAlgorithm;
use serde_json::Value;
use uuid::Uuid;
use vrot_tests::device::{self, Attestation};
use vrot_tests::guest::{Guest, TpmDevice};
use vrot_tests::scene::{AttestedVm, Scene, TENANT};

use crate::measured::measured;

#[test]
fn a_changed_boot_or_another_host_is_contraindicated() -> Result<()> {
    let AttestedVm {
        guest,
        vm,
        policy,
        attestation,
        scene,
        ..
    } = AttestedVm::start("refused-vms")?;
    // A policy that also says what the VM may be launched as.
    let launch = scene.host.launch(vm)?;
    let text = fs::read_to_string(&policy)?;
    let launched_so = policy.with_file_name("launched-so.toml");
    let digest = launch["digest"].as_str().context("a measured launch")?;
    fs::write(
        &launched_so,
        format!("{text}\n[launch]\ndigests = [\"{digest}\"]\n"),
    )?;
    let verify =
        device::verify_command(&attestation.evidence, &attestation.nonce()?, &launched_so)?;
    let (status, result) = device::judge(verify)?;
    assert_eq!(status, 0, "{result:#}");
    let told = &result["submods"]["vm"]["ear_attester_claims"];
    assert_eq!(told["launch"], launch["digest"]);
    assert_eq!(told["launch-parts"]["machine"], "q35");
    let identity = scene.host.identity(vm)?;
    guest.power_off()?;

    // The same VM, with one more word on the kernel's command line.
    scene.host.stop_vrot(vm)?;
    let spec = scene
        .spec(&scene.host, vm, TpmDevice::Crb)?
        .command_line("vrot.changed=yes");
    scene.host.start_measured(vm, &spec)?;
    assert_eq!(scene.host.identity(vm)?["vik"], identity["vik"]);
    let mut changed = Guest::boot(&scene.run, "changed-command-line", &spec)?;
    let said = refusal(&scene, &mut changed, &policy, "changed")?;
    ensure!(said.contains("command line"), "{said}");
    let said = refusal(&scene, &mut changed, &launched_so, "launched-otherwise")?;
    ensure!(said.contains("launch-unexpected"), "{said}");
    changed.power_off()?;

    // The same VM by its number, on a host that the policy does not list.
    let other = scene.another_host("host-2")?;
    let mut guest = scene.boot(&other, "other-host", vm, TpmDevice::Crb)?;
    let said = refusal(&scene, &mut guest, &policy, "other-host")?;
    ensure!(said.contains("host-2"), "{said}");
    guest.power_off()
}

#[test]
fn a_vrot_keeps_its_identity_over_a_stop_and_a_start() -> Result<()> {
    let started = started_again()?;
    assert_eq!(
        started.scene.host.identity(started.vm)?["vik"],
        started.identity["vik"]
    );
    // And the guest sees the same vRoT.
    let mut shell = started.guest.shell()?;
    ensure!(!shell.run("tpm2_nvread 0x01C10002")?.is_empty());
    Ok(())
}

#[test]
fn a_guest_boots_measured_with_tpm_tis() -> Result<()> {
    let started = started_again()?;
    measured(&started.guest, &started.scene.run).map(drop)
}

/// A VM behind the older interface, whose vRoT was stopped and started again before it booted.
struct StartedAgain {
    guest: Guest,
    vm: Uuid,
    /// The identity before.
    identity: Value,
    scene: Scene,
}

/// It is shared by tests that only look at it, one after the other.
fn started_again() -> Result<MutexGuard<'static, StartedAgain>> {
    static VM: LazyLock<Result<Mutex<StartedAgain>>> = LazyLock::new(|| {
        let scene = Scene::set("identity")?;
        let vm = Uuid::new_v4();
        scene.host.create(vm, TENANT)?;
        let identity = scene.host.identity(vm)?;
        scene.host.start_vrot(vm)?;
        scene.host.stop_vrot(vm)?;
        scene.host.start_vrot(vm)?;
        let spec = scene.spec(&scene.host, vm, TpmDevice::Tis)?;
        let guest = Guest::boot(&scene.run, "tis", &spec)?;
        Ok(Mutex::new(StartedAgain {
            guest,
            vm,
            identity,
            scene,
        }))
    });
    let vm = VM.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    Ok(vm.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A guest owns its TPM: what it sets as passwords must not keep it from attesting itself.
#[test]
fn a_guest_that_set_its_passwords_attests_as_before() -> Result<()> {
    let mut attested = on_sha384()?;
    assert_eq!(attested.status, 0, "{:#}", attested.result);
    let mut shell = attested.guest.shell()?;
    for hierarchy in ["o", "e", "l"] {
        shell.run(&format!("tpm2_changeauth -Q -c {hierarchy} secret"))?;
    }
    let read = "tpm2_nvread -C o 0x01C10002";
    ensure!(shell.outcome(read)?.0 != 0, "the owner's password is empty");

    let folder = attested.scene.run.join("device-again");
    fs::create_dir_all(&folder)?;
    let keep = Attestation::in_folder(&folder);
    let attest = device::attest_command(attested.guest.service()?, &attested.policy, &keep)?;
    let (status, said) = device::judge(attest)?;
    ensure!(status == 0, "exit status {status}: {said:#}");
    Ok(())
}

/// From the host's physical TPM, which has a SHA-384 bank and no other, to the device's result.
#[test]
fn a_vm_on_a_host_whose_tpm_has_sha384_alone_is_affirmed() -> Result<()> {
    let attested = on_sha384()?;
    assert_eq!(attested.status, 0, "{:#}", attested.result);
    assert_eq!(attested.result["verdict"], "affirming");
    let layer = |name: &str| &attested.result["submods"][name]["ear_attester_claims"]["pcr-bank"];
    assert_eq!(*layer("host"), "sha384");
    assert_eq!(*layer("vm"), "sha256");
    let shown = attested
        .scene
        .host
        .vtpmctl(["host", "policy", "show"])?
        .text()?;
    ensure!(shown.contains("PCR 7 (sha384)"), "{shown}");
    Ok(())
}

/// A VM on a host whose physical TPM has a SHA-384 bank alone. It is shared by tests that do not
/// mind what the others do to it.
fn on_sha384() -> Result<MutexGuard<'static, AttestedVm>> {
    static VM: LazyLock<Result<Mutex<AttestedVm>>> = LazyLock::new(|| {
        let scene = Scene::set_with("sha384-host", &[HashAlgorithm::Sha384])?;
        AttestedVm::start_in(scene).map(Mutex::new)
    });
    let vm = VM.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    Ok(vm.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The device's reasons, after it refused.
fn refusal(
    scene: &Scene,
    guest: &mut Guest,
    policy: &std::path::Path,
    name: &str,
) -> Result<String> {
    let folder = scene.run.join(format!("device-{name}"));
    fs::create_dir_all(&folder)?;
    let keep = Attestation::in_folder(&folder);
    let attest = device::attest_command(guest.service()?, policy, &keep)?;
    let (status, said) = device::judge(attest)?;
    ensure!(status == 1, "exit status {status}: {said:#}");
    assert_eq!(said["verdict"], "contraindicated");
    Ok(said.to_string())
}
