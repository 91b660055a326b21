//! What the commands do.

mod audit;
mod host;
mod issuer;
mod policy;
mod revocation;
mod vrots;

use crate::arguments::{Arguments, Command};
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Output;

/// Carries a command out.
pub(crate) fn run(arguments: &Arguments) -> Result<(), CtlError> {
    let client = Client::new(&arguments.socket);
    let output = Output::new(arguments.output);
    match &arguments.command {
        Command::Host { command } => host::run(command, &client, &output),
        Command::Issuer { command } => issuer::run(command, &output),
        Command::Audit { command } => audit::run(command, &client, &output),
        Command::Vrot(command) => vrots::run(command, &client, &output),
    }
}
