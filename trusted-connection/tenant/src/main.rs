//! `vrot-tenant`: asks hosts about their tenant's VMs, and judges the evidence.

use std::process::ExitCode;

use printable::WithCauses;
use program_output::console::{arguments, complain};
use vrot_tenant::command_line::{Arguments, run};

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    match run(&arguments) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            complain(format_args!("vrot-tenant: {}", WithCauses(&*error)));
            ExitCode::from(2)
        }
    }
}
