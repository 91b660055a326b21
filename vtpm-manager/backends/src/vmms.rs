//! Whose VMMs may attach to a backend.

use backend_link::admission::VmmAdmission;

/// VMMs of other users than root and the manager's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmms {
    /// Their users; a backend asks the kernel for its peer's.
    pub admission: VmmAdmission,
    /// The group that gets as far as their socket.
    pub gid: Option<u32>,
}
