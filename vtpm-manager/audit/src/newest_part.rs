//! The file that lines are appended to: whole lines, or nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api_types::audit::MAX_LINE;
use durable_file::sync_folder_of;

use super::rotation::Rotation;

/// The newest part of a log, open for appending.
#[derive(Debug)]
pub(super) struct NewestPart {
    path: PathBuf,
    pub(super) file: File,
    /// How long it is, as far as it was told to anybody.
    length: u64,
    /// The number that it gets when it is full.
    number: u32,
    /// Set after a failed attempt that could not be taken back: there is more than `length` in it.
    pub(super) untidy: bool,
    /// The name may not be on the disk yet.
    new_name: bool,
}

impl NewestPart {
    /// Opens it; `number` is the one that it gets when it is full.
    pub(super) fn open(path: &Path, number: u32) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        let unfinished = cut_unfinished_line(&mut file)?;
        if unfinished > 0 {
            tracing::warn!(
                bytes = unfinished,
                "the audit log ended in an unfinished line, of which nobody was told; it is removed"
            );
        }
        Ok(Self {
            path: path.to_owned(),
            length: file.metadata()?.len(),
            file,
            number,
            untidy: false,
            new_name: true,
        })
    }

    /// Whether so many bytes more are within the size that a part has. An empty part takes any.
    pub(super) fn has_room_for(&self, bytes: u64, part_bytes: u64) -> bool {
        self.length == 0 || self.length.saturating_add(bytes) <= part_bytes
    }

    /// Gives this part its number, and begins an empty one. After a failure this one goes on.
    pub(super) fn begin_next(&mut self) -> io::Result<()> {
        self.tidy_up()?;
        let rotation = Rotation::new(&self.path, self.number);
        let next = rotation.make_next()?;
        rotation.number()?;
        rotation.replace()?;
        self.file = next;
        self.length = 0;
        self.number = self.number.saturating_add(1);
        self.new_name = true;
        Ok(())
    }

    /// Writes complete lines, or nothing.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.tidy_up()?;
        if self.new_name {
            sync_folder_of(&self.path)?;
            self.new_name = false;
        }
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.length += lines.len() as u64,
            Err(_) => {
                // What was written may be part of a line, or a line that nobody was told of.
                self.untidy = true;
                let _ = self.tidy_up();
            }
        }
        written
    }

    /// Takes back what a failed attempt left: nothing may follow it.
    fn tidy_up(&mut self) -> io::Result<()> {
        if self.untidy {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.min(self.length))?;
            self.untidy = false;
        }
        Ok(())
    }
}

/// Makes the first file of a new log.
pub(super) fn make_first(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// A crash can leave part of a line, whose event was not acknowledged to anybody. Returns the number
/// of bytes that were cut off.
fn cut_unfinished_line(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut tail)?;
    let finished = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(position) => start + position as u64 + 1,
        None => start,
    };
    if finished < length {
        file.set_len(finished)?;
        file.sync_all()?;
    }
    Ok(length - finished)
}
