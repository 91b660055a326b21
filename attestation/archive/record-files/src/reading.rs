//! Reading a directory.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use archive::ArchiveError;
use archive::records::{MAX_RECORD_CONTENT, RecordName};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::error::{FileKind, RecordFilesError};

/// Has `visit` take every file in `folder` and in the directories below it as a record, in the order of names. What
/// is neither a file nor a directory is an error, as is a file that changes while it is read. Directories
/// without files leave no trace.
pub fn read_folder(
    folder: &Path,
    mut visit: impl FnMut(RecordName<'_>, &[u8]) -> Result<(), ArchiveError>,
) -> Result<(), RecordFilesError> {
    let read = |errno: Errno| RecordFilesError::Read {
        path: folder.to_owned(),
        source: errno.into(),
    };
    // The directory itself may be given by a link.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, folder, flags, Mode::empty()).map_err(read)?;
    let mut walk = Walk {
        folder,
        name: String::new(),
        content: Vec::new(),
        visit: &mut visit,
    };
    walk.directory(&opened)
}

struct Walk<'a, V> {
    folder: &'a Path,
    /// Of what is being read, below the folder. A directory's ends with `/`.
    name: String,
    content: Vec<u8>,
    visit: &'a mut V,
}

impl<V: FnMut(RecordName<'_>, &[u8]) -> Result<(), ArchiveError>> Walk<'_, V> {
    fn directory(&mut self, directory: &OwnedFd) -> Result<(), RecordFilesError> {
        let length = self.name.len();
        for part in self.parts(directory)? {
            self.name.push_str(&part);
            match part.strip_suffix('/') {
                Some(part) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                    let below = self.open(directory, part, flags)?;
                    self.directory(&below)?;
                }
                None => self.file(directory, &part)?,
            }
            self.name.truncate(length);
        }
        Ok(())
    }

    /// What is in a directory, in the order that the names of the records have: a directory's ends with `/`.
    fn parts(&self, directory: &OwnedFd) -> Result<Vec<String>, RecordFilesError> {
        let mut parts = Vec::new();
        for entry in Dir::read_from(directory).map_err(|errno| self.unread(errno))? {
            let entry = entry.map_err(|errno| self.unread(errno))?;
            let Ok(part) = entry.file_name().to_str() else {
                let path = self
                    .path()
                    .join(entry.file_name().to_string_lossy().as_ref());
                return Err(RecordFilesError::NotText { path });
            };
            if matches!(part, "." | "..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = statat(directory, part, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|errno| self.unread(errno))?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            let kind = match kind {
                FileType::RegularFile => {
                    parts.push(part.to_owned());
                    continue;
                }
                FileType::Directory => {
                    parts.push(format!("{part}/"));
                    continue;
                }
                FileType::Symlink => FileKind::Link,
                _ => FileKind::Special,
            };
            let path = self.path().join(part);
            return Err(RecordFilesError::Kind { path, kind });
        }
        parts.sort_unstable();
        Ok(parts)
    }

    fn file(&mut self, directory: &OwnedFd, part: &str) -> Result<(), RecordFilesError> {
        // Without NONBLOCK, a pipe that took the file's place would hold us up.
        let file = self.open(directory, part, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let before = fstat(&file).map_err(|errno| self.unread(errno))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(self.changed());
        }
        let length = u64::try_from(before.st_size).unwrap_or(u64::MAX);
        if length > MAX_RECORD_CONTENT as u64 {
            let path = self.path();
            return Err(RecordFilesError::TooLong { path, length });
        }
        let file = File::from(file);
        self.content.clear();
        let limit = length.saturating_add(1);
        if let Err(source) = (&file).take(limit).read_to_end(&mut self.content) {
            let path = self.path();
            return Err(RecordFilesError::Read { path, source });
        }
        let after = fstat(&file).map_err(|errno| self.unread(errno))?;
        if self.content.len() as u64 != length || version(&before) != version(&after) {
            return Err(self.changed());
        }
        let name = RecordName::parse(&self.name).map_err(|source| RecordFilesError::Name {
            path: self.path(),
            source,
        })?;
        Ok((self.visit)(name, &self.content)?)
    }

    fn open(
        &self,
        directory: &OwnedFd,
        part: &str,
        flags: OFlags,
    ) -> Result<OwnedFd, RecordFilesError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(directory, part, flags, Mode::empty()).map_err(|errno| match errno {
            // It was something else, or there, when the directory was read.
            Errno::LOOP | Errno::NOTDIR | Errno::NOENT | Errno::NXIO => self.changed(),
            errno => self.unread(errno),
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn unread(&self, errno: Errno) -> RecordFilesError {
        RecordFilesError::Read {
            path: self.path(),
            source: errno.into(),
        }
    }

    fn changed(&self) -> RecordFilesError {
        RecordFilesError::Changed { path: self.path() }
    }
}

/// What differs once a file was written to.
fn version(stat: &Stat) -> [i128; 5] {
    [
        stat.st_size.into(),
        stat.st_mtime.into(),
        stat.st_mtime_nsec.into(),
        stat.st_ctime.into(),
        stat.st_ctime_nsec.into(),
    ]
}
