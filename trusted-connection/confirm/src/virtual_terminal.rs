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
        // SAFETY: it writes a `struct vt_stat`, which is three numbers of 16 bits.
        let [before, ..] = unsafe { ioctl(terminal, Getter::<VT_GETSTATE, [u16; 3]>::new()) }?;
        let held = Self { terminal, before };
        activate(terminal, number)?;
        // SAFETY: it takes a number.
        let wait = unsafe { IntegerSetter::<VT_WAITACTIVE>::new_usize(number.into()) };
        // SAFETY: as above.
        unsafe { ioctl(terminal, wait) }?;
        // SAFETY: it takes nothing.
        unsafe { ioctl(terminal, NoArg::<VT_LOCKSWITCH>::new()) }?;
        Ok(held)
    }
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
fn activate(terminal: &File, number: u16) -> io::Result<()> {
    // SAFETY: it takes a number.
    let activate = unsafe { IntegerSetter::<VT_ACTIVATE>::new_usize(number.into()) };
    // SAFETY: as above.
    unsafe { ioctl(terminal, activate) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
impl Drop for InFront<'_> {
    fn drop(&mut self) {
        // SAFETY: it takes nothing. If it fails, the lock was never taken.
        let _ = unsafe { ioctl(self.terminal, NoArg::<VT_UNLOCKSWITCH>::new()) };
        let _ = activate(self.terminal, self.before);
    }
}
