//! `vrot-device proxy`, by which any client reaches an attested service.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use test_support::process::Process;
use test_support::programs::program;

/// A running proxy.
#[derive(Debug)]
pub struct DeviceProxy {
    /// The program.
    pub process: Process,
    /// Where local clients connect.
    pub listen: SocketAddr,
    /// What it says.
    pub log: PathBuf,
}

const STARTED: Duration = Duration::from_secs(30);

impl DeviceProxy {
    /// Starts a proxy to a service, on a port that the system chooses; its log is in `folder`.
    pub fn start(folder: &Path, name: &str, service: SocketAddr, policy: &Path) -> Result<Self> {
        let mut command = Command::new(program("vrot-device")?);
        command
            .args(["proxy", "--listen", "127.0.0.1:0", "--connect"])
            .arg(service.to_string())
            .arg("--policy")
            .arg(policy);
        let log = folder.join(format!("{name}.log"));
        let mut process = Process::start(name, command, &log)?;
        let listen = process.wait_until("that it listens", STARTED, || {
            let said = fs::read_to_string(&log)?;
            Ok(said.lines().find_map(|line| {
                let (_, behind) = line.split_once("listen=")?;
                behind.split_whitespace().next()?.parse().ok()
            }))
        })?;
        Ok(Self {
            process,
            listen,
            log,
        })
    }

    /// Whether the log has said this.
    pub fn said(&self, text: &str) -> Result<bool> {
        Ok(fs::read_to_string(&self.log)?.contains(text))
    }
}
