//! The command line of the manager, of the identity issuer and of the operator.

mod arguments;
mod client;
mod commands;
mod error;
mod files;
mod import;
mod issuer;
mod launch;
mod libvirt;
mod measurement;
mod output;
mod parts;
mod run;
mod watch;

use std::process::ExitCode;

use api_types::WithCauses;
use program_output::console::{self, complain};

use clap::CommandFactory;

use arguments::Arguments;

/// Runs one command: 0 when it is done, 1 when it was refused or failed, 2 for bad input; `run` ends
/// as its VMM did.
pub fn main() -> ExitCode {
    let arguments = match console::arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    match commands::run(&arguments) {
        Ok(status) => status,
        Err(error) => {
            complain(format_args!("vtpmctl: {}", WithCauses(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// The command line, for manual pages and for the completion of shells.
pub fn command_line() -> clap::Command {
    Arguments::command()
}
