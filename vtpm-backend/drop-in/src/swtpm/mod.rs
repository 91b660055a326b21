//! `swtpm`: serves a TPM to a VMM.

mod anchored;
mod announcements;
mod command_line;
mod daemon;
mod endpoint;
mod serve;

pub(crate) use announcements::rsa_key_sizes;
pub(crate) use command_line::number;

pub use command_line::command_line;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use program_output::console::{arguments, complain, print};

use command_line::{Command, Program, Socket};

/// The program.
pub fn main() -> ExitCode {
    crate::descriptors::note_what_was_given();
    let program: Program = match arguments() {
        Ok(program) => program,
        Err(end) => return end,
    };
    match run(program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("swtpm: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(program: Program) -> Result<()> {
    if program.version {
        return Ok(print(&crate::version("TPM emulator"))?);
    }
    match program.command {
        None => bail!("say which TPM: `swtpm socket --help` shows how"),
        Some(Command::Socket(socket)) => run_socket(&socket),
        Some(Command::Chardev { .. }) => bail!(
            "chardev is not offered: this program serves sockets (`swtpm socket`); containers need \
             swtpm itself"
        ),
        Some(Command::Cuse { .. }) => bail!(
            "cuse is not offered: it is deprecated in swtpm; this program serves sockets (`swtpm socket`)"
        ),
    }
}

fn run_socket(socket: &Socket) -> Result<()> {
    if socket.print_capabilities {
        return announcements::capabilities(socket.tpm2);
    }
    if socket.print_profiles {
        return announcements::profiles();
    }
    ensure!(
        socket.tpm2,
        "a TPM 1.2 is not offered: add --tpm2 for a TPM 2.0"
    );
    if socket.print_states {
        return announcements::states(socket);
    }
    if let Some(flags) = socket.print_info {
        return announcements::info(socket, flags);
    }
    match crate::anchored::manager()? {
        Some(manager) => anchored::run(socket, &manager),
        None => serve::run(socket),
    }
}
