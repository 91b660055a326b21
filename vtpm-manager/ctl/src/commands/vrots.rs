//! Commands about vRoTs.

use std::fs::File;

use api_types::VrotKey;
use api_types::wire::{
    CertificateState, CreateRequest, IdentityView, KeyView, LaunchRequest, LaunchState, LaunchView,
    QemuArguments, StartRequest, TpmDeviceModel, VrotList, VrotView,
};
use hyper::Method;

use crate::arguments::{LaunchArguments, VrotCommand};
use crate::client::Client;
use crate::error::CtlError;
use crate::measurement::{self, OpenLaunch};
use crate::output::{Output, Table};

pub(crate) fn run(command: &VrotCommand, client: &Client, output: &Output) -> Result<(), CtlError> {
    match command {
        VrotCommand::Create {
            vm,
            tenant,
            name,
            start,
            require_launch_measurement,
            launch,
            transport,
        } => {
            let (launch, files) = open(launch, output)?;
            output.progress("creating: keys, certificates, state");
            let request = CreateRequest {
                vm: *vm,
                tenant: tenant.clone(),
                name: name.clone(),
                start: *start,
                require_launch_measurement: *require_launch_measurement,
                launch,
                transport: (*transport).into(),
            };
            let vrot: VrotView = client.with_files(Method::POST, "/v1/vrots", &request, &files)?;
            output.result(&vrot, || {
                let done = if *start {
                    "created and started"
                } else {
                    "created"
                };
                format!("{done}\n{}", details(&vrot))
            })?;
        }
        VrotCommand::Start { vrot, launch } => {
            let (launch, files) = open(launch, output)?;
            let request = StartRequest { launch };
            let path = path(vrot.vrot, "/start");
            let vrot: VrotView = client.with_files(Method::POST, &path, &request, &files)?;
            output.result(&vrot, || format!("started\n{}", details(&vrot)))?;
        }
        VrotCommand::Measure {
            vrot,
            launch,
            forget,
        } => {
            let path = path(vrot.vrot, "/launch");
            let launch: LaunchView = match (open(launch, output)?, forget) {
                ((Some(request), files), false) => {
                    client.with_files(Method::PUT, &path, &request, &files)?
                }
                ((None, _), false) => client.get(&path)?,
                ((None, _), true) => client.forget(&path)?,
                ((Some(_), _), true) => {
                    let both = "either name what is to be measured, or --forget what was";
                    return Err(CtlError::Argument(both.to_owned()));
                }
            };
            output.result(&launch, || measurement::details(&launch))?;
        }
        VrotCommand::Stop(vrot) => {
            let vrot: VrotView = client.post(&path(vrot.vrot, "/stop"), &())?;
            output.result(&vrot, || {
                format!("stopped vRoT {} of VM {}", vrot.vrot, vrot.vm)
            })?;
        }
        VrotCommand::Suspend(vrot) => {
            let vrot: VrotView = client.post(&path(vrot.vrot, "/suspend"), &())?;
            output.result(&vrot, || {
                format!("suspended vRoT {} of VM {}", vrot.vrot, vrot.vm)
            })?;
        }
        VrotCommand::Resume(vrot) => {
            let vrot: VrotView = client.post(&path(vrot.vrot, "/resume"), &())?;
            output.result(&vrot, || format!("resumed\n{}", details(&vrot)))?;
        }
        VrotCommand::AcceptFolder(vrot) => {
            let vrot: VrotView = client.post(&path(vrot.vrot, "/folder"), &())?;
            output.result(&vrot, || {
                format!("the next folder of vRoT {} is accepted", vrot.vrot)
            })?;
        }
        VrotCommand::Reset(vrot) => {
            let vrot: VrotView = client.post(&path(vrot.vrot, "/reset"), &())?;
            output.result(&vrot, || {
                format!("reset the TPM of vRoT {} of VM {}", vrot.vrot, vrot.vm)
            })?;
        }
        VrotCommand::List => {
            let list: VrotList = client.get("/v1/vrots")?;
            output.result(&list, || table(&list))?;
        }
        VrotCommand::Show(vrot) => {
            let vrot: VrotView = client.get(&path(vrot.vrot, ""))?;
            output.result(&vrot, || details(&vrot))?;
        }
        VrotCommand::Delete(vrot) => {
            client.delete(&path(vrot.vrot, ""))?;
            let deleted = serde_json::json!({ "deleted": vrot.vrot.to_string() });
            output.result(&deleted, || format!("deleted {}", vrot.vrot))?;
        }
        VrotCommand::Identity { vrot, renew } => {
            let path = path(vrot.vrot, "/identity");
            let identity: IdentityView = if *renew {
                output.progress("renewing certificates");
                client.post(&path, &())?
            } else {
                client.get(&path)?
            };
            output.result(&identity, || describe(&identity))?;
        }
        VrotCommand::QemuArgs { vrot, device } => {
            let device = TpmDeviceModel::from(*device).name();
            let path = path(vrot.vrot, &format!("/qemu-args?device={device}"));
            let arguments: QemuArguments = client.get(&path)?;
            output.result(&arguments, || line(&arguments.arguments))?;
        }
    }
    Ok(())
}

