//! Virtual terminals of the machine (console_ioctl(4), `linux/vt.h`): while a person is asked, theirs is the one
//! that is seen, and no key and no program without rights of root switches to another.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};
use rustix::ioctl::{Getter, IntegerSetter, NoArg, Opcode, ioctl};

/// A virtual terminal that is in front, and stays there. The one before comes back when this is dropped.
pub(crate) struct InFront<'t> {
    terminal: &'t File,
    before: u16,
}

/// Devices of virtual terminals (`Documentation/admin-guide/devices.txt`).
const TTY_MAJOR: u32 = 4;
const NUMBERS: std::ops::RangeInclusive<u32> = 1..=63;

const VT_GETSTATE: Opcode = 0x5603;
const VT_ACTIVATE: Opcode = 0x5606;
const VT_WAITACTIVE: Opcode = 0x5607;
const VT_LOCKSWITCH: Opcode = 0x560b;
const VT_UNLOCKSWITCH: Opcode = 0x560c;

/// The number of a virtual terminal; `None` for a terminal of another kind.
pub(crate) fn number(terminal: &File) -> io::Result<Option<u16>> {
    let device = terminal.metadata()?.rdev();
    let number = minor(device);
    let is_virtual = major(device) == TTY_MAJOR && NUMBERS.contains(&number);
    Ok(u16::try_from(number).ok().filter(|_| is_virtual))
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
impl<'t> InFront<'t> {
    /// Brings it to the front and holds it there (`CAP_SYS_TTY_CONFIG`).
    pub(crate) fn bring(terminal: &'t File, number: u16) -> io::Result<Self> {
        let before = active(terminal)?;
        let held = Self { terminal, before };
        activate(terminal, number)?;
        // SAFETY: it takes a number.
        let wait = unsafe { IntegerSetter::<VT_WAITACTIVE>::new_usize(number.into()) };
        // SAFETY: as above.
        unsafe { ioctl(terminal, wait) }?;
        // SAFETY: it takes nothing.
        unsafe { ioctl(terminal, NoArg::<VT_LOCKSWITCH>::new()) }?;
        // Somebody may have switched between these two.
        match active(terminal)? == number {
            true => Ok(held),
            false => Err(io::Error::other("another terminal came to the front")),
        }
    }
}

/// Lets the person switch again.
#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
pub(crate) fn unlock(terminal: &File) -> io::Result<()> {
    // SAFETY: it takes nothing.
    unsafe { ioctl(terminal, NoArg::<VT_UNLOCKSWITCH>::new()) }?;
    Ok(())
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
        // If it fails, the lock was never taken.
        let _ = unlock(self.terminal);
        let _ = activate(self.terminal, self.before);
    }
}
