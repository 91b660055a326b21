//! A VM's vRoT around the life of its VMM, for whatever launches VMs here.

use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

use api_types::VrotKey;
use api_types::wire::{
    CreateRequest, LaunchRequest, LaunchView, QemuArguments, StartRequest, TpmDeviceModel, VrotView,
};
use cert_chain::{Tenant, VmId, VrotId};
use hyper::Method;

use crate::client::Client;
use crate::error::CtlError;
use crate::measurement::OpenLaunch;

/// Why a VM cannot be launched with its vRoT.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// Another VMM is using it.
    #[error(
        "a VMM is attached to the vRoT of VM {vm}: a VM runs once. If it hangs, end it, or stop its \
         vRoT: `vtpmctl stop {vm}`"
    )]
    Attached {
        /// The VM.
        vm: VmId,
    },
    /// Its volatile state was put aside for a VM that was paused.
    #[error(
        "the vRoT of VM {vm} is suspended, for a VM that goes on and does not start anew: \
         `vtpmctl resume {vm}`, or discard its volatile state first: `vtpmctl stop {vm}`"
    )]
    Suspended {
        /// The VM.
        vm: VmId,
    },
    /// It belongs to somebody else.
    #[error("the vRoT of VM {vm} belongs to tenant {found}, not to {wanted}")]
    OtherTenant {
        /// The VM.
        vm: VmId,
        /// Whose it is.
        found: Tenant,
        /// Whose it was said to be.
        wanted: Tenant,
    },
}

const PAUSE: Duration = Duration::from_millis(200);
/// Codes of problems ([`api_types::Problem::code`]).
const UNKNOWN: &str = "unknown-vrot";
const TAKEN_OVER: &str = "being-taken-over";
/// The states of [`VrotView::state`] that matter here.
const RUNNING: &str = "running";
const SUSPENDED: &str = "suspended";

/// The vRoT of a VM, if it has one.
pub(crate) fn find(client: &Client, vm: VmId) -> Result<Option<VrotView>, CtlError> {
    match client.get::<VrotView>(&format!("/v1/vrots/{vm}")) {
        // A number may also be that of a vRoT.
        Ok(vrot) => Ok(Some(vrot).filter(|vrot| vrot.vm == vm)),
        Err(CtlError::Refused(problem)) if problem.code() == UNKNOWN => Ok(None),
        Err(error) => Err(error),
    }
}

/// That the vRoT of a VM is this tenant's.
pub(crate) fn check_tenant(vrot: &VrotView, wanted: &Tenant) -> Result<(), LaunchError> {
    if vrot.tenant == *wanted {
        return Ok(());
    }
    Err(LaunchError::OtherTenant {
        vm: vrot.vm,
        found: vrot.tenant.clone(),
        wanted: wanted.clone(),
    })
}

/// Gives a VM a vRoT, in one order with its start: its certificate is signed while the VM boots.
pub(crate) fn create(
    client: &Client,
    mut request: CreateRequest,
    launch: Option<OpenLaunch>,
) -> Result<VrotView, CtlError> {
    let (launch, files) = apart(launch);
    request.launch = launch;
    client.with_files(Method::POST, "/v1/vrots", &request, &files)
}

/// Starts the vRoT of a VM that is about to boot. One that runs without a VMM was left by a launcher
/// that did not live to stop it: it is stopped first.
pub(crate) fn start_anew(
    client: &Client,
    vrot: &VrotView,
    launch: Option<OpenLaunch>,
) -> Result<VrotView, CtlError> {
    if vrot.state == SUSPENDED {
        return Err(LaunchError::Suspended { vm: vrot.vm }.into());
    }
    if is_up(vrot) {
        if vrot
            .backend
            .as_ref()
            .is_some_and(|backend| backend.attached)
        {
            return Err(LaunchError::Attached { vm: vrot.vm }.into());
        }
        order(client, vrot.vrot, "stop")?;
    }
    let (launch, files) = apart(launch);
    let request = StartRequest { launch };
    client.with_files(Method::POST, &path(vrot.vrot, "/start"), &request, &files)
}

/// Tells how the VM is launched whose vRoT its launcher starts by itself, or that this is not known. A
/// manager that is being restarted is waited for.
pub(crate) fn announce(
    client: &Client,
    vm: VmId,
    launch: Option<OpenLaunch>,
    patience: Duration,
) -> Result<(), CtlError> {
    let path = format!("/v1/vms/{vm}/launch");
    let (request, files) = apart(launch);
    patiently(patience, || match &request {
        Some(request) => client.with_files::<LaunchView>(Method::PUT, &path, request, &files),
        None => client.forget(&path),
    })
    .map(drop)
}

fn apart(launch: Option<OpenLaunch>) -> (Option<LaunchRequest>, Vec<File>) {
    match launch {
        Some(launch) => {
            let (request, files) = launch.into_parts();
            (Some(request), files)
        }
        None => (None, Vec::new()),
    }
}

/// Stops a vRoT whose VM is off. A manager that is being restarted is waited for.
pub(crate) fn stop(client: &Client, vrot: VrotId, patience: Duration) -> Result<(), CtlError> {
    // An order whose answer was lost may have been carried out.
    patiently(patience, || {
        state(client, vrot).and_then(|state| match state.as_deref() {
            Some(RUNNING) => order(client, vrot, "stop").map(drop),
            Some(_) | None => Ok(()),
        })
    })
}

/// The vRoT of a VM that is off. A manager that is being restarted is waited for.
pub(crate) fn find_patiently(
    client: &Client,
    vm: VmId,
    patience: Duration,
) -> Result<Option<VrotView>, CtlError> {
    patiently(patience, || find(client, vm))
}

/// Whether a VM could be using it.
pub(crate) fn is_up(vrot: &VrotView) -> bool {
    vrot.state == RUNNING
}

fn patiently<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, CtlError>,
) -> Result<T, CtlError> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_passing(&error) && begun.elapsed() < patience => sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Deletes a vRoT for good.
pub(crate) fn delete(client: &Client, vrot: VrotId) -> Result<(), CtlError> {
    client.delete(&path(vrot, ""))
}

/// QEMU's arguments that attach a vRoT.
pub(crate) fn qemu_arguments(
    client: &Client,
    vrot: VrotId,
    device: TpmDeviceModel,
) -> Result<Vec<String>, CtlError> {
    let path = path(vrot, &format!("/qemu-args?device={}", device.name()));
    let arguments: QemuArguments = client.get(&path)?;
    Ok(arguments.arguments)
}

fn state(client: &Client, vrot: VrotId) -> Result<Option<String>, CtlError> {
    match client.get::<VrotView>(&path(vrot, "")) {
        Ok(vrot) => Ok(Some(vrot.state)),
        Err(CtlError::Refused(problem)) if problem.code() == UNKNOWN => Ok(None),
        Err(error) => Err(error),
    }
}

fn order(client: &Client, vrot: VrotId, order: &str) -> Result<VrotView, CtlError> {
    client.post(&path(vrot, &format!("/{order}")), &())
}

fn path(vrot: VrotId, rest: &str) -> String {
    format!("/v1/vrots/{}{rest}", VrotKey::from(vrot))
}

/// What a manager says, or does not say, while it is restarted.
fn is_passing(error: &CtlError) -> bool {
    match error {
        CtlError::Unreachable { .. } | CtlError::Response(_) => true,
        CtlError::Refused(problem) => problem.code() == TAKEN_OVER,
        _ => false,
    }
}
