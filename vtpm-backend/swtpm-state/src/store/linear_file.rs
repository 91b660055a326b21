//! A linear store in a plain file, which grows, or on a block device, which does not.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;
use zeroize::Zeroizing;

use super::linear::{Directory, HEADER, LinearError, RETIRED_VERSION, VERSION, VERSION_OFFSET};
use super::{StoreError, StoreOptions, failed, set_mode};
use crate::lock;
use crate::{FormatError, MAX_STATE, StateKind};

#[derive(Debug)]
pub(super) struct LinearFile {
    path: PathBuf,
    file: File,
    /// Of what is on the disk.
    directory: Directory,
    length: u64,
    is_device: bool,
}

impl LinearFile {
    pub(super) fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let mut store = Self::unread(path, options)?;
        match store.read_directory() {
            Ok(directory) => store.directory = directory,
            Err(StoreError::Linear {
                source: LinearError::Blank,
                ..
            }) if options.create => store.commit(Directory::EMPTY)?,
            Err(error) => return Err(error),
        }
        Ok(store)
    }

    /// Opens it, whatever it holds.
    fn unread(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(options.create)
            .truncate(false)
            .mode(options.mode)
            .custom_flags(O_NOFOLLOW)
            .open(path)
            .map_err(failed(path, "opened"))?;
        let metadata = file.metadata().map_err(failed(path, "examined"))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            let error = io::Error::other("it is neither a plain file nor a block device");
            return Err(failed(path, "used")(error));
        }
        if options.force_mode && !is_device {
            set_mode(&file, options.mode).map_err(failed(path, "given its permissions"))?;
        }
        // Of a device, only this tells it.
        let length = file
            .seek(SeekFrom::End(0))
            .map_err(failed(path, "examined"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            directory: Directory::EMPTY,
            length,
            is_device,
        })
    }

    fn read_directory(&self) -> Result<Directory, StoreError> {
        if self.length == 0 {
            return Err(self.damaged(LinearError::Blank));
        }
        let length = self.length;
        if length < u64::try_from(HEADER).unwrap_or(u64::MAX) {
            return Err(self.damaged(LinearError::TooShort { length }));
        }
        let mut bytes = [0; HEADER];
        self.file
            .read_exact_at(&mut bytes, 0)
            .map_err(failed(&self.path, "read"))?;
        Directory::parse(&bytes, length).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, source: LinearError) -> StoreError {
        StoreError::Linear {
            path: self.path.clone(),
            source,
        }
    }

    /// Another process may have written since it was opened.
    pub(super) fn lock(&mut self, retries: u32) -> Result<bool, StoreError> {
        let locked = lock::lock(&self.file, retries).map_err(failed(&self.path, "locked"))?;
        if locked {
            self.length = self
                .file
                .seek(SeekFrom::End(0))
                .map_err(failed(&self.path, "examined"))?;
            self.directory = self.read_directory()?;
        }
        Ok(locked)
    }

    pub(super) fn unlock(&mut self) -> Result<(), StoreError> {
        lock::unlock(&self.file).map_err(failed(&self.path, "unlocked"))
    }

    pub(super) fn load(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let Some(section) = self.directory.find(kind) else {
            return Ok(None);
        };
        let length = usize::try_from(section.used).unwrap_or(usize::MAX);
        if length > MAX_STATE {
            return Err(StoreError::Format {
                path: self.path.clone(),
                source: FormatError::TooLong { length },
            });
        }
        let mut bytes = Zeroizing::new(vec![0; length]);
        self.file
            .read_exact_at(&mut bytes, section.offset.into())
            .map_err(failed(&self.path, "read"))?;
        Ok(Some(bytes))
    }

    pub(super) fn size(&self, kind: StateKind) -> Result<Option<u64>, StoreError> {
        let section = self.directory.find(kind);
        Ok(section.map(|section| section.used.into()))
    }

    pub(super) fn save(&mut self, kind: StateKind, bytes: &[u8]) -> Result<(), StoreError> {
        let (directory, place) = self
            .directory
            .place(kind, bytes.len())
            .map_err(|error| self.damaged(error))?;
        self.reach(directory.end().into(), bytes.len())?;
        self.file
            .write_all_at(bytes, place.offset.into())
            .and_then(|()| self.file.sync_all())
            .map_err(failed(&self.path, "written"))?;
        self.commit(directory)
    }

    pub(super) fn remove(&mut self, kind: StateKind) -> Result<(), StoreError> {
        if self.directory.find(kind).is_none() {
            return Ok(());
        }
        let directory = self
            .directory
            .without(kind)
            .map_err(|error| self.damaged(error))?;
        self.commit(directory)
    }

    pub(super) fn retire(&mut self) -> Result<(), StoreError> {
        self.set_version(RETIRED_VERSION)
    }

    pub(super) fn reinstate(path: &Path) -> Result<(), StoreError> {
        let options = StoreOptions {
            create: false,
            ..StoreOptions::default()
        };
        let mut store = Self::unread(path, options)?;
        let in_use = || StoreError::InUse {
            path: path.to_owned(),
        };
        let locked = lock::lock(&store.file, lock::PATIENT).map_err(failed(path, "locked"))?;
        locked.then_some(()).ok_or_else(in_use)?;
        match store.read_directory() {
            Err(StoreError::Linear {
                source: LinearError::Retired,
                ..
            }) => store.set_version(VERSION),
            Ok(_) => Err(StoreError::NotRetired {
                path: path.to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    fn set_version(&mut self, version: u8) -> Result<(), StoreError> {
        self.file
            .write_all_at(&[version], VERSION_OFFSET)
            .and_then(|()| self.file.sync_all())
            .map_err(failed(&self.path, "written"))
    }

    /// Makes a file as long as its last section reaches: swtpm maps that.
    fn reach(&mut self, end: u64, size: usize) -> Result<(), StoreError> {
        if end <= self.length {
            return Ok(());
        }
        if self.is_device {
            return Err(self.damaged(LinearError::Full { size }));
        }
        self.file
            .set_len(end)
            .map_err(failed(&self.path, "made larger"))?;
        self.length = end;
        Ok(())
    }

    /// From now on, this is what counts.
    fn commit(&mut self, directory: Directory) -> Result<(), StoreError> {
        let bytes = directory.to_bytes();
        self.reach(u64::try_from(HEADER).unwrap_or(u64::MAX), HEADER)?;
        self.file
            .write_all_at(&bytes, 0)
            .and_then(|()| self.file.sync_all())
            .map_err(failed(&self.path, "written"))?;
        self.directory = directory;
        Ok(())
    }
}
