//! `make demo`: one VM, from the physical TPM to a device's verdict.

use std::process::ExitCode;

use vrot_tests::demo;

fn main() -> ExitCode {
    match demo::run() {
        Ok(verdict) => {
            println!("\nverdict: {verdict}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            match demo::logs() {
                Ok(logs) => eprintln!("Logs of everything it started: {}", logs.display()),
                Err(error) => eprintln!("The logs' folder is not known: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}
