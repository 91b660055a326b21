//! `vrot-device`: challenges a service in a VM and decides whether to trust it.

use std::process::ExitCode;

use clap::Parser;
use trusted_connection::device::command_line::{Arguments, run};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("vrot-device: {error:#}");
            ExitCode::from(2)
        }
    }
}
