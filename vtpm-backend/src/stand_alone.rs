//! State goes to a folder: for development, and where another program keeps state safe.
//!
//! It is written as it is. Sealing needs a manager.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

/// A folder with one vRoT's state, locked against a second process.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    folder: File,
    _lock: Flock<File>,
}

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFolderError {
    /// Another process has it.
    #[error("the state folder {} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{} cannot be {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const LOCK: &str = "lock";
const PERMANENT: &str = "permanent";
const NEW: &str = "permanent.new";

impl StateFolder {
    /// Opens the folder, which is created if it does not exist, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateFolderError> {
        let failed = |path: &Path, action| {
            let path = path.to_owned();
            move |source| StateFolderError::Io {
                path,
                action,
                source,
            }
        };
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .create(path)
                .map_err(failed(path, "created"))?;
        }
        let lock_path = path.join(LOCK);
        let lock = private()
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed(&lock_path, "opened"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| {
            StateFolderError::InUse {
                path: path.to_owned(),
            }
        })?;
        let folder = File::open(path).map_err(failed(path, "opened"))?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            _lock: lock,
        })
    }

    /// The state as it was last saved; `None` in a new folder.
    pub fn load(&self) -> Result<Option<Zeroizing<Vec<u8>>>, StateFolderError> {
        let path = self.path.join(PERMANENT);
        match fs::read(&path) {
            Ok(state) => Ok(Some(Zeroizing::new(state))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateFolderError::Io {
                path,
                action: "read",
                source,
            }),
        }
    }

    /// Puts a state in place of the last one: afterwards it is on the disk, whole, or the last
    /// one still is.
    pub fn save(&self, state: &[u8]) -> Result<(), StateFolderError> {
        let path = self.path.join(PERMANENT);
        let new = self.path.join(NEW);
        private()
            .create(true)
            .truncate(true)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(state)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| self.folder.sync_all())
            .map_err(|source| StateFolderError::Io {
                path,
                action: "written",
                source,
            })
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_saved_and_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        assert!(state.load().unwrap().is_none());
        state.save(b"first").unwrap();
        state.save(b"second").unwrap();
        assert_eq!(**state.load().unwrap().unwrap(), *b"second");
        let mode = fs::metadata(folder.path().join(PERMANENT)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::open(folder.path()).unwrap();
        assert!(matches!(
            StateFolder::open(folder.path()),
            Err(StateFolderError::InUse { .. })
        ));
        drop(first);
        assert!(StateFolder::open(folder.path()).is_ok());
    }
}
