//! The VM that was booted for `attested_vm.rs`, quoted by its host for its tenant.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::tool::Tool;
use vrot_tests::device;
use vrot_tests::format_judge::described;
use vrot_tests::scene::AttestedVm;

use crate::attested_vm::vm;

const NONCE: &str = "c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3";

fn set(vm: &AttestedVm, folder: &Path) -> Result<PathBuf> {
    let set = folder.join("set.cbor");
    let evidence = vm.scene.host.vtpmctl(["evidence", &vm.vm.to_string()])?;
    evidence
        .args(["--nonce", NONCE, "--save"])
        .arg(&set)
        .run()?;
    Ok(set)
}

/// The policy of the device, which also says what it wants without a boot log.
fn tenants_policy(vm: &AttestedVm, folder: &Path) -> Result<PathBuf> {
    let policy = folder.join("policy.toml");
    fs::copy(
        vm.policy.with_file_name("roots.pem"),
        folder.join("roots.pem"),
    )?;
    let text = fs::read_to_string(&vm.policy)?;
    fs::write(
        &policy,
        text + "\n[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n",
    )?;
    Ok(policy)
}

fn judged(evidence: &Path, nonce: &str, policy: &Path, purpose: &str) -> Result<(i32, Value)> {
    let verify = device::verify_command(evidence, nonce, policy)?;
    device::judge(verify.args(["--purpose", purpose]))
}

#[test]
fn a_host_answers_for_a_vm_without_its_help_and_for_that_purpose_alone() -> Result<()> {
    let vm = vm()?;
    let folder = tempfile::tempdir()?;
    let set = set(vm, folder.path())?;
    let policy = tenants_policy(vm, folder.path())?;
    let (status, result) = judged(&set, NONCE, &policy, "tenant")?;
    assert_eq!(status, 0, "{result:#}");
    assert_eq!(result["purpose"], "tenant");
    assert_eq!(result["vms"][0]["vm"], vm.vm.to_string());
    // A policy that does not say what it wants instead of a boot log is not content.
    let (status, result) = judged(&set, NONCE, &vm.policy, "tenant")?;
    assert_eq!(status, 1);
    ensure!(result.to_string().contains("boot-log-absent"), "{result:#}");
    // Neither is evidence for the other purpose.
    let (status, result) = judged(&set, NONCE, &policy, "service")?;
    assert_eq!(status, 1);
    assert_eq!(result["refusal"]["code"], "purpose");
    let own = vm.attestation.nonce()?;
    let (status, result) = judged(&vm.attestation.evidence, &own, &policy, "tenant")?;
    assert_eq!(status, 1);
    assert_eq!(result["refused"]["refusal"]["code"], "purpose");
    // Another nonce, and a VM that is not in it.
    let (status, _) = judged(&set, &own, &policy, "tenant")?;
    assert_eq!(status, 1);
    let other = uuid::Uuid::new_v4().to_string();
    let verify = device::verify_command(&set, NONCE, &policy)?;
    let (status, result) = device::judge(verify.args(["--purpose", "tenant", "--vm", &other]))?;
    assert_eq!(status, 1, "{result:#}");
    assert_eq!(result["unquoted"][0]["vm"], other);
    Ok(())
}

#[test]
fn the_evidence_set_of_a_real_vm_is_as_described_in_cddl() -> Result<()> {
    let vm = vm()?;
    let folder = tempfile::tempdir()?;
    let set = fs::read(set(vm, folder.path())?)?;
    let description = include_str!("../../../attestation/evidence.cddl");
    // The first rule of a description is what it is of.
    let (comment, rules) = description.split_once("\nevidence = ").context("rules")?;
    let of_sets = format!("{comment}\nany-evidence = evidence-set\n\nevidence = {rules}");
    described(&of_sets, &set)?.map_err(|fault| anyhow::anyhow!(fault))?;
    ensure!(
        described(description, &set)?.is_err(),
        "it is a VM's evidence"
    );
    Ok(())
}

#[test]
fn tpm2_tools_verify_the_quote_that_a_host_had_a_vm_make() -> Result<()> {
    let vm = vm()?;
    let folder = tempfile::tempdir()?;
    let set = fs::read(set(vm, folder.path())?)?;
    let set = attestation::EvidenceSet::from_cbor(&set)?;
    let own = set.vms.first().context("the VM")?;
    let vik = cert_chain::PublicArea::parse(&own.vik_public)?;
    let at = |name: &str| folder.path().join(name);
    let key = cert_chain::pem::encode_public_key(&vik.subject_public_key_info());
    fs::write(at("vik.pem"), key)?;
    fs::write(at("quote"), &**own.attest)?;
    fs::write(at("signature"), &**own.signature)?;
    let qualifying = attestation::tenant_qualifying_data(&NONCE.parse()?, &vik.name()).to_string();
    let check = |qualifying: &str| -> Result<_> {
        Tool::new("tpm2_checkquote")
            .arg("-u")
            .arg(at("vik.pem"))
            .arg("-m")
            .arg(at("quote"))
            .arg("-s")
            .arg(at("signature"))
            .args(["-q", qualifying])
            .outcome()
    };
    ensure!(check(&qualifying)?.status.success());
    ensure!(!check(NONCE)?.status.success());
    Ok(())
}
