//! `vtpm-backend`: one vRoT.

use std::process::ExitCode;

use program_output::console::{arguments, complain};
use program_output::log;
use vtpm_backend::command_line::{Arguments, run};

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    log::start_without_thread(arguments.log_level, arguments.log_format());
    log::on_panic(|_| {});
    let ended = run(&arguments);
    // Lines from before the log had a destination.
    if let Ok(mut stderr) = log::Stderr::at_once() {
        log::pass_on(&mut |line| stderr.write(line));
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vtpm-backend: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
