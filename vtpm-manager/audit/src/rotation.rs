//! How the audit log gets a new part, in three steps:
//!
//! 1. an empty file `audit.jsonl.new` is made;
//! 2. the full part gets its number as a second name, never in the place of another file;
//! 3. the empty file takes the name `audit.jsonl`.
//!
//! So there is a newest part at each moment. What ends the manager after step 1 leaves a file that
//! the next attempt removes; after step 2, a part that goes by two names, which is one part, and
//! the next attempt continues with step 3; after step 3, an empty part, which is as good as any.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api_types::audit::{numbered, same};
use durable_file::sync_folder_of;

/// A full part that gets its number.
pub(super) struct Rotation<'a> {
    path: &'a Path,
    numbered: PathBuf,
}

impl<'a> Rotation<'a> {
    pub(super) fn new(path: &'a Path, number: u32) -> Self {
        Self {
            path,
            numbered: numbered(path, number),
        }
    }

    /// First step.
    pub(super) fn make_next(&self) -> io::Result<File> {
        let next = self.next();
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) | Ok(()) => {}
        }
        OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)
    }

    /// Second step. The number is on the disk before the name `audit.jsonl` is given away.
    pub(super) fn number(&self) -> io::Result<()> {
        match fs::hard_link(self.path, &self.numbered) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (one, other) = (fs::metadata(self.path)?, fs::metadata(&self.numbered)?);
                if !same(&one, &other) {
                    return Err(error);
                }
            }
            linked => linked?,
        }
        sync_folder_of(self.path)
    }

    /// Third step. It is on the disk with the next write to the folder.
    pub(super) fn replace(&self) -> io::Result<()> {
        fs::rename(self.next(), self.path)
    }

    fn next(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        name.into()
    }
}
