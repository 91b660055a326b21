//! What becomes of this process when a VMM cuts off the memory that it shares: nothing else reads
//! memory that somebody can take away.

use std::io;
use std::os::fd::BorrowedFd;

use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

const LAST_WORDS: &[u8] =
    b"vtpm-backend: the VMM took its guest's memory away, of which a part was \
    being read: this backend ends\n";

/// Has the process say why it ends, by which it ends as it would have anyway (`SIGBUS`).
#[expect(unsafe_code, reason = "a signal handler")]
pub(crate) fn explain() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(say),
        // The access is tried once more, and nothing catches the signal then.
        SaFlags::SA_RESETHAND,
        SigSet::empty(),
    );
    // SAFETY: the handler makes one system call, which a signal handler may.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "standard error has no owner")]
extern "C" fn say(_: c_int) {
    // SAFETY: it is open for as long as the process lives.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    let _ = nix::unistd::write(stderr, LAST_WORDS);
}
