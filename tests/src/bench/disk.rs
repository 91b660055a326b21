//! The folder on a real disk where ours and the peers keep what must survive, and how long that
//! disk takes by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;
use test_support::programs::target_folder;

/// The folder; it goes away with this value, or, if the run is killed, with the next run.
#[derive(Debug)]
pub(super) struct Disk {
    folder: TempDir,
    // Locked as long as the folder is in use.
    _lock: File,
}

/// A file that is written and made durable again and again.
#[derive(Debug)]
pub(super) struct BareFile {
    file: File,
    written: u8,
}

const PREFIX: &str = "bench-disk-";
const LOCK: &str = "in-use";
/// One page, as a store's smallest commit.
const PAGE: usize = 4096;
const PAGES: u64 = 64;
/// From one written page to the next; odd, so that all pages have their turn.
const APART: u64 = 5;

impl Disk {
    /// An empty folder below cargo's target folder.
    pub(super) fn create() -> Result<Self> {
        let target = target_folder()?;
        remove_those_left_behind(&target)?;
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&target)
            .with_context(|| format!("creating a folder in {}", target.display()))?;
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock()?;
        let kind = statfs(folder.path())?.filesystem_type();
        ensure!(
            kind != TMPFS_MAGIC,
            "{} lies in memory, where nothing becomes durable: set CARGO_TARGET_DIR to a folder \
             on a disk",
            target.display()
        );
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// A path in the folder.
    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
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

impl BareFile {
    /// Writes a page and waits for the disk (`fdatasync`, the cheaper kind, as the store does);
    /// how long that took.
    pub(super) fn write(&mut self) -> Result<Duration> {
        self.write_pages(1)
    }

    /// The same for so many pages that do not lie side by side.
    pub(super) fn write_pages(&mut self, count: u64) -> Result<Duration> {
        let begin = Instant::now();
        for _ in 0..count {
            self.written = self.written.wrapping_add(1);
            let page = u64::from(self.written) * APART % PAGES;
            self.file
                .seek(SeekFrom::Start(page * u64::try_from(PAGE)?))?;
            self.file.write_all(&[self.written; PAGE])?;
        }
        self.file.sync_data()?;
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

/// So many bytes in whole pages.
pub(super) fn pages(bytes: f64) -> u64 {
    (bytes / PAGE as f64).ceil() as u64
}

fn remove_those_left_behind(target: &Path) -> Result<()> {
    for entry in fs::read_dir(target).with_context(|| target.display().to_string())? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let unused = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if unused {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_nobody_uses_any_more_goes_and_others_stay() -> Result<()> {
        let used = Disk::create()?;
        let left = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(target_folder()?)?
            .keep();
        File::create(left.join(LOCK))?;
        remove_those_left_behind(&target_folder()?)?;
        assert!(!left.exists());
        assert!(used.join(LOCK).exists());
        Ok(())
    }
}
