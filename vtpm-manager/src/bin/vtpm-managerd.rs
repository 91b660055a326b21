//! The daemon that owns a host's physical TPM and its vRoTs.

use std::process::ExitCode;

use program_output::console;
use vtpm_manager::daemon::{self, Arguments};

fn main() -> ExitCode {
    match console::arguments::<Arguments>() {
        Ok(arguments) => daemon::main(&arguments),
        Err(end) => end,
    }
}
