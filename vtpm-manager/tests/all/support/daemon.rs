//! Starting the daemon, and waiting until it serves.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, bail};

use super::unit::Unit;
use super::{http, manager_program, wait_until};

pub(crate) fn log_of(folder: &Path) -> Result<Stdio> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("daemon.log"))?;
    Ok(log.into())
}

pub(crate) fn daemon_in(folder: &Path) -> Command {
    configured(Command::new(manager_program()), folder)
}

fn configured(mut command: Command, folder: &Path) -> Command {
    command
        .arg("--config")
        .arg(folder.join("config.toml"))
        .stdin(Stdio::null());
    command
}

pub(crate) fn start_daemon(folder: &Path, unit: Option<&Unit>) -> Result<Child> {
    let command = match unit {
        Some(unit) => configured(unit.command(folder)?, folder),
        None => daemon_in(folder),
    };
    start_daemon_by(command, folder, log_of(folder)?)
}

pub(crate) fn start_daemon_logging_to(folder: &Path, log: Stdio) -> Result<Child> {
    start_daemon_by(daemon_in(folder), folder, log)
}

pub(crate) fn start_daemon_with(
    folder: &Path,
    log: Stdio,
    prepare: impl FnOnce(&mut Command),
) -> Result<Child> {
    let mut command = daemon_in(folder);
    prepare(&mut command);
    start_daemon_by(command, folder, log)
}

fn start_daemon_by(mut command: Command, folder: &Path, log: Stdio) -> Result<Child> {
    command.stderr(log);
    wait_for_daemon(command.spawn()?, folder, "the daemon to serve", || {
        is_serving(&folder.join("run/api.sock"))
    })
}

/// Waits for a daemon that was just started, which must not end meanwhile.
pub(crate) fn wait_for_daemon(
    mut daemon: Child,
    folder: &Path,
    what: &str,
    mut is: impl FnMut() -> bool,
) -> Result<Child> {
    wait_until(what, || {
        if let Some(status) = daemon.try_wait()? {
            bail!(
                "the daemon ended with {status}: {}",
                fs::read_to_string(folder.join("daemon.log"))?
            );
        }
        Ok(is())
    })?;
    Ok(daemon)
}

/// Whether a manager answers there and has looked at its store.
fn is_serving(socket: &Path) -> bool {
    let metrics = http::ask(socket, "GET", "/metrics", "");
    metrics.is_ok_and(|metrics| (metrics.body.lines()).any(|line| line == "vrot_store_opening 0"))
}
