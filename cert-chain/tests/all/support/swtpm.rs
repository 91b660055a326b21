//! A software TPM of one's own, with an EK certificate from a maker of one's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A running swtpm and the stock tools pointed at it. It stops when dropped.
pub(crate) struct Swtpm {
    folder: TempDir,
}

impl Swtpm {
    /// Manufactures a TPM with `swtpm_setup` and `swtpm_localca` and starts it.
    pub(crate) fn manufacture() -> Result<Self> {
        let tpm = Self {
            folder: tempfile::tempdir()?,
        };
        let at = |name: &str| tpm.path(name).display().to_string();
        fs::create_dir(tpm.path("state"))?;
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
        let state = at("state");
        let config = at("setup.conf");
        tpm.run(
            "swtpm_setup",
            &[
                "--tpm2",
                "--tpmstate",
                &state,
                "--create-ek-cert",
                "--pcr-banks",
                "sha256,sha384",
                "--config",
                &config,
            ],
        )?;
        // As a daemon it returns when its sockets are listening: no waiting, no sleeping.
        tpm.run(
            "swtpm",
            &[
                "socket",
                "--tpm2",
                "--daemon",
                "--server",
                &format!("type=unixio,path={}", at("tpm")),
                "--ctrl",
                &format!("type=unixio,path={}", at("tpm.ctrl")),
                "--tpmstate",
                &format!("dir={state}"),
                "--flags",
                "not-need-init,startup-clear",
            ],
        )?;
        Ok(tpm)
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

    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        fs::write(self.path(name), contents).with_context(|| name.to_owned())
    }

    /// A `TPM2B_PUBLIC` file without its length.
    pub(crate) fn public_area(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.read(name)?;
        Ok(file.get(2..).context("no TPM2B_PUBLIC")?.to_vec())
    }

    /// Runs a tool line such as `tpm2_nvread 0x01c00002 -o ek.crt` in the test's folder.
    pub(crate) fn tool(&self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let program = words.next().context("no program")?;
        self.run(program, &words.collect::<Vec<_>>())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        run(program, arguments, self.folder.path(), &self.tcti())
    }

    fn tcti(&self) -> String {
        format!("swtpm:path={}", self.path("tpm").display())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let control = self.path("tpm.ctrl").display().to_string();
        // Nothing can be done about a TPM that will not stop; its folder goes away.
        let _ = self.run("swtpm_ioctl", &["--unix", &control, "-s"]);
    }
}

/// Runs a program to its end; its output becomes the error where it fails.
pub(crate) fn run(program: &str, arguments: &[&str], folder: &Path, tcti: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("TPM2TOOLS_TCTI", tcti)
        .env("TSS2_LOG", "all+none")
        .output()
        .with_context(|| format!("{program} is missing: install it"))?;
    if !output.status.success() {
        bail!(
            "{program} {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
