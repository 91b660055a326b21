//! swtpm in the role of a host's physical TPM, with certificates from a TPM maker.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm;

use crate::host_boot_log::HostBootLog;
use crate::process::Process;
use crate::run_folder::RunFolder;
use crate::tool::Tool;

/// A TPM maker: the authority (swtpm_localca) that certifies endorsement keys.
#[derive(Clone, Debug)]
pub struct TpmMaker {
    folder: PathBuf,
}

impl TpmMaker {
    /// A maker of its own, whose keys lie in `folder`; they are made with the first TPM.
    pub fn create(folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        let authority = folder.join("authority");
        fs::create_dir_all(&authority)
            .with_context(|| format!("creating {}", authority.display()))?;
        fs::write(
            folder.join("localca.conf"),
            format!(
                "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\n\
                 certserial = {0}/certserial\n",
                authority.display()
            ),
        )?;
        fs::write(
            folder.join("localca.options"),
            "--platform-manufacturer Demo\n--platform-version 1.0\n--platform-model Server\n",
        )?;
        fs::write(
            folder.join("setup.conf"),
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\n\
                 create_certs_tool_config = {0}/localca.conf\n\
                 create_certs_tool_options = {0}/localca.options\n",
                folder.display()
            ),
        )?;
        Ok(Self { folder })
    }

    /// Manufactures a TPM into `state`: endorsement keys, their certificates in its NV memory, a
    /// SHA-256 bank.
    pub fn manufacture(&self, state: &Path) -> Result<()> {
        self.manufacture_with(state, &[HashAlgorithm::Sha256])
    }

    /// The same with these PCR banks, and no others.
    pub fn manufacture_with(&self, state: &Path, banks: &[HashAlgorithm]) -> Result<()> {
        fs::create_dir_all(state).with_context(|| format!("creating {}", state.display()))?;
        self.manufacture_command(state, banks).run()?;
        Ok(())
    }

    /// The command that [`TpmMaker::manufacture_with`] runs.
    pub fn manufacture_command(&self, state: &Path, banks: &[HashAlgorithm]) -> Tool {
        let banks: Vec<&str> = banks.iter().map(|bank| bank.name()).collect();
        Tool::new("swtpm_setup")
            .args([
                "--tpm2",
                "--create-ek-cert",
                "--create-platform-cert",
                "--lock-nvram",
            ])
            .args(["--pcr-banks", &banks.join(",")])
            .arg("--config")
            .arg(self.folder.join("setup.conf"))
            .arg("--tpmstate")
            .arg(state)
    }

    /// The maker's certificates (root and intermediate) in one PEM text, for an issuer to trust.
    pub fn certificates(&self) -> Result<String> {
        let authority = self.folder.join("authority");
        let mut text = String::new();
        for name in ["swtpm-localca-rootca-cert.pem", "issuercert.pem"] {
            let path = authority.join(name);
            text.push_str(
                &fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?,
            );
        }
        Ok(text)
    }
}

/// A switched-on TPM.
#[derive(Debug)]
pub struct SoftwareTpm {
    process: Process,
    socket: PathBuf,
}

impl SoftwareTpm {
    /// Switches a manufactured TPM on (its PCRs are then as after a reset).
    pub fn start(folder: &RunFolder, name: &str, state: &Path) -> Result<Self> {
        let socket = folder.join(format!("{name}.tpm"));
        let control = folder.join(format!("{name}.tpm.ctrl"));
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()));
        let mut process = Process::start(
            &format!("{name} (swtpm)"),
            command,
            &folder.log(&format!("{name}-swtpm.log")),
        )?;
        process.wait_until("swtpm's sockets", Duration::from_secs(20), || {
            // The control socket is made last; the data socket takes one client at a time and
            // must not be tried out.
            Ok(UnixStream::connect(&control)
                .ok()
                .filter(|_| socket.exists()))
        })?;
        Ok(Self { process, socket })
    }

    /// How tpm2-tss and our programs reach it: `swtpm:path=…`.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket.display())
    }

    /// Extends a host's boot log into the PCRs, as the host's firmware and boot loader would.
    pub fn measure(&self, log: &HostBootLog) -> Result<()> {
        let extensions = log
            .measurements()
            .iter()
            .map(|(pcr, digest)| format!("{pcr}:{}={digest}", digest.algorithm()));
        Tool::new("tpm2_pcrextend")
            .args(extensions)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .run()?;
        Ok(())
    }

    /// Switches the TPM off, as a loss of power would.
    pub fn power_off(mut self) -> Result<()> {
        self.process.kill()
    }
}
