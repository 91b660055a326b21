//! `vtpm-backend`: one vRoT.

use std::process::ExitCode;

use clap::Parser;
use vtpm_backend::command_line::{Arguments, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(arguments.log_level)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vtpm-backend: {error:#}");
            ExitCode::FAILURE
        }
    }
}
