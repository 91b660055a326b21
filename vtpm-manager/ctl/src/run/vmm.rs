//! The VMM's process: it has this terminal, and is passed the signals that are meant for it.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::task::Poll;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command as AsyncCommand;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// How a VMM ended.
#[derive(Debug)]
pub(super) enum VmmEnd {
    /// With this exit status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// It was never executed.
    NotRun(io::Error),
    /// It cannot be told.
    Unknown(io::Error),
}

/// The signals that end or speak to a VMM. From the moment that they are caught, none ends this
/// process.
#[derive(Debug)]
pub(super) struct Signals {
    runtime: Runtime,
    streams: Vec<(Signal, Stream)>,
}

const PASSED_ON: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

impl Signals {
    /// Catches them.
    pub(super) fn catch() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let streams: io::Result<Vec<_>> = PASSED_ON
            .into_iter()
            .map(|caught| Ok((caught, signal(SignalKind::from_raw(caught as i32))?)))
            .collect();
        drop(entered);
        Ok(Self {
            runtime,
            streams: streams?,
        })
    }

    /// Runs a VMM until it ends.
    pub(super) fn attend(&mut self, command: Command) -> VmmEnd {
        let streams = &mut self.streams;
        self.runtime.block_on(async {
            let mut vmm = match AsyncCommand::from(command).spawn() {
                Ok(vmm) => vmm,
                Err(error) => return VmmEnd::NotRun(error),
            };
            loop {
                tokio::select! {
                    ended = vmm.wait() => return ended.map_or_else(VmmEnd::Unknown, how),
                    caught = next(streams) => {
                        if let Some(id) = vmm.id().filter(|_| !has_it_already(caught)) {
                            pass_on(caught, id);
                        }
                    }
                }
            }
        })
    }
}

fn how(status: ExitStatus) -> VmmEnd {
    // Both fit: wait(2) has eight bits of a status, and there are 64 signals.
    let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
    match (byte(status.code()), byte(status.signal())) {
        (Some(code), _) => VmmEnd::Exited(code),
        (None, Some(signal)) => VmmEnd::Signalled(signal),
        (None, None) => VmmEnd::Unknown(io::Error::other(status.to_string())),
    }
}

async fn next(streams: &mut [(Signal, Stream)]) -> Signal {
    poll_fn(|context| {
        for (caught, stream) in streams.iter_mut() {
            if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                return Poll::Ready(*caught);
            }
        }
        Poll::Pending
    })
    .await
}

/// A terminal sends what its keys mean to all of its foreground processes, the VMM among them:
/// passed on, it would arrive twice.
fn has_it_already(caught: Signal) -> bool {
    let is_of_a_key = matches!(caught, Signal::SIGINT | Signal::SIGQUIT);
    is_of_a_key && fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_in_foreground(&stat))
}

/// Whether a process is in the foreground of its terminal (proc(5), `/proc/PID/stat`: the fields
/// `pgrp` and `tpgid`, counted after the name in brackets, which may contain anything).
fn is_in_foreground(stat: &str) -> bool {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace();
    let (group, foreground) = (fields.nth(2), fields.nth(2));
    group.is_some() && group == foreground
}

/// The process is not waited for before it has ended: the number is its own.
fn pass_on(caught: Signal, process: u32) {
    if let Ok(process) = i32::try_from(process) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(process), caught);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_is_read_from_the_fields_after_the_name() {
        assert!(is_in_foreground("7 (a) b 9 9) S 1 42 42 34816 42 4194304"));
        assert!(!is_in_foreground("7 (vtpmctl) S 1 42 42 34816 43 4194304"));
        assert!(!is_in_foreground("7 (vtpmctl) S 1 42 42 0 -1 4194304"));
        assert!(!is_in_foreground(""));
    }
}
