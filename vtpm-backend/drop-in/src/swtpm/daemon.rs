//! Serving in the background (`--daemon`).
//!
//! The process starts itself anew and waits until that serves: its exit status says whether there is a
//! TPM. It does not fork after it was set up: keys in memory that is locked would be in memory that is
//! not.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Says to the program that it is the one in the background, and that its standard output is for
/// [`READY`].
const IN_BACKGROUND: &str = "VROT_SWTPM_IN_BACKGROUND";
const READY: &[u8] = b"ready";

/// Whether this is the process in the background.
pub(super) fn is_in_background() -> bool {
    std::env::var_os(IN_BACKGROUND).is_some()
}

/// Starts it and waits until it serves.
pub(super) fn start() -> Result<()> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "swtpm".into());
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env(IN_BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the process in the background does not start")?;
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output
            .take(64)
            .read_to_end(&mut said)
            .context("the process in the background cannot be heard")?;
    }
    ensure!(
        said == READY,
        "the process in the background does not serve: its log, or what it said above, tells why"
    );
    Ok(())
}

/// Leaves whoever started this process behind: its session, folder, and standard streams, of which
/// standard error stays if it is the log.
pub(super) fn detach(has_log: bool) -> Result<()> {
    // Fails only where the process leads a session of its own already.
    let _ = setsid();
    std::env::set_current_dir("/")?;
    let nothing = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    io::stdout().write_all(READY)?;
    io::stdout().flush()?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    if !has_log {
        dup2_stderr(&nothing)?;
    }
    Ok(())
}
