//! A software TPM of one's own in a folder of its own, and the stock tools pointed at it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ring::digest;
use tempfile::TempDir;

use crate::software_tpm::MadeTpm;

/// A running swtpm. It stops when dropped; whatever has a connection to it must come before it
/// in a struct, or after it in a function.
pub struct Swtpm {
    folder: TempDir,
    /// The banks that the firmware of this host measures into.
    measured: Vec<String>,
    /// Where it was made.
    made: Option<MadeTpm>,
}

/// PCRs that every firmware measures into (TCG PC Client Platform Firmware Profile §3.3.4).
const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;

impl Swtpm {
    /// A host's TPM: with an endorsement key certificate from a maker, started, and with a boot
    /// measured into its SHA-256 bank.
    pub fn of_a_host() -> Result<Self> {
        Self::with_banks(&["sha256"], &["sha256"])
    }

    /// The same with these active banks, of which the firmware measures into some.
    pub fn with_banks(active: &[&str], measured: &[&str]) -> Result<Self> {
        Self::copy_of(MadeTpm::first(active)?, measured)
    }

    /// The TPM of another host: those of [`Swtpm::of_a_host`] are copies of one and have the same
    /// keys.
    pub fn of_another_host() -> Result<Self> {
        Self::copy_of(MadeTpm::second(&["sha256"])?, &["sha256"])
    }

    fn copy_of(made: MadeTpm, measured: &[&str]) -> Result<Self> {
        let mut tpm = Self::folder()?;
        made.copy_to(&tpm.path("state"))?;
        tpm.measured = measured.iter().map(|bank| (*bank).to_owned()).collect();
        tpm.made = Some(made);
        tpm.switch_on()?;
        Ok(tpm)
    }

    /// A TPM as it leaves the factory's press: no keys, no certificates, not started.
    pub fn blank() -> Result<Self> {
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
            made: None,
        })
    }

    /// Starts the TPM as after a reset of the machine, and measures the boot as its firmware would:
    /// always the same one.
    pub fn switch_on(&self) -> Result<()> {
        let measured: Vec<&str> = self.measured.iter().map(String::as_str).collect();
        self.switch_on_measuring(&measured)
    }

    /// The same with firmware that measures into these banks.
    pub fn switch_on_measuring(&self, banks: &[&str]) -> Result<()> {
        self.start("not-need-init,startup-clear")?;
        for bank in banks {
            let separator = separator(bank)?;
            let extensions: Vec<String> = FIRMWARE_PCRS
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
    pub fn switch_off(&self) -> Result<()> {
        self.tool(&format!(
            "swtpm_ioctl --unix {}.ctrl -s",
            self.socket().display()
        ))
        .map(drop)
    }

    /// The TPM, in the words of `TPM2TOOLS_TCTI`.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket().display())
    }

    /// The data socket.
    pub fn socket(&self) -> PathBuf {
        self.path("tpm")
    }

    /// Root and intermediate certificate of the TPM's maker.
    pub fn maker_pem(&self) -> Result<String> {
        let made = self.made.as_ref();
        made.context("a blank TPM has no maker")?
            .maker_certificates()
    }

    /// A file in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The contents of such a file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| name.to_owned())
    }

    /// Makes or replaces such a file.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.path(name), contents).with_context(|| name.to_owned())
    }

    /// Runs a line such as `tpm2_nvread 0x01c00002 -o ek.crt` in the test's folder; gives what
    /// it printed.
    pub fn tool(&self, line: &str) -> Result<String> {
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
    pub fn tool_fails(&self, line: &str) -> Result<String> {
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
            .env("TPM2TOOLS_TCTI", self.tcti())
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

/// Digest of a separator event (TCG PC Client Platform Firmware Profile §10.4.1), in hexadecimal.
fn separator(bank: &str) -> Result<String> {
    let algorithm = match bank {
        "sha1" => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        "sha256" => &digest::SHA256,
        "sha384" => &digest::SHA384,
        "sha512" => &digest::SHA512,
        other => bail!("no bank {other}"),
    };
    let digest = digest::digest(algorithm, &[0; 4]);
    Ok(digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
