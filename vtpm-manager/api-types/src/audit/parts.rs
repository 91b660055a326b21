//! The files that a log is: `audit.jsonl` is the newest part, `audit-00000001.jsonl` the first.
//!
//! A part that is full has its number as a second name before an empty one takes its place: while
//! it goes by both names, it is one part.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use durable_file::folder_of;

use super::{LogError, MAX_LINE};

/// The parts that there were at one moment.
#[derive(Debug)]
pub struct Parts {
    /// Where the newest one is.
    path: PathBuf,
    /// The others in their order, without a gap.
    older: Vec<Older>,
    newest: File,
}

#[derive(Debug)]
struct Older {
    number: u32,
    path: PathBuf,
}

/// Where a line is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The part.
    pub path: &'a Path,
    /// Counted from one in its part.
    pub line: u64,
    /// The part before.
    pub before: Option<&'a Path>,
}

impl Parts {
    /// Finds the parts of the log whose newest part is at `path`.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        match File::open(path) {
            Ok(newest) => Self::up_to(path, newest),
            Err(source) => Err(match list(path)?.pop() {
                Some(last) if source.kind() == io::ErrorKind::NotFound => LogError::Missing {
                    path: path.to_owned(),
                    beside: last.path,
                },
                _ => cannot_be_read(path)(source),
            }),
        }
    }

    /// The parts before this one, which was the newest when it was opened. It may have a number by
    /// now, and others have been begun: a manager may go on meanwhile.
    pub fn up_to(path: &Path, newest: File) -> Result<Self, LogError> {
        let opened = newest.metadata().map_err(cannot_be_read(path))?;
        let mut older = list(path)?;
        let is_opened =
            |part: &Older| fs::metadata(&part.path).is_ok_and(|part| same(&part, &opened));
        if let Some(index) = older.iter().rposition(is_opened) {
            older.truncate(index);
        }
        check_numbers(path, &older)?;
        Ok(Self {
            path: path.to_owned(),
            older,
            newest,
        })
    }

    /// Where the newest one is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many files.
    pub fn count(&self) -> u64 {
        self.older.len() as u64 + 1
    }

    /// The number that the newest part will have.
    pub fn next_number(&self) -> u32 {
        self.older
            .last()
            .map_or(1, |last| last.number.saturating_add(1))
    }

    /// Reads the parts line by line in their order. A line comes with its line feed, and at most
    /// [`MAX_LINE`] bytes of it at once.
    pub fn each_line(
        self,
        mut at: impl FnMut(&Place<'_>, &[u8]) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let mut before = None;
        for Older { path, .. } in &self.older {
            let file = File::open(path).map_err(cannot_be_read(path))?;
            let lines = lines_of(file, path, before, &mut at)?;
            if lines == 0 {
                return Err(LogError::Broken {
                    path: path.clone(),
                    line: 1,
                    problem: "the part is empty",
                });
            }
            before = Some(path.as_path());
        }
        lines_of(self.newest, &self.path, before, &mut at)?;
        Ok(())
    }
}

/// Returns how many lines there were.
fn lines_of(
    file: File,
    path: &Path,
    before: Option<&Path>,
    at: &mut impl FnMut(&Place<'_>, &[u8]) -> Result<(), LogError>,
) -> Result<u64, LogError> {
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    let mut lines = 0;
    loop {
        text.clear();
        let read = Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut text);
        if read.map_err(cannot_be_read(path))? == 0 {
            return Ok(lines);
        }
        lines += 1;
        let place = Place {
            path,
            line: lines,
            before,
        };
        at(&place, &text)?;
    }
}

fn cannot_be_read(path: &Path) -> impl Fn(io::Error) -> LogError {
    move |source| LogError::File {
        path: path.to_owned(),
        action: "read",
        source,
    }
}

/// Whether these are one file, under two names perhaps.
pub fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The name of the part with this number, of the log whose newest part is at `path`.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number:08}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The numbered parts that there are, in their order.
fn list(path: &Path) -> Result<Vec<Older>, LogError> {
    let folder = folder_of(path);
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot_be_read(folder))? {
        let name = entry.map_err(cannot_be_read(folder))?.file_name();
        if let Some(number) = number_in(path, &name) {
            parts.push(Older {
                number,
                path: path.with_file_name(name),
            });
        }
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

fn number_in(path: &Path, name: &OsStr) -> Option<u32> {
    let mut start: OsString = path.file_stem()?.to_owned();
    start.push("-");
    let digits = name.as_bytes().strip_prefix(start.as_bytes())?;
    let digits = digits.split(|byte| *byte == b'.').next()?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (numbered(path, number).file_name() == Some(name)).then_some(number)
}

fn check_numbers(path: &Path, older: &[Older]) -> Result<(), LogError> {
    for (one, next) in older.iter().zip(older.iter().skip(1)) {
        if one.number.checked_add(1) != Some(next.number) {
            return Err(LogError::Missing {
                path: numbered(path, one.number.saturating_add(1)),
                beside: next.path.clone(),
            });
        }
    }
    Ok(())
}
