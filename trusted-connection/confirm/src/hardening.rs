//! What keeps a PIN in this process: no core files, and no debugger of the same user.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Forbids core files and attaching.
pub(crate) fn harden() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}
