//! What holds by a configuration, for programs that look at the host from outside.

use std::path::Path;

use serde::Serialize;

use super::Config;

/// Where things are, and what the physical TPM is asked for.
#[derive(Serialize)]
struct Shown<'a> {
    tpm: String,
    state_dir: &'a Path,
    runtime_dir: &'a Path,
    socket: &'a Path,
    backend: &'a Path,
    event_log: &'a Path,
    policy_pcrs: Vec<u8>,
    quoted_pcrs: Vec<u8>,
}

impl Config {
    /// The settings that concern others, as JSON.
    pub fn shown(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Shown {
            tpm: self.anchor.tpm.to_string(),
            state_dir: &self.state_dir,
            runtime_dir: &self.runtime_dir,
            socket: &self.socket,
            backend: &self.backend,
            event_log: &self.event_log,
            policy_pcrs: self.anchor.policy_pcrs.iter().collect(),
            quoted_pcrs: self.anchor.quoted_pcrs.iter().collect(),
        })
    }
}
