//! State goes to a folder: for development, and where another program keeps state safe.
//!
//! It is written as it is. Sealing needs a manager. What cannot be written stays here, and is tried
//! again.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::control::MAX_BLOB;
use crate::engine::StateKind;

/// A folder with one vRoT's state, locked against a second process.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    folder: File,
    /// Released by the kernel when it is closed.
    _lock: File,
    /// What is to be in the files and is not yet: a state, or nothing at all.
    unsaved: BTreeMap<StateKind, Option<Zeroizing<Vec<u8>>>>,
    /// Whether the last attempt to write failed.
    failing: bool,
    has_volatile: bool,
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
const VOLATILE: &str = "volatile";

/// Reads a state, unless it is longer than any TPM's.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut state = Zeroizing::new(Vec::new());
    let limit = u64::try_from(MAX_BLOB)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut state)?;
    if state.len() > MAX_BLOB {
        let message = format!("it has more than {MAX_BLOB} bytes, so it is no state of a TPM");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(state)
}

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
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateFolderError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path, "locked")(source)),
        }
        let folder = File::open(path).map_err(failed(path, "opened"))?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            _lock: lock,
            unsaved: BTreeMap::new(),
            failing: false,
            has_volatile: path.join(VOLATILE).exists(),
        })
    }

    /// A part of the state as it was last saved; `None` in a new folder.
    pub fn load(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StateFolderError> {
        let Some(name) = file_of(kind) else {
            return Ok(None);
        };
        let path = self.path.join(name);
        match read(&path) {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateFolderError::Io {
                path,
                action: "read",
                source,
            }),
        }
    }

    /// Puts a part of the state, or its absence, in place of the last one: afterwards it is on the
    /// disk, whole, or the last one still is, and [`retry`](Self::retry) tries again.
    pub fn keep(&mut self, kind: StateKind, state: Option<Zeroizing<Vec<u8>>>) {
        self.note(kind, state);
        self.retry();
    }

    /// The same, but leaves the writing to [`retry`](Self::retry), which has to follow.
    pub fn note(&mut self, kind: StateKind, state: Option<Zeroizing<Vec<u8>>>) {
        let is_there_anyway = kind == StateKind::Volatile && !self.has_volatile;
        if state.is_none() && is_there_anyway {
            self.unsaved.remove(&kind);
        } else {
            self.unsaved.insert(kind, state);
        }
    }

    /// Writes what could not be written before, if there is any.
    pub fn retry(&mut self) {
        if self.unsaved.is_empty() {
            return;
        }
        match self.save() {
            Ok(()) if std::mem::take(&mut self.failing) => {
                tracing::info!("all state is saved again");
            }
            Ok(()) => {}
            // It is tried at every command: once is enough to hear of it.
            Err(error) if self.failing => tracing::debug!(%error, "a state is still unsaved"),
            Err(error) => {
                self.failing = true;
                let error: &dyn Error = &error;
                tracing::error!(
                    error,
                    "a state is not saved yet; it is tried again and again"
                );
            }
        }
    }

    /// Whether something could not be written.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// A volatile state never stays beside a permanent one that is newer than it need be: it goes
    /// first, and comes last.
    fn save(&mut self) -> Result<(), StateFolderError> {
        if matches!(self.unsaved.get(&StateKind::Volatile), Some(None)) {
            self.remove(VOLATILE)?;
            self.has_volatile = false;
            self.unsaved.remove(&StateKind::Volatile);
        }
        while let Some((kind, state)) = self.unsaved.first_key_value() {
            let kind = *kind;
            if let (Some(name), Some(state)) = (file_of(kind), state) {
                self.write(name, state)?;
                self.has_volatile |= kind == StateKind::Volatile;
            }
            self.unsaved.remove(&kind);
        }
        Ok(())
    }

    fn write(&self, name: &str, state: &[u8]) -> Result<(), StateFolderError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
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

    fn remove(&self, name: &str) -> Result<(), StateFolderError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.folder.sync_all(),
        }
        .map_err(|source| StateFolderError::Io {
            path,
            action: "removed",
            source,
        })
    }
}

/// A TPM 2.0 has two parts of state.
fn file_of(kind: StateKind) -> Option<&'static str> {
    match kind {
        StateKind::Permanent => Some(PERMANENT),
        StateKind::Volatile => Some(VOLATILE),
        StateKind::SaveState => None,
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

    fn state(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn a_state_is_read_as_it_was_saved_and_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = StateFolder::open(folder.path()).unwrap();
        for (kind, file) in [
            (StateKind::Permanent, PERMANENT),
            (StateKind::Volatile, VOLATILE),
        ] {
            assert!(kept.load(kind).unwrap().is_none());
            kept.keep(kind, state(b"first"));
            kept.keep(kind, state(b"second"));
            assert_eq!(kept.load(kind).unwrap(), state(b"second"));
            let mode = fs::metadata(folder.path().join(file)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
        kept.keep(StateKind::Volatile, None);
        assert!(kept.load(StateKind::Volatile).unwrap().is_none());
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        // A folder that nothing can be renamed over.
        let obstacle = folder.path().join(PERMANENT);
        fs::create_dir_all(obstacle.join("in the way")).unwrap();
        let mut kept = StateFolder::open(folder.path()).unwrap();
        kept.keep(StateKind::Permanent, state(b"first"));
        kept.keep(StateKind::Volatile, state(b"beside it"));
        assert!(kept.has_unsaved());
        kept.keep(StateKind::Permanent, state(b"second"));
        fs::remove_dir_all(&obstacle).unwrap();
        kept.retry();
        assert!(!kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Permanent).unwrap(), state(b"second"));
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), state(b"beside it"));
    }

    #[test]
    fn what_is_only_noted_is_written_with_the_next_retry() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = StateFolder::open(folder.path()).unwrap();
        kept.keep(StateKind::Volatile, state(b"put aside"));
        kept.note(StateKind::Volatile, None);
        assert!(kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), state(b"put aside"));
        kept.keep(StateKind::Permanent, state(b"changed"));
        assert!(!kept.has_unsaved());
        assert_eq!(kept.load(StateKind::Volatile).unwrap(), None);
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
