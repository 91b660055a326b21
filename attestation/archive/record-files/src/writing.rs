//! Writing a directory.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use archive::records::RecordName;
use rustix::fs::{
    CWD, Mode, OFlags, RenameFlags, fsync, mkdirat, openat, rename, renameat_with, syncfs,
};
use rustix::io::Errno;
use tempfile::{Builder, TempDir};

use crate::error::RecordFilesError;

/// A directory that is made for records. It has another name beside its own until it is whole
/// ([`finish`](Self::finish)), and is removed if that does not come. Modes are what the process's mask leaves of 0777
/// and 0666.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    made: TempDir,
    folder: OwnedFd,
    /// The directory that the last record went to, by its name below the folder.
    last: Option<(String, OwnedFd)>,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl NewFolder {
    /// Makes a directory that must not be there yet.
    pub fn create(path: &Path) -> Result<Self, RecordFilesError> {
        let begun = begin(path).and_then(|made| {
            let folder = openat(CWD, made.path(), DIRECTORY, Mode::empty())?;
            Ok((made, folder))
        });
        let (made, folder) = begun.map_err(|source| unwritten(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            made,
            folder,
            last: None,
        })
    }

    /// Writes a record as a file, and makes the directories on the way. Nothing that is there is written over.
    pub fn write(&mut self, name: RecordName<'_>, content: &[u8]) -> Result<(), RecordFilesError> {
        let name = name.as_str();
        let written = match name.rsplit_once('/') {
            None => write(&self.folder, name, content),
            Some((directory, file)) => {
                let known = (self.last.take()).filter(|(last, _)| last == directory);
                let below = match known {
                    Some((_, below)) => Ok(below),
                    None => self.descend(directory),
                };
                below.and_then(|below| {
                    let written = write(&below, file, content);
                    self.last = Some((directory.to_owned(), below));
                    written
                })
            }
        };
        written.map_err(|source| unwritten(&self.path.join(name), source))
    }

    /// Gives it its name, once everything outlives a loss of power. What has that name meanwhile stays.
    pub fn finish(self) -> Result<(), RecordFilesError> {
        let Self {
            path, made, folder, ..
        } = self;
        let finished = syncfs(&folder)
            .and_then(|()| place(made.path(), &path))
            .and_then(|()| {
                // It is not there any more under the name by which it would be removed.
                let _ = made.keep();
                let parent = openat(
                    CWD,
                    parent(&path),
                    DIRECTORY - OFlags::NOFOLLOW,
                    Mode::empty(),
                )?;
                fsync(parent)
            });
        finished.map_err(|errno| unwritten(&path, errno.into()))
    }

    fn descend(&self, directory: &str) -> io::Result<OwnedFd> {
        let mut here = self.folder.try_clone()?;
        for part in directory.split('/') {
            match mkdirat(&here, part, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            here = openat(&here, part, DIRECTORY, Mode::empty())?;
        }
        Ok(here)
    }
}

/// A directory beside the one that is to be.
fn begin(path: &Path) -> io::Result<TempDir> {
    let name = path
        .file_name()
        .filter(|_| fs::symlink_metadata(path).is_err());
    let name = name.ok_or(io::ErrorKind::AlreadyExists)?;
    // Six random characters follow; a name has up to 255 bytes.
    let mut prefix = OsStr::new(".").to_owned();
    prefix.push(if name.len() < 240 {
        name
    } else {
        OsStr::new("records")
    });
    prefix.push(".");
    Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent(path))
}

fn place(made: &Path, path: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, made, CWD, path, RenameFlags::NOREPLACE) {
        // Some filesystems cannot do that. The other way, a directory takes the place of an empty one alone.
        Err(Errno::INVAL | Errno::NOSYS) => rename(made, path),
        placed => placed,
    }
}

/// Where a path leads to; of one part, to the directory that the process is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write(directory: &OwnedFd, file: &str, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, file, flags, Mode::from_raw_mode(0o666))?;
    File::from(file).write_all(content)
}

fn unwritten(path: &Path, source: io::Error) -> RecordFilesError {
    RecordFilesError::Write {
        path: path.to_owned(),
        source,
    }
}
