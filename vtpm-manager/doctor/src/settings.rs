//! The manager's configuration, as its own program reads it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use printable::Printable;
use serde::Deserialize;

use super::Examination;
use super::finding::{Check, Finding};

/// The manager's program and its configuration.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The program.
    pub manager: PathBuf,
    /// The configuration.
    pub config: PathBuf,
}

/// What the checks need of the configuration: `vtpm-managerd --check-config` writes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Settings {
    pub(crate) tpm: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) event_log: PathBuf,
    pub(crate) policy_pcrs: Vec<u8>,
    pub(crate) quoted_pcrs: Vec<u8>,
}

impl Default for Settings {
    /// Those of the package, for a host whose own cannot be read.
    fn default() -> Self {
        Self {
            tpm: "device:/dev/tpmrm0".to_owned(),
            state_dir: "/var/lib/vtpm-manager".into(),
            event_log: "/run/vrot-host/event-log".into(),
            policy_pcrs: (0..8).collect(),
            quoted_pcrs: (0..8).collect(),
        }
    }
}

pub(crate) fn check(examined: &Examination<'_>, findings: &mut Vec<Finding>) -> Settings {
    let Programs { manager, config } = examined.programs;
    let mut check = Check::new("configuration", findings);
    let answer = Command::new(manager)
        .arg("--check-config")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .output();
    let (program, config) = (manager.display(), config.display());
    match answer {
        Err(error) => check.failed(
            format!("`{program}` cannot be run: {error}"),
            "install the package vrot-host, or name the program with --manager",
        ),
        Ok(answer) if answer.status.success() => match serde_json::from_slice(&answer.stdout) {
            Ok(settings) => {
                check.ok(format!("`{config}` is one that the manager takes"));
                return settings;
            }
            Err(_) => check.failed(
                format!("`{program}` does not say what is in its configuration"),
                "install vrot-host and vrot-operator of one version",
            ),
        },
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.stderr);
            let said = said.trim().lines().last().unwrap_or("no reason is given");
            check.failed(
                format!("`{config}` is refused: {}", Printable(said)),
                format!("correct it, and look at it with `{program} --check-config`"),
            );
        }
    }
    Settings::default()
}
