//! A software TPM of one's own, with an EK certificate from a maker, and the stock tools pointed at
//! it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;
use test_support::software_tpm::{MadeTpm, SoftwareTpm};
use test_support::tool::Tool;

const BANKS: &[&str] = &["sha256", "sha384"];

/// A running swtpm with a folder beside it. It stops when dropped.
pub(crate) struct Swtpm {
    tpm: SoftwareTpm,
    made: MadeTpm,
    folder: TempDir,
}

impl Swtpm {
    /// A manufactured TPM, started.
    pub(crate) fn manufactured() -> Result<Self> {
        Self::start(MadeTpm::first(BANKS)?)
    }

    /// One of another maker.
    pub(crate) fn of_another_maker() -> Result<Self> {
        Self::start(MadeTpm::of_another_maker(BANKS)?)
    }

    fn start(made: MadeTpm) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        made.copy_to(&at("state"))?;
        let tpm = SoftwareTpm::start("the TPM", &at("state"), &at("tpm"), &at("log"))?;
        Ok(Self { tpm, made, folder })
    }

    /// Root and intermediate certificate of the TPM's maker.
    pub(crate) fn maker_pem(&self) -> Result<String> {
        self.made.maker_certificates()
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
        Tool::new(program)
            .args(words)
            .folder(self.folder.path())
            .env("TPM2TOOLS_TCTI", self.tpm.tcti())
            .env("TSS2_LOG", "all+none")
            .run()?;
        Ok(())
    }
}
