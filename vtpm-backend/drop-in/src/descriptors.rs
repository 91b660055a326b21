//! Descriptors that a parent process gave, by their numbers.
#![expect(
    unsafe_code,
    reason = "a number on the command line becomes a descriptor of this process"
)]

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use nix::libc;

static GIVEN: OnceLock<BTreeSet<RawFd>> = OnceLock::new();
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Notes which descriptors the parent gave, at the very beginning: a number that is none of theirs might
/// mean something of this process later.
pub(crate) fn note_what_was_given() {
    let entries = std::fs::read_dir("/proc/self/fd");
    let names = entries.into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.collect();
    // Not that of the folder itself, which is closed by now.
    // SAFETY: numbers only; whether the descriptors exist is what is asked.
    let open = numbers
        .into_iter()
        .filter(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
    let _ = GIVEN.set(open.collect());
}

/// Takes the descriptor with this number, once. What is started from here does not get it.
pub(crate) fn take(number: RawFd) -> Result<OwnedFd> {
    ensure!(
        number > libc::STDERR_FILENO,
        "descriptor {number} cannot be used: give one above 2"
    );
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        !taken.contains(&number),
        "descriptor {number} is given for two things"
    );
    let given = GIVEN.get().is_some_and(|given| given.contains(&number));
    // SAFETY: numbers only; whether the descriptor exists is what is asked.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    ensure!(
        given && set == 0,
        "descriptor {number} is not open: the program that starts this one has to pass it on"
    );
    taken.insert(number);
    // SAFETY: it is open, came from the parent, and is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
