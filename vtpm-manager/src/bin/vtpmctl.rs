//! The command line of the manager, and of the identity issuer.

use std::process::ExitCode;

use clap::Parser;
use vtpm_manager::ctl::{self, Arguments};

fn main() -> ExitCode {
    ctl::main(&Arguments::parse())
}
