//! A folder with a file for each part of the state, and the lock's file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::libc::{O_DIRECTORY, O_NOFOLLOW};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use zeroize::Zeroizing;

use super::{StoreError, StoreOptions, failed, set_mode};
use crate::lock;
use crate::{FormatError, MAX_STATE, StateKind};

/// All files are used through the open folder: whoever may exchange the folder in its path gains nothing.
#[derive(Debug)]
pub(super) struct Folder {
    /// For messages.
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
const MAX_NOTE: usize = 8 * 1024;

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
        let follow = match options.follow_link {
            true => 0,
            false => O_NOFOLLOW,
        };
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECTORY | follow)
            .open(path)
            .map_err(failed(path, "opened as a folder"))?;
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
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let file = self
            .file(LOCK, flags, LOCK_MODE)
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
        let name = file_name(kind);
        let path = self.path.join(&name);
        let Some(file) = self.existing(&name)? else {
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
        let name = file_name(kind);
        let Some(file) = self.existing(&name)? else {
            return Ok(None);
        };
        let metadata = file
            .metadata()
            .map_err(failed(&self.path.join(name), "examined"))?;
        Ok(Some(metadata.len()))
    }

    /// Opens a file of the folder, and no link.
    fn file(&self, name: &str, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::from_bits_truncate(mode))?;
        Ok(file.into())
    }

    /// Opens a plain file that may be there.
    fn existing(&self, name: &str) -> Result<Option<File>, StoreError> {
        let path = &self.path.join(name);
        let file = match self.file(name, OFlag::O_RDONLY, 0) {
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
        self.put(kind, bytes)
            .map_err(failed(&path_of(&self.path, kind), "written"))
    }

    fn put(&self, kind: StateKind, bytes: &[u8]) -> io::Result<()> {
        let temporary = temporary_name(kind);
        self.write_new(&temporary, bytes)?;
        self.rename(&temporary, &file_name(kind))
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // What an earlier attempt left may have another mode, or readers.
        self.remove_if_there(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = self.file(name, flags, self.options.mode)?;
        if self.options.force_mode {
            set_mode(&file, self.options.mode)?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// On the disk when this returns.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        renameat(&self.folder, from, &self.folder, to)?;
        self.folder.sync_all()
    }

    /// The state gets another name beside its own, and then a note takes its own: there is no moment
    /// without either, in which swtpm would make a new TPM.
    pub(super) fn retire(&mut self, note: &str) -> Result<(), StoreError> {
        let state = file_name(StateKind::Permanent);
        let kept = self.path.join(RETIRED_STATE);
        let linked = linkat(
            &self.folder,
            state.as_str(),
            &self.folder,
            RETIRED_STATE,
            AtFlags::empty(),
        );
        match linked.map_err(io::Error::from) {
            // An earlier attempt ended between the two steps.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !self.are_one(&state, RETIRED_STATE)? {
                    return Err(StoreError::KeptBefore { path: kept });
                }
            }
            linked => linked.map_err(failed(&kept, "made"))?,
        }
        self.renew_note(note)
    }

    /// Whether both are names of one file.
    fn are_one(&self, one: &str, other: &str) -> Result<bool, StoreError> {
        let mut numbers = [None, None];
        for (name, number) in [one, other].into_iter().zip(&mut numbers) {
            if let Some(file) = self.existing(name)? {
                let metadata = file.metadata();
                let metadata = metadata.map_err(failed(&self.path.join(name), "examined"))?;
                *number = Some((metadata.dev(), metadata.ino()));
            }
        }
        let [one, other] = numbers;
        Ok(one.is_some() && one == other)
    }

    pub(super) fn renew_note(&mut self, note: &str) -> Result<(), StoreError> {
        let note = [RETIRED, note.as_bytes(), b"\n"].concat();
        self.save(StateKind::Permanent, &note)
    }

    pub(super) fn reinstate(path: &Path) -> Result<(), StoreError> {
        let options = StoreOptions {
            create: false,
            follow_link: false,
            ..StoreOptions::default()
        };
        let mut folder = Self::open(path, options)?;
        let in_use = || StoreError::InUse {
            path: path.to_owned(),
        };
        folder
            .lock(lock::PATIENT)?
            .then_some(())
            .ok_or_else(in_use)?;
        if !matches!(
            folder.load(StateKind::Permanent),
            Err(StoreError::Retired { .. })
        ) || folder.existing(RETIRED_STATE)?.is_none()
        {
            return Err(StoreError::NotRetired {
                path: path.to_owned(),
            });
        }
        folder
            .rename(RETIRED_STATE, &file_name(StateKind::Permanent))
            .map_err(failed(&path_of(path, StateKind::Permanent), "put back"))
    }

    pub(super) fn remove(&mut self, kind: StateKind) -> Result<(), StoreError> {
        self.remove_if_there(&file_name(kind))
            .and_then(|()| self.folder.sync_all())
            .map_err(failed(&path_of(&self.path, kind), "removed"))
    }

    fn remove_if_there(&self, name: &str) -> io::Result<()> {
        let removed = unlinkat(&self.folder, name, UnlinkatFlags::NoRemoveDir);
        match removed.map_err(io::Error::from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) | Ok(()) => Ok(()),
        }
    }
}

fn path_of(folder: &Path, kind: StateKind) -> PathBuf {
    folder.join(file_name(kind))
}
