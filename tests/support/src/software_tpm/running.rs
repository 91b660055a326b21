//! A software TPM that is switched on.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;
use crate::sockets::is_listened_at;
use crate::tool::Tool;

const PATIENCE: Duration = Duration::from_secs(60);

/// A TPM that is switched on. It ends with its value.
#[derive(Debug)]
pub struct SoftwareTpm {
    process: Process,
    socket: PathBuf,
}

impl SoftwareTpm {
    /// Switches the TPM of this state on, as a reset of its machine does, and starts it
    /// (`TPM2_Startup` with `TPM_SU_CLEAR`).
    ///
    /// Its data socket is `socket`, its control channel the same with `.ctrl`, where tpm2-tss
    /// looks for it.
    pub fn start(name: &str, state: &Path, socket: &Path, log: &Path) -> Result<Self> {
        Self::start_with(name, state, socket, log, "not-need-init,startup-clear")
    }

    /// The same without starting it, as a machine's firmware finds it.
    pub fn switch_on(name: &str, state: &Path, socket: &Path, log: &Path) -> Result<Self> {
        Self::start_with(name, state, socket, log, "not-need-init")
    }

    fn start_with(
        name: &str,
        state: &Path,
        socket: &Path,
        log: &Path,
        flags: &str,
    ) -> Result<Self> {
        let control = control_of(socket);
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--flags", flags, "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()));
        let mut process = Process::start(&format!("{name} (swtpm)"), command, log)?;
        process.wait_until("swtpm's sockets", PATIENCE, || {
            // The data socket takes one client at a time and must not be tried out.
            Ok(UnixStream::connect(&control)
                .ok()
                .filter(|_| is_listened_at(socket)))
        })?;
        Ok(Self {
            process,
            socket: socket.to_owned(),
        })
    }

    /// How tpm2-tss and our programs reach it: `swtpm:path=…`.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket.display())
    }

    /// Its data socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Extends values into PCRs, each as `0:sha256=HEX`, as a machine's firmware would.
    pub fn extend(&self, values: impl IntoIterator<Item = String>) -> Result<()> {
        Tool::new("tpm2_pcrextend")
            .args(values)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .run()?;
        Ok(())
    }

    /// Switches the TPM off in order: it keeps what an orderly end keeps.
    pub fn switch_off(mut self) -> Result<()> {
        Tool::new("swtpm_ioctl")
            .arg("--unix")
            .arg(control_of(&self.socket))
            .arg("-s")
            .run()?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }

    /// Switches the TPM off, as a loss of power would.
    pub fn power_off(mut self) -> Result<()> {
        self.process.kill()
    }
}

/// The command that starts swtpm as a VMM has it: with a control channel alone.
pub fn emulator_command(state: &Path, control: &Path) -> Command {
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", control.display()));
    command
}

fn control_of(socket: &Path) -> PathBuf {
    let mut control = socket.as_os_str().to_owned();
    control.push(".ctrl");
    control.into()
}
