//! Which VMMs may attach.

use clap::Args;
use minicbor::{Decode, Encode};

/// Who may attach besides root and the manager's user.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct VmmAdmission {
    /// Managed: a user, by number, whose VMMs may attach besides those of root and of the
    /// manager's user. May be given more than once.
    #[arg(long = "vmm-uid", value_name = "UID", requires = "runtime")]
    #[n(0)]
    pub uids: Vec<u32>,
}

impl VmmAdmission {
    /// With the present user: that of the manager, where the backend becomes another one.
    pub fn and_own_user(mut self) -> Self {
        self.uids.push(nix::unistd::geteuid().as_raw());
        self
    }

    /// Whether a process of this user may attach.
    pub fn admits(&self, uid: u32) -> bool {
        uid == 0 || self.uids.contains(&uid)
    }
}
