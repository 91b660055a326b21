//! The identity issuer: a folder that `vtpmctl issuer` keeps.

use std::path::{Path, PathBuf};

use anyhow::Result;
use test_support::programs::program;
use test_support::tool::Tool;

/// An issuer's folder: its key, its root certificate, and the TPM makers it trusts.
#[derive(Clone, Debug)]
pub struct IssuerFolder {
    folder: PathBuf,
    makers: PathBuf,
    operators: Vec<PathBuf>,
}

impl IssuerFolder {
    /// Makes an issuer for a domain that accepts the TPMs of the makers with these certificates; no
    /// operator yet.
    pub fn create(folder: &Path, domain: &str, makers: &str) -> Result<Self> {
        let issuer = Self::prepare(folder, makers, &[])?;
        issuer.init_command(domain)?.run()?;
        Ok(issuer)
    }

    /// Writes down the makers' certificates, before [`IssuerFolder::init_command`] is run.
    /// `operators` are files with public keys.
    pub fn prepare(folder: &Path, makers: &str, operators: &[PathBuf]) -> Result<Self> {
        let file = folder.with_extension("tpm-makers.pem");
        std::fs::write(&file, makers)?;
        Ok(Self {
            folder: folder.to_owned(),
            makers: file,
            operators: operators.to_vec(),
        })
    }

    /// The command that makes the issuer.
    pub fn init_command(&self, domain: &str) -> Result<Tool> {
        let mut tool = Tool::new(program("vtpmctl")?)
            .args(["issuer", "init", "--domain", domain])
            .arg("--dir")
            .arg(&self.folder)
            .arg("--tpm-roots")
            .arg(&self.makers);
        if !self.operators.is_empty() {
            tool = tool.arg("--operator-keys").args(&self.operators);
        }
        Ok(tool)
    }

    /// Accepts the operator with this public key.
    pub fn accept_operator(&self, public_key: &Path) -> Result<()> {
        Tool::new(program("vtpmctl")?)
            .args(["issuer", "operator-key", "add", "--dir"])
            .arg(&self.folder)
            .arg(public_key)
            .run()?;
        Ok(())
    }

    /// A copy, which revokes hosts that the issuer itself goes on to vouch for.
    pub fn copy_to(&self, folder: &Path) -> Result<Self> {
        let copy = Tool::new("cp").arg("-r").arg(&self.folder).arg(folder);
        copy.run()?;
        Ok(Self {
            folder: folder.to_owned(),
            ..self.clone()
        })
    }

    /// The command that makes a revocation list.
    pub fn crl_command(&self, out: &Path) -> Result<Tool> {
        Ok(Tool::new(program("vtpmctl")?)
            .args(["issuer", "crl", "--dir"])
            .arg(&self.folder)
            .arg("--out")
            .arg(out))
    }

    /// The command that revokes a host, and makes a list that says so.
    pub fn revoke_command(&self, host: &str, out: &Path) -> Result<Tool> {
        Ok(Tool::new(program("vtpmctl")?)
            .args(["issuer", "revoke", "--dir"])
            .arg(&self.folder)
            .args(["--host", host, "--reason", "key-compromise", "--crl"])
            .arg(out))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root certificate that verifiers trust.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }
}
