//! Which VMMs may attach.

use minicbor::{Decode, Encode};

/// Who may attach besides root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct VmmAdmission {
    /// Users, by number.
    #[n(0)]
    pub uids: Vec<u32>,
}

impl VmmAdmission {
    /// Whether a process of this user may attach.
    pub fn admits(&self, uid: u32) -> bool {
        uid == 0 || self.uids.contains(&uid)
    }
}
