//! Writing a directory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use archive::records::RecordName;
use rustix::fs::{CWD, Mode, OFlags, mkdir, mkdirat, openat, syncfs};
use rustix::io::Errno;

use crate::error::RecordFilesError;

/// A directory that was made for records. Modes are what the process's mask leaves of 0777 and 0666.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
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
        let made = mkdir(path, Mode::from_raw_mode(0o777))
            .and_then(|()| openat(CWD, path, DIRECTORY, Mode::empty()));
        Ok(Self {
            folder: made.map_err(|errno| unwritten(path, errno.into()))?,
            path: path.to_owned(),
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

    /// Has everything outlive a loss of power.
    pub fn finish(self) -> Result<(), RecordFilesError> {
        syncfs(&self.folder).map_err(|errno| unwritten(&self.path, errno.into()))
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
