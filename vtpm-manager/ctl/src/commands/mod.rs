//! What the commands do.

mod audit;
mod dashboard;
mod doctor;
mod evidence;
mod host;
mod issuer;
mod metrics;
mod policy;
mod revocation;
mod tenants;
mod vrots;

use std::process::ExitCode;

use crate::arguments::{Arguments, Command};
use crate::client::Client;
use crate::error::CtlError;
use crate::import;
use crate::libvirt;
use crate::output::Output;
use crate::run;
use crate::watch;

/// Carries a command out: how this program ends.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CtlError> {
    let client = Client::new(&arguments.socket);
    let output = Output::new(arguments.output);
    match &arguments.command {
        Command::Run(arguments) => return Ok(run::run(arguments, &client)),
        Command::Doctor(arguments) => return doctor::run(arguments, &client, &output),
        Command::Metrics(arguments) => return metrics::run(arguments, &client),
        Command::Watch(arguments) => return watch::run(arguments, &client, &output),
        Command::Libvirt(command) => libvirt::run(command, &client, &output),
        Command::Import(arguments) => import::run(arguments, &client, &output),
        Command::Host { command } => host::run(command, &client, &output),
        Command::Dashboard(arguments) => dashboard::run(arguments, client.socket(), &output),
        Command::Issuer { command } => issuer::run(command, &output),
        Command::Audit { command } => audit::run(command, &client, &output),
        Command::Evidence(arguments) => evidence::run(arguments, &client, &output),
        Command::Vrot(command) => vrots::run(command, &client, &output),
    }
    .map(|()| ExitCode::SUCCESS)
}
