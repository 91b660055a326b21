//! A folder with a file for each part of the state, and the lock's file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use zeroize::Zeroizing;

use super::{StoreError, StoreOptions, failed, set_mode};
use crate::lock;
use crate::{FormatError, MAX_STATE, StateKind};

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    folder: File,
    options: StoreOptions,
    lock: Option<File>,
}

const LOCK: &str = ".lock";
/// As swtpm makes it: whoever may use the folder may lock it.
const LOCK_MODE: u32 = 0o660;

/// What is in the place of a state that was taken over: no header, for swtpm as for us.
const RETIRED: &[u8] = b"This TPM's state was taken over. ";
/// Where that state is.
const RETIRED_STATE: &str = "tpm2-00.permall.taken-over";
/// Longer notes are cut.
const MAX_NOTE: usize = 1024;

/// "tpm2" for the version, "00" for the first and only TPM.
pub(super) fn file_name(kind: StateKind) -> String {
    format!("tpm2-00.{}", kind.name())
}

/// Under which name it is written first.
fn temporary_name(kind: StateKind) -> String {
    format!("TMP2-00.{}", kind.name())
}

impl Folder {
    pub(super) fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        if options.create && !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .create(path)
                .map_err(failed(path, "created"))?;
        }
        let folder = File::open(path).map_err(failed(path, "opened"))?;
        if !folder.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed(path, "used as a folder")(error));
        }
        Ok(Self {
            path: path.to_owned(),
            folder,
            options,
            lock: None,
        })
    }

    pub(super) fn lock(&mut self, retries: u32) -> Result<bool, StoreError> {
        if self.lock.is_some() {
            return Ok(true);
        }
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(LOCK_MODE)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK)
            .open(&path)
            .map_err(failed(&path, "opened"))?;
        let locked = lock::lock(&file, retries).map_err(failed(&path, "locked"))?;
        self.lock = locked.then_some(file);
        Ok(locked)
    }

    /// The file stays: another process may be waiting for its lock.
    pub(super) fn unlock(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.lock.take() else {
            return Ok(());
        };
        lock::unlock(&file).map_err(failed(&self.path.join(LOCK), "unlocked"))
    }

    pub(super) fn load(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.path.join(file_name(kind));
        let Some(file) = self.existing(&path)? else {
            return Ok(None);
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_STATE + 1));
        let limit = u64::try_from(MAX_STATE + 1).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(failed(&path, "read"))?;
        if let Some(note) = bytes.strip_prefix(RETIRED) {
            let note = String::from_utf8_lossy(note.get(..MAX_NOTE).unwrap_or(note));
            let note = note.trim().to_owned();
            return Err(StoreError::Retired { path, note });
        }
        let length = bytes.len();
        if length > MAX_STATE {
            let source = FormatError::TooLong { length };
            return Err(StoreError::Format { path, source });
        }
        Ok(Some(bytes))
    }

    pub(super) fn size(&self, kind: StateKind) -> Result<Option<u64>, StoreError> {
        let path = self.path.join(file_name(kind));
        let Some(file) = self.existing(&path)? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(failed(&path, "examined"))?;
        Ok(Some(metadata.len()))
    }

    /// Opens a plain file that may be there.
    fn existing(&self, path: &Path) -> Result<Option<File>, StoreError> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, "opened")(error)),
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            let error = io::Error::other("it is no plain file");
            return Err(failed(path, "read")(error));
        }
        if self.options.force_mode {
            set_mode(&file, self.options.mode).map_err(failed(path, "given its permissions"))?;
        }
        Ok(Some(file))
    }

    /// The new file is complete on the disk before it takes the old one's name, and has that on the
    /// disk when this returns.
    pub(super) fn save(&mut self, kind: StateKind, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path.join(file_name(kind));
        let temporary = self.path.join(temporary_name(kind));
        self.write_new(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| self.folder.sync_all())
            .map_err(failed(&path, "written"))
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // What an earlier attempt left may have another mode, or readers.
        remove_if_there(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.options.mode)
            .open(path)?;
        if self.options.force_mode {
            set_mode(&file, self.options.mode)?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// The state gets another name beside its own, and then a note takes its own: there is no moment
    /// without either, in which swtpm would make a new TPM.
    pub(super) fn retire(&mut self, note: &str) -> Result<(), StoreError> {
        let state = self.path.join(file_name(StateKind::Permanent));
        let kept = self.path.join(RETIRED_STATE);
        fs::hard_link(&state, &kept).map_err(failed(&kept, "made"))?;
        let note = [RETIRED, note.as_bytes(), b"\n"].concat();
        self.save(StateKind::Permanent, &note)
    }

    pub(super) fn reinstate(path: &Path) -> Result<(), StoreError> {
        let options = StoreOptions {
            create: false,
            ..StoreOptions::default()
        };
        let mut folder = Self::open(path, options)?;
        let in_use = || StoreError::InUse {
            path: path.to_owned(),
        };
        folder.lock(0)?.then_some(()).ok_or_else(in_use)?;
        let kept = path.join(RETIRED_STATE);
        let state = path.join(file_name(StateKind::Permanent));
        if !matches!(
            folder.load(StateKind::Permanent),
            Err(StoreError::Retired { .. })
        ) || !kept.exists()
        {
            return Err(StoreError::NotRetired {
                path: path.to_owned(),
            });
        }
        fs::rename(&kept, &state)
            .and_then(|()| folder.folder.sync_all())
            .map_err(failed(&state, "put back"))
    }

    pub(super) fn remove(&mut self, kind: StateKind) -> Result<(), StoreError> {
        let path = self.path.join(file_name(kind));
        remove_if_there(&path)
            .and_then(|()| self.folder.sync_all())
            .map_err(failed(&path, "removed"))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}
