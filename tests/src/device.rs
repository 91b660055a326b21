//! The device: `vrot-device`, and what it is told to expect.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use test_support::programs::program;
use test_support::tool::Tool;
use uuid::Uuid;

/// Where a device keeps what one attestation left.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// The evidence as received.
    pub evidence: PathBuf,
    /// The nonce it answers, in hexadecimal.
    pub nonce: PathBuf,
}

impl Attestation {
    /// In a folder of its own.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            evidence: folder.join("evidence.cbor"),
            nonce: folder.join("nonce.hex"),
        }
    }

    /// The nonce, in hexadecimal.
    pub fn nonce(&self) -> Result<String> {
        let text = std::fs::read_to_string(&self.nonce)
            .with_context(|| format!("reading {}", self.nonce.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// `vrot-device attest`: challenge, appraise, and keep evidence and nonce.
pub fn attest_command(service: SocketAddr, policy: &Path, keep: &Attestation) -> Result<Tool> {
    Ok(challenge_command(service, policy)?
        .arg("--save-evidence")
        .arg(&keep.evidence)
        .arg("--save-nonce")
        .arg(&keep.nonce))
}

/// `vrot-device attest`: challenge and appraise.
pub fn challenge_command(service: SocketAddr, policy: &Path) -> Result<Tool> {
    Ok(Tool::new(program("vrot-device")?)
        .args(["attest", "--connect", &service.to_string()])
        .arg("--policy")
        .arg(policy))
}

/// `vrot-device connect --verdict-only`: connect, and say what is at the other end.
pub fn connect_command(service: SocketAddr, policy: &Path) -> Result<Tool> {
    Ok(Tool::new(program("vrot-device")?)
        .args(["connect", "--verdict-only", &service.to_string()])
        .arg("--policy")
        .arg(policy))
}

/// `vrot-device verify`: appraise kept evidence, offline.
pub fn verify_command(evidence: &Path, nonce: &str, policy: &Path) -> Result<Tool> {
    Ok(Tool::new(program("vrot-device")?)
        .arg("verify")
        .arg("--evidence")
        .arg(evidence)
        .args(["--nonce", nonce])
        .arg("--policy")
        .arg(policy))
}

/// `vrot-device explain --export`: evidence in the forms that others' tools read.
pub fn explain_command(evidence: &Path, export: &Path) -> Result<Tool> {
    Ok(Tool::new(program("vrot-device")?)
        .arg("explain")
        .arg("--evidence")
        .arg(evidence)
        .arg("--export")
        .arg(export))
}

/// A policy for one VM on one host, with the reference values that
/// [`reference_command`] printed.
pub fn policy_text(vm: Uuid, tenant: &str, host: &str, reference: &str) -> String {
    format!(
        "# What the device expects: this VM, on this host, booted like this.\n\
         [trust]\nroots = \"roots.pem\"\n\n\
         [expect]\nvm = \"{vm}\"\ntenant = \"{tenant}\"\nhosts = [\"{host}\"]\n\n\
         [freshness]\nresult_lifetime_s = 300\n\n{reference}"
    )
}

/// Runs a command of `vrot-device` with `--json`: its exit status and what it said.
pub fn judge(command: Tool) -> Result<(i32, Value)> {
    let command = command.arg("--json");
    let line = command.line();
    let output = command.outcome()?;
    let Some(status) = output.status.code() else {
        bail!("`{line}` was ended by a signal: {}", output.status);
    };
    let said = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "`{line}` ended with {status} and did not print JSON:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    // Input that cannot be read (2) may be told on standard error alone.
    let said = match (status, said) {
        (2, Err(_)) => Value::String(String::from_utf8_lossy(&output.stderr).into_owned()),
        (_, said) => said?,
    };
    Ok((status, said))
}

/// `vrot-device reference`: reference values of both layers, from a boot known to be good.
pub fn reference_command(service: SocketAddr, roots: &Path) -> Result<Tool> {
    Ok(Tool::new(program("vrot-device")?)
        .args(["reference", "--connect", &service.to_string()])
        .arg("--roots")
        .arg(roots))
}
