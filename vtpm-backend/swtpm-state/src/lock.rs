//! The lock by which swtpm and this project exclude each other: a record lock over a whole file.
//!
//! swtpm takes one that belongs to its process (`F_SETLK`). Ours belongs to the open file
//! (`F_OFD_SETLK`), so that it survives a fork and is not lost when another descriptor of the file is
//! closed; the two kinds exclude each other.

use std::fs::File;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, flock};

/// Between two attempts, as swtpm waits.
const PAUSE: Duration = Duration::from_millis(10);
/// Attempts for who can wait half a second. A user that has just ended may still hold its lock: a
/// program that it was starting has a copy of the descriptor until it is executed.
pub(crate) const PATIENT: u32 = 50;

/// Locks a file for its only user: false, if another one has it, also after so many more attempts.
pub(crate) fn lock(file: &File, retries: u32) -> io::Result<bool> {
    for attempt in 0..=retries {
        match set(file, libc::F_WRLCK) {
            Ok(()) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) if attempt < retries => sleep(PAUSE),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Gives the lock back.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    Ok(set(file, libc::F_UNLCK)?)
}

fn set(file: &File, kind: i32) -> Result<(), Errno> {
    let range = flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop)
}
