//! Writes manual pages of all programs, and completion for shells, into a folder: one folder in it for
//! each program, with what its package holds below `/usr/share`.
//!
//! ```text
//! vrot-manual FOLDER
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::{Shell, generate_to};

/// Writes manual pages and completion of all programs into a folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The folder, which is made.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Every program, by the name that users call it by.
fn programs() -> Vec<(&'static str, Command)> {
    vec![
        ("vtpmctl", vtpmctl::command_line()),
        ("vtpm-managerd", vtpm_manager::daemon::Arguments::command()),
        (
            "vtpm-backend",
            vtpm_backend::command_line::Arguments::command(),
        ),
        (
            "vrot-service",
            vrot_service::command_line::Arguments::command(),
        ),
        (
            "vrot-device",
            vrot_device::command_line::Arguments::command(),
        ),
        (
            "vrot-confirm",
            vrot_confirm::command_line::Arguments::command(),
        ),
        (
            "vrot-tenant",
            vrot_tenant::command_line::Arguments::command(),
        ),
        ("swtpm", swtpm_drop_in::swtpm::command_line()),
        ("swtpm_setup", swtpm_drop_in::setup::command_line()),
        ("swtpm_ioctl", swtpm_drop_in::ioctl::command_line()),
    ]
}

/// Where each shell of Debian looks, below `/usr/share`.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/vendor-completions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

fn main() -> Result<()> {
    let Arguments { folder } = Arguments::parse();
    for (name, command) in programs() {
        let command = command.name(name).bin_name(name);
        write(name, command, &folder.join(name)).with_context(|| format!("of {name}"))?;
    }
    Ok(())
}

fn write(name: &str, mut command: Command, share: &Path) -> Result<()> {
    let pages = share.join("man/man1");
    fs::create_dir_all(&pages)?;
    // Of commands that can be called: completion adds `help`, which is complete without a page.
    clap_mangen::generate_to(command.clone(), &pages)?;
    for (shell, folder) in SHELLS {
        let folder = share.join(folder);
        fs::create_dir_all(&folder)?;
        let written = generate_to(shell, &mut command, name, &folder)?;
        // bash-completion looks for a file of the program's name.
        if shell == Shell::Bash {
            fs::rename(written, folder.join(name))?;
        }
    }
    Ok(())
}
