//! The command line of the manager, and of the identity issuer.

use std::process::ExitCode;

use program_output::console;
use vtpm_manager::ctl::{self, Arguments};

fn main() -> ExitCode {
    match console::arguments::<Arguments>() {
        Ok(arguments) => ctl::main(&arguments),
        Err(end) => end,
    }
}
