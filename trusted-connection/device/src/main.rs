//! `vrot-device`: challenges a service in a VM and decides whether to trust it.

use std::process::ExitCode;

use printable::WithCauses;
use program_output::console::{arguments, complain};
use vrot_device::command_line::{Arguments, run};

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    match run(&arguments) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            complain(format_args!("vrot-device: {}", WithCauses(&*error)));
            ExitCode::from(2)
        }
    }
}
