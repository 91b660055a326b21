//! A peer that runs beside the test: its output goes to a log, and it ends with its value.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::wait_for;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command`; both its outputs go to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| {
                format!(
                    "starting {name} ({}): is it installed? `make setup` installs what is missing",
                    command.get_program().display()
                )
            })?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the end of the log, when the program is no longer there.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Waits until the program is ready, as `condition` sees it; fails when it dies before.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait_for(what, patience, || {
            let found = condition()?;
            if found.is_none() {
                self.must_run()?;
            }
            Ok(found)
        })
        .with_context(|| format!("{}: {}", self.name, self.last_words()))
    }

    /// Asks the program to end (SIGTERM) and waits for it; after half a minute it is killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        if self.child.try_wait()?.is_none() {
            kill(id, Signal::SIGTERM).with_context(|| format!("stopping {}", self.name))?;
        }
        let ended = wait_for(&self.name, Duration::from_secs(30), || {
            Ok(self.child.try_wait()?)
        });
        if ended.is_err() {
            self.kill()?;
        }
        Ok(self.child.wait()?)
    }

    /// Waits for a program that is about to end by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        wait_for(&self.name, patience, || Ok(self.child.try_wait()?))
    }

    /// Ends the program at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The log's path and its end, for error messages.
    pub fn last_words(&self) -> String {
        format!("log {}:\n{}", self.log.display(), tail(&self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a text file that may hold anything.
pub fn tail(path: &Path) -> String {
    let content = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(15);
    lines.get(start..).unwrap_or_default().join("\n")
}
