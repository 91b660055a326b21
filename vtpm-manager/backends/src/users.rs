//! A user of its own for each backend, so that the kernel keeps them apart even where the
//! sandbox does not.
//!
//! A user is taken for as long as the folder is there that says so. That is how a restarted
//! manager knows which ones the backends have that it finds running.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backend_link::zygote::TO_CHANGE_USERS;
use bounded_file::read_bounded_text;
use caps::{CapSet, Capability};
use serde::Deserialize;

use super::BackendError;
use super::folder::{RuntimeFolder, running};

/// Numbers of users that nothing else on the host has.
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
    /// Whether all of these are users that nobody else is: not root, none of `known` (users and
    /// groups that the configuration names), none that this host's files know, and not the
    /// manager's own. A backend that shared a user with somebody could be traced and ended by him.
    ///
    /// Users of other sources, such as a directory service, are not looked up: that takes a request
    /// for each number.
    pub fn check(self, known: &[u32]) -> Result<(), String> {
        // The last number stands for "no user" (setresuid(2)).
        if self.first == 0 || self.count == 0 || self.first.checked_add(self.count).is_none() {
            return Err(
                "are no users, or root is among them: write the first and how many there \
                        are, as in { first = 2000000000, count = 65536 }"
                    .to_owned(),
            );
        }
        let own = nix::unistd::geteuid().as_raw();
        let named = known.iter().copied().chain([own]).map(|number| {
            let user = LocalUser {
                name: "the configuration or the manager's own user".to_owned(),
                first: number,
                count: 1,
            };
            (user, "in use")
        });
        let local = LOCAL_USERS.into_iter().flat_map(|path| {
            let users = local_users(Path::new(path)).into_iter();
            users.map(move |user| (user, path))
        });
        match named.chain(local).find(|(user, _)| self.overlaps(user)) {
            Some((user, place)) => Err(format!(
                "have {} among them, which is that of {} ({place}): write a range that nobody \
                 else has",
                user.first.max(self.first),
                user.name
            )),
            None => Ok(()),
        }
    }

    fn overlaps(self, user: &LocalUser) -> bool {
        let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
        u64::from(self.first) < end(user.first, user.count)
            && u64::from(user.first) < end(self.first, self.count)
    }
}

/// Users and groups (passwd(5), group(5)), and what is set aside for containers (subuid(5)): a
/// backend's group has the number of its user.
const LOCAL_USERS: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid"];
/// Far more than any of them has.
const MAX_LOCAL_USERS: usize = 16 * 1024 * 1024;

/// Numbers that somebody has.
struct LocalUser {
    name: String,
    first: u32,
    count: u32,
}

/// What stands in one of these files; nothing, where it is missing or has other lines.
fn local_users(path: &Path) -> Vec<LocalUser> {
    let text = read_bounded_text(path, MAX_LOCAL_USERS).unwrap_or_default();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, second, third) = (fields.next()?, fields.next()?, fields.next()?);
        // `name:password:number:…`, or `name:first:count`.
        let is_range = fields.next().is_none();
        let (first, count) = if is_range {
            (second, third)
        } else {
            (third, "1")
        };
        Some(LocalUser {
            name: name.to_owned(),
            first: first.parse().ok()?,
            count: count.parse().ok()?,
        })
    };
    text.lines().filter_map(user).collect()
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
    /// A vRoT gets the same user each time, if it is free, so that it rarely inherits another's.
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
    fn a_range_has_no_user_that_somebody_else_is() {
        let sound = |first, count| UidRange { first, count }.check(&[7005]).is_ok();
        assert!(UidRange::default().check(&[]).is_ok());
        assert!(sound(7000, 5) && sound(7006, 1) && sound(u32::MAX - 1, 1));
        assert!(!sound(0, 10) && !sound(5, 0) && !sound(u32::MAX, 1) && !sound(1, u32::MAX));
        assert!(
            !sound(7000, 6) && !sound(7005, 1),
            "named by the configuration"
        );
        assert!(!sound(1, 1) && !sound(65_000, 600), "daemon, nobody");
    }

    #[test]
    fn what_is_set_aside_for_containers_is_somebodys() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("subuid");
        std::fs::write(&path, "ann:100000:65536\n\nnonsense\nbob:165536:x\n")?;
        let [ann] = local_users(&path).try_into().ok().unwrap();
        let overlaps = |first| UidRange { first, count: 10 }.overlaps(&ann);
        assert!(overlaps(99_995) && overlaps(165_535));
        assert!(!overlaps(99_990) && !overlaps(165_536));
        Ok(())
    }
}
