//! `make bench`: figures beside those of peers, on this machine, into `target/bench.json`.

use std::process::ExitCode;

use clap::Parser;
use vrot_tests::bench::{self, Arguments};

fn main() -> ExitCode {
    match bench::run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
