//! `vrot-confirm`: a person confirms what a terminal shows, with a PIN that a TPM checks.

use std::process::ExitCode;

use printable::WithCauses;
use program_output::console::{arguments, complain};
use vrot_confirm::command_line::{Arguments, run};

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    match run(&arguments) {
        Ok(end) => end,
        Err(error) => {
            complain(format_args!("vrot-confirm: {}", WithCauses(&*error)));
            ExitCode::from(2)
        }
    }
}