/// What a VM is launched with, if anything is named.
fn open(
    launch: &LaunchArguments,
    output: &Output,
) -> Result<(Option<LaunchRequest>, Vec<File>), CtlError> {
    let Some(launch) = OpenLaunch::of(launch)? else {
        return Ok((None, Vec::new()));
    };
    output.progress(&format!("measuring: {}", launch.size()));
    let (request, files) = launch.into_parts();
    Ok((Some(request), files))
}

fn path(vrot: VrotKey, rest: &str) -> String {
    format!("/v1/vrots/{vrot}{rest}")
}

fn table(list: &VrotList) -> String {
    if list.vrots.is_empty() {
        return "no vRoTs on this host: make one with `vtpmctl create`".to_owned();
    }
    let mut table = Table::default();
    table.row(["VM", "TENANT", "NAME", "STATE", "SINCE", "VROT", "NOTES"]);
    for vrot in &list.vrots {
        table.row([
            vrot.vm.to_string(),
            vrot.tenant.to_string(),
            vrot.name.clone().unwrap_or_default(),
            vrot.state.clone(),
            vrot.since.to_string(),
            vrot.vrot.to_string(),
            notes(vrot),
        ]);
    }
    table.render()
}

fn notes(vrot: &VrotView) -> String {
    let mut notes: Vec<&str> = vrot.note.as_deref().into_iter().collect();
    if let Some(backend) = &vrot.backend {
        notes.push(if backend.attached {
            "VM attached"
        } else {
            "no VM attached"
        });
        if backend.degraded {
            notes.push("DEGRADED: state is not durable yet");
        }
    }
    if vrot.state_loss.is_some() {
        notes.push("state may be LOST");
    }
    match (vrot.vik_certificate, vrot.renewal_problem.is_some()) {
        (CertificateState::Pending, false) => notes.push("certificate pending"),
        (CertificateState::Pending, true) => notes.push("certificate NOT ISSUED"),
        (CertificateState::Issued, true) => notes.push("certificate NOT RENEWED"),
        (CertificateState::Issued, false) => {}
    }
    notes.join(", ")
}

