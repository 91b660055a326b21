//! How the daemon ends when it is told to: its terminal is as before, and the person can switch to others.

use std::io;
use std::process;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::terminal::Tty;
use crate::virtual_terminal::SwitchLock;

/// From now on, signals that end a daemon end this process in that way. Threads must be started later.
pub(crate) fn end_well(terminal: &Tty, lock: SwitchLock) -> io::Result<()> {
    let before = terminal.before()?;
    let mut signals = SigSet::empty();
    // The terminal's end is one, too, where it controls this process.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    thread::spawn(move || {
        // It fails for no set of signals that there are.
        let _ = signals.wait();
        let _ = lock.release(before.device());
        before.restore();
        process::exit(0);
    });
    Ok(())
}
