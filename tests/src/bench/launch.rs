//! Launch: from the order to a socket that answers, for a vRoT with complete identity.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use serde_json::{Value, json};
use uuid::Uuid;

use super::api::Api;
use super::vmm::Control;

/// A vRoT that runs and answers.
#[derive(Debug)]
pub(super) struct Launched {
    /// Its VM.
    pub(super) vm: Uuid,
    /// Its backend's process.
    pub(super) process: Pid,
    /// Where its VMM attaches; it has answered there.
    pub(super) control: Control,
    /// From the order to that answer.
    pub(super) took: Duration,
}

/// Whose VMs these are: the pool is made for them.
pub(super) const TENANT: &str = "bench";

/// Orders a vRoT for a new VM, whose number the manager chooses, and waits until its socket
/// answers.
pub(super) fn launch(api: &Api) -> Result<Launched> {
    ordered(api, &json!({"tenant": TENANT, "start": true}))
}

/// The same for a VM that has a number already, as launch hooks order it: the certificate of a
/// vRoT that was made ahead does not name this VM, so the physical TPM signs another one.
pub(super) fn launch_own_vm(api: &Api) -> Result<Launched> {
    let vm = Uuid::new_v4();
    ordered(api, &json!({"vm": vm, "tenant": TENANT, "start": true}))
}

fn ordered(api: &Api, order: &Value) -> Result<Launched> {
    let order = order.to_string();
    let begin = Instant::now();
    let view = api.json("POST", "/v1/vrots", &order)?;
    let backend = view.get("backend").context("a running vRoT")?;
    let socket = backend.get("control").and_then(Value::as_str);
    let control = Control::connect(&PathBuf::from(socket.context("a socket")?))?;
    let took = begin.elapsed();
    let vm = view.get("vm").and_then(Value::as_str);
    Ok(Launched {
        vm: vm.context("a vRoT has a VM")?.parse()?,
        process: process(&view)?,
        control,
        took,
    })
}

/// Checks that a launched vRoT has everything: identity key, endorsement keys, certificates.
pub(super) fn must_be_complete(api: &Api, vm: Uuid) -> Result<()> {
    let identity = api.json("GET", &format!("/v1/vrots/{vm}/identity"), "")?;
    for key in ["vik", "ek_rsa", "ek_p256"] {
        let certificate = identity.pointer(&format!("/{key}/certificate_pem"));
        let certificate = certificate.and_then(Value::as_str).unwrap_or_default();
        ensure!(
            certificate.starts_with("-----BEGIN CERTIFICATE-----"),
            "the vRoT of {vm} was launched without a certificate for its {key}"
        );
    }
    Ok(())
}

/// Makes room for the next one.
pub(super) fn remove(api: &Api, launched: Launched) -> Result<()> {
    let vm = launched.vm;
    drop(launched.control);
    api.ask("POST", &format!("/v1/vrots/{vm}/stop"), "")?;
    api.ask("DELETE", &format!("/v1/vrots/{vm}"), "")?;
    Ok(())
}

/// The processes of all running backends.
pub(super) fn processes(api: &Api) -> Result<Vec<Pid>> {
    let list = api.json("GET", "/v1/vrots", "")?;
    let vrots = list.get("vrots").and_then(Value::as_array);
    let running = vrots
        .context("a list of vRoTs")?
        .iter()
        .filter(|view| view.pointer("/backend/process").is_some());
    running.map(process).collect()
}

fn process(view: &Value) -> Result<Pid> {
    let process = view.pointer("/backend/process").and_then(Value::as_i64);
    let process = process.context("a running vRoT has a process")?;
    Ok(Pid::from_raw(i32::try_from(process)?))
}
