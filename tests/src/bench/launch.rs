//! Launch: from the order to a socket that answers, for a vRoT with complete identity.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use serde_json::{Value, json};
use uuid::Uuid;

use super::api::Api;
use crate::vmm::Control;

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

/// A thousand vRoTs that were launched together wait for a signature each, and three more.
const CERTIFICATES: Duration = Duration::from_secs(10 * 60);

/// Whose VMs these are: the pool is made for them.
pub(super) const TENANT: &str = "bench";

/// Orders a vRoT for a new VM, whose number the manager chooses, and waits until its socket
/// answers.
pub(super) fn launch(api: &Api) -> Result<Launched> {
    ordered(api, &json!({"tenant": TENANT, "start": true}))
}

/// The same for a VM that has a number already, as launch hooks order it: the certificate of a
/// vRoT that was made ahead does not name this VM, so the physical TPM signs another one beside the
/// launch.
pub(super) fn launch_own_vm(api: &Api) -> Result<Launched> {
    let vm = Uuid::new_v4();
    ordered(api, &json!({"vm": vm, "tenant": TENANT, "start": true}))
}

fn ordered(api: &Api, order: &Value) -> Result<Launched> {
    let begin = Instant::now();
    let started = start(api, order)?;
    let control = Control::connect(&started.socket)?;
    let took = begin.elapsed();
    Ok(Launched {
        vm: started.vm,
        process: started.process,
        control,
        took,
    })
}

/// A vRoT that runs.
#[derive(Debug)]
pub(super) struct Started {
    /// Its VM.
    pub(super) vm: Uuid,
    /// Its backend's process.
    pub(super) process: Pid,
    /// Where its VMM attaches.
    pub(super) socket: PathBuf,
}

/// Orders a vRoT that its guest reaches this way (`emulator`, `virtio-tpm`, `virtio-i2c`), and waits
/// until it has all its certificates: nothing is done for it any more.
pub(super) fn start_over(api: &Api, transport: &str) -> Result<Started> {
    let order = json!({"tenant": TENANT, "start": true, "transport": transport});
    let started = start(api, &order)?;
    wait_until_complete(api, started.vm)?;
    Ok(started)
}

fn start(api: &Api, order: &Value) -> Result<Started> {
    let view = api.json("POST", "/v1/vrots", &order.to_string())?;
    let socket = view.pointer("/backend/control").and_then(Value::as_str);
    let vm = view.get("vm").and_then(Value::as_str);
    Ok(Started {
        vm: vm.context("a vRoT has a VM")?.parse()?,
        process: process(&view)?,
        socket: PathBuf::from(socket.context("a running vRoT has a socket")?),
    })
}

/// Waits until a launched vRoT can attest: its identity key has a certificate, and the guest can
/// read it.
pub(super) fn wait_until_certified(api: &Api, vm: Uuid) -> Result<()> {
    wait_for_certificates(api, vm, &["vik"])
}

/// Waits until a launched vRoT has everything: the certificates of all its keys.
pub(super) fn wait_until_complete(api: &Api, vm: Uuid) -> Result<()> {
    wait_for_certificates(api, vm, &["vik", "tls", "ek_rsa", "ek_p256"])
}

/// The same of all that there are: the physical TPM has nothing left to sign.
pub(super) fn wait_until_all_are_complete(api: &Api) -> Result<()> {
    let list = api.json("GET", "/v1/vrots", "")?;
    let vrots = list.get("vrots").and_then(Value::as_array);
    for view in vrots.context("a list of vRoTs")? {
        let vm = view.get("vm").and_then(Value::as_str);
        wait_until_complete(api, vm.context("a vRoT has a VM")?.parse()?)?;
    }
    Ok(())
}

fn wait_for_certificates(api: &Api, vm: Uuid, keys: &[&str]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let identity = api.json("GET", &format!("/v1/vrots/{vm}/identity"), "")?;
        let lacks = keys.iter().find(|key| {
            let certificate = identity.pointer(&format!("/{key}/certificate_pem"));
            let certificate = certificate.and_then(Value::as_str).unwrap_or_default();
            !certificate.starts_with("-----BEGIN CERTIFICATE-----")
        });
        let Some(key) = lacks else {
            return Ok(());
        };
        ensure!(
            begin.elapsed() < CERTIFICATES,
            "the vRoT of {vm} has no certificate for its {key} after {} s",
            CERTIFICATES.as_secs()
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes room for the next one.
pub(super) fn remove(api: &Api, launched: Launched) -> Result<()> {
    let vm = launched.vm;
    drop(launched.control);
    remove_vm(api, vm)
}

/// The same, once no VMM is attached.
pub(super) fn remove_vm(api: &Api, vm: Uuid) -> Result<()> {
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
