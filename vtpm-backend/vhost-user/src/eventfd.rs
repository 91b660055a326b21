//! The event descriptors (eventfd) with which a VMM says that the driver has put something into a
//! queue, and is told that an answer is there.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `preadv2` reads where the descriptor stands, as `read` does.
const HERE: u64 = u64::MAX;

/// Takes a descriptor only if it is an eventfd. Of others it is not known how long a call takes: a
/// file on a file system that the VMM serves itself would have its reader wait for ever.
pub(crate) fn accept(file: File) -> io::Result<File> {
    // Nothing but an eventfd refuses a read of less than eight bytes and knows the flag.
    let read = preadv2(
        &file,
        &mut [IoSliceMut::new(&mut [0])],
        HERE,
        ReadWriteFlags::NOWAIT,
    );
    match read {
        Err(Errno::INVAL) => {}
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no eventfd")),
    }
    Ok(file)
}

/// The same, for one that is written to: that does not wait, although the counter of one that
/// nobody reads is full some day.
pub(crate) fn accept_to_notify(file: File) -> io::Result<File> {
    let file = accept(file)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    Ok(file)
}

/// Takes what was signalled.
pub(crate) fn clear(descriptor: &OwnedFd) {
    let _ = preadv2(
        descriptor.as_fd(),
        &mut [IoSliceMut::new(&mut [0; 8])],
        HERE,
        ReadWriteFlags::NOWAIT,
    );
}
