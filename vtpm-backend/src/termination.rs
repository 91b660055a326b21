//! Ending when the process is told to: not in the middle of a command, and with all state saved.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// `SIGTERM` and `SIGINT`, as something to be waited for beside other things.
#[derive(Debug)]
pub struct Termination(SignalFd);

impl Termination {
    /// From now on these signals end nothing by themselves, in this thread and in those that it
    /// starts.
    pub fn watch() -> Result<Self, Errno> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
