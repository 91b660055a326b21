//! Test peer: a software TPM of one's own, and the stock tools pointed at it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cert_chain::{HashAlgorithm, PcrSelection};
use tempfile::TempDir;

use super::config::{AnchorConfig, Tcti};

/// A running swtpm. It stops when dropped; whoever has a connection to it must come before it
/// in a struct, or after it in a function.
pub(crate) struct Swtpm {
    folder: TempDir,
    /// The banks that the firmware of this host measures into.
    measured: Vec<HashAlgorithm>,
}

impl Swtpm {
    /// A host's TPM: with an endorsement key certificate from a maker of its own, started, and with
    /// a boot measured into its SHA-256 bank.
    pub(crate) fn of_a_host() -> Result<Self> {
        Self::with_banks(&[HashAlgorithm::Sha256], &[HashAlgorithm::Sha256])
    }

    /// The same with these active banks, of which the firmware measures into some.
    pub(crate) fn with_banks(active: &[HashAlgorithm], measured: &[HashAlgorithm]) -> Result<Self> {
        let mut tpm = Self::folder()?;
        tpm.measured = measured.to_vec();
        let names: Vec<&str> = active.iter().map(|bank| bank.name()).collect();
        let at = |name: &str| tpm.path(name).display().to_string();
        fs::create_dir(tpm.path("maker"))?;
        fs::write(
            tpm.path("localca.conf"),
            format!(
                "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\n\
                 certserial = {0}/certserial\n",
                at("maker")
            ),
        )?;
        fs::write(
            tpm.path("localca.options"),
            "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n",
        )?;
        fs::write(
            tpm.path("setup.conf"),
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\n\
                 create_certs_tool_options = {}\n",
                at("localca.conf"),
                at("localca.options")
            ),
        )?;
        tpm.tool(&format!(
            "swtpm_setup --tpm2 --tpmstate {} --create-ek-cert --pcr-banks {} --config {}",
            at("state"),
            names.join(","),
            at("setup.conf")
        ))?;
        tpm.switch_on()?;
        Ok(tpm)
    }

    /// A TPM as it leaves the factory's press: no keys, no certificates, not started.
    pub(crate) fn blank() -> Result<Self> {
        let tpm = Self::folder()?;
        tpm.start("not-need-init")?;
        Ok(tpm)
    }

    fn folder() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("state"))?;
        Ok(Self {
            folder,
            measured: Vec::new(),
        })
    }

    /// Starts the TPM as after a reset of the machine, and measures the boot as its firmware would:
    /// always the same one.
    pub(crate) fn switch_on(&self) -> Result<()> {
        self.switch_on_measuring(&self.measured)
    }

    /// The same with firmware that measures into these banks.
    pub(crate) fn switch_on_measuring(&self, banks: &[HashAlgorithm]) -> Result<()> {
        self.start("not-need-init,startup-clear")?;
        for bank in banks {
            let separator = bank.hash(&[&[0; 4]]);
            let extensions: Vec<String> = PcrSelection::of_firmware()
                .iter()
                .map(|pcr| format!("{pcr}:{bank}={separator}"))
                .collect();
            self.tool(&format!("tpm2_pcrextend {}", extensions.join(" ")))?;
        }
        Ok(())
    }

    /// As a daemon it returns when its sockets are listening. One that was just switched off says so
    /// before it lets go of its state, so the next one is started again while that is locked.
    fn start(&self, flags: &str) -> Result<()> {
        let line = format!(
            "swtpm socket --tpm2 --daemon --server type=unixio,path={0} \
             --ctrl type=unixio,path={0}.ctrl --tpmstate dir={1} --flags {flags}",
            self.socket().display(),
            self.path("state").display()
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.tool(&line) {
                Err(error) if error.to_string().contains("lock") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                started => return started.map(drop),
            }
        }
    }

    /// Stops the TPM.
    pub(crate) fn switch_off(&self) -> Result<()> {
        self.tool(&format!(
            "swtpm_ioctl --unix {}.ctrl -s",
            self.socket().display()
        ))
        .map(drop)
    }

    /// The data socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("tpm")
    }

    /// A configuration for this TPM, with the record beside it.
    pub(crate) fn config(&self) -> AnchorConfig {
        AnchorConfig::new(Tcti::SwtpmPath(self.socket()), self.path("anchor.json"))
    }

    /// Root and intermediate certificate of the TPM's maker.
    pub(crate) fn maker_pem(&self) -> Result<String> {
        let root = fs::read_to_string(self.path("maker/swtpm-localca-rootca-cert.pem"))?;
        let issuer = fs::read_to_string(self.path("maker/issuercert.pem"))?;
        Ok(root + &issuer)
    }

    /// A file in the test's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| name.to_owned())
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.path(name), contents).with_context(|| name.to_owned())
    }

    /// Runs a line such as `tpm2_nvread 0x01c00002 -o ek.crt` in the test's folder; gives what
    /// it printed.
    pub(crate) fn tool(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        if !output.status.success() {
            bail!(
                "{line}: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a line that must fail; gives what it complained.
    pub(crate) fn tool_fails(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        if output.status.success() {
            bail!("{line}: succeeded, and should not have");
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn run(&self, line: &str) -> Result<Output> {
        let mut words = line.split_whitespace();
        let program = words.next().context("no program")?;
        Command::new(program)
            .args(words)
            .current_dir(self.folder.path())
            .env(
                "TPM2TOOLS_TCTI",
                format!("swtpm:path={}", self.socket().display()),
            )
            .output()
            .with_context(|| format!("{program} is missing: install it"))
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Nothing can be done about a TPM that will not stop; its folder goes away.
        drop(self.switch_off());
    }
}
