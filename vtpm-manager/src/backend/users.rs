//! A user of its own for each backend, so that the kernel keeps them apart even where the
//! sandbox does not.
//!
//! A user is taken for as long as the folder is there that says so. That is how a restarted
//! manager knows which ones the backends have that it finds running.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use caps::{CapSet, Capability};
use serde::Deserialize;
use vtpm_backend::privileges::TO_CHANGE_USERS;

use super::BackendError;
use super::folder::{RuntimeFolder, running};

/// Numbers of users that nobody else on the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UidRange {
    /// The first of them.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// What keeps backends apart beside their sandbox.
#[derive(Debug)]
pub enum Isolation {
    /// Each has a user of its own.
    OwnUsers(Users),
    /// All of them are the manager's user, who has no right to give them others.
    SharedUser,
}

/// The users of this host's backends.
#[derive(Debug)]
pub struct Users {
    range: UidRange,
    runtime_dir: PathBuf,
    locks: PathBuf,
    /// Which folder has which; read from the folders by the first to ask.
    taken: Mutex<Option<HashMap<u32, PathBuf>>>,
}

impl UidRange {
    /// Whether all of these are users, and root is none of them.
    pub fn is_sound(self) -> bool {
        // The last number stands for "no user" (setresuid(2)).
        let end = self.first.checked_add(self.count);
        self.first > 0 && self.count > 0 && end.is_some()
    }
}

impl Default for UidRange {
    /// A part of what systemd leaves unused (its "Users, Groups, UIDs and GIDs"), more than a
    /// host has backends.
    fn default() -> Self {
        Self {
            first: 2_000_000_000,
            count: 65_536,
        }
    }
}

impl Isolation {
    /// The best that this process has the right to. Root must have the right: its backends do
    /// not run as root.
    pub fn of(range: UidRange, runtime_dir: &Path, locks: &Path) -> Result<Self, BackendError> {
        // The last one is for ending a backend that does not do it by itself.
        let missing = TO_CHANGE_USERS
            .into_iter()
            .chain([Capability::CAP_KILL])
            .find(|capability| {
                !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false)
            });
        match missing {
            None => Ok(Self::OwnUsers(Users {
                range,
                runtime_dir: runtime_dir.to_owned(),
                locks: locks.to_owned(),
                taken: Mutex::default(),
            })),
            Some(missing) if nix::unistd::geteuid().is_root() => Err(BackendError::Root {
                missing: missing.to_string(),
            }),
            Some(missing) => {
                tracing::warn!(
                    %missing,
                    "degraded isolation: all backends run as the manager's user, kept apart by \
                     their sandbox alone"
                );
                Ok(Self::SharedUser)
            }
        }
    }

    /// The user for the backend in a folder that was just made, noted there; `None` if it is the
    /// manager's.
    pub(super) fn user_of(&self, folder: &RuntimeFolder) -> Result<Option<u32>, BackendError> {
        match self {
            Self::OwnUsers(users) => users.claim(folder).map(Some),
            Self::SharedUser => Ok(None),
        }
    }

    /// Its name in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OwnUsers(_) => "own-users",
            Self::SharedUser => "shared-user",
        }
    }
}

impl Users {
    /// A vRoT gets the same user each time, if it is free: nobody inherits another's by the way.
    fn claim(&self, folder: &RuntimeFolder) -> Result<u32, BackendError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = match taken.as_mut() {
            Some(taken) => taken,
            None => taken.insert(found(&self.runtime_dir, &self.locks)?),
        };
        let UidRange { first, count } = self.range;
        let start = folder.number() % count;
        let uid = (start..count)
            .chain(0..start)
            .map(|at| first + at)
            .find(|uid| {
                taken
                    .get(uid)
                    .is_none_or(|holder| holder == folder.path() || !holder.exists())
            })
            .ok_or(BackendError::NoUserLeft { count })?;
        folder.note_user(uid)?;
        taken.insert(uid, folder.path().to_owned());
        Ok(uid)
    }
}

fn found(runtime_dir: &Path, locks: &Path) -> Result<HashMap<u32, PathBuf>, BackendError> {
    let folders = running(runtime_dir, locks)?;
    Ok(folders
        .iter()
        .filter_map(|folder| Some((folder.user()?, folder.path().to_owned())))
        .collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use cert_chain::VrotId;

    use super::*;

    fn users(runtime_dir: &Path, count: u32) -> Users {
        Users {
            range: UidRange { first: 7000, count },
            runtime_dir: runtime_dir.to_owned(),
            locks: runtime_dir.join("locks"),
            taken: Mutex::default(),
        }
    }

    fn folder_in(runtime_dir: &Path) -> RuntimeFolder {
        RuntimeFolder::of(runtime_dir, &runtime_dir.join("locks"), VrotId::random())
    }

    fn claimed(users: &Users, folder: &RuntimeFolder) -> Result<u32, BackendError> {
        std::fs::create_dir_all(&users.locks).unwrap();
        folder.create()?;
        users.claim(folder)
    }

    #[test]
    fn every_backend_gets_a_user_of_its_own_until_none_is_left() -> anyhow::Result<()> {
        let runtime_dir = tempfile::tempdir()?;
        let all = users(runtime_dir.path(), 3);
        let folder = || folder_in(runtime_dir.path());
        let folders = [folder(), folder(), folder()];
        let mut uids = Vec::new();
        for folder in &folders {
            uids.push(claimed(&all, folder)?);
        }
        uids.sort_unstable();
        assert_eq!(uids, [7000, 7001, 7002]);
        let refused = claimed(&all, &folder());
        assert!(matches!(
            refused,
            Err(BackendError::NoUserLeft { count: 3 })
        ));
        Ok(())
    }

    #[test]
    fn users_of_backends_that_run_already_are_known_to_the_next_manager() -> anyhow::Result<()> {
        let runtime_dir = tempfile::tempdir()?;
        let folder = || folder_in(runtime_dir.path());
        let first = folder();
        let uid = claimed(&users(runtime_dir.path(), 2), &first)?;
        let next = users(runtime_dir.path(), 2);
        assert_ne!(claimed(&next, &folder())?, uid);
        assert!(claimed(&next, &folder()).is_err());
        first.remove()?;
        assert_eq!(claimed(&next, &folder())?, uid, "the first is gone");
        Ok(())
    }

    #[test]
    fn a_vrot_gets_its_user_again() -> anyhow::Result<()> {
        let runtime_dir = tempfile::tempdir()?;
        let users = users(runtime_dir.path(), 10_000);
        let folder = folder_in(runtime_dir.path());
        let uid = claimed(&users, &folder)?;
        folder.remove()?;
        assert_eq!(claimed(&users, &folder)?, uid);
        Ok(())
    }

    #[test]
    fn root_is_in_no_range() {
        let sound = |first, count| UidRange { first, count }.is_sound();
        assert!(UidRange::default().is_sound());
        assert!(sound(1, 1) && sound(u32::MAX - 1, 1));
        assert!(!sound(0, 10) && !sound(5, 0) && !sound(u32::MAX, 1) && !sound(1, u32::MAX));
    }
}
