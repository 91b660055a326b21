//! A TPM maker: swtpm_setup, and swtpm_localca as the authority that certifies endorsement keys.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
                "create_certs_tool = swtpm_localca\n\
                 create_certs_tool_config = {0}/localca.conf\n\
                 create_certs_tool_options = {0}/localca.options\n",
                folder.display()
            ),
        )?;
        Ok(Self { folder })
    }

    /// Manufactures a TPM into `state`: endorsement keys, their certificates in its NV memory, and
    /// PCR banks of these algorithms (`sha256`) alone.
    pub fn manufacture(&self, state: &Path, banks: &[&str]) -> Result<()> {
        fs::create_dir_all(state).with_context(|| format!("creating {}", state.display()))?;
        self.manufacture_command(state, banks).run()?;
        Ok(())
    }

    /// The command that [`TpmMaker::manufacture`] runs.
    pub fn manufacture_command(&self, state: &Path, banks: &[&str]) -> Tool {
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
