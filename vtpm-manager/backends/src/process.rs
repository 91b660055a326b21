//! A backend's process, held by a descriptor: its number may be another's once it has ended, the
//! descriptor never is.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A backend's process. It goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    number: i32,
    descriptor: AsyncFd<OwnedFd>,
    /// How it ended, in the words of whoever started it, if that was for this manager.
    report: Option<oneshot::Receiver<String>>,
    status: Option<String>,
}

/// The report follows the end at once, if whoever gives it is alive.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

impl Process {
    /// The process with this number; `None` if there is none. Whoever took the number from a
    /// connection must hear from the process after this: only then it is that one.
    pub(super) fn found(number: i32) -> io::Result<Option<Self>> {
        Self::open(number, None)
    }

    /// A process that was just started for this manager.
    pub(super) fn spawned(
        number: i32,
        report: oneshot::Receiver<String>,
    ) -> io::Result<Option<Self>> {
        Self::open(number, Some(report))
    }

    fn open(number: i32, report: Option<oneshot::Receiver<String>>) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(number) else {
            return Ok(None);
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            other => other?,
        };
        Ok(Some(Self {
            number,
            descriptor: watched(descriptor)?,
            report,
            status: None,
        }))
    }

    /// Its number.
    pub(super) fn number(&self) -> i32 {
        self.number
    }

    /// Waits for its end: how it ended, in words. May be given up and called again.
    pub(super) async fn ended(&mut self) -> String {
        if let Some(status) = &self.status {
            return status.clone();
        }
        if let Err(error) = self.descriptor.readable().await {
            // The runtime ends.
            tracing::debug!(%error, "the end of a backend is not waited for");
            pending::<()>().await;
        }
        let report = match &mut self.report {
            Some(report) => timeout(REPORT_PATIENCE, report).await.ok(),
            None => None,
        };
        let status = match report {
            Some(Ok(status)) => status,
            Some(Err(_)) | None => "nobody saw how it ended".to_owned(),
        };
        self.report = None;
        self.status.insert(status).clone()
    }

    /// Sends SIGKILL; the process may live on for a moment.
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.descriptor, Signal::KILL) {
            tracing::debug!(process = self.number, %error, "the backend was gone already");
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no other way to watch a descriptor")]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same one, until it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_process_is_ended_and_its_end_is_seen_and_nobody_elses() -> anyhow::Result<()> {
        let mut child = Command::new("sleep").arg("60").spawn()?;
        let number = i32::try_from(child.id())?;
        let mut process = Process::found(number)?.ok_or_else(|| anyhow::anyhow!("gone"))?;
        assert!(
            timeout(Duration::from_millis(20), process.ended())
                .await
                .is_err()
        );
        process.kill();
        process.ended().await;
        child.wait()?;
        // Now the number is free; the descriptor reaches no other process.
        process.kill();
        process.ended().await;
        assert!(Process::found(number)?.is_none());
        Ok(())
    }
}