fn details(vrot: &VrotView) -> String {
    let mut table = Table::default();
    table.row(["VM", &vrot.vm.to_string()]);
    table.row(["vRoT", &vrot.vrot.to_string()]);
    table.row(["tenant", vrot.tenant.as_str()]);
    if let Some(name) = &vrot.name {
        table.row(["name", name]);
    }
    table.row(["generation", &vrot.generation.to_string()]);
    if !vrot.transport.is_emulator() {
        table.row(["transport", vrot.transport.name()]);
    }
    if let Some(vik) = &vrot.vik {
        table.row(["vIK", &vik.to_string()]);
    }
    if let Some(not_after) = &vrot.vik_not_after {
        table.row(["certified until", &not_after.to_string()]);
    }
    if vrot.vik_certificate == CertificateState::Pending {
        table.row(["identity", "pending: its certificate is being issued"]);
    } else {
        if vrot.tls_certificate == Some(CertificateState::Pending) {
            let pending = "pending: the VM can attest, and its service has no name in TLS yet";
            table.row(["TLS certificate", pending]);
        }
        if vrot.ek_certificates == CertificateState::Pending {
            table.row(["EK certificates", "pending: the VM can attest without them"]);
        }
    }
    if let Some(problem) = &vrot.renewal_problem {
        table.row(["not certified", problem]);
    }
    if vrot.imported {
        let origin = "imported: what its TPM held before was not guarded by this host's TPM";
        table.row(["origin", origin]);
    }
    if let Some(loss) = &vrot.state_loss {
        let noted = format!(
            "a backend ended after it had answered commands whose state was not durable: noted at \
             {} after batch {}",
            loss.at, loss.batch
        );
        table.row(["state lost", &noted]);
    }
    if vrot.launch.state != LaunchState::NotMeasured || vrot.launch.required {
        table.row(["launch", measurement::described(&vrot.launch)]);
    }
    if let Some(digest) = &vrot.launch.digest {
        table.row(["launch digest", &digest.to_string()]);
    }
    table.row(["state", &format!("{} since {}", vrot.state, vrot.since)]);
    let notes = notes(vrot);
    if !notes.is_empty() {
        table.row(["notes", &notes]);
    }
    if let Some(backend) = &vrot.backend {
        table.row(["process", &backend.process.to_string()]);
        table.row(["socket", &backend.control.display().to_string()]);
    }
    table.render()
}

fn describe(identity: &IdentityView) -> String {
    let mut table = Table::default();
    table.row(["VM", &identity.vm.to_string()]);
    table.row(["vRoT", &identity.vrot.to_string()]);
    table.row(["tenant", identity.tenant.as_str()]);
    table.row(["generation", &identity.generation.to_string()]);
    if let Some(host) = &identity.host {
        table.row(["host", &host.to_string()]);
    }
    table.row(["manager", &identity.manager_digest.to_string()]);
    table.row(["backend", &identity.backend_digest.to_string()]);
    let mut text = table.render();
    for (which, key) in [
        ("identity key (vIK), P-256", Some(&identity.vik)),
        ("TLS key, P-256", identity.tls.as_ref()),
        ("endorsement key, RSA-2048", Some(&identity.ek_rsa)),
        ("endorsement key, P-256", Some(&identity.ek_p256)),
    ] {
        if let Some(key) = key {
            text.push_str(&describe_key(which, key));
        }
    }
    text.push_str("\nissued by this host's identity key:\n");
    text.push_str(&identity.chain_pem);
    text
}

fn describe_key(which: &str, key: &KeyView) -> String {
    let not_after = key.not_after.map(|at| format!("certified until  {at}\n"));
    let certificate = key.certificate_pem.as_deref();
    format!(
        "\n{which}\nname  {}\n{}{}",
        key.name,
        not_after.unwrap_or_default(),
        certificate.unwrap_or("certificate  pending: it is being issued\n")
    )
}

/// For pasting into a shell; only what needs quotes gets them.
fn line(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:".contains(c);
    let quoted: Vec<String> = arguments
        .iter()
        .map(|argument| {
            if argument.chars().all(plain) {
                argument.clone()
            } else {
                format!("'{}'", argument.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_a_shell() {
        let arguments = ["-chardev", "path=/run/a b", "it's"].map(str::to_owned);
        assert_eq!(line(&arguments), r"-chardev 'path=/run/a b' 'it'\''s'");
    }
}
