//! Users and capabilities: a backend has a user of its own and no capability.

use backend_link::zygote::TO_CHANGE_USERS;
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Why a process has more rights than it should. It must not go on then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// The kernel refused to take capabilities away.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(CapsError),
    /// No user was named, and the backend would stay root.
    #[error("a backend does not run as root: it needs a user of its own")]
    Root,
    /// A user that is none of its own.
    #[error("user {uid} is root or the manager, not a backend's own")]
    NotItsOwn {
        /// Which.
        uid: u32,
    },
    /// The kernel refused the user.
    #[error("the backend cannot become user {uid} (is it one of this container's users?)")]
    User {
        /// Which.
        uid: u32,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Becomes this user for good, in the group of the same number and no other. Without one, stays
/// the present user, unless that is root.
pub fn become_user(uid: Option<u32>) -> Result<(), PrivilegeError> {
    let Some(uid) = uid else {
        return match geteuid().is_root() {
            true => Err(PrivilegeError::Root),
            false => Ok(()),
        };
    };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    if user.is_root() || user == geteuid() {
        return Err(PrivilegeError::NotItsOwn { uid });
    }
    let refused = |source| PrivilegeError::User { uid, source };
    // The user last: it has no right to change the others.
    setgroups(&[]).map_err(refused)?;
    setresgid(group, group, group).map_err(refused)?;
    setresuid(user, user, user).map_err(refused)
}

/// Gives up every capability, and the right to get one.
pub fn give_up_capabilities() -> Result<(), PrivilegeError> {
    keep(&CapsHashSet::new()).map_err(PrivilegeError::Capabilities)
}

/// Gives up every capability but [`TO_CHANGE_USERS`], as far as they are there. What is started
/// from now on cannot even have those.
pub fn keep_changing_users() -> Result<(), PrivilegeError> {
    keep(&TO_CHANGE_USERS.into()).map_err(PrivilegeError::Capabilities)
}

fn keep(kept: &CapsHashSet) -> Result<(), CapsError> {
    // The bounding set limits what a program gains when it is executed. Where it cannot be shrunk
    // (without CAP_SETPCAP), the sandbox forbids to execute any, and to gain privileges so.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = permitted.intersection(kept).copied().collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
