//! Closing what other processes handed over, on threads of its own, because a close can block.
//!
//! The last close of a socket waits for its peer if that asked for it (`SO_LINGER`), the close of a
//! file for the process that serves its file system, and with a Unix socket goes what was sent over
//! it and never read, other sockets among it. Whoever hands a descriptor over decides which of
//! these it is. So threads that do nothing else close them all.
//!
//! The kernel closes as well, where it is called: what is sent along and finds no room in a `recvmsg`,
//! or is read without room for it. So whoever reads has room for as many as come ([`SCM_MAX_FD`]).

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;

/// A descriptor that came from another process, and that a thread closes when it is dropped.
#[derive(Debug)]
pub struct Foreign<T: Into<OwnedFd> = OwnedFd>(ManuallyDrop<T>);

/// The most descriptors that the kernel delivers with one message.
pub const SCM_MAX_FD: usize = 253;

/// What waits to be closed. A thread takes it out one by one, so that what waits is known.
static WAITING: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
static ARRIVED: Condvar = Condvar::new();
static STARTED: AtomicBool = AtomicBool::new(false);

/// While more than this wait to be closed, nothing more is taken from those who send descriptors:
/// far below the number that a process may have open (`RLIMIT_NOFILE`, 1024 by default) even if one
/// more message brings as many as the kernel allows (253).
const MOST_WAITING: usize = 256;
/// Such a thread calls `close` and nothing that needs more.
const STACK: usize = 64 * 1024;

/// Starts so many threads, unless they run. Until then a [`Foreign`] is closed where it is dropped. Each
/// close that waits keeps one of them.
pub fn start(threads: usize) -> io::Result<()> {
    if STARTED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    for _ in 0..threads {
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
        up.recv().map_err(io::Error::other)?;
    }
    Ok(())
}

impl<T: Into<OwnedFd>> From<T> for Foreign<T> {
    fn from(descriptor: T) -> Self {
        Self(ManuallyDrop::new(descriptor))
    }
}

impl<T: Into<OwnedFd>> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Into<OwnedFd> + AsFd> AsFd for Foreign<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: Into<OwnedFd>> Foreign<T> {
    /// For whoever may be kept waiting by its close.
    #[expect(unsafe_code, reason = "a value is moved out of what has a destructor")]
    pub fn into_inner(self) -> T {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: it is taken once, here: the destructor, which takes it as well, is not run.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

#[expect(unsafe_code, reason = "a value is moved out of what is being dropped")]
impl<T: Into<OwnedFd>> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and not used after this.
        let descriptor = unsafe { ManuallyDrop::take(&mut self.0) }.into();
        if STARTED.load(Ordering::Acquire) {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(descriptor);
            drop(waiting);
            ARRIVED.notify_one();
        }
    }
}

/// Whether so many descriptors wait to be closed that no more are to be taken.
pub fn is_behind() -> bool {
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
