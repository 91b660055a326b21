//! The folder on a real disk where ours and the peers keep what must survive, and how long that
//! disk takes by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::workspace_binaries::target_folder;

/// The folder; it goes away with this value.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

/// A file that is written and made durable again and again.
#[derive(Debug)]
pub(super) struct BareFile {
    file: File,
    written: u8,
}

/// One page, as a store's smallest commit.
const PAGE: usize = 4096;
const PAGES: u64 = 64;

impl Disk {
    /// An empty folder below cargo's target folder.
    pub(super) fn create() -> Result<Self> {
        let folder = target_folder()?.join("bench-disk");
        remove(&folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let kind = statfs(&folder)?.filesystem_type();
        ensure!(
            kind != TMPFS_MAGIC,
            "{} lies in memory, where nothing becomes durable: set CARGO_TARGET_DIR to a folder \
             on a disk",
            folder.display()
        );
        Ok(Self { folder })
    }

    /// A path in the folder.
    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// A file for bare writes.
    pub(super) fn bare_file(&self) -> Result<BareFile> {
        let path = self.join("bare");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        // Written in full first: afterwards the file system has no new blocks to note.
        for _ in 0..PAGES {
            file.write_all(&[0; PAGE])?;
        }
        file.sync_all()?;
        Ok(BareFile { file, written: 0 })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            eprintln!("{error:#}");
        }
    }
}

impl BareFile {
    /// Writes a page and waits for the disk; how long that took.
    pub(super) fn write(&mut self) -> Result<Duration> {
        self.written = self.written.wrapping_add(1);
        let page = u64::from(self.written) % PAGES;
        let begin = Instant::now();
        self.file
            .seek(SeekFrom::Start(page * u64::try_from(PAGE)?))?;
        self.file.write_all(&[self.written; PAGE])?;
        self.file.sync_all()?;
        Ok(begin.elapsed())
    }

    /// How many times a second that goes, one after the other, over such a time.
    pub(super) fn rate(&mut self, window: Duration) -> Result<f64> {
        let begin = Instant::now();
        let mut count = 0.0;
        while begin.elapsed() < window {
            self.write()?;
            count += 1.0;
        }
        Ok(count / begin.elapsed().as_secs_f64())
    }
}

/// Backends that are just ending may still write below it.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
