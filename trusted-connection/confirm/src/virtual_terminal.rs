//! Virtual terminals of the machine (console_ioctl(4), `linux/vt.h`): while a person is asked, theirs is the one
//! that is seen, and no key and no program without rights of root switches to another.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{major, minor};
use rustix::ioctl::{Getter, IntegerSetter, NoArg, Opcode, ioctl};
use rustix::thread::{CapabilitySet, capabilities};

/// A virtual terminal that is in front, and stays there. The one before comes back when this is dropped.
pub(crate) struct InFront<'t> {
    terminal: &'t File,
    before: u16,
    lock: &'t SwitchLock,
}

/// The lock with which no key switches to another terminal (`VT_LOCKSWITCH`). The kernel has one, and does not say
/// whose it is: that this daemon took it, or an earlier one that was killed, is noted in a file.
#[derive(Clone, Debug)]
pub(crate) struct SwitchLock {
    noted: PathBuf,
}

/// Devices of virtual terminals (`Documentation/admin-guide/devices.txt`).
const TTY_MAJOR: u32 = 4;
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=63;
/// For a terminal to come to the front. Whoever holds the one before may not let it go, or somebody else have locked it.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(10);

const VT_GETSTATE: Opcode = 0x5603;
const VT_ACTIVATE: Opcode = 0x5606;
const VT_LOCKSWITCH: Opcode = 0x560b;
const VT_UNLOCKSWITCH: Opcode = 0x560c;

/// The number of a virtual terminal; `None` for a terminal of another kind.
pub(crate) fn number(terminal: &File) -> io::Result<Option<u16>> {
    let device = terminal.metadata()?.rdev();
    let number = minor(device);
    let is_virtual = major(device) == TTY_MAJOR && NUMBERS.contains(&number);
    Ok(u16::try_from(number).ok().filter(|_| is_virtual))
}

/// Whether this process may bring terminals to the front and lock them there.
pub(crate) fn may_switch() -> io::Result<bool> {
    let effective = capabilities(None)?.effective;
    Ok(effective.contains(CapabilitySet::SYS_TTY_CONFIG))
}

impl<'t> InFront<'t> {
    /// Brings it to the front and holds it there (`CAP_SYS_TTY_CONFIG`). Refused if it does not come in time.
    pub(crate) fn bring(terminal: &'t File, number: u16, lock: &'t SwitchLock) -> io::Result<Self> {
        let before = active(terminal)?;
        let held = Self {
            terminal,
            before,
            lock,
        };
        activate(terminal, number)?;
        let until = Instant::now() + PATIENCE;
        // Not VT_WAITACTIVE, which waits for ever.
        while active(terminal)? != number {
            if Instant::now() >= until {
                return Err(io::Error::other(
                    "another terminal stays in front: it is locked there, or its program does not let it go",
                ));
            }
            thread::sleep(INTERVAL);
        }
        lock.take(terminal)?;
        // Somebody may have switched between these two.
        match active(terminal)? == number {
            true => Ok(held),
            false => Err(io::Error::other("another terminal came to the front")),
        }
    }
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
impl SwitchLock {
    /// The one of the daemon with this socket.
    pub(crate) fn beside(socket: &Path) -> Self {
        let mut noted = socket.as_os_str().to_owned();
        noted.push(".locked");
        Self {
            noted: noted.into(),
        }
    }

    fn take(&self, terminal: &File) -> io::Result<()> {
        // First, as the daemon may be killed at any time.
        fs::write(&self.noted, "")?;
        // SAFETY: it takes nothing.
        unsafe { ioctl(terminal, NoArg::<VT_LOCKSWITCH>::new()) }?;
        Ok(())
    }

    /// Lets the person switch again, if it was this daemon that forbade it.
    pub(crate) fn release(&self, terminal: &File) -> io::Result<()> {
        if !self.noted.try_exists()? {
            return Ok(());
        }
        // SAFETY: it takes nothing.
        unsafe { ioctl(terminal, NoArg::<VT_UNLOCKSWITCH>::new()) }?;
        fs::remove_file(&self.noted)
    }
}

/// The number of the terminal in front.
#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
fn active(terminal: &File) -> io::Result<u16> {
    // SAFETY: it writes a `struct vt_stat`, which is three numbers of 16 bits.
    let [active, ..] = unsafe { ioctl(terminal, Getter::<VT_GETSTATE, [u16; 3]>::new()) }?;
    Ok(active)
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
fn activate(terminal: &File, number: u16) -> io::Result<()> {
    // SAFETY: it takes a number.
    let activate = unsafe { IntegerSetter::<VT_ACTIVATE>::new_usize(number.into()) };
    // SAFETY: as above.
    unsafe { ioctl(terminal, activate) }?;
    Ok(())
}

impl Drop for InFront<'_> {
    fn drop(&mut self) {
        // If it fails, the next daemon tries again.
        let _ = self.lock.release(self.terminal);
        let _ = activate(self.terminal, self.before);
    }
}
