//! Closing what other processes handed over, on a thread of its own, because a close can block.
//!
//! The last close of a socket waits for its peer if that asked for it (`SO_LINGER`), the close of a
//! file for the process that serves its file system, and with a Unix socket goes what was sent over
//! it and never read, other sockets among it. Whoever hands a descriptor over decides which of
//! these it is. So one thread, which does nothing else, closes them all.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;

/// A descriptor that came from another process, and that the thread closes when it is dropped.
#[derive(Debug)]
pub struct Foreign(ManuallyDrop<OwnedFd>);

/// What waits to be closed. The thread takes it out one by one, so that what waits is known.
static WAITING: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
static ARRIVED: Condvar = Condvar::new();
static STARTED: AtomicBool = AtomicBool::new(false);

/// While more than this wait to be closed, nothing more is taken from those who send descriptors:
/// far below the number that a process may have open (`RLIMIT_NOFILE`, 1024 by default) even if one
/// more message brings as many as the kernel allows (253).
const MOST_WAITING: usize = 256;
/// The thread calls `close` and nothing that needs more.
const STACK: usize = 64 * 1024;

/// Starts the thread, unless it runs. Until then a [`Foreign`] is closed where it is dropped.
pub(crate) fn start() -> io::Result<()> {
    if STARTED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    let (is_up, up) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("closing".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let _ = is_up.send(());
            drop(is_up);
            close_all();
        })?;
    // Starting a thread takes system calls that a confined process may not make.
    up.recv().map_err(io::Error::other)
}

impl From<OwnedFd> for Foreign {
    fn from(descriptor: OwnedFd) -> Self {
        Self(ManuallyDrop::new(descriptor))
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[expect(unsafe_code, reason = "a value is moved out of what is being dropped")]
impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and not used after this.
        let descriptor = unsafe { ManuallyDrop::take(&mut self.0) };
        if STARTED.load(Ordering::Acquire) {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(descriptor);
            drop(waiting);
            ARRIVED.notify_one();
        }
    }
}

/// Whether so many descriptors wait to be closed that no more are to be taken.
pub(crate) fn is_behind() -> bool {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.len() > MOST_WAITING
}

fn close_all() {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match waiting.pop() {
            Some(descriptor) => {
                drop(waiting);
                drop(descriptor);
                waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            }
            None => {
                waiting = ARRIVED
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
