//! The daemon that owns a host's physical TPM and its vRoTs.

use std::process::ExitCode;

use clap::Parser;
use vtpm_manager::daemon::{self, Arguments};

fn main() -> ExitCode {
    daemon::main(&Arguments::parse())
}
