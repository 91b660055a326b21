//! `vtpmctl run`: a VM in the foreground, with its vRoT around it.
//!
//! The VM depends neither on this process nor on the manager: should one of them be killed, the VM
//! runs on with its vRoT, as a whole. Then nobody stops the vRoT when the VM has ended; the next
//! launch of the VM does, or `vtpmctl stop`.

mod command_line;
mod measured;
mod options;
mod vmm;

use std::process::ExitCode;
use std::time::Duration;

use api_types::WithCauses;
use api_types::wire::{CreateRequest, TpmTransport, VrotView};
use cert_chain::{Tenant, VmId};
use program_output::console::complain;

use crate::arguments::RunArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::launch;

use command_line::CommandLine;
pub(crate) use command_line::CommandLineError;
use vmm::{Signals, VmmEnd};

/// The exit status if it is not the VMM's, as with env(1).
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long a manager that is being restarted is waited for when the VM has ended.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Added to the number of a signal (as shells do).
const SIGNALLED: u8 = 128;

/// Runs a VM.
pub(crate) fn run(arguments: &RunArguments, client: &Client) -> ExitCode {
    attempt(arguments, client).unwrap_or_else(|error| {
        say(&error);
        ExitCode::from(OURS)
    })
}

fn attempt(arguments: &RunArguments, client: &Client) -> Result<ExitCode, CtlError> {
    let vmm = CommandLine::parse(&arguments.command)?;
    let vm = which(arguments, &vmm)?;
    let known = match vm {
        Some(vm) => launch::find(client, vm)?,
        None => None,
    };
    if let Some(vrot) = &known {
        check(arguments, vrot)?;
        // Not every vRoT can be attached to QEMU: better said before this one is started.
        tpm_arguments(arguments, client, vrot)?;
    }
    let launch = match arguments.no_measure {
        false => vmm.parts().open()?,
        true => None,
    };
    // Until here, a signal ends this program; from here on, there is something to put in order.
    let mut signals = Signals::catch().map_err(CtlError::Signals)?;
    let vrot = match known {
        Some(vrot) => launch::start_anew(client, &vrot, launch)?,
        None => launch::create(client, request(arguments, vm)?, launch)?,
    };
    let end = attend(arguments, client, &vmm, &vrot, &mut signals);
    let stopped = launch::stop(client, vrot.vrot, STOP_PATIENCE);
    let tidied = stopped.and_then(|()| match arguments.delete {
        true => launch::delete(client, vrot.vrot),
        false => Ok(()),
    });
    if let Err(error) = &tidied {
        say(error);
    }
    let status = status(&arguments.command, end?);
    Ok(ExitCode::from(match (status, &tidied) {
        (0, Err(_)) => OURS,
        (status, _) => status,
    }))
}

fn attend(
    arguments: &RunArguments,
    client: &Client,
    vmm: &CommandLine<'_>,
    vrot: &VrotView,
    signals: &mut Signals,
) -> Result<VmmEnd, CtlError> {
    let mut command = vmm.command();
    command.args(tpm_arguments(arguments, client, vrot)?);
    Ok(signals.attend(command))
}

fn tpm_arguments(
    arguments: &RunArguments,
    client: &Client,
    vrot: &VrotView,
) -> Result<Vec<String>, CtlError> {
    launch::qemu_arguments(client, vrot.vrot, arguments.device.into())
}

/// Which VM it is; none if the manager is to choose.
fn which(
    arguments: &RunArguments,
    vmm: &CommandLine<'_>,
) -> Result<Option<VmId>, CommandLineError> {
    match (arguments.vm, vmm.uuid()) {
        (Some(said), Some(found)) if said != found => {
            Err(CommandLineError::OtherVm { said, found })
        }
        (None, None) if !arguments.delete => Err(CommandLineError::WhichVm),
        (said, found) => Ok(said.or(found)),
    }
}

fn check(arguments: &RunArguments, vrot: &VrotView) -> Result<(), CtlError> {
    if arguments.delete {
        return Err(CommandLineError::DeleteKnown { vm: vrot.vm }.into());
    }
    if let Some(tenant) = &arguments.tenant {
        launch::check_tenant(vrot, tenant)?;
    }
    Ok(())
}

fn request(arguments: &RunArguments, vm: Option<VmId>) -> Result<CreateRequest, CommandLineError> {
    let tenant: &Tenant = arguments
        .tenant
        .as_ref()
        .ok_or(CommandLineError::NoTenant { vm })?;
    Ok(CreateRequest {
        vm,
        tenant: tenant.clone(),
        name: arguments.name.clone(),
        start: true,
        require_launch_measurement: false,
        launch: None,
        transport: TpmTransport::Emulator,
    })
}

fn status(command: &[std::ffi::OsString], end: VmmEnd) -> u8 {
    match end {
        VmmEnd::Exited(status) => status,
        VmmEnd::Signalled(signal) => SIGNALLED.saturating_add(signal),
        VmmEnd::Unknown(error) => {
            complain(format_args!(
                "vtpmctl: how the VMM ended is not known: {error}"
            ));
            OURS
        }
        VmmEnd::NotRun(error) => {
            let name = command.first().map(|name| name.to_string_lossy());
            complain(format_args!(
                "vtpmctl: `{}` cannot be executed: {error}",
                name.unwrap_or_default()
            ));
            match error.kind() {
                std::io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            }
        }
    }
}

fn say(error: &CtlError) {
    complain(format_args!("vtpmctl: {}", WithCauses(error)));
}
