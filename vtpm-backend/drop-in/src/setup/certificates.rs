//! Certificates, which another program makes (`create_certs_tool` in the configuration): it is called as
//! swtpm_setup calls it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::libc::O_NOFOLLOW;
use serde_json::Value;
use tempfile::TempDir;

use super::command_line::Options;
use super::configuration::Configuration;
use super::keys::Key;
use super::report::Report;
use super::tpm::{Public, Tpm};

/// Who makes certificates, and which.
pub(super) struct Authority<'s> {
    options: &'s Options,
    report: &'s Report,
    /// The program, if one is configured.
    tool: Option<String>,
    configfile: Option<String>,
    optsfile: Option<String>,
    /// Where it leaves them: this user's alone.
    folder: TempDir,
}

/// A certificate, and where it goes.
pub(super) struct Certificate {
    pub(super) what: String,
    pub(super) index: u32,
    pub(super) der: Vec<u8>,
    is_of_key: bool,
}

/// TCG EK Credential Profile, where platform certificates are.
const PLATFORM_INDEX: u32 = 0x01c0_8000;
/// Longer ones have no room in a TPM.
const MOST: u64 = 64 * 1024;
/// `TPMLIB_INFO_TPMSPECIFICATION` and `TPMLIB_INFO_TPMATTRIBUTES`
const INFO: u64 = 1 | 2;
const FACTS: [(&str, &str); 6] = [
    ("--tpm-spec-family", "/TPMSpecification/family"),
    ("--tpm-spec-level", "/TPMSpecification/level"),
    ("--tpm-spec-revision", "/TPMSpecification/revision"),
    ("--tpm-manufacturer", "/TPMAttributes/manufacturer"),
    ("--tpm-model", "/TPMAttributes/model"),
    ("--tpm-version", "/TPMAttributes/version"),
];

impl<'s> Authority<'s> {
    pub(super) fn new(
        options: &'s Options,
        configuration: &Configuration,
        report: &'s Report,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("swtpm_setup.certs.")
            .tempdir()
            .context("there is no place for certificates")?;
        Ok(Self {
            options,
            report,
            tool: configuration.get("create_certs_tool"),
            configfile: configuration.get("create_certs_tool_config"),
            optsfile: configuration.get("create_certs_tool_options"),
            folder,
        })
    }

    /// Has the certificates made that were asked for: that of this key, and, with the first key, that of
    /// the platform.
    pub(super) fn certify(
        &self,
        tpm: &Tpm,
        key: &Key,
        public: &Public,
        is_first: bool,
    ) -> Result<Vec<Certificate>> {
        let mut made = Vec::new();
        let Some(tool) = &self.tool else {
            return Ok(made);
        };
        let facts = facts(tpm)?;
        if self.options.create_ek_cert {
            made.push(Certificate {
                what: format!("{} EK certificate", key.name),
                index: key.certificate_index,
                der: self.run(tool, "ek", key, public, &facts)?,
                is_of_key: true,
            });
        }
        if self.options.create_platform_cert && is_first {
            made.push(Certificate {
                what: "platform certificate".to_owned(),
                index: PLATFORM_INDEX,
                der: self.run(tool, "platform", key, public, &facts)?,
                is_of_key: false,
            });
        }
        Ok(made)
    }

    /// Runs the program for one certificate.
    fn run(
        &self,
        tool: &str,
        kind: &str,
        key: &Key,
        public: &Public,
        facts: &[String],
    ) -> Result<Vec<u8>> {
        let folder = self.folder.path();
        let mut command = Command::new(tool);
        command.args(["--type", kind, "--ek", &described(key, public)]);
        command.arg("--dir").arg(folder);
        if self.options.allow_signing {
            command.arg("--allow-signing");
            if self.options.decryption {
                command.arg("--decryption");
            }
        }
        if let Some(log) = self.report.path() {
            command.arg("--logfile").arg(log);
        }
        if let Some(id) = &self.options.vmid {
            command.args(["--vmid", id]);
        }
        command.args(facts).arg("--tpm2");
        for (option, file) in [
            ("--configfile", &self.configfile),
            ("--optsfile", &self.optsfile),
        ] {
            if let Some(file) = file {
                command.args([option, file]);
            }
        }
        let arguments: Vec<_> = command
            .get_args()
            .map(|part| part.to_string_lossy())
            .collect();
        self.report
            .say(&format!("  Invoking {tool} {}", arguments.join(" ")));
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{tool} (create_certs_tool) cannot be started"))?;
        ensure!(
            output.status.success(),
            "{tool} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let name = Path::new(tool).file_name().unwrap_or_default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let name = name.to_string_lossy();
            self.report.say(&format!("{name}: {line}"));
        }
        let path = folder.join(format!("{kind}.cert"));
        let shown = path.display();
        let length = fs::metadata(&path).with_context(|| format!("{tool} left no {shown}"))?;
        ensure!(
            length.len() <= MOST,
            "{shown} has {} bytes: it is no certificate",
            length.len()
        );
        let der = fs::read(&path).with_context(|| format!("{shown} cannot be read"))?;
        fs::remove_file(&path).with_context(|| format!("{shown} cannot be removed"))?;
        Ok(der)
    }
}

impl Certificate {
    /// Leaves a copy of an endorsement key's certificate in this folder, if one was named.
    pub(super) fn keep(&self, folder: Option<&Path>, key: &Key) -> Result<()> {
        let Some(folder) = folder.filter(|_| self.is_of_key) else {
            return Ok(());
        };
        let path = folder.join(format!("ek-{}.crt", key.short));
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .and_then(|mut file| file.write_all(&self.der))
            .with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// The key as the program reads it.
fn described(key: &Key, public: &Public) -> String {
    match public {
        Public::Rsa { modulus } => hex::encode(modulus),
        Public::Ecc { x, y } => {
            format!("x={},y={},id={}", hex::encode(x), hex::encode(y), key.short)
        }
    }
}

/// What a certificate says of the TPM.
fn facts(tpm: &Tpm) -> Result<Vec<String>> {
    let info: Value =
        serde_json::from_str(&tpm.info(INFO)?).context("libtpms describes itself in no JSON")?;
    let mut facts = Vec::new();
    for (option, place) in FACTS {
        let fact = match info.pointer(place) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => anyhow::bail!("libtpms does not say {place}"),
        };
        facts.extend([option.to_owned(), fact]);
    }
    Ok(facts)
}
