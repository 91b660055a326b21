//! Four attacks, each of which must fail for its own reason.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::tool::Tool;
use uuid::Uuid;

use super::relay::Relay;
use super::stage::{Stage, TENANT};
use crate::device::{self, Attestation};
use crate::guest::Guest;
use crate::narrator::Narrator;

/// Evidence that answers another nonce.
pub(super) fn stale_nonce(narrator: &Narrator, stage: &Stage) -> Result<()> {
    let fresh = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let verify = device::verify_command(&stage.attestation().evidence, &fresh, &stage.policy())?;
    must_be_refused(
        narrator,
        verify,
        &Refusal {
            layer: None,
            code: "nonce",
            naming: "another challenge",
        },
    )
}

/// Another VM of the same host that terminates TLS, and shows the service's evidence as its own.
pub(super) fn relay(narrator: &Narrator, stage: &Stage, guest: &mut Guest) -> Result<()> {
    let relay = narrator.wait("starting the relay's VM", || {
        Relay::start(stage, guest.service()?, guest.attested()?)
    })?;
    let attest = device::challenge_command(relay.challenges, &stage.policy())?;
    narrator.command(&attest);
    let (status, said) = device::judge(attest)?;
    ensure!(
        status == 0,
        "the relay did not pass the challenge on: {said}"
    );
    narrator.note(
        "affirming: an answer to a challenge says what the VM is, and a relay can pass it on",
    );
    must_be_refused(
        narrator,
        device::connect_command(relay.attested, &stage.policy())?,
        &Refusal {
            layer: None,
            code: "binding",
            naming: "was asked for the connection",
        },
    )
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
    let mut spec = stage.spec(&stage.host, stage.vm)?;
    spec.kernel = path;
    let guest = narrator.wait("booting", || {
        Guest::boot(&stage.run, "changed-kernel", &spec)
    })?;
    let expected = Refusal {
        layer: Some("vm"),
        code: "event-unexpected",
        naming: "kernel: found",
    };
    attest_and_fail(narrator, stage, guest, "changed-kernel", &expected)
}

/// A VM on a host that the policy does not list.
pub(super) fn another_host(narrator: &Narrator, stage: &Stage) -> Result<()> {
    let host = stage.another_host(narrator)?;
    // The attacker may even name the VM as the device expects it.
    host.create(stage.vm, TENANT)?;
    host.start_vrot(stage.vm)?;
    let guest = narrator.wait("booting", || stage.boot(&host, "other-host", stage.vm))?;
    let expected = Refusal {
        layer: Some("host"),
        code: "host-unexpected",
        naming: "host-2",
    };
    attest_and_fail(narrator, stage, guest, "other-host", &expected)
}

/// The reason that an attack must fail for: another would mean that something else went wrong.
struct Refusal {
    /// The layer that the reason is about; none where the evidence was not even looked into.
    layer: Option<&'static str>,
    /// Its stable code.
    code: &'static str,
    /// Words that its text must contain.
    naming: &'static str,
}

fn attest_and_fail(
    narrator: &Narrator,
    stage: &Stage,
    mut guest: Guest,
    name: &str,
    expected: &Refusal,
) -> Result<()> {
    let folder = stage.run.join(format!("{name}-evidence"));
    fs::create_dir_all(&folder)?;
    let attest = device::attest_command(
        guest.service()?,
        &stage.policy(),
        &Attestation::in_folder(&folder),
    )?;
    must_be_refused(narrator, attest, expected)?;
    guest.power_off()
}

fn must_be_refused(narrator: &Narrator, command: Tool, expected: &Refusal) -> Result<()> {
    narrator.command(&command);
    let (status, said) = device::judge(command)?;
    ensure!(
        status == 1,
        "the attack was not refused (exit status {status}): {said}"
    );
    let reasons_given = said.get("reasons").and_then(Value::as_array);
    let reasons_given = reasons_given.context("the device gave no reasons")?;
    ensure!(
        reasons_given.iter().any(|reason| expected.is(reason)),
        "the attack was refused, but not for `{}` ({}): {said:#}",
        expected.code,
        expected.naming
    );
    narrator.note("refused:");
    for reason in reasons(&said) {
        narrator.quote(&reason);
    }
    Ok(())
}

impl Refusal {
    fn is(&self, reason: &Value) -> bool {
        reason["layer"].as_str() == self.layer
            && reason["code"] == self.code
            && reason["text"]
                .as_str()
                .is_some_and(|text| text.contains(self.naming))
    }
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
