//! What keeps a PIN in this process: no core files, no debugger of the same user, and nothing left of it in memory
//! that was freed.

use std::io;

use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Forbids core files and attaching, and has the C library overwrite what is freed: the TPM's software stack
/// does not overwrite its copies of a PIN.
#[expect(unsafe_code, reason = "mallopt takes two numbers")]
pub(crate) fn harden() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    // SAFETY: it sets how memory is freed from now on, and no other thread runs yet.
    match unsafe { libc::mallopt(libc::M_PERTURB, FREED) } {
        1 => Ok(()),
        _ => Err(io::Error::other(
            "the C library does not overwrite what is freed",
        )),
    }
}

/// Any number but 0 has freed memory overwritten, with its complement (mallopt(3)).
const FREED: i32 = 0xaa;
